"""Exact search over the core of a multi-choice knapsack: list dynamic programming with bounds.

Legend: N items, K choices, J budgets, S partial answers (states), M multipliers, A choices of one
item that are open.

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

from snapfit.core.knapsack_states import States, extend, first_state, merge
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


@dataclass(frozen=True, kw_only=True)
class _Core:
    """What a round decides: the most undecided items first, each with its base choice first.

    Attributes:
        choices: (A,) indices of each item's choices.
        deltas: each item's costs (A, J) and losses (A,), as differences from its base.
        rest: (M,) what the items after each step can contribute to a bound at best.
        least: (J,) and to each cost at least.
        most: (J,) and at most.
        left_out: the smallest bound of the answers that change an item that is not decided.

    """

    choices: list[Ints]
    deltas: list[tuple[Ints, Floats]]
    rest: list[Floats]
    least: list[Ints]
    most: list[Ints]
    left_out: float


def _core(
    choices: Choices, relaxation: Relaxation, open_K: Ints, depth: int, mu_MJ: Floats
) -> _Core:
    """The core of at most `depth` items that have one of the choices `open_K`."""
    base, reduced_K = relaxation.base, relaxation.reduced
    items, first = np.unique(choices.owner[open_K], return_index=True)
    slices = np.split(open_K, first[1:])
    ambiguity = np.minimum.reduceat(reduced_K[open_K], first)
    order = np.argsort(ambiguity, kind="stable")
    left_out = np.inf
    if order.size > depth:
        left_out = relaxation.bound + float(ambiguity[order[depth]])
        order = order[:depth]
    alternatives = [np.append(base[items[i]], slices[i]) for i in order]
    deltas = [
        (choices.costs[alt] - choices.costs[alt[0]], choices.losses[alt] - choices.losses[alt[0]])
        for alt in alternatives
    ]
    rest = [np.zeros(len(mu_MJ))]
    least = [np.zeros(mu_MJ.shape[1], dtype=np.int64)]
    most = [np.zeros(mu_MJ.shape[1], dtype=np.int64)]
    for costs_AJ, losses_A in reversed(deltas):
        rest.append(rest[-1] + (losses_A[:, None] + costs_AJ @ mu_MJ.T).min(axis=0))
        least.append(least[-1] + costs_AJ.min(axis=0))
        most.append(most[-1] + costs_AJ.max(axis=0))
    return _Core(
        choices=alternatives,
        deltas=deltas,
        rest=rest[::-1],
        least=least[::-1],
        most=most[::-1],
        left_out=left_out,
    )


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
    if not open_K.size:
        return pick, best_loss, True
    mu_MJ = _multipliers(relaxation)
    core = _core(choices, relaxation, open_K, depth, mu_MJ)
    proved = core.left_out
    base_loss = choices.loss(base)
    slack_J = choices.budgets - choices.spent(base)
    states, history = first_state(len(slack_J)), []
    best_at: tuple[int, int] | None = None
    for step, (alt, (costs_AJ, losses_A)) in enumerate(zip(core.choices, core.deltas, strict=True)):
        # Constant part of the bound of a partial answer, a multiplier: base, rest, and budget.
        constant_M = base_loss + core.rest[step + 1] - mu_MJ @ slack_J
        room_J = slack_J - core.least[step + 1]
        # Below this a budget holds whatever follows: spending still less is worth nothing.
        enough_J = slack_J - core.most[step + 1]
        pending: list[tuple[States, Floats]] = []
        waiting = 0
        for which in np.argsort(reduced_K[alt], kind="stable"):
            child, bounds_S = extend(
                states, costs_AJ[which], losses_A[which], int(alt[which]),
                room_J, mu_MJ, constant_M, best_loss - tolerance,
            )  # fmt: skip
            pending.append((child, bounds_S))
            waiting += len(bounds_S)
            if waiting > _MAX_PENDING:
                merged, lost = merge(pending, width, enough_J)
                proved = min(proved, lost)
                pending, waiting = [merged], len(merged[1])
        (states, _), lost = merge(pending, width, enough_J)
        proved = min(proved, lost)
        history.append(states)
        if not states.losses.size:
            break
        fitting = np.flatnonzero(np.all(states.costs <= slack_J, axis=1))
        if fitting.size:
            row = int(fitting[np.argmin(states.losses[fitting])])
            if base_loss + states.losses[row] < best_loss:
                best_loss, best_at = base_loss + float(states.losses[row]), (step, row)
    if best_at is not None:
        pick = _traced(choices, base, history, *best_at)
    return pick, min(proved, best_loss), proved == np.inf


def _traced(choices: Choices, base: Ints, history: list[States], step: int, row: int) -> Ints:
    """The answer that a state stands for: the base, but for the choices that led to it."""
    pick = base.copy()
    for states in reversed(history[: step + 1]):
        chosen = states.choice[row]
        pick[choices.owner[chosen]] = chosen
        row = int(states.parent[row])
    return pick
