"""Attention on one GPU: NVIDIA's table where it has the point, and a model between its points.

Facts about FlashAttention-2 (GAC paper, A100 and H100, PyTorch 2.9.1): a head dimension runs as the
next template of 64, 96, 128, 160, 192, 224 or 256, and crossing one costs 36 to 46%, from 192 to
200 even 42 to 56%; one that is no multiple of 8 is padded and copied first, 26 to 41% more. An
engine's table tells the level; where it lists a head dimension, that kernel's own times are used.

Letters: R rows of a table.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from snapfit.core.causes import TEMPLATES as PUBLISHED
from snapfit.core.operators import Attention, Estimate
from snapfit.hardware._gpus import Gpu
from snapfit.hardware._tables import AttentionTable, attention_table
from snapfit.hardware._tiles import generation

Sizes = NDArray[np.float64]

TEMPLATES = (32, *PUBLISHED)
ITEMSIZE = 2

SOFTMAX = 16
"""Features of a head that the softmax of a pair is worth, beside both products: exponentials run
at 16 a cycle and multiprocessor, two products at 1/512 cycle a feature, about half overlapped."""

UNEVEN = 1.08
"""A head smaller than its template is masked: the published steps over the steps of the sizes."""

STEP, WIDE_STEP = 1.43, 1.51
"""Of arithmetic: the middle of the published steps of time, +41% for 64 -> 72, 96 -> 104 and 128 ->
136, +49% for 192 -> 200, of which traffic and launch take no part."""

COPY_SHARE = 0.42
"""Of the memory bandwidth, for padding rows to a multiple of 8 elements: gives the published
+26..41% over head dimensions 65 to 255 beside this model's own times."""

TILE_ROWS = 128
DIAGONAL = 96
"""Pairs a query that tiles of 128 x 64 score above the diagonal of a causal mask."""

HELD_OUT = {"context": 0.07, "generation": 0.08}
"""Median error where every second context of a table is left out, the worst GPU
(`benchmarks/a100_model.py`)."""

TEMPLATE_ERROR = 0.06
UNANCHORED = 0.3


def _shapes() -> tuple[float, ...]:
    """Features that each template costs: the published steps, and sizes where none is."""
    small, first = 32.0 + SOFTMAX, 64.0 + SOFTMAX
    second, third, fourth = (first * (STEP / UNEVEN) ** steps for steps in (1, 2, 3))
    fifth = fourth * (192 + SOFTMAX) / (160 + SOFTMAX)
    sixth = fifth * WIDE_STEP / UNEVEN
    return (
        small,
        first,
        second,
        third,
        fourth,
        fifth,
        sixth,
        fifth * (256 + SOFTMAX) / (192 + SOFTMAX),
    )


_SHAPES = _shapes()


@dataclass(frozen=True, kw_only=True)
class Level:
    """Log of table over law at scattered points: by context, then by parallel work.

    Attributes:
        contexts: sorted, log of tokens.
        lines: for each context, sorted log of parallel work, and the log ratios there.

    """

    contexts: NDArray[np.float64]
    lines: tuple[tuple[NDArray[np.float64], NDArray[np.float64]], ...]

    def at(self, context: int, parallel: int) -> float:
        """The ratio's log, linear in both logs, constant beyond the points."""
        place, work = float(np.log(context)), float(np.log(parallel))
        above = int(np.searchsorted(self.contexts, place))
        high = min(above, len(self.contexts) - 1)
        low = max(above - 1, 0) if self.contexts[high] != place else high
        values = [float(np.interp(work, *self.lines[index])) for index in (low, high)]
        gap = self.contexts[high] - self.contexts[low]
        share = min(max((place - self.contexts[low]) / gap, 0.0), 1.0) if gap else 0.0
        return values[0] + share * (values[1] - values[0])


