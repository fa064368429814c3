"""Legal sizes: multiples up to break-even, and dense."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import depth_group, heads_group, mlp_group, rank_group
from hypothesis import given
from hypothesis import strategies as st

from snapfit.core.candidates import AlignRule, legal_sizes
from snapfit.core.errors import UsageError
from snapfit.core.space import Group, Matrix


def rule(multiple: int, axis: str = "rank", source: str = "--align") -> AlignRule:
    return AlignRule(axis=axis, multiple=multiple, source=source)  # type: ignore[arg-type]


@given(st.integers(1, 200), st.integers(1, 200), st.integers(1, 40))
def test_sizes_are_multiples_below_break_even_and_dense(rows: int, cols: int, n: int) -> None:
    group = rank_group("g", rows, cols)
    sizes = legal_sizes(group, (rule(n),))
    assert sizes.dtype == np.int64
    assert sizes[-1] == group.full
    assert np.all(np.diff(sizes) > 0)
    for size in sizes[:-1]:
        assert size % n == 0
        assert group.params(int(size)) < group.dense_params
    assert len(sizes) - 1 == group.break_even // n


def test_without_rules_every_rank_up_to_break_even() -> None:
    assert legal_sizes(rank_group("g", 4, 12), ()).tolist() == [1, 2, 4]


def test_rules_combine_by_least_common_multiple() -> None:
    sizes = legal_sizes(rank_group("g", 96, 96), (rule(4), rule(6, "out")))
    assert sizes.tolist() == [12, 24, 36, 96]


def test_too_small_for_one_rule_stays_dense() -> None:
    assert legal_sizes(rank_group("g", 16, 16), (rule(64),)).tolist() == [16]


def test_clashing_rules_are_named() -> None:
    rules = (rule(8, source="--align 8"), rule(5, source="the vendor's table"))
    with pytest.raises(UsageError, match=r"multiples of 8 \(--align 8\) and multiples of 5 \(the"):
        legal_sizes(rank_group("g", 40, 40), rules)


def test_rules_bind_only_their_axis() -> None:
    matrix = Matrix(name="m", axis="out", rows=12, cols=8)
    group = Group(name="g", kind="width", matrices=(matrix,), full=12, role="up", layer=0)
    rules = (rule(4, "out"), rule(5, "in"))
    assert legal_sizes(group, rules).tolist() == [4, 8, 12]


def test_rules_about_heads_count_heads_and_their_features() -> None:
    group = heads_group(kv_heads=8, queries=3, head_dim=6)
    assert legal_sizes(group, (rule(3, "heads"),)).tolist() == [3, 6, 8]
    # 18 query features a unit and 6 key features: multiples of 4 need pairs of heads.
    assert legal_sizes(group, (rule(4, "out"),)).tolist() == [2, 4, 6, 8]
    assert legal_sizes(group, (rule(4, "rank"),)).tolist() == [2, 4, 6, 8]
    assert legal_sizes(group, (rule(4, "width"),)).tolist() == list(range(1, 9))


def test_rules_about_widths_bind_mlp_channels_only() -> None:
    group = mlp_group(channels=12)
    assert legal_sizes(group, (rule(5, "width"),)).tolist() == [5, 10, 12]
    assert legal_sizes(group, (rule(5, "heads"),)).tolist() == list(range(1, 13))
    assert legal_sizes(rank_group("g", 4, 12), (rule(2, "width"),)).tolist() == [1, 2, 4]


def test_a_part_that_may_go_has_size_zero() -> None:
    assert legal_sizes(mlp_group(channels=12, least=0), (rule(5),)).tolist() == [0, 5, 10, 12]


def test_layers_have_no_alignment() -> None:
    assert legal_sizes(depth_group(), (rule(16), rule(16, "out"))).tolist() == [1, 2, 3]


@pytest.mark.parametrize("multiple", [0, -8, 1.5])
def test_multiples_are_positive_integers(multiple: float) -> None:
    with pytest.raises(UsageError, match="positive integer"):
        rule(multiple)  # type: ignore[arg-type]
