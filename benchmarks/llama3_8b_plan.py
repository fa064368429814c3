"""Llama-3-8B from its shapes alone: what alignment and planning by latency are predicted to give.

    python benchmarks/llama3_8b_plan.py [--targets a100_sxm,h100_sxm] [--write]

No weights, no GPU. The configuration below is the model's published `config.json`; times come from
each target's timer (silicon tables, tile model, alignment tiers). What depends on weights is made
up, with a seed, and only decides which matrices are worth what:

- loss curves: tails of power-law spectra. The exponent is that of the role (queries and keys are
  closer to low rank than values, outputs and the MLP) with a little noise; the scale falls from
  the first layers to the middle and rises again at the last two. Nats in name only.
- unaligned ranks: shares of break-even, scaled until they meet the budget. The shares of q, k, v
  and o are the dimensions that the GAC paper's authors got for this model (Fisher proxy, retain
  0.8; `../shared/data/gpu/rank_scatter.csv`) over the head dimension; where that file is absent,
  and for the MLP, they are drawn.
- scores for GAC: the same shares, times a log-normal factor.

Plans at a ratio r all keep 1 - r of the linear parameters. 'curve' chooses among right edges of
plateaus under that alone; 'curve by latency' keeps 1 - r of the dense prefill time as well.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from snapfit.core.cost import CostModel
from snapfit.core.curve import NATS, Curve
from snapfit.core.errors import SnapfitError
from snapfit.core.latency import Stopwatch
from snapfit.core.pareto import predicted_loss
from snapfit.core.plan import alignment
from snapfit.core.planner import Planner
from snapfit.core.space import Group, Space
from snapfit.core.target import Target
from snapfit.core.workload import Workload
from snapfit.hardware import resolve_target

ROOT = Path(__file__).resolve().parent
RESULTS = ROOT / "results"
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
RATIOS = (0.15, 0.3)
PREFILL, DECODE = "prefill:1x1024", "decode:8x2048"
PLANS = {
    "unaligned": ("none", ("params",)),
    "rounded": ("round", ("params",)),
    "GAC": ("gac", ("params",)),
    "curve": ("curve", ("params",)),
    "curve by latency": ("curve", ("params", "latency")),
}
EXPONENTS = {"q": 0.8, "k": 0.9, "v": 0.45, "o": 0.5, "gate": 0.4, "up": 0.35, "down": 0.35}
HEAD_DIM, SEED = 128, 0


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


def unaligned_ranks(space: Space, shares: Mapping[str, float], keep: float) -> dict[str, float]:
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
    """The fractional rank at which a pair costs as much as dense."""
    return group.dense_params / sum(m.rows + m.cols for m in group.matrices)


def plans(whole: Space, target: Target, ratio: float) -> tuple[list[dict[str, Any]], float]:
    """A row for every plan, and the seconds that planning all of them took."""
    space = whole.of_kind("rank")
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
    start = time.perf_counter()
    planner = Planner(space=space, rules=target.rules, watch=watches[PREFILL])
    keep = 1 - ratio
    unaligned = unaligned_ranks(space, shares, keep)
    chosen: dict[str, dict[str, int]] = {"dense": {g.name: g.full for g in space.groups}}
    missing: dict[str, str] = {}

    def choose(label: str) -> None:
        objective, budgets = PLANS[label]
        shares_kept = dict.fromkeys(budgets, keep)
        try:
            choice = planner.choose(
                objective, shares_kept, curves=curves, unaligned=unaligned, scores=scores
            )
        except SnapfitError as error:
            missing[label] = str(error)
        else:
            chosen[label] = choice.sizes

    for label in PLANS:
        choose(label)
    seconds = time.perf_counter() - start
    cost = CostModel(space=space, whole=whole)
    rows = []
    for label, sizes in chosen.items():
        row: dict[str, Any] = {
            "device": target.device,
            "ratio": ratio,
            "plan": label,
            "aligned8": alignment(space, sizes, 8),
            "aligned16": alignment(space, sizes, 16),
            "params": space.params(sizes) / space.dense_params,
            "flops": cost.flops_per_token(sizes) / cost.flops_per_token({}),
            "loss": predicted_loss(curves, sizes),
        }
        for name, text in (("prefill", PREFILL), ("decode", DECODE)):
            found, dense = watches[text].latency(sizes), watches[text].latency({})
            row[f"{name}_ms"] = found.microseconds / 1000
            row[f"{name}_spread"] = found.spread
            row[f"{name}_speedup"] = dense.microseconds / found.microseconds
            row[f"{name}_sources"] = {k: round(v, 3) for k, v in found.shares.items()}
        rows.append(row)
    for label, text in missing.items():
        print(f"  {label}: {text}")
    return rows, seconds


def show(rows: list[dict[str, Any]], seconds: float) -> None:
    """Print one table."""
    print(f"\n{rows[0]['device']}, ratio {rows[0]['ratio']}: planned in {seconds:.2f} s")
    print(
        f"{'plan':18}{'mod 8':>7}{'mod 16':>7}{'params':>8}{'loss':>9}"
        f"{'prefill ms':>12}{'speed-up':>9}{'decode ms':>11}{'speed-up':>9}"
    )
    for row in rows:
        print(
            f"{row['plan']:18}{row['aligned8']:7.0%}{row['aligned16']:7.0%}{row['params']:8.1%}"
            f"{row['loss']:9.4f}{row['prefill_ms']:12.2f}{row['prefill_speedup']:9.2f}"
            f"{row['decode_ms']:11.2f}{row['decode_speedup']:9.2f}"
        )


def check(rows: list[dict[str, Any]]) -> list[str]:
    """What the issue demands of a target where waves matter, and does not hold."""
    found = {row["plan"]: row["prefill_speedup"] for row in rows}
    wanted = 1 / (1 - rows[0]["ratio"])
    failures = []
    if found.get("curve by latency", 0.0) < wanted:
        failures.append(f"curve by latency is below {wanted:.3f}x")
    if found["unaligned"] >= wanted:
        failures.append(f"unaligned is not below {wanted:.3f}x")
    return failures


def main() -> int:
    """Print the tables; 1 if a demand is not met on the A100."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--targets", default="a100_sxm,h100_sxm")
    parser.add_argument("--write", action="store_true", help="write results/llama3_8b_plan.json")
    options = parser.parse_args()
    whole = llama_space()
    kept: list[dict[str, Any]] = []
    failures = []
    for name in options.targets.split(","):
        target = resolve_target(name)
        if target.timer is None:
            print(f"{name}: no times are known here; {'; '.join(target.notes)}")
            return 1
        for ratio in RATIOS:
            rows, seconds = plans(whole, target, ratio)
            show(rows, seconds)
            if name == "a100_sxm":
                failures += [f"{name}, ratio {ratio}: {text}" for text in check(rows)]
            kept += [{**row, "plan_seconds": round(seconds, 2)} for row in rows]
    if options.write:
        RESULTS.mkdir(exist_ok=True)
        Path(RESULTS / "llama3_8b_plan.json").write_text(json.dumps(kept, indent=1) + "\n")
    for text in failures:
        print(f"NOT MET: {text}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
