"""Llama-3-8B with random weights on a GPU: what plans of the same ratio measure, side by side.

    python benchmarks/gpu_llama3_8b.py                     (one CUDA device of 48 GB or more, fp16)
    python benchmarks/gpu_llama3_8b.py --tiny              (any CPU, a minute: the code, no claim)

Latency reads no weight, so the model is its `config.json`. Plans are those of
`llama3_8b_plan.py`: dense, unaligned, rounded, GAC, and the curve under a latency budget, of ranks
and of MLP widths, at ratios 0.15 and 0.3; the loss curves that they trade are made up there. They
are made for the card's own silicon table, or, where there is none, from a live sweep
(`--plan-target`), and then measured here: dense and the plan in turn, trial by trial.

A speed-up is the ratio of two measured medians. Over FLOPs' is that, divided by the ratio of the
FLOPs of products and attention: 1 is a plan that saves as much time as arithmetic. Kernels are
launched one by one, as transformers runs a model, without CUDA graphs; weights exceed every cache.
Writes results/gpu_llama3_8b_<device>.md and .json, or gpu_llama3_8b_tiny.* for `--tiny`.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gpu_settings import TINY, Setting, full_setting, tiny_setting
from llama3_8b_plan import (
    PLANS,
    RATIOS,
    SEED,
    curves_of,
    flops_of,
    restricted,
    shares_of,
    unaligned_sizes,
)
from snapfit.core.candidates import AlignRule
from snapfit.core.errors import Infeasible
from snapfit.core.latency import Stopwatch
from snapfit.core.plan import alignment
from snapfit.core.planner import Planner
from snapfit.core.space import Space
from snapfit.core.workload import Workload
from snapfit.models.shapes import describe_shapes
from whole_model import Compared, Runs, compare, random_model, structure_of

RESULTS = Path(__file__).resolve().parent / "results"
MEASURED = ("unaligned", "rounded", "GAC", "curve by latency")
KINDS = ("low rank", "MLP width")


def chosen_sizes(
    whole: Space, space: Space, watch: Stopwatch, rules: tuple[AlignRule, ...], ratio: float
) -> tuple[dict[str, dict[str, int]], dict[str, str]]:
    """Sizes of every plan by its name, and why a plan is missing."""
    shares = shares_of(space)
    rng = np.random.default_rng(SEED + 2)
    scores = {g.name: shares[g.name] * float(rng.lognormal(sigma=0.5)) for g in space.groups}
    linear = whole.of_kind("rank").dense_params
    keep = {"params": 1 - ratio * linear / space.dense_params, "latency": 1 - ratio}
    planner = Planner(space=space, rules=rules, watch=watch)
    unaligned = unaligned_sizes(space, shares, keep["params"])
    curves = curves_of(space)
    chosen: dict[str, dict[str, int]] = {}
    missing: dict[str, str] = {}
    for label in MEASURED:
        objective, budget = PLANS[label]
        try:
            choice = planner.choose(
                objective, {budget: keep[budget]}, curves=curves, unaligned=unaligned, scores=scores
            )
        except Infeasible as error:
            missing[label] = str(error)
        else:
            chosen[label] = choice.sizes
    return chosen, missing


def measure(setting: Setting) -> Iterator[dict[str, Any]]:
    """A row for every plan, or for why there is none."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps(setting.config))
        whole = describe_shapes(folder)
        dense = random_model(Path(folder), structure_of(whole, {}), setting.device)
        for kind in KINDS:
            space = restricted(whole, kind)
            for ratio in RATIOS:
                watches = _watches(whole, space, setting)
                found, missing = chosen_sizes(
                    whole, space, watches[str(setting.planned)], setting.target.rules, ratio
                )
                for plan, text in missing.items():
                    yield {"kind": kind, "ratio": ratio, "plan": plan, "missing": text}
                for plan, sizes in found.items():
                    structure = structure_of(space, sizes)
                    other = random_model(Path(folder), structure, setting.device)
                    linear = whole.of_kind("rank").dense_params
                    yield {
                        "kind": kind,
                        "ratio": ratio,
                        "plan": plan,
                        "aligned8": alignment(space, sizes, 8),
                        "aligned16": alignment(space, sizes, 16),
                        "params": 1 - (space.dense_params - space.params(sizes)) / linear,
                        "passes": [
                            _pass(compare(dense, other, phase, setting.runs), watches, str(phase),
                                  sizes)
                            for phase in setting.phases.phases
                        ],
                    }  # fmt: skip
                    del other
                    gc.collect()


