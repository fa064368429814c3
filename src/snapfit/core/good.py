"""The nearest shape of an operator that a target likes, for comparison with the one asked about."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from dataclasses import replace

from snapfit.core.candidates import AlignRule
from snapfit.core.operators import Attention, Linear, Operator
from snapfit.core.shares import ShareRule

HEAD_MULTIPLE = 8
"""Head dimensions that are no multiple of it are padded and copied by SDPA (A100: +26 to 41%)."""


def nearest_good(operator: Operator, rules: Iterable[AlignRule]) -> Operator | None:
    """The operator with each size rounded to the nearest multiple that the rules ask for.

    N and K of a product by the rules about them, of several tiles to the one that changes least;
    the head dimension of attention to a multiple of 8 where the target has any such rule. Halves
    are rounded up, and nothing to zero.

    Returns:
        The operator itself if it is good already; None if no rule is about its kind.

    """
    tiles = tiles_of(rules)
    if isinstance(operator, Linear):
        found = [
            replace(operator, n=_nearest(operator.n, n), k=_nearest(operator.k, k))
            for n, k in tiles
        ]
        return min(found, key=lambda op: abs(op.n - operator.n) + abs(op.k - operator.k))
    if isinstance(operator, Attention):
        multiple = math.gcd(max(map(max, tiles)), HEAD_MULTIPLE)
        return replace(operator, head_dim=_nearest(operator.head_dim, multiple))
    return None


def tiles_of(rules: Iterable[AlignRule]) -> list[tuple[int, int]]:
    """Alternatives (multiple of N, multiple of K), each of which suits all rules together."""
    together = itertools.product(*map(_tiles, rules))
    return [(math.lcm(*(n for n, _ in of)), math.lcm(*(k for _, k in of))) for of in together]


def _tiles(rule: AlignRule) -> tuple[tuple[int, int], ...]:
    """What one rule asks of a product; one about ranks is about both sides."""
    if isinstance(rule, ShareRule) and rule.tiles:
        return rule.tiles
    n = rule.multiple if rule.axis in {"out", "rank"} else 1
    k = rule.multiple if rule.axis in {"in", "rank"} else 1
    return ((n, k),)


def _nearest(size: int, multiple: int) -> int:
    return max(1, (2 * size + multiple) // (2 * multiple)) * multiple
