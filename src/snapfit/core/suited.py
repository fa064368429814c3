"""The nearest sizes that suit a target, for a model whose sizes somebody else chose.

A compressor chose ranks, widths of MLPs and perhaps features of heads; the residual stream and
the vocabulary are the model's own, and are suited by padding them. Which sizes are legal is asked
of the target's rules, as `core.candidates` does for a plan.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from snapfit.core.candidates import AlignRule
from snapfit.core.forward import Block, Module
from snapfit.core.shares import combined_multiple
from snapfit.core.space import Frame, Group, Matrix

HEAD_MULTIPLE = 8
"""SDPA on a GPU pads heads to a multiple of this; see `core.causes`."""

TILE = 64
"""Tiles of a product's output are multiples of this."""

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
        """The frame with padded hidden size and vocabulary."""
        hidden, vocab = self.padded(frame.hidden), self.padded(frame.vocab)
        return replace(frame, hidden=hidden, vocab=vocab, head_dim=head_dim)

    def padded(self, size: int) -> int:
        """The least multiple, not below `size`, that suits every rule about products."""
        multiple = combined_multiple(self.rules)
        return -(-size // multiple) * multiple

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
        counts = [m.rows // size for m in modules if m.role in _OUT_HEADS and m.rows % size == 0]
        if not counts or not size:
            return size
        features = combined_multiple(self.rules)
        least = HEAD_MULTIPLE if self.gpu else 1
        tried = range(1, 2 * size + least * features)
        fits = [n for n in tried if n % least == 0 and all(c * n % features == 0 for c in counts)]
        return min(fits, key=lambda n: (abs(n - size), n), default=size)

    def _module(self, module: Module, old: int, new: int) -> Module:
        """One module; heads of `old` features get `new` ones."""
        rows, cols = self.padded(module.rows), self.padded(module.cols)
        if module.role in _OUT_WIDTH:
            rows = self.width(module) * (2 if module.role == "gate_up" else 1)
        elif module.role == "down":
            cols = self.width(module)
        elif module.role in _OUT_HEADS and module.rows % old == 0:
            rows = module.rows // old * new
        elif module.role == "o" and module.cols % old == 0:
            cols = module.cols // old * new
        blocks = tuple(
            Block(rows=_scaled(block.rows, module.rows, rows), rank=self.rank(module, block))
            for block in module.blocks
        )
        return replace(module, rows=rows, cols=cols, blocks=blocks)

    def _nearest(self, group: Group) -> int:
        size, reach = group.full, 1
        for rule in self.rules:
            reach = int(np.lcm(reach, rule.step(group)))
        legal = self._legal(
            group, np.arange(max(1, size - reach), size + reach + 1, dtype=np.int64)
        )
        return int(legal[np.argmin(np.abs(legal - size))]) if len(legal) else size

    def _legal(self, group: Group, sizes: NDArray[np.int64]) -> NDArray[np.int64]:
        allowed = [rule.allows(group, sizes) for rule in self.rules]
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


def _scaled(rows: int, old: int, new: int) -> int:
    """Rows of a block when all rows of its module change from `old` to `new`."""
    return rows if old == new else rows * new // old
