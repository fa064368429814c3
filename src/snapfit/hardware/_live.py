"""A timer that measures: every operator once, when it is first asked for.

What differs between devices is only how calls are clocked; a `Clock` does that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from snapfit.core.errors import UsageError
from snapfit.core.operators import Estimate, Operator

DTYPES = ("float32", "bfloat16", "float16")
"""What a live device can be timed in."""


class Clock(Protocol):
    """Measures operators on one device."""

    def samples(self, operator: Operator, dtype: str) -> Samples:
        """Time an operator again and again.

        Raises:
            SnapfitError: it cannot run there.

        """

    def software(self) -> str:
        """Versions, threads or clocks: what the times depend on."""


@dataclass(frozen=True, kw_only=True)
class Samples:
    """Repeated times of one operator.

    Attributes:
        microseconds: one a run, or the mean of a block of runs; at least one.
        how: what was run, in a few words.

    """

    microseconds: Sequence[float]
    how: str

    def estimate(self) -> Estimate:
        """The median, with half the interquartile range over it."""
        low, median, high = np.percentile(np.asarray(self.microseconds), (25, 50, 75))
        spread = float((high - low) / 2 / median)
        return Estimate(microseconds=float(median), spread=spread, source="measured", how=self.how)


class LiveTimer:
    """Measures operators on the device at hand and remembers the answers."""

    def __init__(self, device: str, dtype: str, clock: Clock) -> None:
        """Measure nothing yet.

        Raises:
            UsageError: `dtype` is none that can be timed.

        """
        if dtype not in DTYPES:
            raise UsageError(f"{device} is timed in {', '.join(DTYPES)}, not in {dtype!r}")
        self.device = device
        self.dtype = dtype
        self._clock = clock
        self._known: dict[Operator, Estimate] = {}

    def time(self, operator: Operator) -> Estimate:
        """The time of one operator, measured now unless it was before.

        Raises:
            SnapfitError: the device cannot run it.

        """
        if operator not in self._known:
            self._known[operator] = self._clock.samples(operator, self.dtype).estimate()
        return self._known[operator]

    def software(self) -> str:
        """Versions, threads or clocks: what the times depend on."""
        return self._clock.software()

    def with_dtype(self, dtype: str) -> LiveTimer:
        """A timer of the same device in another data type."""
        return self if dtype == self.dtype else LiveTimer(self.device, dtype, self._clock)
