"""Sequential scaling: accuracy against the thinking budget, of one model and of two.

Everything here is linear in the accuracy of a problem, so that one resampling of problems gives
intervals for all of it.

Shape suffixes: P problems, B budgets.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from snapfit.core.resample import SHARE, Interval, mean_interval, ratio_interval

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Outcomes:
    """How often a model solved each problem of one family.

    Attributes:
        accuracy_PB: share of the samples that were right, by problem and budget.
        budgets: thinking tokens, increasing; (0,) where nothing is thought.
        samples: samples a problem.

    """

    accuracy_PB: Floats
    budgets: tuple[int, ...]
    samples: int

    @property
    def problems(self) -> int:
        """P."""
        return len(self.accuracy_PB)

    def at(self, seed: int = 0) -> list[Interval]:
        """Accuracy at every budget, with its interval over problems."""
        return [mean_interval(column_P, seed=seed, reach=SHARE) for column_P in self.accuracy_PB.T]

    @property
    def height_P(self) -> Floats:
        """Mean height of the curve over log2 of the budget, of every problem.

        The area under the curve by the trapezium rule, divided by the width; with one budget, the
        accuracy itself.
        """
        return np.asarray(self.accuracy_PB @ _trapezium(self.budgets), dtype=np.float64)

    def height(self, seed: int = 0) -> Interval:
        """Mean height, with its interval over problems."""
        return mean_interval(self.height_P, seed=seed, reach=SHARE)

    @property
    def slope_P(self) -> Floats:
        """Least-squares gain in accuracy a doubling of the budget; NaN with one budget."""
        return np.asarray(self.accuracy_PB @ _slope(self.budgets), dtype=np.float64)

    def slope(self, seed: int = 0) -> Interval | None:
        """Mean slope, with its interval over problems; None with one budget."""
        if len(self.budgets) == 1:
            return None
        steepest = float(_slope(self.budgets).clip(min=0).sum())
        return mean_interval(self.slope_P, seed=seed, reach=(-steepest, steepest))


def retained(base: Outcomes, other: Outcomes, *, seed: int = 0) -> Interval:
    """Area under the other's curve relative to the base's, over the same problems."""
    return ratio_interval(other.height_P, base.height_P, seed=seed)


def difference(base: Outcomes, other: Outcomes, *, seed: int = 0) -> list[Interval]:
    """Accuracy of the other minus the base's at every budget, paired by problem."""
    gap_PB = other.accuracy_PB - base.accuracy_PB
    return [mean_interval(column_P, seed=seed, reach=(-1.0, 1.0)) for column_P in gap_PB.T]


def _trapezium(budgets: tuple[int, ...]) -> Floats:
    if len(budgets) == 1:
        return np.ones(1)
    place = np.log2(np.array(budgets, dtype=np.float64))
    gaps = np.diff(place)
    weights = np.zeros(len(place))
    weights[:-1] += gaps / 2
    weights[1:] += gaps / 2
    return np.asarray(weights / (place[-1] - place[0]), dtype=np.float64)


def _slope(budgets: tuple[int, ...]) -> Floats:
    if len(budgets) == 1:
        return np.full(1, np.nan)
    place = np.log2(np.array(budgets, dtype=np.float64))
    centred = place - place.mean()
    return np.asarray(centred / (centred @ centred), dtype=np.float64)
