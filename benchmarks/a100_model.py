"""How good the model of GPUs behind `--target a100_sxm` and the like is, on data it never saw.

    python benchmarks/a100_model.py [--out benchmarks/results/a100_model.md]

1. A100 measurements of another laboratory (`../shared/data/gpu`, PyTorch 2.9.1), relative times.
   Of these files the model knows nothing but the published tiers; the level is set at one point.
2. Where its cliffs lie: template steps of attention, waves of tiles.
3. NVIDIA's own tables with every second grid point of an axis left out, every GPU: our error, that
   of a straight line, and that of nvidia-matmul-heuristics scaled to the same points.

Needs the extra 'hardware'; parts whose data is absent are skipped with a reason. No GPU needed.
"""

from __future__ import annotations

import argparse
import csv
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np

from held_out import held_out_attention, held_out_products
from snapfit.core.operators import Attention, Linear
from snapfit.hardware._gemm import GemmModel
from snapfit.hardware._gpus import gpu_names, read_gpu, systems
from snapfit.hardware.silicon import SiliconTimer

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT.parent / "shared" / "data" / "gpu"


def read(name: str) -> list[dict[str, str]]:
    """Rows of one of the files."""
    with (DATA / name).open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def linear(timer: SiliconTimer, m: int, n: int, k: int) -> float:
    """Microseconds of one product."""
    return timer.time(Linear(m=m, n=n, k=k)).microseconds


def sdpa(timer: SiliconTimer, dim: int) -> float:
    """Microseconds of the measured attention with another head dimension."""
    operator = Attention(
        batch=4, query=2048, context=2048, heads=32, kv_heads=32, head_dim=dim, causal=False
    )
    return timer.time(operator).microseconds


def relative(
    measured: dict[int, float], model: Callable[[int], float], at: int, only: Callable[[int], bool]
) -> tuple[str, ...]:
    """Errors of times relative to the one at `at`, in per cent."""
    level = model(at) / measured[at]
    errors = [abs(model(x) / level / t - 1) for x, t in measured.items() if only(x)]
    return (
        str(len(errors)),
        f"{np.median(errors):.1%}",
        f"{np.percentile(errors, 90):.1%}",
        f"{max(errors):.1%}",
    )


def a100_files() -> list[str]:
    """A Markdown table of errors of relative times."""
    timer = SiliconTimer("a100_sxm")
    lines = [
        "| sweep | sizes | points | median error | 90% | worst |",
        "|---|---|---|---|---|---|",
    ]
    sizes: dict[str, Callable[[int], bool]] = {
        "all": lambda _: True,
        "odd": lambda x: x % 2 == 1,
        "multiples of 2 or 4": lambda x: x % 2 == 0 and x % 8 != 0,
        "multiples of 8": lambda x: x % 16 == 8,
        "multiples of 16": lambda x: x % 16 == 0,
    }
    rows = [r for r in read("gemm_alignment_near_4096.csv") if r["metric"] == "throughput_mean"]
    for axis, skip in (("K", 4008), ("N", 0)):
        measured = {
            int(r[axis]): float(r["implied_latency_us"])
            for r in rows
            if r["swept"] == axis and int(r[axis]) > skip
        }
        model = (
            (lambda k: linear(timer, 512, 4096, k))
            if axis == "K"
            else (lambda n: linear(timer, 512, n, 4096))
        )
        for name, only in sizes.items():
            cells = relative(measured, model, 4096, only)
            lines.append(f"| GEMM {axis}, M 512 | {name} | {' | '.join(cells)} |")
    heads = {int(r["d"]): float(r["value"]) * 1e3 for r in read("sdpa.csv")}
    for name, only in (("all", sizes["all"]), ("multiples of 8", lambda d: d % 8 == 0),
                       ("others", lambda d: d % 8 != 0)):  # fmt: skip
        cells = relative(heads, lambda d: sdpa(timer, d), 128, only)
        lines.append(f"| SDPA head dimension | {name} | {' | '.join(cells)} |")
    vectors = [r for r in read("gemv.csv") if r["metric"] == "latency_mean"]
    for axis in "KN":
        measured = {int(r[axis]): float(r["value"]) for r in vectors if r["swept"] == axis}
        model = (
            (lambda k: linear(timer, 1, 4096, k))
            if axis == "K"
            else (lambda n: linear(timer, 1, n, 4096))
        )
        cells = relative(measured, model, 4096, sizes["all"])
        lines.append(f"| GEMV {axis} | all | {' | '.join(cells)} |")
    return lines


def steps(times: dict[int, float], threshold: float) -> list[int]:
    """Sizes whose time is above that of the size before by more than `threshold`."""
    sizes = sorted(times)
    return [b for a, b in pairwise(sizes) if times[b] / times[a] > threshold]


def cliffs() -> list[str]:
    """Where time jumps, measured or by the count of tiles, and in the model."""
    timer = SiliconTimer("a100_sxm")
    heads = {int(r["d"]): float(r["value"]) for r in read("sdpa.csv")}
    eights = {d: t for d, t in heads.items() if d % 8 == 0}
    modelled = {d: sdpa(timer, d) for d in eights}
    measured, predicted = steps(eights, 1.15), steps(modelled, 1.15)
    lines = [
        f"- SDPA, multiples of 8 over 15% above the last: measured {measured}, model {predicted}."
    ]
    for m, k in ((512, 4096), (1024, 4096), (2048, 4096)):
        sizes = range(1024, 8193, 16)
        times = {n: linear(timer, m, n, k) for n in sizes}
        # Tiles of 128 x 256 on 108 multiprocessors.
        count = {n: float(-(-(-(-m // 128) * -(-n // 256)) // 108)) for n in sizes}
        waves = steps(count, 1.0)
        lines.append(
            f"- A100 waves, M {m}, K {k}: the model's time rises by over 15% at N "
            f"{steps(times, 1.15)}; tiles of 128 x 256 on 108 multiprocessors begin a wave at "
            f"{waves}."
        )
    return lines


def speed() -> str:
    """How long many questions take."""
    rng = np.random.default_rng(0)
    start = time.process_time()
    timer = SiliconTimer("a100_sxm")
    for _ in range(5000):
        m = int(rng.choice([1, 8, 512, 1024]))
        linear(timer, m, int(rng.integers(16, 14336)), int(rng.integers(16, 14336)))
    spent = time.process_time() - start
    return f"5,000 distinct products, reading included: {spent:.1f} s of one CPU."


def main() -> None:
    """Print everything and write it down."""
    parser = argparse.ArgumentParser(description="errors of the GPU model")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/a100_model.md")
    out: Path = parser.parse_args().out
    if systems() is None:
        raise SystemExit(
            "skipped: NVIDIA's tables are not installed: pip install 'snapfit[hardware]'"
        )
    names = [n for n in gpu_names() if GemmModel.of(read_gpu(n), "float16").table is not None]
    lines = ["# How good the model of GPUs is", "", "By `python benchmarks/a100_model.py`.", ""]
    if DATA.is_dir():
        lines += ["## A100 measurements of another laboratory, relative times", "", *a100_files()]
        lines += ["", "## Where the cliffs lie", "", *cliffs()]
    else:
        lines += [f"A100 measurements skipped: {DATA} is absent."]
    lines += ["", "## NVIDIA's products, every second grid point of an axis left out", ""]
    lines += held_out_products(names)
    lines += ["", "## NVIDIA's attention, every second context left out", ""]
    lines += held_out_attention(names)
    lines += ["", "## Speed", "", speed(), ""]
    text = "\n".join(lines)
    print(text)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
