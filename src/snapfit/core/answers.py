"""Times of operators from a timer that may not know them all, or from no timer at all."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from snapfit.core.diagnosis import Line, PhaseTime
from snapfit.core.errors import SnapfitError
from snapfit.core.latency import Stopwatch
from snapfit.core.operators import Estimate, Operator, Source
from snapfit.core.workload import Workload


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What a target says of operators, and what it could not answer.

    Attributes:
        watch: asks the timer, once an operator; None if there is no timer.
        unknown: operators that the timer knows nothing near, with what it said.

    """

    watch: Stopwatch | None
    unknown: dict[Operator, str] = field(default_factory=dict)

    def time(self, operator: Operator) -> Estimate | None:
        """The time of one operator; None if nobody knows."""
        if self.watch is None or operator in self.unknown:
            return None
        try:
            return self.watch.estimate(operator)
        except SnapfitError as error:
            self.unknown[operator] = str(error)
            return None


def difference(now: Estimate, then: Estimate) -> float:
    """Microseconds by which `then` is faster, or slower; 0 within the noise of what was measured.

    Only what was measured is noisy from size to size; errors of a table or a model are in its
    level, and shared by neighbours.
    """
    noise = math.hypot(
        *(e.spread * e.microseconds for e in (now, then) if e.source == "measured"), 0.0
    )
    saved = now.microseconds - then.microseconds
    return saved if abs(saved) > noise else 0.0


def phase_times(lines: Sequence[Line], workload: Workload) -> tuple[PhaseTime, ...]:
    """Totals of every phase; () if the time of nothing is known."""
    if not any(line.now for line in lines):
        return ()
    times = []
    for phase in workload.phases:
        own = [line for line in lines if line.phase == str(phase)]
        spent: dict[Source, float] = {}
        for line in own:
            if line.now is not None:
                spent[line.now.source] = spent.get(line.now.source, 0.0) + line.microseconds
        total = sum(spent.values())
        times.append(
            PhaseTime(
                phase=str(phase),
                weight=phase.weight,
                microseconds=total,
                lost=sum(line.lost for line in own),
                shares=_shares(spent, total),
                unknown=sum(line.now is None for line in own),
            )
        )
    return tuple(times)


def _shares(spent: Mapping[Source, float], total: float) -> dict[Source, float]:
    return {source: time / total for source, time in spent.items()} if total else {}
