"""Predicted against measured on the CPU at hand: SmolLM2-135M, dense and compressed.

    OMP_NUM_THREADS=1 python benchmarks/cpu_prediction.py --data ../shared/data/text

1. `snapfit profile --target cpu --for MODEL`: only the shapes that plans can choose, in minutes.
2. Plans from one set of ordered bases: `kfac` at ratios 0.2 and 0.3 by parameters (align 16, as
   without a target), and the fastest plan, by that profile, that is predicted to lose no more
   than the latter.
3. One prefill after another of each model in turn, many rounds, beside what the profile predicts.

One thread, float32. Operators and passes are both timed in processor time of the process, since
the machine may be shared: on one thread it is the wall clock's where nothing else runs. Memory is
kept by the allocator (`MALLOC`): by default glibc gives it back after every layer, and a pass then
spends a sixth of its time on page faults, which no operator alone would show.

How fast a shared machine is changes from minute to minute, so every round also times the operators
of these models, and the prediction is made from the medians of those. What is cached in `--cache`
(profile, ordered bases) is used again; `--fresh` sweeps a new profile.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from side_by_side import SideBySide, pass_of
from smollm2 import fetch_model
from snapfit import pipeline
from snapfit.core.curve import Curve
from snapfit.core.errors import Infeasible
from snapfit.core.files import read_json, write_json
from snapfit.core.latency import Latency, Stopwatch
from snapfit.core.operators import Operator
from snapfit.core.options import Options
from snapfit.core.pareto import predicted_loss
from snapfit.core.plan import Plan
from snapfit.core.planner import Planner
from snapfit.core.profile import Profile
from snapfit.core.progress import Silent
from snapfit.core.wanted import plan_operators
from snapfit.core.workload import Workload
from snapfit.pipeline.budget import planner_of
from snapfit.pipeline.job import Job
from snapfit.pipeline.profile import profile

ROOT = Path(__file__).resolve().parent
TOKENS = 512
WORKLOAD = f"prefill:1x{TOKENS}"
RATIOS = (0.2, 0.3)
BY_LATENCY = f"by latency, loss of {RATIOS[-1]}"
MALLOC = {
    "MALLOC_TRIM_THRESHOLD_": str(1 << 30),
    "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
    "MALLOC_TOP_PAD_": str(1 << 28),
}
STEPS = 12
"""Halvings of the range of latency shares: to 1 part in 4096."""


class Notes(Silent):
    """Prints what is worth knowing, and no bars."""

    def note(self, text: str) -> None:
        """Print it."""
        print(f"  {text}", flush=True)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One model: what was predicted of it, and its measured passes in milliseconds.

    Attributes:
        name: of the plan.
        params: share of the linear parameters kept.
        loss: predicted.
        predicted: from operators timed in the same rounds as the passes.
        planned: from the profile that plans were made with, some minutes earlier.
        measured: a pass of every round.

    """

    name: str
    params: float
    loss: float
    predicted: Latency
    planned: Latency
    measured: np.ndarray

    @property
    def milliseconds(self) -> float:
        """The median of what was measured."""
        return float(np.median(self.measured))

    @property
    def spread(self) -> float:
        """Half the interquartile range over the median."""
        low, high = np.percentile(self.measured, (25, 75))
        return float((high - low) / 2 / self.milliseconds)


def swept(model: Path, file: Path, minutes: float, *, fresh: bool) -> Profile:
    """The profile of this CPU, made or found."""
    if fresh or not file.exists():
        facts = profile(
            file,
            target="cpu",
            subject=str(model),
            workload=WORKLOAD,
            minutes=minutes,
            overwrite=True,
            progress=Notes(),
        )
        print(f"  timed {facts['timed']}, left out {facts['left_out']}", flush=True)
    return Profile.from_json(read_json(file))


def fastest(planner: Planner, curves: Mapping[str, Curve], most_loss: float) -> float:
    """The smallest share of the dense time at which a plan loses at most so much."""
    low, high = 0.0, 1.0
    for _ in range(STEPS):
        share = (low + high) / 2
        try:
            choice = planner.choose("curve", {"latency": share}, curves=curves)
        except Infeasible:
            low = share
            continue
        if predicted_loss(curves, choice.sizes) <= most_loss:
            high = share
        else:
            low = share
    return high


def made_plans(model: Path, file: Path, options: Options, folder: Path) -> dict[str, Plan]:
    """Plans by parameters, and one by latency at no more predicted loss than the last of them."""
    plans = {}
    for ratio in RATIOS:
        name = f"kfac {ratio}"
        asked = replace(options, ratio=ratio)
        plans[name] = pipeline.plan(str(model), folder / f"{name}.json", asked, Silent())
    aware = replace(options, target=str(file), workload=WORKLOAD)
    job = Job(model=str(model), options=aware, progress=Silent())
    limit = predicted_loss(job.curves, plans[name].sizes)
    share = fastest(planner_of(job), job.curves, limit)
    asked = replace(aware, budget=f"latency={share!r}")
    plans[BY_LATENCY] = pipeline.plan(str(model), folder / f"{BY_LATENCY}.json", asked, Silent())
    return plans


