"""Llama-3-8B from its shapes alone: what alignment and planning by latency are predicted to give.

    python benchmarks/llama3_8b_plan.py [--targets a100_sxm,h100_sxm] [--out FILE]

No weights, no GPU. The configuration below is the model's published `config.json`; times come from
each target's timer (silicon tables, tile model, alignment tiers). What depends on weights is made
up, with a seed, and only decides which groups are worth what:

- loss curves: tails of power-law spectra. The exponent is that of the role (queries and keys are
  closer to low rank than values, outputs and the MLP) with a little noise; the scale falls from
  the first layers to the middle and rises again at the last two. Nats in name only.
- unaligned sizes: shares of break-even, scaled until they meet the budget. The shares of q, k, v
  and o are the dimensions that the GAC paper's authors got for this model (Fisher proxy, retain
  0.8; `../shared/data/gpu/rank_scatter.csv`) over the head dimension; where that file is absent,
  and for the MLP, they are drawn.
- scores for GAC: the same shares, times a log-normal factor.

Plans at a ratio r keep 1 - r of the linear layers' parameters; 'curve by latency' keeps 1 - r of
the dense prefill time instead. FLOPs are those of the prefill's products and attention.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from snapfit.core.curve import NATS, Curve
from snapfit.core.latency import Stopwatch
from snapfit.core.operators import Attention, Linear
from snapfit.core.pareto import predicted_loss
from snapfit.core.plan import alignment
from snapfit.core.planner import Planner
from snapfit.core.space import Group, Space
from snapfit.core.target import Target
from snapfit.core.workload import Workload
from snapfit.hardware import resolve_target

ROOT = Path(__file__).resolve().parent
SCATTER = ROOT.parent.parent / "shared/data/gpu/rank_scatter.csv"
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-05,
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
    "hidden_act": "silu",
    "dtype": "bfloat16",
}
Row = dict[str, Any]
RATIOS = (0.15, 0.3)
PREFILL, DECODE = "prefill:1x1024", "decode:8x2048"
PLANS = {
    "unaligned": ("none", "params"),
    "rounded": ("round", "params"),
    "GAC": ("gac", "params"),
    "curve": ("curve", "params"),
    "curve by latency": ("curve", "latency"),
}
FAMILIES = {
    "low rank": frozenset({"q", "k", "v", "o", "gate", "up", "down"}),
    "MLP width": frozenset({"mlp"}),
    "low rank of attention, width of the MLP": frozenset({"q", "k", "v", "o", "mlp"}),
}
"""Roles of the groups that are decided: 'mlp' is a width, all others are ranks."""

EXPONENTS = {
    "q": 0.8, "k": 0.9, "v": 0.45, "o": 0.5, "gate": 0.4, "up": 0.35, "down": 0.35, "mlp": 0.35,
}  # fmt: skip
HEAD_DIM, SEED = 128, 0
INTRODUCTION = f"""\
By `python benchmarks/llama3_8b_plan.py`. All times are predicted. Prefill is {PREFILL}, decode
{DECODE}. "Over FLOPs'" is the speed-up over what FLOPs alone would give; "of products alone" is the
speed-up of the linear layers. Loss curves, unaligned sizes and scores are made up; see the script.
Losses compare at equal parameters; 'curve by latency' keeps the time instead."""


def llama_space() -> Space:
    """The model's space, from its configuration."""
    from snapfit.models.shapes import describe_shapes

    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps(CONFIG))
        return describe_shapes(folder)


def curves_of(space: Space, seed: int = SEED) -> dict[str, Curve]:
    """Tails of power laws; see the top of this file."""
    rng = np.random.default_rng(seed)
    layers = 1 + max(group.layer for group in space.groups)
    curves = {}
    for group in space.groups:
        exponent = EXPONENTS[group.role] * rng.uniform(0.9, 1.1)
        values = np.arange(1, group.full + 1, dtype=np.float64) ** (-2 * exponent)
        tail = np.append(np.cumsum(values[::-1])[::-1], 0.0)[1:] / values.sum()
        depth = group.layer / (layers - 1)
        weight = 0.5 + 1.5 * math.exp(-8 * depth) + (0.8 if group.layer >= layers - 2 else 0.0)
        scale = 0.02 * weight * rng.lognormal(sigma=0.25) * group.dense_params / 4096**2
        sizes = np.arange(1, group.full + 1)
        curves[group.name] = Curve(sizes=sizes, losses=scale * tail, unit=NATS)
    return curves


