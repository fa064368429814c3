"""The items of a mixed plan's knapsack: a decoder layer each, with all of its choices.

The choices of a layer are the Pareto front of all combinations of what can become of its parts
(`snapfit.core.frontier`), exact, and each carries the sizes of all groups, so that a solution is a
plan like any other (`snapfit.core.mixed`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from snapfit.core.budgets import Table
from snapfit.core.curve import NATS, Curve
from snapfit.core.errors import UsageError
from snapfit.core.frontier import Front, Ints, either, merged, single
from snapfit.core.knapsack import solve
from snapfit.core.knapsack_items import Item
from snapfit.core.mixed import by_layer, parts_of, reasons
from snapfit.core.objectives import Choice
from snapfit.core.space import Group, Space

Candidates = Callable[[Group], Ints]
"""Sizes that a group may have, increasing; the last is full."""


@dataclass(frozen=True, kw_only=True)
class LayerItem:
    """One decoder layer.

    Attributes:
        layer: its index.
        front: the choices for all of its groups.

    """

    layer: int
    front: Front


def layer_items(
    space: Space,
    *,
    curves: Mapping[str, Curve],
    drops: Mapping[int, float],
    candidates: Candidates,
    tables: Sequence[Table],
) -> list[LayerItem]:
    """The items of a knapsack, a layer each.

    Args:
        space: groups of the kinds 'rank', 'width' and 'kv_heads'.
        curves: loss in nats of every group; of one that may be removed, at size 0 too.
        drops: loss without a layer, by its index; a layer that is missing is not dropped.
        candidates: sizes that a group may have.
        tables: what groups cost of each budget.

    Raises:
        UsageError: losses that are not in nats, or a layer that cannot be dropped.

    """
    for group in space.groups:
        if curves[group.name].unit != NATS:
            raise UsageError(
                f"losses of {group.name} are in {curves[group.name].unit!r}; a mixed plan needs "
                f"{NATS}"
            )
    items = []
    for layer, groups in by_layer(space).items():
        fronts = [_part_front(part, curves, candidates, tables) for part in parts_of(groups)]
        front = _layer_front(fronts)
        if layer in drops:
            front = either([front, _dropped(layer, groups, drops[layer], tables)], _idle(groups))
        items.append(LayerItem(layer=layer, front=front))
    return items


def choose_mixed(space: Space, items: Sequence[LayerItem], budgets: Mapping[str, int]) -> Choice:
    """One choice a layer, of least total loss.

    Args:
        space: the groups.
        items: of `layer_items`.
        budgets: the most that all groups together may cost, in the order of the tables.

    Raises:
        Infeasible: even the cheapest choices exceed a budget.

    """
    solution = solve(
        [
            Item(
                name=f"layer {item.layer}",
                sizes=np.arange(len(item.front)),
                costs=item.front.costs_KJ,
                losses=item.front.losses_K,
            )
            for item in items
        ],
        budgets,
    )
    chosen: dict[str, int] = {}
    for item in items:
        row = item.front.sizes_KG[solution.sizes[f"layer {item.layer}"]]
        chosen |= dict(zip(item.front.names, row.tolist(), strict=True))
    sizes = {group.name: chosen[group.name] for group in space.groups}
    return Choice(
        sizes=sizes,
        reasons=reasons(space, sizes),
        params=space.params(sizes),
        costs=solution.costs,
        gap=(0.0 if solution.exact else solution.gap) + sum(item.front.slack for item in items),
    )


def _idle(groups: Sequence[Group]) -> dict[str, int]:
    return {group.name: group.full for group in groups}


def _costs(group: Group, sizes: Ints, tables: Sequence[Table]) -> Ints:
    return np.stack([table(group, sizes) for table in tables], axis=1)


def _full_costs(groups: Sequence[Group], tables: Sequence[Table]) -> Ints:
    """(J,) of all groups at full size."""
    total = np.zeros(len(tables), dtype=np.int64)
    for group in groups:
        total += _costs(group, np.array([group.full], dtype=np.int64), tables)[0]
    return total


@dataclass(frozen=True, kw_only=True, eq=False)
class _Part:
    """Choices that leave something of a part, and the one that leaves nothing, if any."""

    some: Front
    none: Front | None


def _part_front(
    part: Sequence[Group],
    curves: Mapping[str, Curve],
    candidates: Candidates,
    tables: Sequence[Table],
) -> _Part:
    """Factored or narrowed, but not both; costs are those of all groups of the part together."""
    fronts = {}
    removed = []
    for group in part:
        sizes = candidates(group)
        left = sizes[sizes > 0]
        losses = curves[group.name].at(left)
        others = [other for other in part if other is not group]
        fronts[group.name] = single(group.name, left, _costs(group, left, tables), losses)
        if len(left) < len(sizes):
            zero = np.zeros(1, dtype=np.int64)
            gone = Front(
                names=(group.name,),
                sizes_KG=zero[:, None],
                costs_KJ=_costs(group, zero, tables) + _full_costs(others, tables),
                losses_K=curves[group.name].at(zero),
            )
            removed.append(either([gone], _idle(part)))
    rank = [group for group in part if group.kind == "rank"]
    whole = [group for group in part if group.kind != "rank"]
    some = []
    if rank:
        front = fronts[rank[0].name]
        for group in rank[1:]:
            front = merged(front, fronts[group.name])
        some.append(front.shifted(_full_costs(whole, tables)))
    for group in whole:
        others = [other for other in part if other is not group]
        some.append(fronts[group.name].shifted(_full_costs(others, tables)))
    idle = _idle(part)
    return _Part(some=either(some, idle), none=either(removed, idle) if removed else None)


def _layer_front(parts: Sequence[_Part]) -> Front:
    """All parts decided at once, except that not all of them are removed.

    What leaves something and what leaves nothing are merged apart: an empty beginning must not
    crowd out others that it is cheaper than, for only they may be followed by an empty end.
    """
    some, none = parts[0].some, parts[0].none
    for part in parts[1:]:
        mixed = [merged(some, part.some)]
        if part.none is not None:
            mixed.append(merged(some, part.none))
        if none is not None:
            mixed.append(merged(none, part.some))
        some = either(mixed, dict.fromkeys(mixed[0].names, 0))
        none = merged(none, part.none) if none is not None and part.none is not None else None
    return some


def _dropped(layer: int, groups: Sequence[Group], loss: float, tables: Sequence[Table]) -> Front:
    """The choice without the layer: in every part one group goes to 0, the others stay full."""
    gone = []
    for part in parts_of(groups):
        removable = [group for group in part if group.least == 0]
        if not removable:
            raise UsageError(
                f"layer {layer} cannot be dropped: {part[0].name} cannot be removed from it"
            )
        gone.append(removable[0])
    zero = np.zeros(1, dtype=np.int64)
    costs = _full_costs([group for group in groups if group not in gone], tables)
    for group in gone:
        costs += _costs(group, zero, tables)[0]
    return Front(
        names=tuple(group.name for group in gone),
        sizes_KG=np.zeros((1, len(gone)), dtype=np.int64),
        costs_KJ=costs[None],
        losses_K=np.array([loss]),
    )
