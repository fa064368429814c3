"""How a changed linear layer is laid out: integers only, checked on the way in.

This is the content of `quantization_config["modules"]` in a factored checkpoint. A module is one
or more blocks of output rows; each block is either dense or a factor pair of some rank:

    y = [ b_0 (a x)_0 ; b_1 (a x)_1 ; W_2 x ; ... ]

Most modules have one block, {"in": n, "out": m, "rank": r}. Several blocks hold what PaLU makes:
one pair per group of key or value heads, and row blocks of fused projections left dense. A module
whose only block is dense, {"in": n, "out": m, "rank": null}, was narrowed: n or m is smaller than
in the source. "bias": true stands on a module that has gained a bias, as FLAP's do.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

from snapfit.core.checked import is_whole, shown
from snapfit.core.errors import CorruptFile

MAX_DIMENSION = 1 << 24
"""Larger sizes than this in a file are a mistake or an attack, never a model."""

_ENTRIES = frozenset({"in", "out", "rank", "blocks", "bias"})


@dataclass(frozen=True, kw_only=True)
class Block:
    """`rows` output features; `rank` of their factor pair, or None for a dense block."""

    rows: int
    rank: int | None


@dataclass(frozen=True, kw_only=True)
class ModuleLayout:
    """Shapes of one changed linear layer: `inputs` -> sum of the blocks' rows.

    Attributes:
        inputs: input features.
        blocks: output rows, first to last.
        bias: whether the layer has gained a bias that the source's does not have.

    """

    inputs: int
    blocks: tuple[Block, ...]
    bias: bool = False

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

    def dense(self) -> ModuleLayout:
        """The same layer with its factors multiplied."""
        block = Block(rows=self.outputs, rank=None)
        return ModuleLayout(inputs=self.inputs, blocks=(block,), bias=self.bias)

    def to_json(self) -> dict[str, Any]:
        """The entry of `quantization_config["modules"]`."""
        sizes: dict[str, Any] = {"in": self.inputs, "out": self.outputs}
        if len(self.blocks) == 1:
            sizes["rank"] = self.blocks[0].rank
        else:
            sizes["blocks"] = [{"rows": b.rows, "rank": b.rank} for b in self.blocks]
        return {**sizes, "bias": True} if self.bias else sizes

    @classmethod
    def from_json(cls, name: str, data: Any) -> ModuleLayout:
        """Validate one entry written by a stranger.

        Raises:
            CorruptFile: a size is missing, not a whole number, or out of range.

        """
        if not isinstance(data, dict):
            raise CorruptFile(f"module {name!r}: expected a table of sizes, found {shown(data)}")
        if unknown := sorted(map(str, data.keys() - _ENTRIES)):
            raise CorruptFile(f"module {name!r}: unknown entry {unknown[0]!r}")
        inputs = _size(name, "in", data.get("in"))
        outputs = _size(name, "out", data.get("out"))
        if "blocks" in data and "rank" in data:
            raise CorruptFile(f"module {name!r}: has 'blocks' and a 'rank'; it must be one of them")
        entries = data.get("blocks", [{"rows": outputs, "rank": data.get("rank")}])
        if not isinstance(entries, list) or not entries:
            raise CorruptFile(f"module {name!r}: 'blocks' must be a non-empty list")
        bias = data.get("bias", False)
        if not isinstance(bias, bool):
            raise CorruptFile(f"module {name!r}: 'bias' must be true or false, found {shown(bias)}")
        blocks = tuple(_block(name, entry, inputs) for entry in entries)
        layout = cls(inputs=inputs, blocks=blocks, bias=bias)
        if layout.outputs != outputs:
            raise CorruptFile(
                f"module {name!r}: blocks have {layout.outputs} rows, 'out' says {outputs}"
            )
        return layout


def _block(name: str, entry: Any, inputs: int) -> Block:
    if not isinstance(entry, dict):
        raise CorruptFile(f"module {name!r}: a block must be a table, found {shown(entry)}")
    if unknown := sorted(map(str, entry.keys() - {"rows", "rank"})):
        raise CorruptFile(f"module {name!r}: a block has the unknown entry {unknown[0]!r}")
    rows = _size(name, "rows", entry.get("rows"))
    rank = entry.get("rank")
    if rank is not None and _size(name, "rank", rank) > min(rows, inputs):
        raise CorruptFile(f"module {name!r}: rank {rank} exceeds a {rows} x {inputs} block")
    return Block(rows=rows, rank=rank)


def _size(name: str, field: str, value: Any) -> int:
    if not is_whole(value) or not 1 <= value <= MAX_DIMENSION:
        raise CorruptFile(
            f"module {name!r}: {field!r} must be a positive integer, found {shown(value)}"
        )
    return value


Layouts: TypeAlias = dict[str, ModuleLayout]
"""Layouts by module name."""