def shares_of(space: Space, seed: int = SEED) -> dict[str, float]:
    """Each group's unscaled share of break-even."""
    rng = np.random.default_rng(seed + 1)
    published: dict[tuple[int, str], float] = {}
    if SCATTER.is_file():
        with SCATTER.open() as stream:
            for row in csv.DictReader(stream):
                if (row["proxy"], row["retain_ratio"]) == ("fisher", "0.8"):
                    published[int(row["layer"]), row["proj"]] = int(row["dim"]) / HEAD_DIM
    drawn = {group.name: float(rng.uniform(0.5, 1.0)) for group in space.groups}
    return {
        group.name: published.get((group.layer, group.role), drawn[group.name])
        for group in space.groups
    }


def unaligned_sizes(space: Space, shares: Mapping[str, float], keep: float) -> dict[str, float]:
    """Shares times one factor, such that the parameters are `keep` of dense; fractional."""

    def sizes(factor: float) -> dict[str, float]:
        return {g.name: factor * shares[g.name] * limit(g) for g in space.groups}

    def params(factor: float) -> float:
        wanted = sizes(factor)
        return sum(g.dense_params * min(1.0, wanted[g.name] / limit(g)) for g in space.groups)

    low, high = 0.0, 1 / min(shares.values())
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if params(middle) < keep * space.dense_params else (low, middle)
    return sizes(low)


def limit(group: Group) -> float:
    """The fractional size at which a group costs as much as dense."""
    if group.kind != "rank":
        return group.full
    return group.dense_params / sum(m.rows + m.cols for m in group.matrices)


def restricted(whole: Space, family: str) -> Space:
    """The groups of a family."""
    roles = FAMILIES[family]
    kinds = {role: "width" if role == "mlp" else "rank" for role in roles}
    groups = tuple(g for g in whole.groups if g.kind == kinds.get(g.role))
    return replace(whole, groups=groups)


def flops_of(watch: Stopwatch, sizes: Mapping[str, int]) -> float:
    """Operations of products and attention of the whole workload."""
    return sum(
        phase.weight * times * operator.flops
        for phase in watch.workload.phases
        for counted in watch.operators(sizes, phase).values()
        for operator, times in counted
        if isinstance(operator, Linear | Attention)
    )


def plans(whole: Space, target: Target, family: str, ratio: float) -> tuple[list[Row], float]:
    """A row for every plan, and the CPU seconds that planning all of them took."""
    space = restricted(whole, family)
    curves, shares = curves_of(space), shares_of(space)
    rng = np.random.default_rng(SEED + 2)
    scores = {g.name: shares[g.name] * float(rng.lognormal(sigma=0.5)) for g in space.groups}
    assert target.timer is not None
    watches = {
        text: Stopwatch(
            whole=whole, groups=space.groups, timer=target.timer, workload=Workload.parse(text)
        )
        for text in (PREFILL, DECODE)
    }
    linear = whole.of_kind("rank").dense_params
    keep = {"params": 1 - ratio * linear / space.dense_params, "latency": 1 - ratio}
    start = time.process_time()
    planner = Planner(space=space, rules=target.rules, watch=watches[PREFILL])
    unaligned = unaligned_sizes(space, shares, keep["params"])
    chosen: dict[str, dict[str, int]] = {"dense": {g.name: g.full for g in space.groups}}
    known = {"curves": curves, "unaligned": unaligned, "scores": scores}
    for label, (objective, budget) in PLANS.items():
        chosen[label] = planner.choose(objective, {budget: keep[budget]}, **known).sizes
    seconds = time.process_time() - start
    rows = []
    for label, sizes in chosen.items():
        row: Row = {
            "plan": label,
            "aligned8": alignment(space, sizes, 8),
            "aligned16": alignment(space, sizes, 16),
            "params": 1 - (space.dense_params - space.params(sizes)) / linear,
            "flops": flops_of(watches[PREFILL], sizes) / flops_of(watches[PREFILL], {}),
            "loss": predicted_loss(curves, sizes),
        }
        for name, text in (("prefill", PREFILL), ("decode", DECODE)):
            found, dense = watches[text].latency(sizes), watches[text].latency({})
            row[name] = found.microseconds / 1000
            row[f"{name} speed-up"] = dense.microseconds / found.microseconds
            row[f"{name} of products"] = dense.parts["linear"] / found.parts["linear"]
        rows.append(row)
    return rows, seconds


