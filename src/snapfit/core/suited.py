"""The nearest sizes that suit a target, for a model whose sizes somebody else chose.

A compressor chose ranks, widths of MLPs and perhaps features of heads; the residual stream and
the vocabulary are the model's own, and are suited by padding them. Which sizes are legal is asked
of the target's rules, as `core.candidates` does for a plan: N and K are asked about one by one,
since kernels of quantised weights want more of one than of the other.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from snapfit.core.candidates import AlignRule, RuleAxis
from snapfit.core.forward import Block, Module
from snapfit.core.good import HEAD_MULTIPLE, tiles_of
from snapfit.core.shares import ROW_PARALLEL, ShareRule
from snapfit.core.space import Frame, Group, Matrix

TILE = 64
"""Tiles of a product's output are multiples of this."""

MOST_STEP = 1 << 20
"""No suited size is looked for further away: rules may come from a stranger's profile."""

_ALL_AXES: frozenset[str] = frozenset(get_args(RuleAxis))
_PRODUCT_AXES: frozenset[str] = frozenset({"in", "out", "rank"})
_OUT_WIDTH = frozenset({"gate", "up", "gate_up"})
_OUT_HEADS = frozenset({"q", "k", "v", "qkv"})


@dataclass(frozen=True, kw_only=True)
class Suited:
    """Nearest suited sizes.

    Attributes:
        rules: of the target.
        gpu: whether it is one: the features of a head then matter to its attention kernels.

    """

    rules: tuple[AlignRule, ...]
    gpu: bool

    def modules(self, modules: Iterable[Module], frame: Frame) -> tuple[tuple[Module, ...], Frame]:
        """The modules of one decoder layer and its frame, every size the nearest suited one."""
        modules = tuple(modules)
        head_dim = self.head_dim(modules, frame)
        suited = tuple(self._module(module, frame.head_dim, head_dim) for module in modules)
        return suited, self.frame(frame, head_dim)

    def frame(self, frame: Frame, head_dim: int) -> Frame:
        """The frame with padded hidden size and vocabulary: K and N of the output layer."""
        hidden = self._padded(frame.hidden, 1)
        vocab = self._padded(frame.vocab, 0, beside=hidden, shares=self._shares)
        return replace(frame, hidden=hidden, vocab=vocab, head_dim=head_dim)

    def fits(self, n: int, k: int) -> bool:
        """Whether N and K of a product that one device computes suit every rule."""
        return any(n % tile[0] == 0 and k % tile[1] == 0 for tile in self._tiles)

    def rank(self, module: Module, block: Block) -> int:
        """The suited rank nearest to that of a block; of two equally near the smaller."""
        return self._nearest(_rank_group(module, block))

    def width(self, module: Module) -> int:
        """The suited number of MLP channels nearest to those of `module`."""
        return self._nearest(_width_group(module))

    def smaller(self, module: Module, least: float) -> list[int]:
        """Suited sizes below the module's rank, or width, down to the share `least` of it.

        Only multiples of `TILE` where there are any: the edges of waves are among them.
        """
        blocks = module.blocks
        group = _rank_group(module, blocks[0]) if blocks else _width_group(module)
        sizes = np.arange(max(1, int(np.ceil(least * group.full))), group.full, dtype=np.int64)
        legal = self._legal(group, sizes)
        tiled = legal[legal % TILE == 0]
        return [int(size) for size in (tiled if len(tiled) else legal)]

    def head_dim(self, modules: tuple[Module, ...], frame: Frame) -> int:
        """The nearest number of features a head that suits attention and all projections."""
        size = frame.head_dim
        group = _head_group(modules, size, self._shares) if size else None
        if group is None:
            return size
        least = HEAD_MULTIPLE if self.gpu else 1
        step = self._shares * math.lcm(*(multiple for tile in self._tiles for multiple in tile))
        reach = least * min(step, MOST_STEP)
        tried = np.arange(least, 2 * size + reach, least, dtype=np.int64)
        fits = self._legal(group, tried, _PRODUCT_AXES)
        return int(min(fits, key=lambda n: (abs(n - size), n), default=size))

    def _module(self, module: Module, old: int, new: int) -> Module:
        """One module; heads of `old` features get `new` ones."""
        rows, cols, role = module.rows, module.cols, module.role
        if role in _OUT_WIDTH:
            rows = self.width(module) * (2 if role == "gate_up" else 1)
        elif role == "down":
            cols = self.width(module)
        elif role in _OUT_HEADS and rows % old == 0:
            rows = rows // old * new
        elif role == "o" and cols % old == 0:
            cols = cols // old * new
        ranks = [self.rank(module, block) for block in module.blocks]
        # What is left is the model's own: N of a projection back to the residual stream, or K.
        if role in _OUT_WIDTH | _OUT_HEADS:
            cols = self._padded(cols, 1, beside=ranks[0] if ranks else self._share(rows))
        elif role in ROW_PARALLEL:
            rows = self._padded(rows, 0, beside=ranks[0] if ranks else self._share(cols))
        else:
            rows = self._padded(rows, 0, beside=ranks[0] if ranks else cols)
            cols = self._padded(cols, 1, beside=ranks[0] if ranks else rows)
        blocks = (
            replace(block, rank=rank)
            for block, rank in zip(resized_blocks(module, rows), ranks, strict=True)
        )
        return replace(module, rows=rows, cols=cols, blocks=tuple(blocks))

    @property
    def _shares(self) -> int:
        """Devices that a module is split over."""
        return max((rule.shares for rule in self.rules if isinstance(rule, ShareRule)), default=1)

    @cached_property
    def _tiles(self) -> list[tuple[int, int]]:
        return tiles_of(self.rules)

    def _share(self, size: int) -> int:
        """One device's part of a side that is split."""
        return size // self._shares if size % self._shares == 0 else size

    def _padded(self, size: int, axis: int, *, beside: int = 0, shares: int = 1) -> int:
        """The least suited size, not below `size`, of N (axis 0) or K (axis 1).

        Of alternatives those count that the other side, `beside`, meets; 0 meets every one.
        """
        met = [tile for tile in self._tiles if beside % tile[1 - axis] == 0]
        multiples = [tile[axis] * shares for tile in met or self._tiles]
        return min(-(-size // multiple) * multiple for multiple in multiples)

    def _nearest(self, group: Group) -> int:
        size = group.full
        reach = min(math.lcm(*(rule.step(group) for rule in self.rules)), MOST_STEP)
        legal = self._legal(
            group, np.arange(max(1, size - reach), size + reach + 1, dtype=np.int64)
        )
        return int(legal[np.argmin(np.abs(legal - size))]) if len(legal) else size

    def _legal(
        self, group: Group, sizes: NDArray[np.int64], axes: frozenset[str] = _ALL_AXES
    ) -> NDArray[np.int64]:
        """Sizes that every rule about one of `axes` allows."""
        allowed = [rule.allows(group, sizes) for rule in self.rules if rule.axis in axes]
        return sizes[np.logical_and.reduce([np.ones(len(sizes), dtype=np.bool_), *allowed])]


def _rank_group(module: Module, block: Block) -> Group:
    """A block of a module as what a plan would decide, its rank as the full size."""
    matrix = Matrix(name=module.name, axis="rank", rows=block.rows, cols=module.cols)
    return _group(module, "rank", block.rank, (matrix,))


def _width_group(module: Module) -> Group:
    """The width that a module of an MLP has; every width is the N of one product, the K of one."""
    inward = module.role == "down"
    width = module.cols if inward else module.rows // (2 if module.role == "gate_up" else 1)
    hidden = module.rows if inward else module.cols
    out = Matrix(name=module.name, axis="out", rows=width, cols=hidden)
    into = Matrix(name=module.name, axis="in", rows=hidden, cols=width)
    return _group(module, "width", width, (out, into))


def _head_group(modules: tuple[Module, ...], size: int, shares: int) -> Group | None:
    """The features of a head as what would be decided; None where no projection has whole heads."""
    matrices = []
    for module in modules:
        rows, cols = module.rows, module.cols
        if module.role in _OUT_HEADS and rows % size == 0:
            if module.role in {"k", "v"} and shares % (rows // size) == 0:
                rows = size * shares  # fewer heads than devices are copied: each gets one
            matrices.append(Matrix(name=module.name, axis="out", rows=rows, cols=cols))
        elif module.role == "o" and cols % size == 0:
            matrices.append(Matrix(name=module.name, axis="in", rows=rows, cols=cols))
    if not any(matrix.axis == "out" for matrix in matrices):
        return None
    return _group(modules[0], "width", size, tuple(matrices))


def _group(
    module: Module, kind: Literal["rank", "width"], full: int, matrices: tuple[Matrix, ...]
) -> Group:
    return Group(
        name=module.name,
        kind=kind,
        matrices=matrices,
        full=full,
        role=module.role if kind == "rank" else "mlp",
        layer=module.layer,
    )


def resized_blocks(module: Module, rows: int) -> tuple[Block, ...]:
    """The blocks of a module when its rows change; all of them if they were all before."""
    ends = np.cumsum([0, *(block.rows for block in module.blocks)]) * rows // module.rows
    return tuple(
        Block(rows=int(size), rank=block.rank)
        for size, block in zip(np.diff(ends), module.blocks, strict=True)
    )
