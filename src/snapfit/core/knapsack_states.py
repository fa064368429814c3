"""Partial answers of the knapsack's search: lists that grow by one item, with bounds.

Legend: J budgets, S partial answers (states), M multipliers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from snapfit.core.relaxation import Floats, Ints


@dataclass(frozen=True, kw_only=True)
class States:
    """Partial answers, as differences from the base answer, and where each came from."""

    costs: Ints  # (S, J)
    losses: Floats  # (S,)
    parent: Ints  # (S,) row of the previous list
    choice: Ints  # (S,) index into the K choices

    def take(self, rows: Ints) -> States:
        """Some of them."""
        return States(
            costs=self.costs[rows],
            losses=self.losses[rows],
            parent=self.parent[rows],
            choice=self.choice[rows],
        )


def first_state(budgets: int) -> States:
    """The base answer itself, of `budgets` costs."""
    return States(
        costs=np.zeros((1, budgets), dtype=np.int64),
        losses=np.zeros(1),
        parent=np.zeros(1, dtype=np.int64),
        choice=np.zeros(1, dtype=np.int64),
    )


def extend(
    states: States,
    cost_J: Ints,
    loss: float,
    choice: int,
    room_J: Ints,
    mu_MJ: Floats,
    constant_M: Floats,
    limit: float,
) -> tuple[States, Floats]:
    """Every state plus one choice, without those that cannot fit or cannot beat `limit`."""
    costs_SJ, losses_S = states.costs + cost_J, states.losses + loss
    bounds_S = losses_S + costs_SJ @ mu_MJ[0] + constant_M[0]
    rows = np.flatnonzero((bounds_S < limit) & np.all(costs_SJ <= room_J, axis=1))
    costs_SJ, losses_S, bounds_S = costs_SJ[rows], losses_S[rows], bounds_S[rows]
    for mu_J, constant in zip(mu_MJ[1:], constant_M[1:], strict=True):
        bounds_S = np.maximum(bounds_S, losses_S + costs_SJ @ mu_J + constant)
    keep = np.flatnonzero(bounds_S < limit)
    child = States(
        costs=costs_SJ[keep],
        losses=losses_S[keep],
        parent=rows[keep],
        choice=np.full(len(keep), choice, dtype=np.int64),
    )
    return child, bounds_S[keep]


def merge(
    pending: list[tuple[States, Floats]], width: int, enough_J: Ints
) -> tuple[tuple[States, Floats], float]:
    """Join lists, drop dominated states, keep the `width` best; also the best bound left out."""
    bounds_S = np.concatenate([bounds for _, bounds in pending])
    joined = States(
        costs=np.concatenate([states.costs for states, _ in pending]),
        losses=np.concatenate([states.losses for states, _ in pending]),
        parent=np.concatenate([states.parent for states, _ in pending]),
        choice=np.concatenate([states.choice for states, _ in pending]),
    )
    rows = undominated(np.maximum(joined.costs, enough_J), joined.losses)
    lost = np.inf
    if len(rows) > width:
        rows = rows[np.argsort(bounds_S[rows], kind="stable")]
        lost = float(bounds_S[rows[width]])
        rows = rows[:width]
    return (joined.take(rows), bounds_S[rows]), lost


def undominated(costs_SJ: Ints, losses_S: Floats) -> Ints:
    """Rows that no other row beats or equals in every cost and in loss.

    Of equal rows the first stays. Exact for one budget; for two, a few dominated rows may stay
    (harmless: dominance only saves work), since each row is compared with the rows below one of
    32 thresholds of the first cost.
    """
    if len(losses_S) < 2:
        return np.arange(len(losses_S), dtype=np.int64)
    if costs_SJ.shape[1] == 1:
        order = np.lexsort((losses_S, costs_SJ[:, 0]))
        sorted_losses = losses_S[order]
        before = np.minimum.accumulate(sorted_losses)[:-1]
        return np.asarray(order[np.append(True, sorted_losses[1:] < before)], dtype=np.int64)
    order = np.lexsort((costs_SJ[:, 1], costs_SJ[:, 0], losses_S))
    first_S, second_S = costs_SJ[order, 0], costs_SJ[order, 1]
    keep = np.ones(len(order), dtype=bool)
    top = np.iinfo(np.int64).max
    edges = np.unique(np.quantile(first_S, np.linspace(0, 1, 33), method="lower"))
    cell = np.searchsorted(edges, first_S, side="right") - 1
    for index, edge in enumerate(edges):
        best = np.minimum.accumulate(np.where(first_S <= edge, second_S, top))
        inside = np.flatnonzero(cell == index)
        inside = inside[inside > 0]
        keep[inside] &= best[inside - 1] > second_S[inside]
    return np.asarray(order[keep], dtype=np.int64)
