"""Mixed plans of tiny models: every kind is chosen where it is cheapest, and does what was said."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from mixed_jobs import IDLE, LAYERS, LOW, NARROW, crafted, job, options
from safetensors.torch import load_file
from structures import generated
from tiny_models import logits, reference

import snapfit
from snapfit.core.files import read_json
from snapfit.core.mixed import (
    DROPPED,
    FACTORED,
    NARROWED,
    by_layer,
    parts_of,
    reasons,
    ways,
)
from snapfit.core.options import Options
from snapfit.core.plan import Plan
from snapfit.evals.divergence import varied
from snapfit.pipeline import apply, compress
from snapfit.pipeline.budget import planner_of
from snapfit.pipeline.mixed import MixedJob, decide_mixed
from snapfit.pipeline.mixed_variants import variant
from snapfit.pipeline.realise import realise
from snapfit.pipeline.record import recorded


@pytest.fixture(scope="module")
def crafts(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Path]]:
    """(model, work folder) of a crafted model, by architecture."""
    made: dict[str, tuple[Path, Path]] = {}

    def get(architecture: str) -> tuple[Path, Path]:
        if architecture not in made:
            root = tmp_path_factory.mktemp("crafted")
            made[architecture] = crafted(architecture, root / architecture), root / "work"
        return made[architecture]

    return get


@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
def test_all_kinds_are_chosen_and_saved_as_they_were_measured(
    architecture: str, crafts: Callable[[str], tuple[Path, Path]], tmp_path: Path
) -> None:
    model, work = crafts(architecture)
    one = job(model, options(work))
    plan = decide_mixed(one)
    done = ways(one.space, plan.sizes)
    assert set(done.values()) >= {FACTORED, NARROWED, DROPPED}
    assert done[f"model.layers.{IDLE}.mlp"] == DROPPED
    assert plan.sizes[f"model.layers.{NARROW}.mlp"] == 36
    assert plan.sizes[f"model.layers.{LOW}.self_attn.q_proj"] in {4, 8}

    allowed = int(0.8 * one.space.dense_params)
    assert plan.predicted["params"] <= plan.budget["params"] == allowed
    assert plan.predicted["loss"] < 0.01
    assert plan.predicted["loss.measured"] == min(
        nats for key, nats in plan.predicted.items() if key.startswith("loss.measured")
    )
    assert plan.predicted["probes"] == one.probed.count > 0
    assert plan.predicted["probes.tokens"] == 4 * 32

    report = realise(one, plan, tmp_path / "small")
    small = snapfit.load(tmp_path / "small")
    weights = sum(p.numel() for p in small.parameters())
    assert report["params"]["compressed"] == weights < report["params"]["dense"]
    linear = sum(p.numel() for n, p in small.named_parameters() if ".layers." in n and p.ndim > 1)
    assert linear == plan.predicted["params"]
    assert small.config.num_hidden_layers == LAYERS - 1
    dense = one.dense_model().eval()
    with varied(dense, variant(dense, one.store, one.space.groups, plan.sizes)):
        torch.testing.assert_close(logits(small), logits(dense), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(logits(small), logits(reference(model)), atol=1e-6)
    assert torch.equal(generated(small, use_cache=True), generated(small, use_cache=False))

    again = Plan.from_json(read_json(tmp_path / "small" / "plan.json"))
    again.check(one.space)
    assert again.sizes == plan.sizes


def test_a_format_leaves_out_what_it_cannot_hold(
    crafts: Callable[[str], tuple[Path, Path]], tmp_path: Path
) -> None:
    model, work = crafts("llama")
    for name in ("decilm", "stock"):
        one = job(model, options(work, format=name))
        plan = decide_mixed(one)
        done = ways(one.space, plan.sizes)
        assert FACTORED not in done.values()
        assert (NARROWED in done.values()) == (name == "decilm")
        realise(one, plan, tmp_path / name)
    plain = reference(tmp_path / "stock")
    assert torch.isfinite(logits(plain)).all()


def test_heads_and_latency_are_budgets_too(
    crafts: Callable[[str], tuple[Path, Path]], tmp_path: Path
) -> None:
    model, work = crafts("llama")
    one = job(model, options(work, ratio=None, budget="params=0.8,kv=0.75"))
    plan = decide_mixed(one)
    report = realise(one, plan, tmp_path / "small")
    small = snapfit.load(tmp_path / "small")
    cached = sum(
        2 * layer.self_attn.k_proj.out_features
        for layer in small.model.layers
        if hasattr(layer.self_attn, "k_proj")
    )
    assert cached <= 0.75 * one.space.kv_elements
    assert one.space.params(dict(plan.sizes)) <= 0.8 * one.space.dense_params
    assert report["kv_bytes_per_token"]["compressed"] == 4 * cached


def any_sizes(one: MixedJob, seed: int) -> dict[str, int]:
    """One layer dropped where that is possible, of the others every part in some way."""
    pick = random.Random(seed)
    sizes = {group.name: group.full for group in one.space.groups}
    for layer, groups in by_layer(one.space).items():
        for part in parts_of(groups):
            ranks = [group for group in part if group.kind == "rank"]
            whole = [group for group in part if group.kind != "rank"]
            if layer == 2 and all(group.least == 0 for group in whole):
                sizes |= {group.name: 0 for group in whole}
            elif whole and pick.random() < 0.5:
                removed = whole[0].name in one.alone and pick.random() < 0.3
                sizes[whole[0].name] = 0 if removed else pick.randint(1, whole[0].full - 1)
            else:
                sizes |= {g.name: pick.randint(1, g.break_even) for g in ranks}
    return sizes


FLAP, PRUNER = "kfac+flap+shortgpt", "svd+llm-pruner"


@pytest.mark.parametrize(
    ("architecture", "method"),
    [
        *((name, FLAP) for name in ("llama", "qwen2", "gemma3_text", "phi3", "opt", "qwen3_moe")),
        *((name, PRUNER) for name in ("qwen3", "gpt_neox")),
    ],
)
def test_what_is_measured_is_what_is_saved(
    architecture: str, method: str, tiny: Callable[[str], Path], tmp_path: Path
) -> None:
    one = job(tiny(architecture), options(tmp_path / "w", method=method))
    sizes = any_sizes(one, seed=1)
    assert len(set(ways(one.space, sizes).values())) > 1
    plan = recorded(
        one,
        sizes=sizes,
        reasons=reasons(one.space, sizes),
        predicted={},
        planner=planner_of(one),
        shares={"params": 0.5},
    )
    report = realise(one, plan, tmp_path / "small")
    small = snapfit.load(tmp_path / "small")
    dense = one.dense_model().eval()
    with varied(dense, variant(dense, one.store, one.space.groups, sizes)):
        expected = logits(dense)
    scale = float(expected.abs().max())
    torch.testing.assert_close(logits(small), expected, rtol=2e-4, atol=2e-4 * scale)
    assert report["params"]["compressed"] == sum(p.numel() for p in small.parameters())


def test_a_plan_is_applied_by_its_recipe(
    crafts: Callable[[str], tuple[Path, Path]], tmp_path: Path
) -> None:
    model, work = crafts("llama")
    compress(str(model), tmp_path / "one", options(work, method="kfac+minitron+shortgpt"))
    apply(tmp_path / "one" / "plan.json", tmp_path / "two", Options(work=work))
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