def table(rows: list[Row]) -> list[str]:
    """The results as Markdown."""
    lines = [
        (
            "| model | parameters | predicted loss | predicted ms | measured ms | error "
            "| predicted speed-up | measured speed-up | by the earlier profile, ms |"
        ),
        "|---" * 9 + "|",
    ]
    dense = rows[0]
    for row in rows:
        ratios = dense.measured / row.measured
        low, high = np.percentile(ratios, (25, 75))
        lines.append(
            f"| {row.name} | {row.params:.1%} | {row.loss:.4f} "
            f"| {row.predicted.microseconds / 1000:.1f} ± {row.predicted.spread:.0%} "
            f"| {row.milliseconds:.1f} ± {row.spread:.0%} "
            f"| {row.predicted.microseconds / 1000 / row.milliseconds - 1:+.1%} "
            f"| {dense.predicted.microseconds / row.predicted.microseconds:.3f} "
            f"| {np.median(ratios):.3f} ({low:.3f} to {high:.3f}) "
            f"| {row.planned.microseconds / 1000:.1f} |"
        )
    return lines


def verdicts(rows: list[Row]) -> list[str]:
    """What the numbers say about the two claims."""
    errors = [abs(row.predicted.microseconds / 1000 / row.milliseconds - 1) for row in rows]
    lines = [
        (
            f"- Predicted within 10% of measured: {sum(error <= 0.1 for error in errors)} of "
            f"{len(errors)} models, the worst is {max(errors):.1%} off."
        )
    ]
    by_name = {row.name: row for row in rows}
    slow, fast = by_name[f"kfac {RATIOS[-1]}"], by_name[BY_LATENCY]
    ratios = slow.measured / fast.measured
    low, high = np.percentile(ratios, (25, 75))
    lines.append(
        f"- At the predicted loss of {slow.name} ({slow.loss:.4f}; by latency {fast.loss:.4f}) the "
        f"plan by latency is {np.median(ratios):.3f} times as fast, {low:.3f} to {high:.3f} in "
        f"half of the rounds; predicted "
        f"{slow.predicted.microseconds / fast.predicted.microseconds:.3f}."
    )
    return lines


def parts(row: Row) -> str:
    """What a prediction is made of."""
    total = row.predicted.microseconds
    kinds = ", ".join(f"{name} {time / total:.0%}" for name, time in row.predicted.parts.items())
    sources = ", ".join(f"{name} {share:.0%}" for name, share in row.predicted.shares.items())
    return f"- {row.name}: {kinds}; {sources}."


def main() -> None:
    """Sweep, plan, measure, and write it down."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the WikiText-2 files")
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache/snapfit-benchmarks")
    parser.add_argument("--minutes", type=float, default=8.0, help="most minutes of the sweep")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--fresh", action="store_true", help="sweep again")
    parser.add_argument("--out", type=Path, default=ROOT / "results/cpu_prediction.md")
    args = parser.parse_args()
    if any(os.environ.get(name) != value for name, value in MALLOC.items()):
        # glibc reads these when a process starts.
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **MALLOC})
    torch.set_num_threads(1)
    model = fetch_model(args.cache)
    args.cache.joinpath("cpu_prediction").mkdir(parents=True, exist_ok=True)
    file = args.cache / "cpu_prediction" / "profile.json"
    known = swept(model, file, args.minutes, fresh=args.fresh)
    options = Options(
        calib=str(args.data / "wikitext2_valid_tokenised.txt"), work=args.cache / "work"
    )
    job = Job(model=str(model), options=options, progress=Silent())
    workload = Workload.parse(WORKLOAD)
    with tempfile.TemporaryDirectory(dir=args.cache) as temporary:
        folder = Path(temporary)
        plans = made_plans(model, file, options, folder)
        passes = {"dense": pass_of(model, TOKENS)}
        operators: dict[Operator, None] = {}
        for name in plans:
            pipeline.apply(folder / f"{name}.json", folder / name, options, Silent())
            passes[name] = pass_of(folder / name, TOKENS)
            sizes = dict(plans[name].sizes)
            operators |= dict.fromkeys(
                plan_operators(job.whole, job.space.groups, sizes, workload, dtype="float32")
            )
        together = SideBySide(passes, list(operators))
        load_before = os.getloadavg()[0]
        for number in range(-1, args.rounds):
            together.round(number, keep=number >= 0)
    before, now = (
        Stopwatch(whole=job.whole, groups=job.space.groups, timer=timer, workload=workload)
        for timer in (known, together.profile(known))
    )
    dense = {group.name: group.full for group in job.space.groups}
    rows = []
    for name, measured in together.milliseconds.items():
        sizes = dict(plans[name].sizes) if name in plans else dense
        rows.append(
            Row(
                name=name,
                params=job.space.params(sizes) / job.space.dense_params,
                loss=predicted_loss(job.curves, sizes),
                predicted=now.latency(sizes),
                planned=before.latency(sizes),
                measured=np.array(measured),
            )
        )
    lines = [
        "# Predicted against measured on a CPU",
        "",
        (
            f"By `python benchmarks/cpu_prediction.py`. SmolLM2-135M-Instruct, float32, "
            f"{WORKLOAD}, {known.software}. Processor time of one thread, {args.rounds} "
            f"interleaved rounds, "
            f"medians ± half the interquartile range. Load average "
            f"{load_before:.1f} before and {os.getloadavg()[0]:.1f} after the rounds on "
            f"{os.cpu_count()} processors."
        ),
        "",
        *table(rows),
        "",
        *verdicts(rows),
        "",
        "What the predictions are made of:",
        "",
        *(parts(row) for row in rows),
        "",
    ]
    print("\n".join(lines))
    args.out.write_text("\n".join(lines), encoding="utf-8")
    raw = {row.name: row.measured.round(3).tolist() for row in rows}
    write_json(args.cache / "cpu_prediction" / "measured.json", raw)


if __name__ == "__main__":
    main()
