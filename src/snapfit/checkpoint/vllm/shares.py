"""Which rows and columns of a checkpoint's layers one worker holds, and where they lie in memory.

A linear layer of vLLM holds one or more of the checkpoint's (`qkv_proj`: three). All rows that
read its input are stacked, first factors and dense rows alike, so that they cost one product:

    first = [a_q; a_k; W_v] x    then    q = b_q first[0:r], k = b_k first[r:s], v = first[s:t]

With tensor parallelism a layer that is split by output rows holds whole first factors and some
rows of the second ones; one that is split by input columns holds some columns of the first
factors and whole second ones. No rank is ever split. This module is integers only.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from snapfit.core.errors import SnapfitError
from snapfit.core.layout import ModuleLayout

Span = tuple[int, int]
"""First row, and the row after the last."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """A linear layer of the checkpoint in a layer of vLLM.

    Attributes:
        name: qualified, in the checkpoint.
        layout: of the whole layer.
        spans: rows of its output that this worker computes, in their order.
        bias: whether it has one.

    """

    name: str
    layout: ModuleLayout
    spans: tuple[Span, ...]
    bias: bool


@dataclass(frozen=True, kw_only=True)
class Copy:
    """Rows of a stored tensor and the row where the first of them goes."""

    rows: Span
    to: int


@dataclass(frozen=True, kw_only=True)
class Output:
    """Consecutive output features of a worker, all of one block.

    Attributes:
        part: index of the part.
        block: index of the block in the part's layout.
        rows: spans of the block's rows.
        hidden: rows of the first product that it reads (a rank), or that it is (a dense block).
        dense: whether it is rows of the first product.

    """

    part: int
    block: int
    rows: tuple[Span, ...]
    hidden: Span
    dense: bool

    @property
    def size(self) -> int:
        """Output features."""
        return sum(stop - start for start, stop in self.rows)


@dataclass(frozen=True, kw_only=True)
class Share:
    """What one worker computes of a layer.

    Attributes:
        parts: the checkpoint's layers.
        outputs: in the order of the output features.
        first: rows of the first product.
        factors: where each factored block's rows of `a.weight` go, by (part, block).

    """

    parts: tuple[Part, ...]
    outputs: tuple[Output, ...]
    first: int
    factors: dict[tuple[int, int], Copy]


def share_of(parts: Sequence[Part]) -> Share:
    """Lay out the first product and the outputs of a worker.

    Raises:
        SnapfitError: the parts read inputs of different sizes, so they cannot share a product.

    """
    sizes = {part.layout.inputs for part in parts}
    if len(sizes) > 1:
        names = " and ".join(part.name for part in parts)
        raise SnapfitError(f"vLLM computes {names} together, but they read {sorted(sizes)} inputs")
    outputs: list[Output] = []
    factors: dict[tuple[int, int], Copy] = {}
    used = 0
    for index, part in enumerate(parts):
        for block, rows in _blocks(part):
            rank = part.layout.blocks[block].rank
            if rank is None:
                size = sum(stop - start for start, stop in rows)
                hidden = (used, used + size)
                used += size
            else:
                if (index, block) not in factors:
                    start = sum(b.rank or 0 for b in part.layout.blocks[:block])
                    factors[index, block] = Copy(rows=(start, start + rank), to=used)
                    used += rank
                copied = factors[index, block]
                hidden = (copied.to, copied.to + rank)
            outputs.append(
                Output(part=index, block=block, rows=rows, hidden=hidden, dense=rank is None)
            )
    return Share(parts=tuple(parts), outputs=tuple(outputs), first=used, factors=factors)


def _blocks(part: Part) -> Iterable[tuple[int, tuple[Span, ...]]]:
    """(block, spans of its rows) of a part's local output, neighbours of one block merged."""
    found: list[tuple[int, list[Span]]] = []
    for start, stop in part.spans:
        offset = 0
        for index, block in enumerate(part.layout.blocks):
            low, high = max(start, offset), min(stop, offset + block.rows)
            if low < high:
                span = (low - offset, high - offset)
                if found and found[-1][0] == index:
                    found[-1][1].append(span)
                else:
                    found.append((index, [span]))
            offset += block.rows
    return [(index, tuple(spans)) for index, spans in found]


def split(name: str, size: int, ways: int, index: int, offset: int = 0) -> Span:
    """The rows or columns of worker `index` of `ways`.

    Raises:
        SnapfitError: they cannot be shared equally.

    """
    if size % ways:
        raise SnapfitError(
            f"{name} has {size} features, which {ways} workers cannot share equally; compress with "
            f"--target ...,tp={ways}, or serve with another tensor parallel size"
        )
    each = size // ways
    return offset + index * each, offset + (index + 1) * each
