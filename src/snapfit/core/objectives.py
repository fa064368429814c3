"""From curves or a method's own sizes to legal sizes within a budget: four objectives.

    curve   least total predicted loss over all legal sizes
    gac     the paper's (EuroMLSys '26) three steps around the method's own unaligned sizes
    round   each size to its nearest legal one, then repaired into the budget: the naive baseline
    none    the method's own sizes as they are, made whole: unaligned, for comparison

Budgets count parameters of the space's groups. Tied groups are decided together: their unaligned
sizes are averaged, weighted by what a unit costs, their scores likewise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from snapfit.core.candidates import AlignRule, legal_sizes
from snapfit.core.cost import group_params
from snapfit.core.curve import NATS, Curve
from snapfit.core.errors import Infeasible, UsageError
from snapfit.core.knapsack import solve
from snapfit.core.knapsack_items import Item
from snapfit.core.options import OBJECTIVES
from snapfit.core.space import Group, Space
from snapfit.core.units import Unit, decision_units, reason, repaired, rounded

WINDOW = 1
"""Legal sizes below and above each unaligned size that `gac` considers; doubled until it fits."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Sizes within the budget.

    Attributes:
        sizes: one for every group of the space.
        reasons: a few words for every group.
        params: parameters of all groups at these sizes.
        gap: by how much the objective could at most be improved; 0 when proved optimal.

    """

    sizes: dict[str, int]
    reasons: dict[str, str]
    params: int
    gap: float = 0.0


def choose(
    objective: str,
    space: Space,
    *,
    budget: int,
    rules: tuple[AlignRule, ...] = (),
    curves: Mapping[str, Curve] | None = None,
    unaligned: Mapping[str, float] | None = None,
    scores: Mapping[str, float] | None = None,
) -> Choice:
    """Choose one size for every group of `space`.

    Args:
        objective: one of `OBJECTIVES`.
        space: the groups and their ties.
        budget: most parameters that all groups together may have.
        rules: alignment rules; ignored by 'none'.
        curves: for 'curve': a curve in nats for every group.
        unaligned: for the others: the method's own size for every group, may be fractional; at
            or above break-even means dense.
        scores: worth of one parameter of every group. 'gac' needs them; 'round' and 'none' use
            them to decide what to give up first, and take 1 for all when they are not given.

    Raises:
        UsageError: an unknown objective, or what it needs is missing.
        Infeasible: even the smallest legal sizes exceed the budget.

    """
    if objective not in OBJECTIVES:
        raise UsageError(f"unknown objective {objective!r}; choose from {', '.join(OBJECTIVES)}")
    if objective == "curve":
        return _curve(space, curves, budget, rules)
    if unaligned is None:
        raise UsageError(
            f"--objective {objective} needs the method's own unaligned sizes; "
            "use a method that has an allocation, or --objective curve"
        )
    if objective == "gac" and scores is None:
        raise UsageError("--objective gac needs a score for every group; use curve or round")
    if objective == "none":
        rules = ()
    units = decision_units(space, rules, unaligned, scores)
    if objective == "gac":
        picks, gap = gac(units, budget)
        return replace(_finished(space, units, picks), gap=gap)
    picks = [rounded(unit, down=objective == "none") for unit in units]
    return _finished(space, units, repaired(units, picks, budget))


def _curve(
    space: Space,
    curves: Mapping[str, Curve] | None,
    budget: int,
    rules: tuple[AlignRule, ...],
) -> Choice:
    if curves is None:
        raise UsageError("--objective curve needs a loss curve for every group")
    items = []
    for group in space.groups:
        curve = curves.get(group.name)
        if curve is None:
            raise UsageError(f"--objective curve needs a loss curve for {group.name}; it has none")
        if curve.unit != NATS:
            raise UsageError(
                f"losses in {curve.unit!r} ({group.name}) cannot be added across groups; use "
                "--method kfac, whose losses are in nats, or --objective gac"
            )
        sizes = legal_sizes(group, rules)
        losses = curve.at(sizes)
        items.append(
            Item(name=group.name, sizes=sizes, costs=group_params(group, sizes), losses=losses)
        )
    solution = solve(items, {"params": budget}, space.ties)
    reasons = {
        group.name: _curve_reason(group, items[index].sizes, solution.sizes[group.name])
        for index, group in enumerate(space.groups)
    }
    return Choice(
        sizes=solution.sizes,
        reasons=reasons,
        params=solution.costs["params"],
        gap=0.0 if solution.exact else solution.gap,
    )


def _curve_reason(group: Group, legal: NDArray[np.int64], size: int) -> str:
    if size == group.full:
        if len(legal) == 1:
            return "dense: no smaller size is legal"
        return f"dense: costs less than any rank above {group.break_even}"
    return f"least total loss among {len(legal)} legal sizes"


def gac(units: list[Unit], budget: int) -> tuple[list[int], float]:
    """Maximise the sum of score x (params - wanted params) over a window around each size.

    The third step of GAC. When even the smallest candidates of all windows exceed the budget,
    the windows double.

    Returns:
        The index into each unit's legal sizes, and by how much the objective could still be
        improved (0 when proved optimal).

    Raises:
        Infeasible: even the smallest legal sizes exceed the budget.

    """
    width = WINDOW
    while True:
        windows = [unit.window(width) for unit in units]
        items = [
            Item(
                name=str(index),
                sizes=np.arange(near.start, near.start + len(unit.sizes[near])),
                costs=unit.costs[near],
                losses=unit.score * (unit.wanted_params - unit.costs[near].astype(np.float64)),
            )
            for index, (unit, near) in enumerate(zip(units, windows, strict=True))
        ]
        try:
            solution = solve(items, {"params": budget})
        except Infeasible:
            if all(near.start == 0 for near in windows):
                raise
            width *= 2
            continue
        picks = [solution.sizes[item.name] for item in items]
        return picks, 0.0 if solution.exact else solution.gap


def _finished(space: Space, units: list[Unit], picks: list[int]) -> Choice:
    sizes: dict[str, int] = {}
    reasons: dict[str, str] = {}
    params = 0
    for unit, pick in zip(units, picks, strict=True):
        params += int(unit.costs[pick])
        for name in unit.names:
            sizes[name] = int(unit.sizes[pick])
            reasons[name] = reason(unit, pick)
    order = [group.name for group in space.groups]
    return Choice(
        sizes={name: sizes[name] for name in order},
        reasons={name: reasons[name] for name in order},
        params=params,
    )
