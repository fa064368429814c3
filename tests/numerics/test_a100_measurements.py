"""The model of an A100 against measurements of another laboratory, of which it knows no number.

It knows the published tiers only, and one point sets the level: what is compared is relative time.
"""

from __future__ import annotations

import csv
import importlib.util
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from snapfit.core.operators import Attention, Linear
from snapfit.hardware.silicon import SiliconTimer

DATA = Path(__file__).resolve().parents[3] / "shared" / "data" / "gpu"
if not DATA.is_dir():
    pytest.skip(f"the measurements are not here: {DATA}", allow_module_level=True)
for module in ("aiconfigurator_core", "pyarrow"):
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} is not installed: snapfit[hardware]", allow_module_level=True)

A100 = SiliconTimer("a100_sxm")


def measured(name: str, axis: str, column: str, **where: str) -> dict[int, float]:
    with (DATA / name).open(encoding="utf-8") as file:
        return {
            int(row[axis]): float(row[column])
            for row in csv.DictReader(file)
            if all(row[key] == value for key, value in where.items())
        }


def errors(times: dict[int, float], model: Callable[[int], float], at: int) -> dict[int, float]:
    level = model(at) / times[at]
    return {size: abs(model(size) / level / time - 1) for size, time in times.items()}


def product(axis: str, m: int) -> Callable[[int], float]:
    def time(size: int) -> float:
        n, k = (4096, size) if axis == "K" else (size, 4096)
        return A100.time(Linear(m=m, n=n, k=k)).microseconds

    return time


def sdpa(dim: int) -> float:
    operator = Attention(
        batch=4, query=2048, context=2048, heads=32, kv_heads=32, head_dim=dim, causal=False
    )
    return A100.time(operator).microseconds


@pytest.mark.parametrize(("axis", "warm"), [("K", 4009), ("N", 0)])
def test_alignment_sweeps(axis: str, warm: int) -> None:
    times = measured(
        "gemm_alignment_near_4096.csv",
        axis,
        "implied_latency_us",
        swept=axis,
        metric="throughput_mean",
    )
    times = {size: time for size, time in times.items() if size >= warm}
    found = errors(times, product(axis, 512), 4096)
    assert len(found) > 90
    for tier in ({1}, {2, 4}, {8}, {16}):
        assert np.median([e for size, e in found.items() if np.gcd(size, 16) in tier]) < 0.05
    assert np.median(list(found.values())) < 0.04
    assert np.percentile(list(found.values()), 95) < 0.1


def test_head_dimensions() -> None:
    times = measured("sdpa.csv", "d", "value", metric="latency_mean")
    found = errors(times, sdpa, 128)
    assert len(found) == 145
    assert np.median(list(found.values())) < 0.07
    assert max(found.values()) < 0.15

    def steps(of: Callable[[int], float]) -> list[int]:
        return [dim for dim in range(72, 257, 8) if of(dim) > 1.15 * of(dim - 8)]

    assert steps(sdpa) == steps(times.__getitem__) == [72, 104, 136, 168, 200]


@pytest.mark.parametrize("axis", ["K", "N"])
def test_vectors(axis: str) -> None:
    times = measured("gemv.csv", axis, "value", swept=axis, metric="latency_mean")
    found = errors(times, product(axis, 1), 4096)
    assert len(found) == 501
    assert np.median(list(found.values())) < 0.07
