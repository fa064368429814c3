"""The items of a knapsack: what can be chosen, with ties merged and hopeless choices removed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from snapfit.core.errors import UsageError
from snapfit.core.relaxation import Choices, Ints


@dataclass(frozen=True, kw_only=True)
class Item:
    """One decision.

    Attributes:
        name: unique among the items.
        sizes: (k,) distinct integers to choose from.
        costs: (k, J) non-negative integers, one column a budget; (k,) is read as (k, 1).
        losses: (k,) finite; any shape of curve, any sign.

    """

    name: str
    sizes: NDArray[np.int64]
    costs: NDArray[np.int64]
    losses: NDArray[np.float64]

    def __post_init__(self) -> None:
        sizes, costs = np.asarray(self.sizes), np.asarray(self.costs)
        losses = np.asarray(self.losses, dtype=np.float64)
        costs = costs[:, None] if costs.ndim == 1 else costs
        if sizes.ndim != 1 or sizes.size == 0 or losses.shape != sizes.shape:
            raise UsageError(
                f"{self.name}: needs as many losses as sizes, and at least one; "
                f"found shapes {sizes.shape} and {losses.shape}"
            )
        if costs.ndim != 2 or len(costs) != len(sizes):
            raise UsageError(f"{self.name}: costs have shape {costs.shape} for {len(sizes)} sizes")
        if sizes.dtype.kind not in "iu" or costs.dtype.kind not in "iu":
            raise UsageError(f"{self.name}: sizes and costs must be integers")
        if len(np.unique(sizes)) != len(sizes):
            raise UsageError(f"{self.name}: a size is listed twice")
        if (costs < 0).any():
            raise UsageError(f"{self.name}: a cost is negative")
        if not np.isfinite(losses).all():
            raise UsageError(f"{self.name}: a loss is not finite")
        object.__setattr__(self, "sizes", sizes.astype(np.int64))
        object.__setattr__(self, "costs", costs.astype(np.int64))
        object.__setattr__(self, "losses", losses)


@dataclass(frozen=True, kw_only=True)
class Problem:
    """What the search sees.

    Attributes:
        names: of the items behind each row, more than one if tied.
        sizes: (K,) the size of each choice.
        choices: costs and losses.

    """

    names: tuple[tuple[str, ...], ...]
    sizes: Ints  # (K,)
    choices: Choices


def _merge_ties(items: Sequence[Item], ties: Sequence[Sequence[str]]) -> list[tuple[Item, ...]]:
    """Items in order, tied ones together at the place of their first; ties that overlap join."""
    place = {item.name: index for index, item in enumerate(items)}
    head = list(range(len(items)))

    def find(index: int) -> int:
        while head[index] != index:
            index = head[index]
        return index

    for tie in ties:
        for name in tie:
            if name not in place:
                raise UsageError(f"a tie names {name!r}, which is not an item")
            one, other = find(place[tie[0]]), find(place[name])
            head[max(one, other)] = min(one, other)
    bundles: dict[int, list[Item]] = {}
    for index, item in enumerate(items):
        bundles.setdefault(find(index), []).append(item)
    return [tuple(bundle) for bundle in bundles.values()]


def _merged(bundle: tuple[Item, ...]) -> tuple[Ints, Ints, NDArray[np.float64]]:
    """Sizes common to all items of a tie, with summed costs and losses."""
    if len(bundle) == 1:
        return bundle[0].sizes, bundle[0].costs, bundle[0].losses
    sizes = bundle[0].sizes
    for item in bundle[1:]:
        sizes = np.intersect1d(sizes, item.sizes)
    if not sizes.size:
        raise UsageError(
            f"tied items share no size: {', '.join(item.name for item in bundle)}; "
            "untie them or relax the alignment"
        )
    costs = np.zeros((len(sizes), bundle[0].costs.shape[1]), dtype=np.int64)
    losses = np.zeros(len(sizes))
    for item in bundle:
        order = np.argsort(item.sizes)
        rows = order[np.searchsorted(item.sizes, sizes, sorter=order)]
        costs, losses = costs + item.costs[rows], losses + item.losses[rows]
    return sizes, costs, losses


def prepare(
    items: Sequence[Item], budgets: dict[str, int], ties: Sequence[Sequence[str]]
) -> Problem:
    """Merge ties; sort by item, cost, loss, size; drop choices that another one dominates.

    Raises:
        UsageError: a tie names no item, or its items share no size.

    """
    bundles = _merge_ties(items, ties)
    merged = [_merged(bundle) for bundle in bundles]
    owner = np.repeat(np.arange(len(merged)), [len(sizes) for sizes, _, _ in merged])
    sizes = np.concatenate([sizes for sizes, _, _ in merged])
    costs = np.concatenate([costs for _, costs, _ in merged])
    losses = np.concatenate([losses for _, _, losses in merged])
    order = np.lexsort((sizes, losses, *costs.T[::-1], owner))
    owner, sizes, costs, losses = owner[order], sizes[order], costs[order], losses[order]
    if len(budgets) == 1:
        # Ranks, shifted down item by item, make one running minimum serve all items.
        rank = np.unique(losses, return_inverse=True)[1].reshape(-1)
        rank = rank - owner * (len(rank) + 1)
        keep = np.append(True, rank[1:] < np.minimum.accumulate(rank)[:-1])
        owner, sizes, costs, losses = owner[keep], sizes[keep], costs[keep], losses[keep]
    starts = np.searchsorted(owner, np.arange(len(merged) + 1))
    choices = Choices(
        starts=starts.astype(np.int64),
        owner=owner.astype(np.int64),
        costs=costs,
        losses=losses,
        budgets=np.array(list(budgets.values()), dtype=np.int64),
    )
    names = tuple(tuple(item.name for item in bundle) for bundle in bundles)
    return Problem(names=names, sizes=sizes, choices=choices)
