"""Exact search over the core of a multi-choice knapsack: list dynamic programming with bounds.

Legend: N items, K choices, J budgets, S partial answers (states), M multipliers.

What the relaxation leaves open is small. A choice whose reduced cost exceeds the distance between
the best known answer and the lower bound is in no better answer, so most items keep one choice.
The others, the core, are added to a list of partial answers one item at a time, the most
undecided first (Pisinger's minimal algorithm, 1995). A partial answer is dropped when another
costs no more and loses no more, or when its own Lagrangian bound reaches the best known answer.

Memory is bounded: a round keeps at most `width` states over `depth` items. What a round has to
leave out is remembered by its smallest bound, so that each round still proves a lower bound;
rounds widen until nothing was left out that could matter.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from snapfit.core.knapsack_swaps import swapped
from snapfit.core.relaxation import Choices, Floats, Ints, Relaxation, relax

ROUNDS = ((400, 24), (4_000, 64), (30_000, 512), (150_000, 1 << 30))
"""(width, depth) of the rounds; the last bounds memory at a few hundred MB."""

WORK = 1 << 24
"""Most states x choices x budgets of one round: keeps a round below about half a minute."""

_FACTORS = (0.0, 0.3, 0.6, 0.8, 0.9, 0.95, 0.98, 1.02, 1.05, 1.1, 1.25, 1.6, 3.0)
_MAX_PENDING = 1 << 21


@dataclass(frozen=True, kw_only=True)
class Found:
    """The best answer and what is proved about it.

    Attributes:
        pick: (N,) the answer.
        bound: no answer loses less than this minus `tolerance`; equals the answer's loss when
            the search was complete.
        tolerance: what was treated as equal.

    """

    pick: Ints
    bound: float
    tolerance: float


@dataclass(frozen=True, kw_only=True)
class _States:
    """Partial answers, as differences from the base answer, and where each came from."""

    costs: Ints  # (S, J)
    losses: Floats  # (S,)
    parent: Ints  # (S,) row of the previous list
    choice: Ints  # (S,) index into the K choices

    def take(self, rows: Ints) -> _States:
        return _States(
            costs=self.costs[rows],
            losses=self.losses[rows],
            parent=self.parent[rows],
            choice=self.choice[rows],
        )


def search(
    choices: Choices,
    start: Ints,
    *,
    absolute: float,
    relative: float = 0.0,
    enough: float = -np.inf,
) -> Found:
    """Find the answer of least loss.

    Args:
        choices: the problem.
        start: (N,) a feasible answer.
        absolute: answers closer than this in loss are not told apart.
        relative: neither are answers closer than this times the optimal loss.
        enough: stop as soon as an answer loses no more than this.

    """
    relaxation = relax(choices, start)
    pick, bound = swapped(choices, relaxation), relaxation.bound
    # The optimum lies between bound and loss, so it is at least as large as the smaller of the
    # two in size, if they have one sign.
    loss = choices.loss(pick)
    known = min(abs(bound), abs(loss)) if bound * loss > 0 else 0.0
    tolerance = max(absolute, relative * known)
    before = 0
    for most, depth in ROUNDS:
        if loss - bound <= tolerance or loss <= enough:
            break
        undecided = int(np.sum(bound + relaxation.reduced < loss - tolerance))
        width = min(most, WORK // max(1, undecided * len(choices.budgets)))
        if width <= before:
            break
        before = width
        pick, proved, complete = _round(choices, relaxation, pick, width, depth, tolerance)
        loss = choices.loss(pick)
        bound = max(bound, proved)
        if complete:
            break
    return Found(pick=pick, bound=min(bound, loss), tolerance=tolerance)


def _multipliers(relaxation: Relaxation) -> Floats:
    """(M, J) multipliers for bounds of partial answers; the best ones come first."""
    mu_J = relaxation.mu
    rows = [mu_J]
    rows.extend(factor * mu_J for factor in _FACTORS)
    if len(mu_J) > 1:
        for budget in range(len(mu_J)):
            for factor in (0.0, 0.7, 0.9, 1.1, 1.4):
                varied = mu_J.copy()
                varied[budget] *= factor
                rows.append(varied)
    return np.array([*rows, *relaxation.tried[-6:]])


def _round(
    choices: Choices,
    relaxation: Relaxation,
    pick: Ints,
    width: int,
    depth: int,
    tolerance: float,
) -> tuple[Ints, float, bool]:
    """One pass of the dynamic program: (best answer, proved bound, whether nothing was dropped)."""
    base, reduced_K = relaxation.base, relaxation.reduced
    best_loss = choices.loss(pick)
    open_K = np.flatnonzero(relaxation.bound + reduced_K < best_loss - tolerance)
    open_K = open_K[open_K != base[choices.owner[open_K]]]
    core, first = np.unique(choices.owner[open_K], return_index=True)
    if not core.size:
        return pick, best_loss, True
    slices = np.split(open_K, first[1:])
    ambiguity = np.minimum.reduceat(reduced_K[open_K], first)
    order = np.argsort(ambiguity, kind="stable")
    proved = np.inf
    complete = True
    if order.size > depth:
        proved = relaxation.bound + float(ambiguity[order[depth]])
        complete = False
        order = order[:depth]

    mu_MJ = _multipliers(relaxation)
    base_loss = choices.loss(base)
    slack_J = choices.budgets - choices.spent(base)
    # Choices of the core with the base first, as differences from it.
    alternatives = [np.append(base[core[i]], slices[i]) for i in order]
    deltas = [
        (choices.costs[alt] - choices.costs[alt[0]], choices.losses[alt] - choices.losses[alt[0]])
        for alt in alternatives
    ]
    # What the items after each step can contribute at best: to the bound and to each cost.
    rest_M = [np.zeros(len(mu_MJ))]
    least_J = [np.zeros(len(slack_J), dtype=np.int64)]
    most_J = [np.zeros(len(slack_J), dtype=np.int64)]
    for costs_AJ, losses_A in reversed(deltas):
        rest_M.append(rest_M[-1] + (losses_A[:, None] + costs_AJ @ mu_MJ.T).min(axis=0))
        least_J.append(least_J[-1] + costs_AJ.min(axis=0))
        most_J.append(most_J[-1] + costs_AJ.max(axis=0))
    rest_M.reverse()
    least_J.reverse()
    most_J.reverse()

    states = _States(
        costs=np.zeros((1, len(slack_J)), dtype=np.int64),
        losses=np.zeros(1),
        parent=np.zeros(1, dtype=np.int64),
        choice=np.zeros(1, dtype=np.int64),
    )
    history: list[_States] = []
    best_at: tuple[int, int] | None = None
    for step, alt in enumerate(alternatives):
        # Constant part of the bound of a partial answer, a multiplier: base, rest, and budget.
        constant_M = base_loss + rest_M[step + 1] - mu_MJ @ slack_J
        room_J = slack_J - least_J[step + 1]
        # Below this a budget holds whatever follows: spending still less is worth nothing.
        enough_J = slack_J - most_J[step + 1]
        limit = best_loss - tolerance
        pending: list[tuple[_States, Floats]] = []
        waiting = 0
        costs_AJ, losses_A = deltas[step]
        for which in np.argsort(reduced_K[alt], kind="stable"):
            child, bounds_S = _extend(
                states, costs_AJ[which], losses_A[which], int(alt[which]),
                room_J, mu_MJ, constant_M, limit,
            )  # fmt: skip
            pending.append((child, bounds_S))
            waiting += len(bounds_S)
            if waiting > _MAX_PENDING:
                merged, lost = _merge(pending, width, enough_J)
                proved, complete = min(proved, lost), complete and lost == np.inf
                pending, waiting = [merged], len(merged[1])
        (states, _), lost = _merge(pending, width, enough_J)
        proved, complete = min(proved, lost), complete and lost == np.inf
        history.append(states)
        if not states.losses.size:
            break
        fitting = np.flatnonzero(np.all(states.costs <= slack_J, axis=1))
        if fitting.size:
            row = int(fitting[np.argmin(states.losses[fitting])])
            if base_loss + states.losses[row] < best_loss:
                best_loss, best_at = base_loss + float(states.losses[row]), (step, row)

    if best_at is not None:
        pick = base.copy()
        step, row = best_at
        for states in reversed(history[: step + 1]):
            chosen = states.choice[row]
            pick[choices.owner[chosen]] = chosen
            row = int(states.parent[row])
    return pick, min(proved, best_loss), complete


def _extend(
    states: _States,
    cost_J: Ints,
    loss: float,
    choice: int,
    room_J: Ints,
    mu_MJ: Floats,
    constant_M: Floats,
    limit: float,
) -> tuple[_States, Floats]:
    """Every state plus one choice, without those that cannot fit or cannot beat `limit`."""
    costs_SJ, losses_S = states.costs + cost_J, states.losses + loss
    bounds_S = losses_S + costs_SJ @ mu_MJ[0] + constant_M[0]
    rows = np.flatnonzero((bounds_S < limit) & np.all(costs_SJ <= room_J, axis=1))
    costs_SJ, losses_S, bounds_S = costs_SJ[rows], losses_S[rows], bounds_S[rows]
    for mu_J, constant in zip(mu_MJ[1:], constant_M[1:], strict=True):
        bounds_S = np.maximum(bounds_S, losses_S + costs_SJ @ mu_J + constant)
    keep = np.flatnonzero(bounds_S < limit)
    child = _States(
        costs=costs_SJ[keep],
        losses=losses_S[keep],
        parent=rows[keep],
        choice=np.full(len(keep), choice, dtype=np.int64),
    )
    return child, bounds_S[keep]


def _merge(
    pending: list[tuple[_States, Floats]], width: int, enough_J: Ints
) -> tuple[tuple[_States, Floats], float]:
    """Join lists, drop dominated states, keep the `width` best; also the best bound left out."""
    bounds_S = np.concatenate([bounds for _, bounds in pending])
    joined = _States(
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