def table(rows: list[Row]) -> list[str]:
    """One Markdown table."""
    lines = [
        (
            "| plan | mod 8 | mod 16 | parameters | FLOPs | loss | prefill ms | speed-up "
            "| over FLOPs' | of products alone | decode ms | speed-up |"
        ),
        "|---" * 12 + "|",
    ]
    for row in rows:
        gained, alone = row["prefill speed-up"], row["prefill of products"]
        lines.append(
            f"| {row['plan']} | {row['aligned8']:.0%} | {row['aligned16']:.0%} "
            f"| {row['params']:.1%} | {row['flops']:.1%} | {row['loss']:.4f} "
            f"| {row['prefill']:.2f} | {gained:.3f} | {gained * row['flops']:.3f} "
            f"| {alone:.3f} | {row['decode']:.2f} | {row['decode speed-up']:.3f} |"
        )
    return lines


def dense_parts(whole: Space, target: Target) -> str:
    """What the dense prefill is made of."""
    assert target.timer is not None
    watch = Stopwatch(whole=whole, groups=(), timer=target.timer, workload=Workload.parse(PREFILL))
    found = watch.latency({})
    parts = ", ".join(f"{name} {t / found.microseconds:.0%}" for name, t in found.parts.items())
    sources = ", ".join(f"{name} {share:.0%}" for name, share in found.shares.items())
    return (
        f"Dense prefill on {target.name}: {found.microseconds / 1000:.1f} ms, of which {parts} "
        f"(kernel by kernel as transformers runs them; only the linear part, and the activation's "
        f"share of the element-wise one, can shrink). Sources: {sources}; error of the sum at "
        f"most {found.spread:.0%}."
    )


def demands(rows: list[Row]) -> list[str]:
    """Whether waves were used and misalignment was paid for, one line each."""
    by_plan = {row["plan"]: row for row in rows}
    lines = []
    for label, above in (("curve by latency", True), ("unaligned", False)):
        row = by_plan[label]
        whole = row["prefill speed-up"] * row["flops"]
        alone = row["prefill of products"] * row["flops"]
        met = (whole >= 1) == above
        lines.append(
            f"- {label}: a speed-up of {row['prefill speed-up']:.3f} where FLOPs alone would give "
            f"{1 / row['flops']:.3f} ({whole:.3f}; products alone {alone:.3f}): should be "
            f"{'at least' if above else 'below'} 1: {'holds' if met else 'DOES NOT HOLD'}."
        )
    return lines


def main() -> None:
    """Print the tables and write them down."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--targets", default="a100_sxm,h100_sxm")
    parser.add_argument("--out", type=Path, default=ROOT / "results/llama3_8b_plan.md")
    options = parser.parse_args()
    whole = llama_space()
    lines = ["# Llama-3-8B from its shapes alone", "", INTRODUCTION]
    for name in options.targets.split(","):
        target = resolve_target(name)
        if target.timer is None:
            raise SystemExit(f"{name}: no times are known here; {'; '.join(target.notes)}")
        lines += ["", dense_parts(whole, target)]
        for family in FAMILIES:
            for ratio in RATIOS:
                rows, seconds = plans(whole, target, family, ratio)
                lines += ["", f"## {name}, {family}, ratio {ratio}", "", *table(rows), ""]
                if name == "a100_sxm":
                    lines += demands(rows)
                lines.append(f"- {len(PLANS)} plans in {seconds:.1f} s of one CPU.")
    text = "\n".join([*lines, ""])
    print(text)
    options.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
