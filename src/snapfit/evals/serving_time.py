"""How long a model takes beside another one: pairs of runs, one after the other, many times.

A machine that is busy with something else slows both of a pair, so ratios of pairs are what is
compared, never times of different minutes.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from snapfit.core.workload import Phase, Workload

PAIRS = 5
"""Paired runs of which the median is taken."""

STEPS = 32
"""Tokens that a decode phase generates; its time is that of one of them."""


class Timed(Protocol):
    """An engine that can be timed."""

    def prefill_seconds(self, batch: int, tokens: int) -> float:
        """Seconds from `batch` prompts of `tokens` tokens to the first token of all."""

    def step_seconds(self, batch: int, tokens: int, steps: int) -> float:
        """Seconds of a step that adds a token to each of `batch` sequences of about `tokens`."""


@dataclass(frozen=True, kw_only=True)
class PhaseTime:
    """Times of one phase of the workload.

    Attributes:
        phase: which.
        seconds: of the compressed model, one a run.
        dense: of the dense model in the same runs; empty where there is none.

    """

    phase: Phase
    seconds: tuple[float, ...]
    dense: tuple[float, ...] = ()

    @property
    def median(self) -> float:
        """Seconds of the compressed model."""
        return statistics.median(self.seconds)

    @property
    def dense_median(self) -> float | None:
        """Seconds of the dense model."""
        return statistics.median(self.dense) if self.dense else None

    @property
    def ratios(self) -> tuple[float, ...]:
        """Time over the dense model's, a pair at a time."""
        return tuple(ours / theirs for ours, theirs in zip(self.seconds, self.dense, strict=True))

    @property
    def tokens_per_second(self) -> float:
        """Tokens that go through the model in a second."""
        return self.phase.rows / self.median

    def to_json(self) -> dict[str, Any]:
        """A JSON-serialisable dictionary."""
        data: dict[str, Any] = {
            "phase": str(self.phase),
            "seconds": list(self.seconds),
            "median_s": self.median,
            "tokens_per_s": self.tokens_per_second,
        }
        if self.dense:
            data |= {"dense_seconds": list(self.dense), "dense_median_s": self.dense_median}
            data["ratio"] = summary(self.ratios)
        return data


def summary(ratios: Sequence[float]) -> dict[str, float]:
    """Median, smallest and largest of some ratios."""
    return {
        "median": statistics.median(ratios),
        "lowest": min(ratios),
        "highest": max(ratios),
        "n": len(ratios),
    }


def total_ratios(times: Sequence[PhaseTime]) -> tuple[float, ...]:
    """Time of the whole workload over the dense model's, a pair at a time."""
    runs = min((len(time.dense) for time in times), default=0)
    return tuple(
        sum(time.phase.weight * time.seconds[run] for time in times)
        / sum(time.phase.weight * time.dense[run] for time in times)
        for run in range(runs)
    )


def measure(
    workload: Workload,
    model: Timed,
    dense: Timed | None,
    *,
    pairs: int = PAIRS,
    told: Callable[[], None] = lambda: None,
) -> tuple[PhaseTime, ...]:
    """Time every phase, both models in turn, after a run of each that does not count.

    Args:
        workload: what to run.
        model: the compressed model.
        dense: the model beside it, if any.
        pairs: runs of each.
        told: called after each run.

    """
    times = []
    for phase in workload.phases:
        ours: list[float] = []
        theirs: list[float] = []
        for run in range(pairs + 1):
            # Alternate which goes first, so that neither always finds the caches warm.
            turns: list[tuple[Timed, list[float]]] = [(model, ours)]
            if dense is not None:
                turns.insert(run % 2, (dense, theirs))
            for engine, found in turns:
                found.append(_seconds(engine, phase))
                told()
        times.append(PhaseTime(phase=phase, seconds=tuple(ours[1:]), dense=tuple(theirs[1:])))
    return tuple(times)


def _seconds(engine: Timed, phase: Phase) -> float:
    if phase.kind == "prefill":
        return engine.prefill_seconds(phase.batch, phase.tokens)
    return engine.step_seconds(phase.batch, phase.tokens, STEPS)
