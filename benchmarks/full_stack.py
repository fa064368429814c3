"""The paper's sweeps on the device at hand, drawn, with the constraints that follow.

    python benchmarks/full_stack.py                    (CPU, about 5 minutes)
    python benchmarks/full_stack.py --target cuda      (fp16, CUDA events)

Writes results/full_stack_<device>.md, .json and .png: attention over the features of a head,
products over M, N and K, products with a vector, throughput and bandwidth; for each size that is
swept, which multiples win by more than the noise, and where time jumps. All sizes are timed once,
and then again, pass after pass, until `--minutes` are over. One thread of a CPU is timed by its
processor time, so that what else runs there counts little.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from snapfit.core.operators import itemsize_of
from snapfit.hardware import resolve_target
from snapfit.hardware._live import LiveTimer
from snapfit.hardware.cpu import CpuClock
from sweeps import (
    LEAST,
    Cliff,
    Passes,
    Sweep,
    Tier,
    best,
    cliffs,
    run,
    sweeps,
    tiers,
    wanted_multiple,
)

RESULTS = Path(__file__).parent / "results"
NAMES = frozenset({"SDPA", "GEMM", "GEMV"})
HARDLY = 0.15
"""Extra time below which alignment hardly matters: a rule would cost about as much in sizes."""

CLASSES = (
    (1, "odd", "#c44e52", "x"),
    (2, "2 or 4", "#d1803c", "^"),
    (8, "8 only", "#519e3e", "s"),
    (16, "16 and up", "#3b75af", "o"),
)
"""(least power of two, label, colour, marker), as the paper's figures group sizes."""


def live_timers(target: str, dtype: str | None) -> Iterator[LiveTimer]:
    """A fresh timer of a live device, again and again, in another type if asked."""
    # On a CPU many short passes rather than a long one: what they differ by is told.
    clock = CpuClock(least=0.02, most=0.1)
    while True:
        if target == "cpu":
            yield LiveTimer("cpu", dtype or "float32", clock)
        else:
            timer: Any = resolve_target(target).timer
            yield timer if dtype is None else timer.with_dtype(dtype)


def class_of(size: int) -> int:
    """Index in `CLASSES`."""
    power = size & -size
    return max(i for i, (least, *_) in enumerate(CLASSES) if power >= least)


def rate(sweep: Sweep, size: int, microseconds: float, itemsize: int) -> float:
    """TFLOPS, or GB/s where memory is the work."""
    operator = sweep.operator(size)
    if sweep.name.startswith(("GEMV", "bandwidth")):
        return operator.bytes(itemsize) / microseconds / 1e3
    return operator.flops / microseconds / 1e6


