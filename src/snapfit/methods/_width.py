"""What the width methods share: which groups, sums over coupled structures, and allocations.

Shape suffixes: M outputs, N inputs, U units (channels, key-value heads, experts).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from snapfit.core.curve import Curve
from snapfit.core.errors import SnapfitError, UsageError
from snapfit.core.space import Group, Matrix, Space
from snapfit.methods.base import Allocation, MethodKind, Segments, Stats
from snapfit.nn.ordered import Ordered

PARTS = {"mlp": "width", "heads": "kv_heads", "experts": "experts"}
"""Kind of the groups of every part that may be named in the setting `parts`."""

BISECTIONS = 60


@dataclass(frozen=True, kw_only=True)
class Width:
    """Defaults of a method that removes channels, heads or experts.

    Settings:
        parts: what may become smaller: any of mlp, heads, experts, separated by commas. With
            'experts' whole experts go and their widths stay as they are; without it, 'mlp'
            narrows every expert by itself.
    """

    parts: str = "mlp,heads"

    kind: ClassVar[MethodKind] = "width"

    def __post_init__(self) -> None:
        unknown = [part for part in self.chosen if part not in PARTS]
        if unknown:
            raise UsageError(f"parts cannot hold {unknown[0]!r}; it may hold {', '.join(PARTS)}")

    @property
    def chosen(self) -> tuple[str, ...]:
        """The parts, by name."""
        return tuple(part.strip() for part in self.parts.split(","))

    def restrict(self, space: Space, segments: Segments) -> Space:  # noqa: ARG002
        """The groups of the chosen parts."""
        kinds = {PARTS[part] for part in self.chosen}
        containers = tuple(
            f"{group.name}."
            for group in space.groups
            if group.kind == "experts" and "experts" in kinds
        )
        groups = tuple(
            group
            for group in space.groups
            if group.kind in kinds
            and not (group.kind == "width" and group.name.startswith(containers))
        )
        if not groups:
            raise SnapfitError(
                f"{space.architecture!r} has no {' or '.join(self.chosen)} that snapfit can make "
                "smaller; use a method that factors matrices, such as kfac"
            )
        return replace(space, groups=groups, ties=())

    def summarise(
        self,
        group: Group,  # noqa: ARG002
        weights: Mapping[str, Tensor],  # noqa: ARG002
        stats: Mapping[str, Stats],  # noqa: ARG002
    ) -> Mapping[str, float]:
        """Nothing beyond the importance proxies."""
        return {}


def reader(group: Group) -> Matrix:
    """The matrix that reads the units: down, or the output projection."""
    (matrix,) = (matrix for matrix in group.matrices if matrix.axis == "in")
    return matrix


def structure_sums(
    group: Group, rows: Callable[[str], Tensor], columns: Callable[[str], Tensor]
) -> Tensor:
    """Each unit's total over the weights that go with it, (U,) float64.

    Args:
        group: of kind 'width', 'kv_heads' or 'experts'.
        rows: sums over each row of a module, (M,).
        columns: sums over each column of a module, (N,).

    """
    total_U = torch.zeros(group.full, dtype=torch.float64)
    if group.kind == "experts":
        each = len(group.matrices) // group.full
        for index, matrix in enumerate(group.matrices):
            total_U[index // each] += rows(matrix.name).double().sum()
        return total_U
    for matrix in group.matrices:
        if matrix.axis == "in":
            sums = columns(matrix.name)
        else:
            sums = rows(matrix.name)[matrix.start : matrix.start + matrix.rows]
        total_U += sums.double().reshape(group.full, -1).sum(1)
    return total_U


def expert_routing(group: Group, stats: Mapping[str, Stats]) -> Tensor:
    """Usage times router weight of every expert, (U,) float64."""
    each = len(group.matrices) // group.full
    names = [matrix.name for matrix in group.matrices[::each]]
    return torch.stack([stats[name]["routing"].double() for name in names])


def to_ordered(
    group: Group,
    importance_U: Tensor,
    *,
    unit: str,
    lost_U: Tensor | None = None,
    mean_N: Tensor | None = None,
) -> Ordered:
    """Units by importance, and as a curve the total importance that is lost.

    Args:
        group: what is ordered.
        importance_U: of each unit; of equal units the earlier is kept longer.
        unit: of the curve.
        lost_U: what the loss of each unit counts; the importance when None.
        mean_N: mean inputs, for methods that leave a bias behind.

    Raises:
        SnapfitError: an importance is not finite.

    """
    if not torch.isfinite(importance_U).all():
        raise SnapfitError(
            f"the importance of {group.name} is not finite: its weights or statistics hold NaN or "
            "infinity, or overflow"
        )
    importance_U = importance_U.double()
    order_U = torch.argsort(importance_U, descending=True, stable=True)
    lost = (importance_U if lost_U is None else lost_U.double())[order_U].numpy(force=True)
    losses = np.append(np.cumsum(lost[::-1])[::-1], 0.0)
    tensors = {"order": order_U, "importance": importance_U[order_U]}
    if mean_N is not None:
        tensors["mean"] = mean_N.float()
    sizes = np.arange(group.full + 1, dtype=np.int64)
    return Ordered(tensors=tensors, curve=Curve(sizes=sizes, losses=losses, unit=unit))


def ranked_sizes(request: Allocation, spared: Collection[str] = ()) -> dict[str, float]:
    """Sizes left when the least important units of all groups go until the budget holds.

    The last unit to go counts in part. Units of `spared` groups go after all others.
    """
    groups = request.space.groups
    scores, costs, owners, places = [], [], [], []
    for index, group in enumerate(groups):
        removable = np.arange(group.least, group.full)
        scores.append(request.importance[group.name][group.least :])
        costs.append(np.full(len(removable), group.dense_params / group.full))
        owners.append(np.full(len(removable), index))
        places.append(removable)
    score, cost, owner, place = (np.concatenate(p) for p in (scores, costs, owners, places))
    late = np.array([group.name in spared for group in groups])[owner]
    turn = np.lexsort((-place, owner, score, late))
    excess = max(request.space.dense_params - request.budget, 0)
    gone = np.clip(excess - (np.cumsum(cost[turn]) - cost[turn]), 0, cost[turn]) / cost[turn]
    removed = np.bincount(owner[turn], weights=gone, minlength=len(groups))
    return {
        group.name: group.full - float(lost) for group, lost in zip(groups, removed, strict=True)
    }


def uniform_sizes(request: Allocation, spared: Collection[str] = ()) -> dict[str, float]:
    """The same share of every group that meets the budget; `spared` groups stay whole if possible.

    Heads and experts are few, and half of one cannot be kept: they are rounded to the nearest
    whole number, and widths make up for it, where there are any. No group falls below its least
    size; the others then give more.
    """
    sizes = {group.name: float(group.full) for group in request.space.groups}
    for names in (sizes.keys() - set(spared), set(spared)):
        chosen = [group for group in request.space.groups if group.name in names]
        sizes.update(_shared(request, sizes, chosen))
        widths = [group for group in chosen if group.kind == "width"]
        coarse = [group for group in chosen if group.kind != "width"]
        rounded = sizes | {group.name: float(round(sizes[group.name])) for group in coarse}
        rounded |= _shared(request, rounded, widths)
        if widths and _params(request, rounded) <= request.budget:
            sizes = rounded
    return sizes


def _shared(
    request: Allocation, sizes: Mapping[str, float], chosen: Collection[Group]
) -> dict[str, float]:
    """The largest share of the `chosen` groups that meets the budget, the others having `sizes`."""

    def at(share: float) -> dict[str, float]:
        return {group.name: max(share * group.full, float(group.least)) for group in chosen}

    low, high = 0.0, 1.0
    if _params(request, {**sizes, **at(high)}) <= request.budget:
        return at(high)
    for _ in range(BISECTIONS):
        share = (low + high) / 2
        if _params(request, {**sizes, **at(share)}) > request.budget:
            high = share
        else:
            low = share
    return at(low)


def _params(request: Allocation, sizes: Mapping[str, float]) -> float:
    return sum(g.dense_params * sizes[g.name] / g.full for g in request.space.groups)
