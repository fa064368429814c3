"""Mixed plans under budgets that people state as shares of the dense model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from snapfit.core.budgets import Column
from snapfit.core.candidates import legal_sizes
from snapfit.core.curve import Curve
from snapfit.core.errors import Infeasible
from snapfit.core.fitting import for_format
from snapfit.core.formats import holds_absent, holds_size, kinds, ties
from snapfit.core.mixed_items import LayerItem, choose_mixed, layer_items
from snapfit.core.objectives import Choice
from snapfit.core.planner import ATTEMPTS, Planner
from snapfit.core.space import Group, Kind, Space

Allowed: TypeAlias = Callable[[Group, NDArray[np.int64]], NDArray[np.int64]]
"""Of the legal sizes of a group, those that a plan may choose; the last one always is."""


@dataclass(frozen=True, kw_only=True)
class Losses:
    """What the choices of a mixed plan are predicted to lose.

    Attributes:
        curves: in nats, of every group; of one that may be removed, at size 0 too.
        drops: without a layer, by its index; a layer that is missing is not dropped.

    """

    curves: Mapping[str, Curve]
    drops: Mapping[int, float]


@dataclass(frozen=True, kw_only=True)
class MixedPlanner(Planner):
    """Makes mixed plans of one model for one target."""

    def choose_mixed(self, shares: Mapping[str, float], losses: Losses, allowed: Allowed) -> Choice:
        """Choose what becomes of every layer, within the budgets.

        Args:
            shares: what is to be kept, of one or two budgets.
            losses: predicted.
            allowed: what may be chosen of the target's candidates, or of all legal sizes where
                no choice of the candidates meets the budgets.

        Raises:
            Infeasible: says, as shares, what can be met.
            UsageError: a budget that no size can change; losses that are not in nats.

        """
        columns = {name: self.column(name) for name in shares}
        twice = {name: self._counted_twice(found) for name, found in columns.items()}
        limits = {name: columns[name].limit(share) + twice[name] for name, share in shares.items()}
        for name, limit in limits.items():
            self._check_changes(columns[name], limit)
        items = self._items(columns, losses, lambda group: allowed(group, self.candidates(group)))
        wider = self.watch is None
        stricter = 0
        for _ in range(ATTEMPTS):
            try:
                choice = choose_mixed(self.space, items, limits)
            except Infeasible as error:
                if wider:
                    nearest = {n: cost - twice[n] for n, cost in error.nearest.items()}
                    raise self._unmet(nearest, shares, stricter) from error
                wider = True
                items = self._items(
                    columns, losses, lambda group: allowed(group, self._legal(group))
                )
                continue
            excess = self._excess(choice.sizes, shares)
            if excess <= 0:
                costs = {name: cost - twice[name] for name, cost in choice.costs.items()}
                return replace(choice, costs=costs)
            # Operators that groups share were timed for each of them: be that much stricter.
            limits["latency"] -= excess
            stricter += excess
        raise self._missed(shares, excess)

    def _items(
        self,
        columns: Mapping[str, Column],
        losses: Losses,
        candidates: Callable[[Group], NDArray[np.int64]],
    ) -> list[LayerItem]:
        return layer_items(
            self.space,
            curves=losses.curves,
            drops=losses.drops,
            candidates=candidates,
            tables=[found.table for found in columns.values()],
        )

    def _legal(self, group: Group) -> NDArray[np.int64]:
        return legal_sizes(group, self.rules)

    def _counted_twice(self, found: Column) -> int:
        """What all groups at full size cost more than the weights that they share."""
        full = sum(
            int(found.table(group, np.array([group.full], dtype=np.int64))[0])
            for group in self.space.groups
        )
        return full - (found.dense - found.outside)


def allowed_by(format_name: str, space: Space, *, alone: frozenset[str] = frozenset()) -> Allowed:
    """What a checkpoint format lets a mixed plan choose.

    Layers are decided one by one, so a part that the format gives one size for all layers stays
    as it is.

    Args:
        format_name: of the checkpoint.
        space: the groups.
        alone: groups that may be removed while the rest of their layer stays.

    Raises:
        UsageError: the format cannot hold the model, or nothing of what may be chosen.

    """
    for_format(format_name, space)
    held: frozenset[Kind] = kinds(format_name)
    tied = {name for tie in ties(format_name, space) for name in tie}
    first = min(group.layer for group in space.groups)

    def gone(group: Group) -> bool:
        # vLLM's DeciLM adds the first layer's input in its attention.
        opening = format_name == "decilm" and group.kind == "kv_heads" and group.layer == first
        return group.name in alone and holds_absent(format_name) and not opening

    def allowed(group: Group, sizes: NDArray[np.int64]) -> NDArray[np.int64]:
        fits = sizes == group.full
        if group.kind in held:
            fits |= (sizes == 0) & gone(group)
            if group.name not in tied:
                some = [size > 0 and holds_size(format_name, group, size, space) for size in sizes]
                fits |= np.array(some, dtype=np.bool_)
        return np.asarray(sizes[fits], dtype=np.int64)

    return allowed


def one_kind(allowed: Allowed, *kept: Kind) -> Allowed:
    """The same, but only groups of the kinds `kept` become smaller, and none is removed."""

    def only(group: Group, sizes: NDArray[np.int64]) -> NDArray[np.int64]:
        sizes = allowed(group, sizes)
        return sizes[sizes > 0] if group.kind in kept else sizes[-1:]

    return only
