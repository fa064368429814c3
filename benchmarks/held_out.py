"""NVIDIA's own tables with part of them left out: how well the rest predicts it.

Used by `a100_model.py`. For every GPU and axis every second grid point is left out, which doubles
the gaps: errors of the shipped model, that has all points, are smaller.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from snapfit.core.operators import Attention, Linear
from snapfit.hardware import _attention
from snapfit.hardware._gemm import GemmModel, side
from snapfit.hardware._gpus import Gpu, read_gpu
from snapfit.hardware._tables import GemmTable, attention_table

CLASSES = ((1, 32), (33, 256), (257, 1024), (1025, 10**6))
SAMPLES = 400
HEURISTICS = {
    "a100_sxm": "A100_SXM_80GB",
    "l40s": "L40S",
    "h100_sxm": "H100_SXM",
    "h200_sxm": "H200_SXM",
    "b200_sxm": "B200",
    "gb200": "GB200_NVL",
    "gb300": "GB300_NVL",
    "rtx_pro_6000_server": "RTX_PRO_6000",
}

Predictor = Callable[[int, int, int], float]


def held_out_products(names: list[str]) -> list[str]:
    """A Markdown table of relative errors of products."""
    classes = " | ".join(f"M {low}-{high}" for low, high in CLASSES[:-1])
    lines = [
        f"| GPU | left out | {classes} | M 1025+ | all | 90% | straight line | heuristics |",
        "|---" * 10 + "|",
    ]
    for name in names:
        model = GemmModel.of(read_gpu(name), "float16")
        assert model.table is not None
        heuristics = nvidia_heuristics(name)
        lines += [
            f"| {name} | {'MNK'[axis]} | {' | '.join(axis_errors(model, axis, heuristics))} |"
            for axis in range(3)
        ]
    return lines


def left_out(table: GemmTable, kept: np.ndarray, axis: int) -> np.ndarray:
    """Places (p, 3) of points that are not at `kept` of an axis; products of models only."""
    good_mnk = ~np.isnan(table.times_mnk)
    for other, grid in ((1, table.n), (2, table.k)):
        shape = [-1 if a == other else 1 for a in range(3)]
        good_mnk &= ((grid >= 256) & (grid <= 16384)).reshape(shape)
    out = np.ones(table.times_mnk.shape[axis], bool)
    out[kept] = False
    good_mnk &= out.reshape([-1 if a == axis else 1 for a in range(3)])
    places = np.argwhere(good_mnk)
    return places[np.random.default_rng(0).permutation(len(places))[:SAMPLES]]


def axis_errors(model: GemmModel, axis: int, heuristics: Predictor | None) -> list[str]:
    """Median errors by tokens, of all, their 90%, of a straight line and of the heuristics."""
    table = model.table
    assert table is not None
    grids = [table.m, table.n, table.k]
    kept = np.unique(np.r_[0 : len(grids[axis]) : 2, len(grids[axis]) - 1])
    rest = grids[axis][kept]
    thinned = replace(
        table, **{"mnk"[axis]: rest, "times_mnk": table.times_mnk.take(kept, axis=axis)}
    )
    left = replace(model, table=thinned)
    errors, tokens = [], []
    for place in left_out(table, kept, axis):
        sizes = [int(grid[i]) for grid, i in zip(grids, place, strict=True)]
        truth = float(table.times_mnk[tuple(place)])
        m, n, k = sizes
        ours = left.time(Linear(m=m, n=n, k=k)).microseconds
        around = side(rest, sizes[axis])
        line = scaled = 0.0
        low, high = (int(rest[p]) for p in around.places[around.near > 0])
        share = (sizes[axis] - low) / (high - low)
        for end, weight in ((low, 1 - share), (high, share)):
            index, there = list(place), list(sizes)
            index[axis], there[axis] = int(np.searchsorted(grids[axis], end)), end
            time = float(table.times_mnk[tuple(index)])
            line += weight * time
            scaled += weight * time / heuristics(*there) if heuristics else np.nan
        theirs = scaled * heuristics(m, n, k) if heuristics else np.nan
        errors.append([abs(guess / truth - 1) for guess in (ours, line, theirs)])
        tokens.append(m)
    ours_line_theirs, tokens_p = np.array(errors).T, np.array(tokens)
    ours_p = ours_line_theirs[0]
    cells = []
    for low, high in CLASSES:
        inside = (tokens_p >= low) & (tokens_p <= high)
        cells.append(f"{np.median(ours_p[inside]):.1%}" if inside.any() else "-")
    cells += [f"{np.median(ours_p):.1%}", f"{np.percentile(ours_p, 90):.0%}"]
    cells += [
        "-" if np.isnan(other).all() else f"{np.nanmedian(other):.1%}"
        for other in ours_line_theirs[1:]
    ]
    return cells


def nvidia_heuristics(name: str) -> Predictor | None:
    """Microseconds by nvidia-matmul-heuristics; None where it is absent or lacks the GPU."""
    try:
        import nvMatmulHeuristics as heuristics  # noqa: N813 the package's own name
    except ImportError:
        return None
    if name not in HEURISTICS:
        return None
    interface = heuristics.NvMatmulHeuristicsInterfaceEx(
        gpu=heuristics.NvMatmulHeuristicsNvidiaGpu[HEURISTICS[name]]
    )
    interface.precision = "HSH"
    layout = heuristics.NvMatmulHeuristicsMatmulLayout.NT_ROW_MAJOR

    def predict(m: int, n: int, k: int) -> float:
        found = interface.get_with_mnk(m, n, k, layout, 1)
        return found[0]["runtime"] * 1e6 if found else float("nan")

    return predict


def held_out_attention(names: list[str]) -> list[str]:
    """A Markdown table of relative errors of attention."""
    lines = ["| GPU | prompts, median | 90% | decoding, median | 90% |", "|---|---|---|---|---|"]
    for name in names:
        cells = []
        for phase in ("context", "generation"):
            errors = attention_errors(read_gpu(name), phase)
            cells += [f"{np.median(errors):.1%}", f"{np.percentile(errors, 90):.0%}"]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def attention_errors(gpu: Gpu, phase: str) -> np.ndarray:
    """Relative errors where every second context of the table is left out."""
    table = attention_table(gpu, phase)
    assert table is not None
    out = np.isin(table.context, np.unique(table.context)[1::2])
    columns = ("batch", "context", "heads", "kv_heads", "head_dim", "times")
    thinned = replace(table, **{c: getattr(table, c)[~out] for c in columns})
    caches = (_attention._level, _attention._rows, _attention._head_dims, _attention._ratios)
    places = np.random.default_rng(0).permutation(np.flatnonzero(out))[:SAMPLES]
    real = _attention.attention_table
    try:
        _attention.attention_table = lambda _gpu, _phase: thinned
        for cache in caches:
            cache.cache_clear()
        model = _attention.AttentionModel(gpu=gpu)
        times = [
            model.time(
                Attention(
                    batch=int(table.batch[i]),
                    query=1 if phase == "generation" else int(table.context[i]),
                    context=int(table.context[i]),
                    heads=int(table.heads[i]),
                    kv_heads=int(table.kv_heads[i]),
                    head_dim=int(table.head_dim[i]),
                )
            ).microseconds
            for i in places
        ]
    finally:
        _attention.attention_table = real
        for cache in caches:
            cache.cache_clear()
    return np.abs(np.array(times) / table.times[places] - 1)
