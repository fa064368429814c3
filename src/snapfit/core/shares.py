"""Rules about one device's share of a matrix: tensor parallelism and the kernels that it feeds.

`AlignRule` speaks of a whole matrix and one multiple. A serving stack asks more: the sizes that a
kernel sees are a device's share of a width or of the heads, a kernel may take one of several tiles,
and it may refuse a matrix of the model itself, whatever the plan does.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from snapfit.core.candidates import AlignRule
from snapfit.core.errors import UsageError
from snapfit.core.space import Frame, Group, Matrix, Space

ROW_PARALLEL = frozenset({"o", "down"})
"""Roles whose input is split over the devices; of every other role the output is."""


@dataclass(frozen=True, kw_only=True)
class ShareRule(AlignRule):
    """A rule about one device's share of each product that a group has.

    Attributes:
        shares: devices that widths and heads are split over.
        tiles: alternatives (multiple of N, multiple of K), of which a product must meet one. Then
            `axis` is 'rank' (both) and `multiple` suits every alternative. Empty: the one that
            `axis` and `multiple` say.
        refused: whether a matrix that breaks the rule cannot be served, rather than being padded
            or handled by something slower.

    """

    shares: int = 1
    tiles: tuple[tuple[int, int], ...] = ()
    refused: bool = False

    def step(self, group: Group) -> int:
        """A multiple of the group's size that satisfies the rule, whatever else is legal."""
        shares = 1 if group.kind == "rank" else self.shares
        whole = AlignRule(axis=self.axis, multiple=self.multiple * shares, source=self.source)
        return whole.step(group)

    def allows(self, group: Group, sizes: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which of `sizes` (positive) satisfy the rule.

        A dimension that the plan does not change is taken as it is: where it meets no alternative
        the rule asks the same of the size as if it had met the easiest.
        """
        allowed = np.ones(len(sizes), dtype=np.bool_)
        if self.axis == "heads":
            if group.kind == "kv_heads":
                allowed = self._splits(sizes * _queries(group), sizes)
            return allowed
        if self.axis == "width":
            return super().allows(group, sizes)
        for n, k in self._products(group, sizes):
            met = [tile for tile in self._tiles() if n.may_suit(tile[0]) and k.may_suit(tile[1])]
            free, side = (k, 1) if n.fixed else (n, 0)
            allowed &= np.logical_or.reduce(
                [free.suits(tile[side]) for tile in met or self._tiles()]
            )
        return allowed

    def refuses(self, group: Group) -> str | None:
        """Why the group's own matrices, uncompressed, cannot be served; None if they can."""
        if not self.refused or group.kind not in {"rank", "width", "kv_heads"}:
            return None
        if self.axis == "heads":
            full = np.array([group.full])
            if group.kind == "kv_heads" and not self._splits(full * _queries(group), full).all():
                return self._sentence(group.name, f"{group.full} key-value heads")
            return None
        if self.axis == "width":
            return self._refused_width(group)
        for matrix in group.matrices:
            n, k = self._dense(group, matrix)
            if not any(n.suits(tn).all() and k.suits(tk).all() for tn, tk in self._tiles()):
                text = f"N {n} and K {k}"
                return self._sentence(matrix.name, text)
        return None

    def refuses_heads(self, frame: Frame) -> str | None:
        """Why the model's own heads cannot be split; None if they can, or no rule is about them."""
        heads, kv_heads = np.array([frame.heads]), np.array([frame.kv_heads])
        if not self.refused or self.axis != "heads" or self._splits(heads, kv_heads).all():
            return None
        counts = f"{frame.heads} query and {frame.kv_heads} key-value heads"
        return self._sentence("the model", counts)

    def plain(self) -> AlignRule:
        """The rule for one device, as a plan keeps it."""
        kept = {field.name: getattr(self, field.name) for field in fields(AlignRule)}
        return AlignRule(**kept)

    def _splits(self, heads: NDArray[np.int64], kv: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Heads that every device gets as many of; fewer KV heads than devices are copied."""
        split: NDArray[np.bool_] = (kv % self.shares == 0) | (self.shares % kv == 0)
        split &= heads % self.shares == 0
        return split

    def _refused_width(self, group: Group) -> str | None:
        if group.kind == "width":
            width = group.full
        elif group.kind == "rank" and group.role in {"gate", "up"}:
            width = group.matrices[0].rows
        elif group.kind == "rank" and group.role == "down":
            width = group.matrices[0].cols
        else:
            return None
        if width % (self.multiple * self.shares) == 0:
            return None
        return self._sentence(group.name, f"a width of {width}")

    def _sentence(self, name: str, what: str) -> str:
        return f"{name} has {what}, refused by: {self.source}"

    def _tiles(self) -> tuple[tuple[int, int], ...]:
        if self.tiles:
            return self.tiles
        n = self.multiple if self.axis in {"out", "rank"} else 1
        k = self.multiple if self.axis in {"in", "rank"} else 1
        return ((n, k),)

    def _products(self, group: Group, sizes: NDArray[np.int64]) -> Iterator[tuple[_Side, _Side]]:
        """(N, K) of each product at `sizes`; one of the two is free, the other the model's own."""
        if group.kind == "rank":
            free = _Side(sizes)
            for matrix in group.matrices:
                n, k = self._dense(group, matrix)
                yield free, k
                yield n, free
        elif group.kind in {"width", "kv_heads"}:
            copies = np.where(self.shares % sizes == 0, np.maximum(sizes, self.shares), sizes)
            least = _least_features(group)
            for matrix in group.matrices:
                unit = matrix.features // group.full
                keys = group.kind == "kv_heads" and matrix.axis == "out" and unit == least
                free = _Side((copies if keys else sizes) * unit, self.shares)
                n, k = self._dense(group, matrix)
                yield (n, free) if matrix.axis == "in" else (free, k)

    def _dense(self, group: Group, matrix: Matrix) -> tuple[_Side, _Side]:
        """(N, K) of one matrix as it is.

        Keys and values are taken whole: with fewer heads than devices they are copied, not split.
        """
        inward = matrix.axis == "in" or (matrix.axis == "rank" and group.role in ROW_PARALLEL)
        whole = inward or group.role in {"k", "v", "qkv"}
        n = _Side(np.array([matrix.rows]), 1 if whole else self.shares, fixed=True)
        k = _Side(np.array([matrix.cols]), self.shares if inward else 1, fixed=True)
        return n, k


@dataclass(frozen=True)
class _Side:
    """Features of one side of a product, split over devices."""

    features: NDArray[np.int64]
    shares: int = 1
    fixed: bool = False

    def suits(self, multiple: int) -> NDArray[np.bool_]:
        """Whether a device's share is whole and a multiple."""
        fits: NDArray[np.bool_] = self.features % (multiple * self.shares) == 0
        return fits

    def may_suit(self, multiple: int) -> bool:
        """Whether it can be a multiple: a side that is not fixed always can."""
        return not self.fixed or bool(self.suits(multiple).all())

    def __str__(self) -> str:
        share = f" over {self.shares}" if self.shares > 1 else ""
        return f"{int(self.features[0])}{share}"


def check_space(space: Space, rules: Iterable[AlignRule]) -> None:
    """Refuse a model that cannot be served by a stack however it is compressed.

    Raises:
        UsageError: names every clashing rule with its source, and one matrix that it refuses.

    """
    clashes = []
    for rule in rules:
        texts = []
        if isinstance(rule, ShareRule) and space.frame is not None:
            texts.append(rule.refuses_heads(space.frame))
        texts += [rule.refuses(group) for group in space.groups]
        clashes += [text for text in texts if text is not None][:1]
    if clashes:
        raise UsageError("; ".join(clashes) + "; choose another tp, quant or group for the target")


def combined_multiple(rules: Iterable[AlignRule]) -> int:
    """The multiple that suits every rule about ranks, whatever the other dimensions are."""
    return math.lcm(*(rule.multiple for rule in rules if rule.axis in {"in", "out", "rank"}))


def _queries(group: Group) -> int:
    """Query heads of a key-value head."""
    outs = [matrix.features for matrix in group.matrices if matrix.axis == "out"]
    return max(outs) // min(outs) if outs else 1


def _least_features(group: Group) -> int:
    """Features that a unit has of the smallest 'out' matrix: a head's keys, or values."""
    outs = [matrix.features for matrix in group.matrices if matrix.axis == "out"]
    return min(outs, default=0) // group.full
