"""From curves or a method's own sizes to legal sizes within a budget: four objectives.

    curve   least total predicted loss over all legal sizes
    gac     the paper's (EuroMLSys '26) three steps around the method's own unaligned sizes
    round   each size to its nearest legal one, then repaired into the budget: the naive baseline
    none    the method's own sizes as they are, made whole: unaligned, for comparison

Budgets count parameters of the space's groups, or whatever else a table of costs says: bytes, KV
cache, time; one budget or two at once. Tied groups are decided together: their unaligned sizes are
averaged, weighted by what a unit costs, their scores likewise.

`curve` and `gac` choose among a target's right edges (`snapfit.core.plateaus`) where these are
known, unless no choice of them meets the budgets; `round` and `none` are what is done without.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from snapfit.core.budgets import Table
from snapfit.core.candidates import AlignRule, legal_sizes
from snapfit.core.cost import group_params
from snapfit.core.curve import NATS, Curve
from snapfit.core.errors import Infeasible, UsageError
from snapfit.core.knapsack import RELATIVE_TOLERANCE, Solution, solve
from snapfit.core.knapsack_items import Item
from snapfit.core.options import OBJECTIVES
from snapfit.core.space import Group, Space
from snapfit.core.units import Unit, decision_units, reason, repaired, rounded

Edges: TypeAlias = Callable[[Group, NDArray[np.int64]], NDArray[np.int64]]
"""Of the legal sizes of a group, those that are candidates; the last one always is."""

WINDOW = 1
"""Legal sizes below and above each unaligned size that `gac` considers; doubled until it fits."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Sizes within the budget.

    Attributes:
        sizes: one for every group of the space.
        reasons: a few words for every group.
        params: parameters of all groups at these sizes.
        costs: what the groups cost of every budget.
        gap: by how much the objective could at most be improved; 0 when proved optimal.
        edges: whether only right edges of plateaus were considered.

    """

    sizes: dict[str, int]
    reasons: dict[str, str]
    params: int
    costs: Mapping[str, int] = field(default_factory=dict)
    gap: float = 0.0
    edges: bool = False


def choose(
    objective: str,
    space: Space,
    *,
    budget: int | None = None,
    budgets: Mapping[str, int] | None = None,
    tables: Mapping[str, Table] | None = None,
    rules: tuple[AlignRule, ...] = (),
    edges: Edges | None = None,
    curves: Mapping[str, Curve] | None = None,
    unaligned: Mapping[str, float] | None = None,
    scores: Mapping[str, float] | None = None,
    relative: float = RELATIVE_TOLERANCE,
) -> Choice:
    """Choose one size for every group of `space`.

    Args:
        objective: one of `OBJECTIVES`.
        space: the groups and their ties.
        budget: most parameters that all groups together may have; short for
            `budgets={'params': budget}`.
        budgets: the most that all groups together may cost, of one or two things.
        tables: what groups cost of each thing; 'params' is known without.
        rules: alignment rules; ignored by 'none'.
        edges: which legal sizes are candidates on the target; for 'curve' and 'gac'.
        curves: for 'curve': a curve in nats for every group.
        unaligned: for the others: the method's own size for every group, may be fractional; at
            or above break-even means dense.
        scores: worth of one parameter of every group. 'gac' needs them; 'round' and 'none' use
            them to decide what to give up first, and take 1 for all when they are not given.
        relative: of 'curve' and 'gac', how far from optimal an answer may be; see `solve`.

    Raises:
        UsageError: an unknown objective, or what it needs is missing.
        Infeasible: even the smallest legal sizes exceed a budget; says what can be met.

    """
    if objective not in OBJECTIVES:
        raise UsageError(f"unknown objective {objective!r}; choose from {', '.join(OBJECTIVES)}")
    if (budget is None) == (budgets is None):
        raise UsageError("give either the budget of parameters or a table of budgets")
    if objective != "curve" and unaligned is None:
        raise UsageError(
            f"--objective {objective} needs the method's own unaligned sizes; "
            "use a method that has an allocation, or --objective curve"
        )
    if objective == "gac" and scores is None:
        raise UsageError("--objective gac needs a score for every group; use curve or round")
    known: dict[str, Table] = {"params": group_params, **(tables or {})}
    request = _Request(
        space=space,
        budgets={"params": budget} if budget is not None else dict(budgets or {}),
        tables=known,
        rules=tuple(rule for rule in rules if rule.binding or objective != "none"),
        edges=edges if objective in {"curve", "gac"} else None,
        relative=relative,
    )
    if request.edges is not None:
        try:
            choice = _chosen(objective, request, curves, unaligned, scores)
            return replace(choice, edges=True)
        except Infeasible:
            # A budget that right edges alone cannot meet may be met by sizes that are no edge.
            request = replace(request, edges=None)
    return _chosen(objective, request, curves, unaligned, scores)


@dataclass(frozen=True, kw_only=True)
class _Request:
    """What is asked of every objective."""

    space: Space
    budgets: dict[str, int]
    tables: Mapping[str, Table]
    rules: tuple[AlignRule, ...]
    edges: Edges | None
    relative: float

    def legal(self, group: Group) -> NDArray[np.int64]:
        """Sizes that may be chosen."""
        sizes = legal_sizes(group, self.rules)
        return sizes if self.edges is None else self.edges(group, sizes)

    def priced(self, group: Group, sizes: NDArray[np.int64]) -> NDArray[np.int64]:
        """(k, J) what each budget counts."""
        return np.stack([self.tables[name](group, sizes) for name in self.budgets], axis=1)


def _chosen(
    objective: str,
    request: _Request,
    curves: Mapping[str, Curve] | None,
    unaligned: Mapping[str, float] | None,
    scores: Mapping[str, float] | None,
) -> Choice:
    if objective == "curve" or unaligned is None:
        return _curve(request, curves)
    tables = [request.tables[name] for name in request.budgets]
    units = decision_units(request.space, request.legal, unaligned, scores, tables)
    if objective == "gac":
        picks, gap = gac(units, request.budgets, relative=request.relative)
        return replace(_finished(request, units, picks), gap=gap)
    picks = [rounded(unit, down=objective == "none") for unit in units]
    return _finished(request, units, repaired(units, picks, request.budgets))


def _curve(request: _Request, curves: Mapping[str, Curve] | None) -> Choice:
    if curves is None:
        raise UsageError("--objective curve needs a loss curve for every group")
    space = request.space
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
        sizes = request.legal(group)
        costs = request.priced(group, sizes)
        items.append(Item(name=group.name, sizes=sizes, costs=costs, losses=curve.at(sizes)))
    solution = solve(items, request.budgets, space.ties, relative=request.relative)
    reasons = {
        group.name: _curve_reason(group, items[index].sizes, solution.sizes[group.name])
        for index, group in enumerate(space.groups)
    }
    return Choice(
        sizes=solution.sizes,
        reasons=reasons,
        params=space.params(solution.sizes),
        costs=solution.costs,
        gap=_gap(solution, request.relative),
    )


def _curve_reason(group: Group, legal: NDArray[np.int64], size: int) -> str:
    if size == group.full:
        if len(legal) == 1:
            return "dense: no smaller size is legal"
        if group.kind != "rank":
            return "full: what it would save is worth less than what it would lose"
        return f"dense: costs less than any rank above {group.break_even}"
    return f"least total loss among {len(legal)} legal sizes"


def _gap(solution: Solution, relative: float) -> float:
    """By how much the objective could still be improved; 0 when proved optimal."""
    if not solution.exact:
        return solution.gap
    return solution.tolerance if relative > RELATIVE_TOLERANCE else 0.0


def gac(
    units: list[Unit], budgets: Mapping[str, int], *, relative: float = RELATIVE_TOLERANCE
) -> tuple[list[int], float]:
    """Maximise the sum of score x (params - wanted params) over a window around each size.

    The third step of GAC. Where no choice of candidates in the windows meets the budgets, the
    windows double.

    Returns:
        The index into each unit's legal sizes, and by how much the objective could still be
        improved (0 when proved optimal).

    Raises:
        Infeasible: no choice of legal sizes meets the budgets.

    """
    width = WINDOW
    while True:
        windows = [unit.window(width) for unit in units]
        items = [
            Item(
                name=str(index),
                sizes=np.arange(near.start, near.start + len(unit.sizes[near])),
                costs=unit.columns[near],
                losses=unit.score * (unit.wanted_params - unit.costs[near].astype(np.float64)),
            )
            for index, (unit, near) in enumerate(zip(units, windows, strict=True))
        ]
        try:
            solution = solve(items, budgets, relative=relative)
        except Infeasible:
            # A larger size costs more parameters, but it may take less time.
            if all(len(item.sizes) == len(u.sizes) for item, u in zip(items, units, strict=True)):
                raise
            width *= 2
            continue
        picks = [solution.sizes[item.name] for item in items]
        return picks, _gap(solution, relative)


def _finished(request: _Request, units: list[Unit], picks: list[int]) -> Choice:
    sizes: dict[str, int] = {}
    reasons: dict[str, str] = {}
    params = 0
    for unit, pick in zip(units, picks, strict=True):
        params += int(unit.costs[pick])
        for name in unit.names:
            sizes[name] = int(unit.sizes[pick])
            reasons[name] = reason(unit, pick)
    order = [group.name for group in request.space.groups]
    spent = np.sum([unit.columns[pick] for unit, pick in zip(units, picks, strict=True)], axis=0)
    return Choice(
        sizes={name: sizes[name] for name in order},
        reasons={name: reasons[name] for name in order},
        params=params,
        costs=dict(zip(request.budgets, spent.tolist(), strict=True)),
    )
