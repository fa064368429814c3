"""Intervals by resampling problems: a problem is what a claim generalises over, samples are not.

Shape suffixes: P problems, R resamples.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

SHARE = (0.0, 1.0)
"""Least and most of an accuracy, pass@k or maj@k."""

RESAMPLES = 2000
LEVEL = 0.95


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A figure and its interval.

    Attributes:
        value: over all problems.
        low: lower end; NaN where fewer than two problems were there to resample.
        high: upper end.

    """

    value: float
    low: float
    high: float


def bootstrap(statistic: Callable[[Floats], Floats], problems: int, *, seed: int = 0) -> Interval:
    """Percentile interval of a statistic of problems.

    Where all problems agree it has no width, although the next problem may surprise: see
    `mean_interval` for means, and `snapfit.core.verdict` for ratios.

    Args:
        statistic: from weights (R, P), each row summing to 1, to values (R,); a weighted mean for
            instance. Undefined values may be NaN and are left out.
        problems: P.
        seed: of the resampling; the same for two models makes their difference a paired one.

    """
    uniform = np.full((1, problems), 1 / max(problems, 1))
    value = float(statistic(uniform)[0])
    if problems < 2:
        return Interval(value=value, low=float("nan"), high=float("nan"))
    counts = np.random.default_rng(seed).multinomial(
        problems, np.full(problems, 1 / problems), size=RESAMPLES
    )
    drawn = statistic(counts / problems)
    drawn = drawn[np.isfinite(drawn)]
    if drawn.size < RESAMPLES / 2:
        return Interval(value=value, low=float("nan"), high=float("nan"))
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail])
    return Interval(value=value, low=float(low), high=float(high))


def mean_interval(
    values_P: Floats, *, seed: int = 0, reach: tuple[float, float] | None = None
) -> Interval:
    """Interval of a mean over problems.

    Args:
        values_P: what each problem is worth.
        seed: of the resampling.
        reach: the least and the most that a problem can be worth. Where all problems agree,
            resampling sees no width, although of P problems without a surprise up to 3/P of all
            may surprise (the rule of three). Then the ends are where those would move the mean.

    """
    found = bootstrap(lambda weights_RP: weights_RP @ values_P, len(values_P), seed=seed)
    # Weights of 1/P do not quite sum to 1.
    value = float(values_P.mean())
    if reach is None or len(values_P) < 2 or np.ptp(values_P) > 0:
        return replace(found, value=value)
    share = min(1.0, 3 / len(values_P))
    low, high = (value + share * (end - value) for end in reach)
    return Interval(value=value, low=low, high=high)


def ratio_interval(top_P: Floats, bottom_P: Floats, *, seed: int = 0) -> Interval:
    """Interval of a ratio of two means over the same problems, resampled together."""

    def ratio(weights_RP: Floats) -> Floats:
        bottom_R = weights_RP @ bottom_P
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(bottom_R > 0, (weights_RP @ top_P) / bottom_R, np.nan)

    return bootstrap(ratio, len(top_P), seed=seed)
