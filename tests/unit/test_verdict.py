"""The verdict on synthetic data whose truth is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from snapfit.core import verdict as rule
from snapfit.core.curves import Outcomes, difference, retained
from snapfit.core.resample import SHARE, bootstrap, mean_interval, ratio_interval
from snapfit.core.verdict import judge, judge_family

BUDGETS = (64, 128, 256)


def outcomes(
    share: float, problems: int, *, seed: int = 0, samples: int = 4, base: float = 0.8
) -> Outcomes:
    """A model that solves each problem with its own probability times `share`."""
    rng = np.random.default_rng(1)
    hardness_P = rng.beta(4 * base, 4 * (1 - base), size=problems)
    chance_PB = share * hardness_P[:, None] * np.array([0.6, 0.9, 1.0])
    right = np.random.default_rng(seed).binomial(samples, chance_PB) / samples
    return Outcomes(accuracy_PB=right, budgets=BUDGETS, samples=samples)


def label(share: float, problems: int, **options: float) -> str:
    base = outcomes(1.0, problems, seed=1, **options)  # type: ignore[arg-type]
    other = outcomes(share, problems, seed=2, **options)  # type: ignore[arg-type]
    return judge_family(base, other, name="long").label


@pytest.mark.parametrize(
    ("share", "expected"),
    [(1.0, rule.KEEPS), (0.75, rule.WEAKENED), (0.3, rule.BROKEN), (0.0, rule.BROKEN)],
)
def test_the_truth_is_found_with_enough_problems(share: float, expected: str) -> None:
    assert label(share, 800) == expected


@pytest.mark.parametrize("share", [1.0, 0.9, 0.8])
def test_a_few_problems_say_nothing(share: float) -> None:
    assert label(share, 8) == rule.UNKNOWN


def test_wrong_verdicts_are_rare() -> None:
    """Just above KEEP nothing may be called weakened, just below it nothing may be kept."""
    wrong = 0
    for seed in range(40):
        base = outcomes(1.0, 100, seed=2 * seed)
        better = judge_family(base, outcomes(0.93, 100, seed=2 * seed + 1), name="long")
        worse = judge_family(base, outcomes(0.87, 100, seed=2 * seed + 1), name="long")
        wrong += better.label in {rule.WEAKENED, rule.BROKEN}
        wrong += worse.label in {rule.KEEPS, rule.BROKEN}
    assert wrong <= 6


def test_identical_models_need_thirty_problems() -> None:
    for problems, expected in ((29, rule.UNKNOWN), (30, rule.KEEPS)):
        perfect = Outcomes(accuracy_PB=np.ones((problems, 1)), budgets=(0,), samples=1)
        found = judge_family(perfect, perfect, name="long")
        assert found.label == expected
        assert found.retained.value == 1.0
        if expected == rule.UNKNOWN:
            assert found.needed is not None
            assert 30 <= found.needed <= 33


def test_a_base_that_solves_nothing_cannot_be_judged_by() -> None:
    nothing = Outcomes(accuracy_PB=np.zeros((100, 1)), budgets=(64,), samples=1)
    found = judge_family(nothing, nothing, name="long")
    assert found.label == rule.UNKNOWN
    assert found.needed is None
    assert "the original itself solves 0.0%" in found.reason
    assert found.reason.endswith("more would not help")


def test_a_base_that_might_still_solve_enough_is_not_given_up() -> None:
    nothing = Outcomes(accuracy_PB=np.zeros((20, 1)), budgets=(64,), samples=1)
    found = judge_family(nothing, nothing, name="long")
    assert (found.label, found.needed) == (rule.UNKNOWN, None)
    assert found.reason.endswith("more would help only if it really solves over 5%")


def test_the_number_that_would_be_enough_is_enough() -> None:
    found = judge_family(outcomes(1.0, 25, seed=1), outcomes(0.8, 25, seed=4), name="long")
    assert found.label == rule.UNKNOWN
    assert found.needed is not None
    assert 25 < found.needed < 5_000
    assert label(0.8, 2 * found.needed) == rule.WEAKENED


def test_only_the_threshold_that_decides_counts_towards_what_is_needed() -> None:
    """Little above BREAK, "broken" is far from being sure, but "weakened" soon is."""
    solved_P1 = np.repeat([1.0, 0.0], [4, 3])[:, None]
    found = judge_family(
        Outcomes(accuracy_PB=np.ones((7, 1)), budgets=(64,), samples=1),
        Outcomes(accuracy_PB=solved_P1, budgets=(64,), samples=1),
        name="long",
    )
    assert found.label == rule.UNKNOWN
    assert found.needed is not None
    # The upper end, 4/7 + 3/7, has to come below 0.9.
    assert found.needed == math.ceil(7 * ((3 / 7) / (0.9 - 4 / 7)) ** 2)


@pytest.mark.parametrize("solved", [0.0, 1.0])
def test_one_problem_says_nothing_and_more_would_help(solved: float) -> None:
    one = Outcomes(accuracy_PB=np.full((1, 1), solved), budgets=(64,), samples=1)
    found = judge_family(one, one, name="long")
    assert (found.label, found.needed) == (rule.UNKNOWN, 30)
    assert found.reason.endswith("about 30 problems would be enough")


def test_the_worst_reasoning_family_decides_and_knowledge_does_not() -> None:
    good, bad = outcomes(1.0, 400, seed=1), outcomes(0.2, 400, seed=2)
    assert judge({"long": good, "knowledge": good}, {"long": good, "knowledge": bad}).label == (
        rule.KEEPS
    )
    found = judge({"short": good, "long": good}, {"short": good, "long": bad})
    assert found.label == rule.BROKEN
    assert found.reasons[0].startswith("long:")
    assert found.families["short"].label == rule.KEEPS


def test_without_a_reasoning_task_nothing_is_said() -> None:
    good = outcomes(1.0, 400)
    assert judge({"knowledge": good}, {"knowledge": good}).label == rule.UNKNOWN


def test_different_problems_are_a_programming_error() -> None:
    with pytest.raises(ValueError, match="different problems"):
        judge_family(outcomes(1.0, 4), outcomes(1.0, 5), name="long")


def test_the_area_is_over_the_logarithm_of_the_budget() -> None:
    ramp = Outcomes(accuracy_PB=np.array([[0.0, 0.5, 1.0]]), budgets=BUDGETS, samples=1)
    assert ramp.height_P[0] == pytest.approx(0.5)
    assert ramp.slope_P[0] == pytest.approx(0.5)
    uneven = Outcomes(accuracy_PB=np.array([[0.0, 1.0]]), budgets=(1, 1024), samples=1)
    assert uneven.slope_P[0] == pytest.approx(0.1)
    single = Outcomes(accuracy_PB=np.array([[0.25]]), budgets=(0,), samples=1)
    assert single.height_P[0] == 0.25
    assert math.isnan(single.slope_P[0])


def test_differences_are_paired() -> None:
    base = outcomes(1.0, 50, seed=3)
    shifted = Outcomes(
        accuracy_PB=base.accuracy_PB - 0.125, budgets=base.budgets, samples=base.samples
    )
    for gap in difference(base, shifted):
        assert gap.value == pytest.approx(-0.125)
        # All gaps agree: the rule of three, 3 of 50 problems at -1 or +1 instead.
        assert gap.low == pytest.approx(-0.125 - 3 / 50 * 0.875)
        assert gap.high == pytest.approx(-0.125 + 3 / 50 * 1.125)
    assert retained(base, base).low == retained(base, base).high == 1.0


def test_intervals_cover_the_truth() -> None:
    rng = np.random.default_rng(5)
    covered = 0
    for _ in range(200):
        values: NDArray[np.float64] = (rng.random(60) < 0.3).astype(np.float64)
        found = mean_interval(values)
        covered += found.low <= 0.3 <= found.high
    assert 180 <= covered <= 199


def test_intervals_of_many_problems_are_those_of_a_normal_mean() -> None:
    values = np.random.default_rng(6).normal(size=400)
    found = mean_interval(values)
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * values.std() / 20, rel=0.06)


@pytest.mark.parametrize(
    ("share", "problems", "low", "high"),
    [(0.0, 100, 0.0, 0.03), (1.0, 100, 0.97, 1.0), (0.5, 60, 0.475, 0.525), (1.0, 2, 0.0, 1.0)],
)
def test_problems_that_all_agree_may_still_surprise(
    share: float, problems: int, low: float, high: float
) -> None:
    found = mean_interval(np.full(problems, share), reach=SHARE)
    assert (found.value, found.low, found.high) == pytest.approx((share, low, high))


def test_a_flat_curve_may_still_have_a_slope() -> None:
    flat = Outcomes(accuracy_PB=np.ones((60, 2)), budgets=(1, 1024), samples=1)
    slope = flat.slope()
    assert slope is not None
    # From 0 to 1 over ten doublings, for 3 of 60 problems.
    assert (slope.value, slope.high) == pytest.approx((0.0, 0.1 * 3 / 60), abs=1e-12)


def test_one_problem_has_no_interval() -> None:
    assert math.isnan(mean_interval(np.ones(1)).low)
    assert math.isnan(ratio_interval(np.zeros(3), np.zeros(3)).low)
    alike = bootstrap(lambda w: w @ np.ones(4), 4)
    assert alike.low == alike.high == 1.0
