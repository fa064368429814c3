"""pass@k and maj@k, against enumeration."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapfit.core.errors import UsageError
from snapfit.core.passk import maj_at_k, majority, pass_at_k, powers_of_two


def same(a: str, b: str) -> bool:
    return a.lower() == b.lower()


@given(st.lists(st.booleans(), min_size=1, max_size=8), st.data())
def test_pass_at_k_is_the_share_of_subsets_with_a_hit(row: list[bool], data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(row)))
    subsets = list(combinations(row, k))
    expected = sum(any(subset) for subset in subsets) / len(subsets)
    assert pass_at_k(np.array([row]), k)[0] == pytest.approx(expected)


def test_each_problem_has_its_own() -> None:
    correct_PS = np.array([[True, False], [False, False], [True, True]])
    assert pass_at_k(correct_PS, 1).tolist() == [0.5, 0.0, 1.0]
    assert pass_at_k(correct_PS, 2).tolist() == [1.0, 0.0, 1.0]


@pytest.mark.parametrize("k", [0, 3])
def test_k_is_within_the_samples(k: int) -> None:
    with pytest.raises(UsageError, match="from 1 to the 2 samples"):
        pass_at_k(np.ones((1, 2), dtype=bool), k)


def test_powers_of_two_end_with_all_samples() -> None:
    assert powers_of_two(1) == (1,)
    assert powers_of_two(8) == (1, 2, 4, 8)
    assert powers_of_two(12) == (1, 2, 4, 8, 12)


def test_the_majority_is_by_equivalence() -> None:
    assert majority(["b", "A", "a", None], same) == 1


def test_of_equal_classes_the_first_seen_wins() -> None:
    assert majority([None, "b", "a", "A", "B"], same) == 1


def test_nobody_answered() -> None:
    assert majority([None, None], same) is None
    assert maj_at_k([None, None], [False, False], same, 2) == 0.0


def test_maj_at_k_uses_every_whole_group() -> None:
    answers = ["a", "A", "b", "b", "a", "c"]
    correct = [True, True, False, False, True, False]
    assert maj_at_k(answers, correct, same, 1) == 0.5
    # Groups (a A b) and (b a c): right, and wrong because 'b' was seen first.
    assert maj_at_k(answers, correct, same, 3) == 0.5
    assert maj_at_k(answers, correct, same, 6) == 1.0
