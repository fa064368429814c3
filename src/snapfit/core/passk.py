"""Parallel scaling: what k samples a problem are worth.

Shape suffixes: P problems, S samples a problem.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import comb
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from snapfit.core.errors import UsageError

Answer = TypeVar("Answer")


def pass_at_k(correct_PS: NDArray[np.bool_], k: int) -> NDArray[np.float64]:
    """Probability that at least one of k samples is right, of every problem, (P,).

    The unbiased estimator 1 - C(n - c, k) / C(n, k) of arXiv 2107.03374, for n samples of which c
    are right, in exact integers.

    Raises:
        UsageError: k is not between 1 and the number of samples.

    """
    samples = correct_PS.shape[1]
    _check(k, samples)
    table = [1 - comb(samples - right, k) / comb(samples, k) for right in range(samples + 1)]
    return np.asarray(np.array(table)[correct_PS.sum(axis=1)], dtype=np.float64)


def powers_of_two(samples: int) -> tuple[int, ...]:
    """The k that are reported: 1, 2, 4, ... and all samples."""
    return (*(1 << power for power in range(samples.bit_length()) if 1 << power < samples), samples)


def majority(
    answers: Sequence[Answer | None], same: Callable[[Answer, Answer], bool]
) -> int | None:
    """Index of the sample that the majority agrees with; None if no sample has an answer.

    Answers are put together by equivalence, not by spelling; of equally large classes the one
    that was seen first wins.

    Args:
        answers: of one problem's samples, None where there is none.
        same: whether two answers are equivalent.

    """
    classes: list[list[int]] = []
    for index, answer in enumerate(answers):
        if answer is None:
            continue
        for members in classes:
            first = answers[members[0]]
            if first is not None and same(first, answer):
                members.append(index)
                break
        else:
            classes.append([index])
    return max(classes, key=len)[0] if classes else None


def maj_at_k(
    answers: Sequence[Answer | None],
    correct: Sequence[bool],
    same: Callable[[Answer, Answer], bool],
    k: int,
) -> float:
    """Share of the disjoint groups of k samples whose majority answer is right, of one problem.

    All n samples are used: n // k groups in the order they were drawn.

    Raises:
        UsageError: k is not between 1 and the number of samples.

    """
    _check(k, len(answers))
    hits = []
    for start in range(0, len(answers) - k + 1, k):
        chosen = majority(answers[start : start + k], same)
        hits.append(chosen is not None and bool(correct[start + chosen]))
    return sum(hits) / len(hits)


def _check(k: int, samples: int) -> None:
    if not 1 <= k <= samples:
        raise UsageError(f"k is from 1 to the {samples} samples of a problem; got {k}")