def _watches(whole: Space, space: Space, setting: Setting) -> dict[str, Stopwatch]:
    """Of the planned workload, and of each phase that is measured."""
    timer = setting.target.timer
    if timer is None:
        raise SystemExit(f"{setting.target.name} has no times: {'; '.join(setting.target.notes)}")
    workloads = [setting.planned, *(Workload(phases=(p,)) for p in setting.phases.phases)]
    return {
        str(load): Stopwatch(whole=whole, groups=space.groups, timer=timer, workload=load)
        for load in workloads
    }


def _pass(
    found: Compared, watches: Mapping[str, Stopwatch], phase: str, sizes: Mapping[str, int]
) -> dict[str, Any]:
    """One measured pass, beside what FLOPs and the timer of the plan say of it."""
    watch = watches[phase]
    flops = flops_of(watch, sizes) / flops_of(watch, {})
    predicted = watch.latency({}).microseconds / watch.latency(sizes).microseconds
    return {
        "phase": phase,
        **asdict(found),
        "flops": flops,
        "over_flops": found.speedup * flops,
        "predicted_speedup": predicted,
    }


def tables(rows: Sequence[Mapping[str, Any]], setting: Setting) -> Iterator[str]:
    """Markdown: a table for every kind, ratio and way to run."""
    for kind in KINDS:
        for ratio in RATIOS:
            own = [row for row in rows if (row["kind"], row["ratio"]) == (kind, ratio)]
            for what in ("prefill", "decode"):
                phases = [str(p) for p in setting.phases.phases if p.kind == what]
                yield f"\n## {kind}, ratio {ratio}, {what}\n"
                heads = [phase.partition(":")[2] for phase in phases]
                yield "| plan | mod 8 | mod 16 | parameters | " + " | ".join(heads) + " |"
                yield "|---" * (4 + len(phases)) + "|"
                for row in (row for row in own if "passes" in row):
                    passes = {found["phase"]: found for found in row["passes"]}
                    cells = " | ".join(_cell(passes[phase]) for phase in phases)
                    yield (
                        f"| {row['plan']} | {row['aligned8']:.0%} | {row['aligned16']:.0%} "
                        f"| {row['params']:.1%} | {cells} |"
                    )
            yield from (f"\n{row['plan']}: {row['missing']}" for row in own if "missing" in row)


def _cell(found: Mapping[str, Any]) -> str:
    return (
        f"{found['ms']:.3g} ms ± {found['spread']:.0%}: {found['speedup']:.3f} "
        f"± {found['speedup_spread']:.3f} ({found['over_flops']:.2f}; "
        f"{found['predicted_speedup']:.2f} predicted)"
    )


def report(rows: Sequence[Mapping[str, Any]], setting: Setting, *, tiny: bool) -> str:
    """The whole file."""
    runs = setting.runs
    title = "tiny shapes on a CPU: the code runs, nothing is claimed" if tiny else setting.name
    lines = [
        f"# Llama-3-8B with random weights: {title}",
        "",
        (
            f"By `python benchmarks/gpu_llama3_8b.py{' --tiny' if tiny else ''}` on "
            f"{setting.name}, {setting.config['dtype']}, torch {torch.__version__}, CUDA "
            f"{torch.version.cuda}; load average {os.getloadavg()[0]:.1f}. Plans are made for "
            f"{setting.target.name}, {setting.planned}."
        ),
        "",
        (
            f"Cells: median ± half the interquartile range of {runs.trials} x {runs.timed} runs "
            f"after {runs.warm_up} others; speed-up over dense, timed in turn, ± half the range "
            "over the trials; in brackets the speed-up over FLOPs', and what the plan's timer "
            "predicted."
        ),
    ]
    if tiny:
        shown = ", ".join(f"{name} {size}" for name, size in TINY.items())
        lines += ["", f"**Not a result.** The model here has {shown}; a pass is all overhead."]
    return "\n".join([*lines, *tables(rows, setting), ""])


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="small shapes on the CPU")
    parser.add_argument("--plan-target", help="what plans are made for; the card's own by default")
    parser.add_argument("--warm-up", type=int, default=5)
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--trials", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args(arguments)
    runs = Runs(warm_up=args.warm_up, timed=args.runs, trials=args.trials)
    setting = tiny_setting() if args.tiny else full_setting(args.plan_target, runs)
    rows = []
    for row in measure(setting):
        rows.append(row)
        print(f"{row['kind']}, {row['ratio']}, {row['plan']}", file=sys.stderr, flush=True)
    text = report(rows, setting, tiny=args.tiny)
    device = "tiny" if args.tiny else re.sub(r"[^a-z0-9]+", "_", setting.name.lower())
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / f"gpu_llama3_8b_{device}.md").write_text(text, encoding="utf-8")
    found = {"device": setting.name, "claim": not args.tiny, "rows": rows}
    (args.out / f"gpu_llama3_8b_{device}.json").write_text(json.dumps(found, indent=1) + "\n")
    print(text)


if __name__ == "__main__":
    main()