def draw(path: Path, asked: Sequence[Sweep], passes: Passes, timer: LiveTimer) -> None:
    """One panel a sweep, all in one PNG."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    itemsize = itemsize_of(timer.dtype)
    figure, axes = plt.subplots(3, 3, figsize=(13, 10), layout="constrained")
    figure.suptitle(f"{timer.device}, {timer.dtype}: time and rate by size (measured)")
    for sweep, panel in zip(asked, axes.flat, strict=True):
        times = best(passes, sweep.name)
        sizes = sorted(times)
        timed = sweep.name == "SDPA" or sweep.name.endswith("wide")
        values = {
            s: times[s].microseconds / 1e3
            if timed
            else rate(sweep, s, times[s].microseconds, itemsize)
            for s in sizes
        }
        if sweep.name in {"throughput", "bandwidth"} or sweep.name.endswith("wide"):
            panel.plot(sizes, [values[s] for s in sizes], "o-", color="#3b75af", markersize=4)
            if not timed:
                panel.set_xscale("log", base=2)
        else:
            for index, (_, label, colour, marker) in enumerate(CLASSES):
                own = [s for s in sizes if class_of(s) == index]
                panel.plot(
                    own, [values[s] for s in own], marker, color=colour, label=label, markersize=5
                )
        gb = sweep.name.startswith(("GEMV", "bandwidth"))
        panel.set_ylabel("ms" if timed else "GB/s" if gb else "TFLOPS")
        panel.set_xlabel(sweep.axis)
        panel.set_ylim(0, 1.15 * max(values.values(), default=1.0))
        panel.set_title(f"{sweep.name}  {sweep.fixed}", fontsize=10, loc="left")
        panel.grid(visible=True, alpha=0.25)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(
        handles, labels, title="multiples of two", loc="outside lower center", ncols=len(labels)
    )
    figure.savefig(path, dpi=110)
    plt.close(figure)


def tier_text(found: Sequence[Tier]) -> str:
    """What each power of two costs."""
    cells = [
        f"{tier.power}: {tier.cost:+.1%} ± {tier.noise:.1%}{' **' if tier.wins else ''}"
        for tier in found
        if tier.count >= LEAST
    ]
    return "; ".join(cells) or "too few sizes"


def cliff_text(found: Sequence[Cliff]) -> str:
    """The highest jumps, in words."""
    shown = [f"{c.below} -> {c.above} (+{c.rise:.0%})" for c in found[:5]]
    return ", ".join(shown) + (f" and {len(found) - 5} more" if len(found) > 5 else "") or "none"


def fine_sweeps(asked: Sequence[Sweep]) -> list[Sweep]:
    """Those that go through every size, and so can tell multiples apart."""
    return [s for s in asked if s.name.split()[0] in NAMES and not s.name.endswith("wide")]


def verdict(asked: Sequence[Sweep], passes: Passes) -> str:
    """What the constraint table comes to, in two sentences."""
    found = {sweep.name: tiers(passes, sweep.name) for sweep in fine_sweeps(asked)}
    wins = {name: [tier for tier in of if tier.wins] for name, of in found.items()}
    costs = {name: max(tier.cost for tier in of) for name, of in wins.items() if of}
    if not costs:
        return "No multiple wins over another by more than the noise: every size is as good."
    name = max(costs, key=lambda sweep: costs[sweep])
    wanted = ", ".join(f"{sweep} {wanted_multiple(found[sweep])}" for sweep in costs)
    worst = f"The most that a worse multiple costs is {costs[name]:.1%} ({name})"
    if costs[name] < HARDLY:
        return f"Alignment hardly matters here. {worst}; best multiples: {wanted}."
    return f"Alignment matters here. {worst}; best multiples: {wanted}."


def found_json(asked: Sequence[Sweep], passes: Passes, timer: LiveTimer) -> dict[str, Any]:
    """Every time of every pass, with what is needed to read it."""
    return {
        "device": timer.device,
        "dtype": timer.dtype,
        "software": timer.software(),
        "verdict": verdict(asked, passes),
        "sweeps": [
            {
                "name": sweep.name,
                "axis": sweep.axis,
                "fixed": sweep.fixed,
                "sizes": list(sweep.sizes),
                "microseconds": [
                    [
                        round(one[sweep.name][size].microseconds, 3)
                        if size in one[sweep.name]
                        else None
                        for size in sweep.sizes
                    ]
                    for one in passes
                ],
                "tiers": [asdict(tier) for tier in tiers(passes, sweep.name)],
            }
            for sweep in asked
        ],
    }


def report(asked: Sequence[Sweep], passes: Passes, timer: LiveTimer) -> str:
    """What was found, as Markdown."""
    itemsize = itemsize_of(timer.dtype)
    how = (
        f"{timer.software()}; {os.cpu_count()} CPUs, load average {os.getloadavg()[0]:.1f}; "
        f"{len(passes)} passes. All times are measured here."
    )
    legend = (
        "Extra time of a multiple of the power only, beside the multiples of twice the power "
        "around it, timed in the same pass: median ± two standard errors, from at least "
        f"{LEAST} sizes; ** where the larger multiple wins by more than the noise and 1%. "
        "Cliffs: growth of time beyond that of the size, from one multiple of 8 to the next, in "
        "the fastest pass, where it exceeds what the passes differ by."
    )
    lines = [f"# {timer.device}, {timer.dtype}", "", verdict(asked, passes), "", how, "", legend]
    lines += [
        "",
        "| swept | held | extra time by power of two | wants multiples of | cliffs |",
        "|---|---|---|---|---|",
    ]
    for sweep in fine_sweeps(asked):
        found = tiers(passes, sweep.name)
        steps = cliff_text(cliffs(best(passes, sweep.name), step=8))
        wanted = wanted_multiple(found)
        lines.append(f"| {sweep.name} | {sweep.fixed} | {tier_text(found)} | {wanted} | {steps} |")
    wide = next(s for s in asked if s.name.endswith("wide"))
    times = best(passes, wide.name)
    lines += ["", f"Waves, {wide.name} ({wide.fixed}): {cliff_text(cliffs(times))}.", ""]
    for name, unit in (("throughput", "TFLOPS"), ("bandwidth", "GB/s")):
        sweep = next(s for s in asked if s.name == name)
        times = best(passes, name)
        rates = {s: rate(sweep, s, e.microseconds, itemsize) for s, e in times.items()}
        if rates:
            top, last = max(rates, key=lambda s: rates[s]), max(rates)
            line = f"Best {name}: {rates[top]:.3g} {unit} at {sweep.axis} {top}"
            lines.append(f"{line}; {rates[last]:.3g} {unit} at the largest, {last}.")
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Sweep, draw and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--dtype", help="float32, bfloat16 or float16; the device's own by default")
    parser.add_argument("--minutes", type=float, help="5 on a CPU, 20 on a GPU by default")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args(arguments)
    large = args.target == "cuda"
    asked = sweeps(large=large)
    minutes = args.minutes if args.minutes is not None else (20 if large else 5)

    def tell(done: int, of: int) -> None:
        if done % 100 == 0 or done == of:
            print(f"{done}/{of}", file=sys.stderr, flush=True)

    timers = live_timers(args.target, args.dtype)
    timer = next(timers)
    passes = run(timers, asked, seconds=60 * minutes, tell=tell)
    args.out.mkdir(parents=True, exist_ok=True)
    name = re.sub(r"[^a-z0-9]+", "_", f"{timer.device} {args.dtype or ''}".lower()).strip("_")
    text = report(asked, passes, timer)
    (args.out / f"full_stack_{name}.md").write_text(text, encoding="utf-8")
    data = json.dumps(found_json(asked, passes, timer), indent=1)
    # A line a pass, not a line a number.
    data = re.sub(r"\[\s+(-?[\d.]+|null)([^\[\]{}]*)\]", lambda m: "".join(m[0].split()), data)
    (args.out / f"full_stack_{name}.json").write_text(data + "\n", encoding="utf-8")
    draw(args.out / f"full_stack_{name}.png", asked, passes, timer)
    print(text)


if __name__ == "__main__":
    main()