@dataclass(frozen=True, kw_only=True)
class AttentionModel:
    """Attention on one GPU, in half precision.

    Attributes:
        gpu: the GPU.

    """

    gpu: Gpu

    def time(self, operator: Attention) -> Estimate:
        """The time of one attention: kernel, launch and any copying."""
        phase = "generation" if operator.query == 1 else "context"
        table = attention_table(self.gpu, phase)
        if table is None:
            how = f"FlashAttention-2 on {self.gpu.name} at its peak rates; NVIDIA has no table"
            return self._estimate(operator, self._law(operator), UNANCHORED, how)
        causal = operator.causal or operator.query == 1
        if causal and operator.query in {1, operator.context}:
            exact = _rows(self.gpu, phase).get((operator.batch, *operator.shape[2:6]))
            if exact is not None:
                return Estimate(microseconds=exact, spread=0.02, source="table", how=table.label)
        dims = _head_dims(self.gpu, phase)
        own = causal and operator.head_dim in dims
        # An engine's kernels for several head dimensions differ in level; templates are one's.
        head_dim = operator.head_dim if own else min(dims, key=lambda dim: abs(dim - 128))
        context, parallel = operator.context, operator.batch * operator.kv_heads
        if phase == "context":
            # A chunk of a prompt, or one without a mask, is as much work as this causal prompt.
            context = max(round((2 * operator.pairs) ** 0.5), 1)
            parallel = operator.batch * operator.heads
        ratio = operator.heads // operator.kv_heads
        ratio = min(_ratios(self.gpu, phase, head_dim), key=lambda r: abs(np.log(r / ratio)))
        level = _level(self.gpu, phase, head_dim, ratio)
        time = self._law(operator) * float(np.exp(level.at(context, parallel)))
        spread = float(np.hypot(HELD_OUT[phase], 0.0 if own else TEMPLATE_ERROR))
        how = f"{table.label}, between its points"
        if not own:
            how += f"; head dimension {operator.head_dim} by FlashAttention-2 from {head_dim}"
        return self._estimate(operator, time, spread, how)

    def padding(self, operator: Attention) -> float:
        """Microseconds of padding queries, keys and values; 0 where the head needs none."""
        if operator.head_dim % 8 == 0:
            return 0.0
        rows = operator.heads * operator.query + 2 * operator.kv_heads * operator.context
        padded = -(-operator.head_dim // 8) * 8
        # A buffer of zeros is written, then rows are read and written into it.
        moved = ITEMSIZE * operator.batch * rows * (2 * padded + operator.head_dim)
        return moved / (COPY_SHARE * self.gpu.bandwidth)

    def _estimate(self, operator: Attention, time: float, spread: float, how: str) -> Estimate:
        copies = self.padding(operator)
        if copies:
            how += "; padded to a multiple of 8 and copied"
            spread = float(np.hypot(spread, TEMPLATE_ERROR))
        return Estimate(microseconds=time + copies, spread=spread, source="model", how=how)

    def _law(self, operator: Attention) -> float:
        sizes = (operator.batch, operator.query, *operator.shape[2:6], operator.pairs)
        return float(law(self.gpu, *(np.array(float(size)) for size in sizes)))


def law(
    gpu: Gpu,
    batch_R: Sizes,
    query_R: Sizes,
    context_R: Sizes,
    heads_R: Sizes,
    kv_heads_R: Sizes,
    head_dim_R: Sizes,
    pairs_R: Sizes,
) -> Sizes:
    """Microseconds of FlashAttention-2 by its template, (R,); `pairs_R` a head and sequence."""
    kernels = generation(gpu.capability)
    padded_R = np.ceil(head_dim_R / 8) * 8
    template_R = np.array(TEMPLATES)[np.searchsorted(TEMPLATES, np.minimum(padded_R, 256))]
    # No kernel goes beyond 256: the time then grows with the size.
    template_R = np.where(padded_R > TEMPLATES[-1], padded_R, template_R).astype(float)
    known_R = np.interp(template_R, TEMPLATES, _SHAPES)
    shape_R = np.where(template_R > TEMPLATES[-1], _SHAPES[-1] * template_R / 256, known_R)
    shape_R = shape_R * np.where(padded_R < template_R, UNEVEN, 1.0)
    # A chunk of a prompt leaves multiprocessors free, over which its longer context is split.
    rows_R = np.ceil(query_R / TILE_ROWS)
    blocks_R = batch_R * heads_R * np.maximum(rows_R, np.floor(context_R / TILE_ROWS))
    idle_R = np.maximum(gpu.sms / blocks_R, 1.0)
    # Tiles on the diagonal of a mask are worked through as a whole.
    all_R = query_R * context_R
    done_R = np.minimum(np.where(pairs_R < all_R, pairs_R + DIAGONAL * query_R, all_R), all_R)
    arithmetic_R = 4 * batch_R * heads_R * done_R * shape_R / (gpu.flops * kernels.reach) * idle_R
    moved_R = 2 * head_dim_R * batch_R * (heads_R * query_R + kv_heads_R * context_R) * ITEMSIZE
    traffic_R = moved_R / (gpu.bandwidth * kernels.stream)
    # Decoding splits the context over multiprocessors and is bound by traffic alone.
    return kernels.launch + traffic_R + np.where(query_R == 1, 0.0, arithmetic_R)


@lru_cache(maxsize=256)
def _level(gpu: Gpu, phase: str, head_dim: int, ratio: int) -> Level:
    table = attention_table(gpu, phase)
    assert table is not None
    keep = (table.head_dim == head_dim) & (_ratio(table, phase) == ratio)
    batch, context, heads, kv_heads, dims = (
        column[keep].astype(float)
        for column in (table.batch, table.context, table.heads, table.kv_heads, table.head_dim)
    )
    decoding = phase == "generation"
    query = np.ones_like(context) if decoding else context
    pairs = context if decoding else context * (context + 1) / 2
    laws = law(gpu, batch, query, context, heads, kv_heads, dims, pairs)
    off = np.log(table.times[keep]) - np.log(laws)
    parallel = np.log(batch * (kv_heads if decoding else heads))
    contexts = np.unique(context)
    lines = []
    for size in contexts:
        here = context == size
        works, place = np.unique(parallel[here], return_inverse=True)
        lines.append((works, np.bincount(place, off[here]) / np.bincount(place)))
    return Level(contexts=np.log(contexts), lines=tuple(lines))


@lru_cache(maxsize=32)
def _rows(gpu: Gpu, phase: str) -> dict[tuple[int, ...], float]:
    """Microseconds by (batch, context, heads, kv_heads, head_dim)."""
    table = attention_table(gpu, phase)
    assert table is not None
    columns = (table.batch, table.context, table.heads, table.kv_heads, table.head_dim)
    keys = zip(*(column.tolist() for column in columns), strict=True)
    return dict(zip(keys, table.times.tolist(), strict=True))


@lru_cache(maxsize=32)
def _head_dims(gpu: Gpu, phase: str) -> tuple[int, ...]:
    table = attention_table(gpu, phase)
    assert table is not None
    return tuple(int(dim) for dim in np.unique(table.head_dim))


@lru_cache(maxsize=256)
def _ratios(gpu: Gpu, phase: str, head_dim: int) -> tuple[int, ...]:
    table = attention_table(gpu, phase)
    assert table is not None
    found = _ratio(table, phase)[table.head_dim == head_dim]
    return tuple(int(ratio) for ratio in np.unique(found))


def _ratio(table: AttentionTable, phase: str) -> NDArray[np.int64]:
    """Query heads a key-value head; of prompts only whether they share (2) or not (1)."""
    ratio = table.heads // table.kv_heads
    return ratio if phase == "generation" else np.minimum(ratio, 2)
