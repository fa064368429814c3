"""A front: the least loss for every budget, and where familiar plans lie beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from snapfit.core.budgets import Column
from snapfit.core.candidates import legal_sizes
from snapfit.core.curve import Curve
from snapfit.core.errors import Infeasible
from snapfit.core.plan import alignment
from snapfit.core.planner import ROUGHLY, Planner

POINTS = 16

LABELS = {"none": "unaligned", "round": "rounded", "gac": "GAC", "curve": "curve"}


@dataclass(frozen=True, kw_only=True)
class Point:
    """One plan, as a point.

    Attributes:
        label: 'dense', 'unaligned', 'rounded', 'GAC' or 'curve'.
        budget: what it was to keep, by name.
        loss: predicted, in the unit of the curves.
        params: share of the parameters kept, of what `--of` says.
        latency: share of the dense model's time; None without a target that knows times.
        microseconds: of the workload.
        spread: relative half-width of the time.
        aligned: share of matrices whose sizes are multiples of 8.

    """

    label: str
    budget: Mapping[str, float]
    loss: float
    params: float
    latency: float | None
    microseconds: float | None
    spread: float | None
    aligned: float


@dataclass(frozen=True, kw_only=True)
class Front:
    """Plans of one model on one target.

    Attributes:
        model: the model's name.
        device: of the target; '' without times.
        workload: what latency is the latency of.
        unit: of the losses.
        of: what `params` is a share of.
        sources: of the dense model's time, by where the numbers come from.
        fronts: points of least loss, by the budget that was varied.
        marks: familiar plans at one and the same budget, and dense.
        notes: why a plan is missing.

    """

    model: str
    device: str
    workload: str
    unit: str
    of: str
    sources: Mapping[str, float]
    fronts: Mapping[str, tuple[Point, ...]]
    marks: tuple[Point, ...]
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """A JSON-serialisable dictionary."""
        return asdict(self)


def solve_front(
    planner: Planner,
    curves: Mapping[str, Curve],
    *,
    shares: Mapping[str, float],
    unaligned: Mapping[str, float] | None = None,
    scores: Mapping[str, float] | None = None,
    points: int = POINTS,
    notes: Sequence[str] = (),
) -> Front:
    """Solve the front by parameters, and by latency where the target has times.

    Args:
        planner: of the model and target.
        curves: in nats, for every group.
        shares: the budgets of the marked plans.
        unaligned: the method's own sizes; without them only 'curve' is marked.
        scores: worth of a parameter; without them GAC is not marked.
        points: of each front, dense not counted.
        notes: to go with it.

    Raises:
        UsageError: the curves cannot be added, or a budget is unknown.

    """
    watch = planner.watch
    said = list(notes)
    fronts = {}
    for name in ("params", "latency") if watch is not None else ("params",):
        found = [_point(planner, curves, "dense", {name: 1.0}, {})]
        lowest = _lowest(planner, planner.column(name))
        below = np.linspace(1.0, lowest, points + 1)[1:].tolist() if lowest < 1 else []
        for share in below:
            try:
                choice = planner.choose("curve", {name: share}, curves=curves, relative=ROUGHLY)
            except Infeasible:
                # Right edges and sums over shared operators may end a little above the lowest.
                break
            found.append(_point(planner, curves, "curve", {name: share}, choice.sizes))
        fronts[name] = _undominated(found)
    marks = [_point(planner, curves, "dense", {}, {})]
    for objective, label in LABELS.items():
        if (objective != "curve" and unaligned is None) or (objective == "gac" and scores is None):
            said.append(f"{label} is not marked: the method has no sizes or scores of its own")
            continue
        try:
            choice = planner.choose(
                objective, shares, curves=curves, unaligned=unaligned, scores=scores
            )
        except Infeasible as error:
            said.append(f"{label} is not marked: {error}")
            continue
        marks.append(_point(planner, curves, label, shares, choice.sizes))
    return Front(
        model=planner.space.model,
        device="" if watch is None else watch.timer.device,
        workload="" if watch is None else str(watch.workload),
        unit=next(iter(curves.values())).unit,
        of=planner.of,
        sources={}
        if watch is None
        else {str(name): share for name, share in watch.latency({}).shares.items()},
        fronts=fronts,
        marks=tuple(marks),
        notes=tuple(said),
    )


def predicted_loss(curves: Mapping[str, Curve], sizes: Mapping[str, int]) -> float:
    """Sum of the groups' losses; a group that `sizes` does not name is dense."""
    return float(sum(float(curves[name].at(size)) for name, size in sizes.items()))


def _point(
    planner: Planner,
    curves: Mapping[str, Curve],
    label: str,
    budget: Mapping[str, float],
    sizes: Mapping[str, int],
) -> Point:
    latency = None if planner.watch is None else planner.watch.latency(sizes)
    params = planner.column("params")
    dense = None if planner.watch is None else planner.column("latency").dense / 1000
    return Point(
        label=label,
        budget=dict(budget),
        loss=predicted_loss(curves, sizes),
        params=params.share(planner.space.params(dict(sizes))),
        latency=None if latency is None or dense is None else latency.microseconds / dense,
        microseconds=None if latency is None else latency.microseconds,
        spread=None if latency is None else latency.spread,
        aligned=alignment(planner.space, sizes, 8),
    )


def _undominated(points: Sequence[Point]) -> tuple[Point, ...]:
    """Without those that lose more than a smaller one.

    There are such where right edges alone just suffice: below, all legal sizes are considered.
    """
    kept: list[Point] = []
    for point in reversed(points):
        if not kept or point.loss <= kept[-1].loss:
            kept.append(point)
    return tuple(reversed(kept))


def _lowest(planner: Planner, column: Column) -> float:
    """The smallest share that legal sizes can reach, each group for itself."""
    least = sum(
        int(column.table(group, legal_sizes(group, planner.rules)).min())
        for group in planner.space.groups
    )
    return column.share(least)
