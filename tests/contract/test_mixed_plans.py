"""Mixed plans of tiny models: every kind is chosen where it is cheapest, and does what was said."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from structures import generated
from tiny_models import build, logits, reference

import snapfit
from snapfit.core.errors import Infeasible, UsageError
from snapfit.core.files import read_json, write_json
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
from snapfit.core.progress import Silent
from snapfit.evals.divergence import varied
from snapfit.pipeline import apply, compress
from snapfit.pipeline.budget import planner_of
from snapfit.pipeline.mixed import MixedJob, decide_mixed
from snapfit.pipeline.mixed_variants import variant
from snapfit.pipeline.pareto import front
from snapfit.pipeline.realise import realise
from snapfit.pipeline.record import recorded

LAYERS = 6
IDLE, NARROW, LOW = 4, 1, 2
"""A layer that does hardly anything, one with idle channels, one with a query matrix of rank 4."""


def crafted(architecture: str, folder: Path) -> Path:
    """A model for which dropping, narrowing and factoring are each right at one place."""
    build(architecture, folder, num_hidden_layers=LAYERS)
    path = folder / "model.safetensors"
    tensors = load_file(path)
    layer = "model.layers.{}.{}.weight".format
    for name in ("self_attn.o_proj", "mlp.down_proj"):
        tensors[layer(IDLE, name)] *= 1e-3
    tensors[layer(NARROW, "mlp.up_proj")][::4] *= 1e-3
    query = layer(LOW, "self_attn.q_proj")
    u, s, v = torch.linalg.svd(tensors[query], full_matrices=False)
    s[4:] *= 1e-3
    tensors[query] = u @ torch.diag(s) @ v
    save_file(tensors, path, metadata={"format": "pt"})
    return folder


def options(work: Path, **changes: Any) -> Options:
    given: dict[str, Any] = {"ratio": 0.2, "align": 4, "calib_tokens": 512, "context": 32}
    return Options(work=work, **{"method": "mixed", **given, **changes})


def job(model: Path, asked: Options) -> MixedJob:
    return MixedJob(model=str(model), options=asked, progress=Silent())


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


class Killed(Exception):
    """The process ended."""


class Killer:
    """Counts the probes, and ends the run after some."""

    def __init__(self, after: int | None = None) -> None:
        self.after, self.current, self.probes = after, "", 0

    def stage(self, name: str, total: int) -> None:
        self.current = name

    def advance(self, done: int = 1) -> None:
        if self.current == "probe":
            self.probes += done
            if self.after is not None and self.probes >= self.after:
                raise Killed

    def note(self, text: str) -> None:
        pass


def test_a_run_that_was_killed_goes_on_where_it_stopped(tmp_path: Path) -> None:
    model, asked = build("llama", tmp_path / "m"), options(tmp_path / "w")
    whole = decide_mixed(job(model, replace(asked, work=tmp_path / "v")))
    killed = MixedJob(model=str(model), options=asked, progress=Killer(after=20))
    with pytest.raises(Killed):
        decide_mixed(killed)
    kept = {path: path.read_text() for path in (tmp_path / "w").glob("mixed-*/layer_*.json")}
    assert len(kept) == 1
    rest = decide_mixed(MixedJob(model=str(model), options=asked, progress=Killer()))
    assert all(path.read_text() == text for path, text in kept.items()), "measured again"
    assert rest.sizes == whole.sizes
    assert rest.predicted["loss"] == whole.predicted["loss"]
    found = MixedJob(model=str(model), options=replace(asked, ratio=0.4), progress=Killer(after=0))
    assert decide_mixed(found).predicted["probes"] == whole.predicted["probes"]


def test_a_plan_that_predicts_badly_is_corrected(tmp_path: Path) -> None:
    model, asked = build("llama", tmp_path / "m"), options(tmp_path / "w", ratio=0.3)
    decide_mixed(job(model, asked))
    for path in (tmp_path / "w").glob("mixed-*/layer_*.json"):
        data = json.loads(path.read_text())
        for name, points in data["points"].items():
            # As if what is factored cost a fifth of what it does.
            if "_proj" in name:
                data["points"][name] = [[s, nats / 5, stderr] for s, nats, stderr in points]
        write_json(path, data)
    one = job(model, asked)
    known = decide_mixed(one).predicted
    assert known["loss.measured.first"] > 1.25 * known["loss.predicted.first"]
    factors = {key: f for key, f in known.items() if key.startswith("correction.factored")}
    assert factors
    assert all(factor > 2 for factor in factors.values())
    apart = known["loss.measured.corrected"] / known["loss.predicted.corrected"]
    assert 0.5 < apart < known["loss.measured.first"] / known["loss.predicted.first"]
    assert known["loss.measured"] <= known["loss.measured.first"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"objective": "gac"}, "--objective gac starts from the sizes that one method"),
        ({"refit": True}, "--refit corrects the factors"),
        ({"probe": True}, "leave out --probe"),
        ({"ratio": None, "layers": 1}, "--layers counts layers"),
        ({"method": "kfac+svd"}, r"mixes kfac \(rank\), svd \(rank\)"),
        (
            {"method": "kfac+minitron+laco", "settings": {"merge": "2", "threshold": "-1"}},
            "laco merges layers",
        ),
        ({"method": "palu+minitron"}, "palu splits matrices"),
        ({"settings": {"part": "mlp"}}, "leave out the setting 'part'"),
        ({"settings": {"parts": "experts"}}, "leave out 'experts'"),
        ({"settings": {"colour": "red"}}, "no setting 'colour'; it has: damping"),
        ({"format": "decilm", "method": "kfac+minitron", "ratio": 0.99}, "no choice of legal"),
        ({"ratio": 0.999}, "no choice of legal sizes keeps within params=0.001"),
    ],
)
def test_what_cannot_be_asked(
    changes: dict[str, Any], words: str, tiny: Callable[[str], Path], tmp_path_factory: Any
) -> None:
    work = tmp_path_factory.getbasetemp() / "refused"
    with pytest.raises((UsageError, Infeasible), match=words):
        decide_mixed(job(tiny("llama"), options(work, **changes)))


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


def test_probes_of_a_large_model_are_bounded(
    tiny: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("snapfit.pipeline.mixed_probes.MOST", 20)
    one = job(tiny("qwen3_moe"), options(tmp_path))
    plan = decide_mixed(one)
    roles = {(group.kind, group.role) for group in one.space.groups}
    measured = {(g.kind, g.role) for g in one.space.groups if one.probed.points.get(g.name)}
    assert measured == roles
    assert 0 < plan.predicted["probes"] < len(one.space.groups)


def test_a_plan_is_applied_by_its_recipe(
    crafts: Callable[[str], tuple[Path, Path]], tmp_path: Path
) -> None:
    model, work = crafts("llama")
    compress(str(model), tmp_path / "one", options(work, method="kfac+minitron+shortgpt"))
    apply(tmp_path / "one" / "plan.json", tmp_path / "two", Options(work=work))
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_front_is_of_one_method(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="ranks or widths; mixed does not"):
        front(job(tiny("llama"), options(tmp_path)))
