"""NVIDIA's measured latencies (`aiconfigurator-core`), read in place as arrays.

Of the serving engines that a GPU was measured with, the first of `ENGINES` is used, in its newest
version. Times are in microseconds here, milliseconds in the files.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from snapfit.core.errors import SnapfitError
from snapfit.hardware._gpus import INSTALL, Gpu, extra

ENGINES = ("vllm", "sglang", "trtllm")
DTYPES = {"float16": "bfloat16", "bfloat16": "bfloat16", "float8": "fp8"}
"""Ours to the tables' name; half-precision formats share kernels and times."""

Columns = dict[str, NDArray[Any]]


@dataclass(frozen=True, kw_only=True)
class GemmTable:
    """Times of products on a grid.

    Attributes:
        m: sorted tokens, (m,) int64.
        n: sorted output features, (n,) int64.
        k: sorted input features, (k,) int64.
        times_mnk: microseconds; NaN where the grid has a hole.
        label: where they come from, in a few words.

    """

    m: NDArray[np.int64]
    n: NDArray[np.int64]
    k: NDArray[np.int64]
    times_mnk: NDArray[np.float64]
    label: str


@lru_cache(maxsize=32)
def gemm_table(gpu: Gpu, dtype: str) -> GemmTable | None:
    """The table of products with weights of `dtype`, None if there is none.

    Raises:
        SnapfitError: the file is not what this snapfit reads.

    """
    path = _newest(gpu.data, "gemm", "gemm_perf.parquet")
    if path is None:
        return None
    columns = _read(path, ("gemm_dtype", "m", "n", "k", "latency"))
    keep = columns["gemm_dtype"] == DTYPES[dtype]
    if not keep.any():
        return None
    axes, places = [], []
    for name in ("m", "n", "k"):
        values, place = np.unique(columns[name][keep], return_inverse=True)
        axes.append(values.astype(np.int64))
        places.append(place)
    times_mnk = np.full([len(axis) for axis in axes], np.nan)
    times_mnk[tuple(places)] = columns["latency"][keep] * 1e3
    times_mnk[~(times_mnk > 0)] = np.nan
    return GemmTable(m=axes[0], n=axes[1], k=axes[2], times_mnk=times_mnk, label=_label(gpu, path))


@dataclass(frozen=True, kw_only=True)
class AttentionTable:
    """Times of attention, one row a measurement: all columns are of one length, sorted by nothing.

    Attributes:
        batch: sequences.
        context: tokens attended to, the new ones included.
        heads: query heads.
        kv_heads: key-value heads.
        head_dim: features of a head.
        times: microseconds.
        label: where they come from, in a few words.

    """

    batch: NDArray[np.int64]
    context: NDArray[np.int64]
    heads: NDArray[np.int64]
    kv_heads: NDArray[np.int64]
    head_dim: NDArray[np.int64]
    times: NDArray[np.float64]
    label: str


@lru_cache(maxsize=32)
def attention_table(gpu: Gpu, phase: str) -> AttentionTable | None:
    """Half-precision attention over whole contexts; `phase` is 'context' or 'generation'.

    Raises:
        SnapfitError: the file is not what this snapfit reads.

    """
    path = _newest(gpu.data, "attention", f"{phase}_attention_perf.parquet")
    if path is None:
        return None
    names = ("batch_size", "isl", "step", "num_heads", "num_key_value_heads", "head_dim")
    columns = _read(path, (*names, "attn_dtype", "kv_cache_dtype", "latency"), ("window_size",))
    keep = (columns["attn_dtype"] == "bfloat16") & (columns["kv_cache_dtype"] == "bfloat16")
    keep &= (columns["window_size"] == 0) & (columns["latency"] > 0)
    if not keep.any():
        return None
    # Of one new token the tables list the tokens before it; of a prompt, its own.
    context = columns["step"] + 1 if phase == "generation" else columns["isl"]
    return AttentionTable(
        batch=columns["batch_size"][keep],
        context=context[keep],
        heads=columns["num_heads"][keep],
        kv_heads=columns["num_key_value_heads"][keep],
        head_dim=columns["head_dim"][keep],
        times=columns["latency"][keep] * 1e3,
        label=_label(gpu, path),
    )


def software_of(data: Path) -> str:
    """The engine and version whose products are read from the tables in `data`; '' for none."""
    found = _newest(data, "gemm", "gemm_perf.parquet")
    return "" if found is None else f"{found.parent.parent.name} {found.parent.name}"


def _newest(data: Path, family: str, name: str) -> Path | None:
    for engine in ENGINES:
        files = list((data / family / engine).glob(f"*/{name}"))
        if files:
            return max(files, key=lambda file: [int(x) for x in re.findall(r"\d+", str(file))])
    return None


def _label(gpu: Gpu, path: Path) -> str:
    return f"NVIDIA's table of {gpu.name}, {path.parent.parent.name} {path.parent.name}"


def _read(path: Path, names: tuple[str, ...], optional: tuple[str, ...] = ()) -> Columns:
    """Columns as numpy arrays; an optional one that is absent is all zeros."""
    parquet = extra("pyarrow.parquet")
    try:
        there = set(parquet.read_schema(path).names)
        table = parquet.read_table(
            path, columns=[*names, *(n for n in optional if n in there)], use_threads=False
        )
    except (OSError, ValueError, KeyError) as error:
        raise SnapfitError(
            f"{path} is not what this snapfit reads ({error}); reinstall it: {INSTALL}"
        ) from error
    columns = {name: table[name].to_numpy() for name in table.column_names}
    if missing := sorted(set(names) - columns.keys()):
        raise SnapfitError(
            f"{path} lacks the columns {', '.join(missing)}; reinstall it: {INSTALL}"
        )
    return columns | {n: np.zeros(table.num_rows, np.int64) for n in optional if n not in there}
