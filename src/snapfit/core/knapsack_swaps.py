"""A better answer to start the search from: choices swapped one or two at a time.

The search keeps what could beat the best known answer, so a good first answer saves most of its
work: over hundreds of items with hundreds of sizes each, seconds instead of half a minute. What is
proved optimal stays the same.

Legend: N items, K choices, J budgets, P choices that may be swapped in.
"""

from __future__ import annotations

import numpy as np

from snapfit.core.relaxation import Choices, Floats, Ints, Relaxation

MOST = 1024
"""Choices that may be swapped in: those that worsen the bound least. Pairs are their square."""

PASSES = 64
ROUNDING = 1e-13


def swapped(choices: Choices, relaxation: Relaxation) -> Ints:
    """(N,) the relaxation's answer after the best swap of up to two choices, again and again.

    Of equally good swaps the first is taken, in an order that depends on the input alone.
    """
    near_P = np.argsort(relaxation.reduced, kind="stable")[:MOST]
    pick = relaxation.pick
    for _ in range(PASSES):
        better = _swapped_once(choices, near_P, pick)
        if better is None:
            break
        pick = better
    return pick


def _swapped_once(choices: Choices, near_P: Ints, pick: Ints) -> Ints | None:
    """The answer after the best swap within the budgets; None if none is better."""
    owner_P = choices.owner[near_P]
    replaced_P = pick[owner_P]
    # The last entry changes nothing, so that a pair with it is a single swap.
    costs_PJ = np.vstack([choices.costs[near_P] - choices.costs[replaced_P], 0 * choices.budgets])
    losses_P = np.append(choices.losses[near_P] - choices.losses[replaced_P], 0.0)
    owners_P = np.append(owner_P, -1)
    allowed_PP = owners_P[:, None] != owners_P[None, :]
    for cost_P, slack in zip(costs_PJ.T, choices.budgets - choices.spent(pick), strict=True):
        allowed_PP &= cost_P[:, None] + cost_P[None, :] <= slack
    change_PP: Floats = np.where(allowed_PP, losses_P[:, None] + losses_P[None, :], np.inf)
    pair = divmod(int(np.argmin(change_PP)), len(losses_P))
    if change_PP[pair] > -ROUNDING:
        return None
    better = pick.copy()
    for place in pair:
        if place < len(near_P):
            better[owner_P[place]] = near_P[place]
    return better
