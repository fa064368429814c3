"""Right edges of plateaus: of sizes that take equally long, only the largest is worth having.

A size is no candidate if a larger legal one takes no longer: it would give up quality for nothing.
What is left rises strictly, and its steps are the cliffs of the target: waves of tiles, kernel
tiers, templates.

Noise would make false steps on a plateau, or false plateaus on a slope. So a size must beat the
next larger candidate by more than what was measured is uncertain by: by the half-widths of both,
added in quadrature. A smooth slope is thereby thinned to points that can be told apart. Tables and
models are no noise: their errors are in the level, which neighbours share.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from snapfit.core.candidates import AlignRule, legal_sizes
from snapfit.core.latency import Stopwatch
from snapfit.core.space import Group


def right_edges(
    times: NDArray[np.int64], noise: NDArray[np.float64] | None = None
) -> NDArray[np.int64]:
    """Indices of the sizes that are candidates, increasing; the last size always is one.

    Args:
        times: (k,) of increasing sizes.
        noise: (k,) relative half-width of each time; none by default.

    """
    edges = [len(times) - 1]
    width = times * (np.zeros(len(times)) if noise is None else noise)
    for index in range(len(times) - 2, -1, -1):
        last = edges[-1]
        if times[last] - times[index] > np.hypot(width[last], width[index]):
            edges.append(index)
    return np.array(edges[::-1], dtype=np.int64)


def candidates(watch: Stopwatch, group: Group, sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Those of the legal `sizes` of a group that are right edges on the target.

    Raises:
        SnapfitError: the timer knows nothing near one of the operators.

    """
    return sizes[right_edges(watch.table(group, sizes), watch.noise(group, sizes))]


@dataclass(frozen=True, kw_only=True)
class Staircase:
    """The time of one group at every legal size, and which of these are candidates.

    Attributes:
        group: its name.
        kind: of the group.
        device: whose times these are.
        workload: what is timed.
        sizes: (k,) legal, increasing; the last is full.
        nanoseconds: (k,) of what the group decides.
        noise: (k,) relative half-width of what was measured of them.
        edges: (e,) the candidates.
        sources: where the numbers come from at each size, the largest share first.

    """

    group: str
    kind: str
    device: str
    workload: str
    sizes: NDArray[np.int64]
    nanoseconds: NDArray[np.int64]
    noise: NDArray[np.float64]
    edges: NDArray[np.int64]
    sources: tuple[tuple[str, ...], ...]

    def to_json(self) -> dict[str, Any]:
        """A JSON-serialisable dictionary."""
        chosen = np.isin(self.sizes, self.edges)
        times = zip(
            self.sizes.tolist(),
            (self.nanoseconds / 1000).tolist(),
            self.noise.tolist(),
            chosen.tolist(),
            self.sources,
            strict=True,
        )
        names = ("size", "microseconds", "spread", "candidate", "sources")
        return {
            "group": self.group,
            "kind": self.kind,
            "device": self.device,
            "workload": self.workload,
            "times": [dict(zip(names, row, strict=True)) for row in times],
        }


def staircase(watch: Stopwatch, group: Group, rules: tuple[AlignRule, ...]) -> Staircase:
    """Time a group at every size that the rules allow.

    Raises:
        SnapfitError: the timer knows nothing near one of the operators.
        UsageError: the rules contradict one another.

    """
    sizes = legal_sizes(group, rules)
    return Staircase(
        group=group.name,
        kind=group.kind,
        device=watch.timer.device,
        workload=str(watch.workload),
        sizes=sizes,
        nanoseconds=watch.table(group, sizes),
        noise=watch.noise(group, sizes),
        edges=candidates(watch, group, sizes),
        sources=tuple(watch.sources(group, size) for size in sizes.tolist()),
    )
