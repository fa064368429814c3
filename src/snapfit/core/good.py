"""The nearest shape of an operator that a target likes, for comparison with the one asked about."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace

from snapfit.core.candidates import AlignRule
from snapfit.core.operators import Attention, Linear, Operator

HEAD_MULTIPLE = 8
"""Head dimensions that are no multiple of it are padded and copied by SDPA (A100: +26 to 41%)."""


def nearest_good(operator: Operator, rules: Iterable[AlignRule]) -> Operator | None:
    """The operator with each size rounded to the nearest multiple that the rules ask for.

    N and K of a product by the rules about them; the head dimension of attention to a multiple of
    8 where the target has any such rule. Halves are rounded up, and nothing to zero.

    Returns:
        The operator itself if it is good already; None if no rule is about its kind.

    """
    rules = tuple(rules)
    if isinstance(operator, Linear):
        n, k = (_multiple(rules, axis) for axis in ("out", "in"))
        return replace(operator, n=_nearest(operator.n, n), k=_nearest(operator.k, k))
    if isinstance(operator, Attention):
        asked = max(_multiple(rules, "out"), _multiple(rules, "in"))
        multiple = math.gcd(asked, HEAD_MULTIPLE)
        return replace(operator, head_dim=_nearest(operator.head_dim, multiple))
    return None


def _multiple(rules: tuple[AlignRule, ...], axis: str) -> int:
    """Of one axis; a rule about ranks that no other repeats is about both."""
    return math.lcm(*(rule.multiple for rule in rules if rule.axis in {axis, "rank"}))


def _nearest(size: int, multiple: int) -> int:
    return max(1, (2 * size + multiple) // (2 * multiple)) * multiple
