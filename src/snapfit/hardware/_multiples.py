"""Which multiples a live device wants, from a few products just below a round size.

The size that is swept is one whose largest power of two is exactly 1, 2, 4, ..., so that one
product stands for every multiple. A multiple is asked for when the products that are not of it
cost more, by more than both were uncertain by.
"""

from __future__ import annotations

from typing import Literal

from snapfit.core.candidates import AlignRule
from snapfit.core.operators import Linear, Operator
from snapfit.core.profile import Profile

TIERS = (1, 2, 4, 8, 16, 32, 64)
"""Largest powers of two that are swept."""

TOKENS, ROUND = 512, 2048
WORTH = 1.05
"""Extra time that is worth a rule: below it, larger multiples would cost more than they bring."""

_AXES: tuple[Literal["in", "out"], ...] = ("in", "out")


def tier_operators() -> tuple[Operator, ...]:
    """The products to time."""
    return tuple(_product(axis, tier) for axis in _AXES for tier in TIERS)


def measured_rules(profile: Profile) -> tuple[AlignRule, ...]:
    """Rules for K and N, from a profile that holds the products of `tier_operators`.

    A rule a step of cost, the largest multiple first: that of 16 costs what multiples of 8 only
    do, that of 2 what odd sizes do, and of those that a size breaks the dearest counts.

    Raises:
        SnapfitError: it does not hold them.

    """
    return tuple(rule for axis in _AXES for rule in _rules(profile, axis))


def _rules(profile: Profile, axis: Literal["in", "out"]) -> list[AlignRule]:
    times = {tier: profile.time(_product(axis, tier)) for tier in TIERS}
    rates = {tier: found.microseconds / (ROUND - tier) for tier, found in times.items()}
    best = min(TIERS, key=lambda tier: rates[tier])
    costs = {tier: rates[tier] / rates[best] for tier in TIERS}
    worth = {tier: WORTH + times[tier].spread + times[best].spread for tier in TIERS}
    good = [tier for tier in TIERS if costs[tier] <= worth[tier]]
    # What is costly above the last good multiple is no tier.
    costly = [tier for tier in TIERS if tier < good[-1] and tier not in good]
    steps: dict[int, float | None] = {}
    dearest = 1.0
    for tier in reversed(costly):
        if not steps or costs[tier] > WORTH * dearest:
            dearest = costs[tier]
            steps[2 * tier] = dearest
    shown = ", ".join(f"{tier}: x{costs[tier]:.2f}" for tier in TIERS)
    name = "K" if axis == "in" else "N"
    source = f"swept, {name} near {ROUND}, M {TOKENS}, cost by largest power of 2: {shown}"
    return [
        AlignRule(axis=axis, multiple=multiple, source=source, measured=True, penalty=penalty)
        for multiple, penalty in (steps or {1: None}).items()
    ]


def _product(axis: Literal["in", "out"], tier: int) -> Linear:
    size = ROUND - tier
    n, k = (ROUND, size) if axis == "in" else (size, ROUND)
    return Linear(m=TOKENS, n=n, k=k)
