"""How a factored linear layer is laid out: integers only, checked on the way in.

This is the content of `quantization_config["modules"]` in a factored checkpoint. A module is one
or more blocks of output rows; each block is either dense or a factor pair of some rank:

    y = [ b_0 (a x)_0 ; b_1 (a x)_1 ; W_2 x ; ... ]

Most modules have one block, {"in": n, "out": m, "rank": r}. Several blocks hold what PaLU makes:
one pair per group of key or value heads, and row blocks of fused projections left dense.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from snapfit.core.errors import CorruptFile
from snapfit.core.space import Group, Space

MAX_DIMENSION = 1 << 24
"""Larger sizes than this in a file are a mistake or an attack, never a model."""


@dataclass(frozen=True, kw_only=True)
class Block:
    """`rows` output features; `rank` of their factor pair, or None for a dense block."""

    rows: int
    rank: int | None


@dataclass(frozen=True, kw_only=True)
class ModuleLayout:
    """Shapes of one factored linear layer: `inputs` -> sum of the blocks' rows."""

    inputs: int
    blocks: tuple[Block, ...]

    @property
    def outputs(self) -> int:
        """Output features."""
        return sum(block.rows for block in self.blocks)

    @property
    def ranks(self) -> tuple[int, ...]:
        """Ranks of the factored blocks, in row order."""
        return tuple(block.rank for block in self.blocks if block.rank is not None)

    @property
    def params(self) -> int:
        """Weights of the layer (biases are not counted)."""
        return sum(
            block.rows * self.inputs
            if block.rank is None
            else block.rank * (block.rows + self.inputs)
            for block in self.blocks
        )

    def to_json(self) -> dict[str, Any]:
        """The entry of `quantization_config["modules"]`."""
        sizes: dict[str, Any] = {"in": self.inputs, "out": self.outputs}
        if len(self.blocks) == 1:
            return {**sizes, "rank": self.blocks[0].rank}
        return {**sizes, "blocks": [{"rows": b.rows, "rank": b.rank} for b in self.blocks]}

    @classmethod
    def from_json(cls, name: str, data: Any) -> ModuleLayout:
        """Validate one entry written by a stranger.

        Raises:
            CorruptFile: a size is missing, not a whole number, or out of range.

        """
        if not isinstance(data, dict):
            raise CorruptFile(f"module {name!r}: expected a table of sizes, found {data!r}")
        inputs = _size(name, "in", data.get("in"))
        outputs = _size(name, "out", data.get("out"))
        entries = data.get("blocks", [{"rows": outputs, "rank": data.get("rank")}])
        if not isinstance(entries, list) or not entries:
            raise CorruptFile(f"module {name!r}: 'blocks' must be a non-empty list")
        blocks = []
        for entry in entries:
            if not isinstance(entry, dict):
                raise CorruptFile(f"module {name!r}: a block must be a table, found {entry!r}")
            rows = _size(name, "rows", entry.get("rows"))
            rank = entry.get("rank")
            if rank is not None and _size(name, "rank", rank) > min(rows, inputs):
                raise CorruptFile(f"module {name!r}: rank {rank} exceeds a {rows} x {inputs} block")
            blocks.append(Block(rows=rows, rank=rank))
        layout = cls(inputs=inputs, blocks=tuple(blocks))
        if layout.outputs != outputs:
            raise CorruptFile(
                f"module {name!r}: blocks have {layout.outputs} rows, 'out' says {outputs}"
            )
        return layout


def _size(name: str, field: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MAX_DIMENSION:
        raise CorruptFile(f"module {name!r}: {field!r} must be a positive integer, found {value!r}")
    return value


Layouts: TypeAlias = dict[str, ModuleLayout]
"""Layouts by module name."""


def plan_layouts(whole: Space, groups: Iterable[Group], sizes: Mapping[str, int]) -> Layouts:
    """Layouts of every module that a plan factors; modules left dense are not listed.

    Args:
        whole: the unrestricted space, with one group per module, for the modules' dimensions.
        groups: the groups that were decided; several may be row blocks of one module.
        sizes: the chosen size of each group; a missing group stays dense.

    """
    ranks = whole.of_kind("rank").groups
    modules = {group.matrices[0].name: group.matrices[0] for group in ranks}
    factored: dict[str, list[tuple[int, int, int]]] = {}
    for group in groups:
        size = sizes.get(group.name, group.full)
        if size < group.full:
            for matrix in group.matrices:
                factored.setdefault(matrix.name, []).append((matrix.start, matrix.rows, size))
    return {
        name: ModuleLayout(
            inputs=modules[name].cols, blocks=_fill(sorted(parts), modules[name].rows)
        )
        for name, parts in factored.items()
    }


def _fill(parts: list[tuple[int, int, int]], rows: int) -> tuple[Block, ...]:
    """Blocks covering all `rows`: the factored parts in order, dense blocks between them."""
    blocks, end = [], 0
    for start, count, rank in parts:
        if start > end:
            blocks.append(Block(rows=start - end, rank=None))
        blocks.append(Block(rows=count, rank=rank))
        end = start + count
    if end < rows:
        blocks.append(Block(rows=rows - end, rank=None))
    return tuple(blocks)
