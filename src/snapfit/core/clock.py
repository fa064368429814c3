"""Seconds and peak memory of the stages of a job."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field


@dataclass(kw_only=True)
class Clock:
    """Notes what each stage took; a stage that runs twice is added up.

    Attributes:
        seconds: wall-clock seconds by stage.
        peak_bytes: the process's largest resident size so far, at the end of each stage.
    """

    seconds: dict[str, float] = field(default_factory=dict)
    peak_bytes: dict[str, int] = field(default_factory=dict)

    @contextlib.contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Time the block as `stage`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            took = time.perf_counter() - start
            self.seconds[stage] = self.seconds.get(stage, 0.0) + took
            if (peak := peak_resident_bytes()) is not None:
                self.peak_bytes[stage] = peak


def peak_resident_bytes() -> int | None:
    """Largest resident size of this process since it began; None where the system cannot say."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
