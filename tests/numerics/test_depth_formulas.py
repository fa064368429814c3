"""Depth methods against direct transcriptions of the published formulas."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import depth_reference as formula
import pytest
import torch
from streaming import build
from torch import Tensor
from transformers import AutoModelForCausalLM

from snapfit.core.progress import Silent
from snapfit.core.schedule import Schedule
from snapfit.methods._passes import pieces
from snapfit.methods.laco import Compressor as LaCo
from snapfit.methods.laco import merged_layer
from snapfit.pipeline import Options
from snapfit.pipeline.depth import schedule_of
from snapfit.pipeline.job import Job

Made = Callable[..., tuple[Schedule, Any, Tensor]]
NEAR = {"rel": 2e-4, "abs": 2e-6}
ARCHITECTURES = ("llama", "qwen3", "gemma3_text", "qwen3_moe")
SIZES = {"samples": 6, "length": 12}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, int], Path]:
    built: dict[tuple[str, int], Path] = {}

    def folder(architecture: str, layers: int) -> Path:
        key = (architecture, layers)
        if key not in built:
            changes = {} if layers == 3 else {"num_hidden_layers": layers}
            built[key] = build(architecture, tmp_path_factory.mktemp(architecture), **changes)
        return built[key]

    return folder


@pytest.fixture(scope="module")
def made(folders: Callable[[str, int], Path], tmp_path_factory: pytest.TempPathFactory) -> Made:
    work = tmp_path_factory.mktemp("work")

    def make(
        method: str, architecture: str, layers: int = 3, **settings: Any
    ) -> tuple[Schedule, Any, Tensor]:
        folder = folders(architecture, layers)
        options = Options(
            method=method,
            calib_tokens=256,
            context=32,
            work=work,
            settings={key: str(value) for key, value in settings.items()},
        )
        job = Job(model=str(folder), options=options, progress=Silent())
        model = AutoModelForCausalLM.from_pretrained(folder).eval()
        return schedule_of(job), model, job.tokens.ids_BT

    return make


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_block_influence_of_every_layer_the_last_too(architecture: str, made: Made) -> None:
    schedule, model, ids_BT = made("shortgpt", architecture)
    states = formula.residual_stream(model, ids_BT)
    expected = [formula.influence(a, b) for a, b in pairwise(states)]
    assert schedule.scores == pytest.approx(expected, **NEAR)
    assert len(expected) == 3


def test_the_last_layer_goes_first_when_it_does_nothing(tmp_path: Path) -> None:
    folder = build("llama", tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        model.model.layers[-1].self_attn.o_proj.weight.zero_()
        model.model.layers[-1].mlp.down_proj.weight.zero_()
    model.save_pretrained(folder)
    for method in ("shortgpt", "gromov", "perplexity", "taylor"):
        options = Options(method=method, calib_tokens=128, context=32, work=tmp_path / "work")
        schedule = schedule_of(Job(model=str(folder), options=options, progress=Silent()))
        assert schedule.at(2).sources == (0, 1), method
        assert method == "taylor" or schedule.scores[2] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("architecture", ["llama", "gemma3_text"])
@pytest.mark.parametrize("part", ["attention", "mlp"])
def test_block_influence_around_a_part(part: str, architecture: str, made: Made) -> None:
    schedule, model, ids_BT = made("shortgpt", architecture, part=part)
    before, between, after = [], [], []
    for layer in formula.stack(model):
        norm = "pre_feedforward_layernorm" if architecture == "gemma3_text" else None
        entrance = layer.get_submodule(norm or "post_attention_layernorm")
        layer.register_forward_pre_hook(lambda _m, args: before.append(args[0]))
        entrance.register_forward_pre_hook(lambda _m, args: between.append(args[0]))
        layer.register_forward_hook(lambda _m, _a, out: after.append(out))
    with torch.no_grad():
        model(ids_BT, use_cache=False)
    sides = (before, between) if part == "attention" else (between, after)
    pairs = zip(*sides, strict=True)
    assert schedule.scores == pytest.approx([formula.influence(a, b) for a, b in pairs], **NEAR)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_block_of_least_angular_distance(architecture: str, made: Made) -> None:
    schedule, model, ids_BT = made("gromov", architecture)
    ends = [state[:, -1].double() for state in formula.residual_stream(model, ids_BT)]
    for count in (1, 2):
        distances = [formula.angle(a, b) for a, b in zip(ends, ends[count:], strict=False)]
        start = min(range(len(distances)), key=distances.__getitem__)
        kept = [i for i in range(3) if not start <= i < start + count]
        assert schedule.at(3 - count).sources == tuple(kept)
        assert schedule.losses[3 - count] == pytest.approx(distances[start], **NEAR)
        if count == 1:
            assert schedule.scores == pytest.approx(distances, **NEAR)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("power", [1, 2])
def test_magnitude(power: int, architecture: str, made: Made) -> None:
    schedule, model, _ = made("magnitude", architecture, power=power)
    expected = [
        sum(float(w.detach().abs().pow(power).sum()) for w in layer.parameters())
        for layer in formula.stack(model)
    ]
    assert schedule.scores == pytest.approx(expected, **NEAR)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("part", ["layer", "attention", "mlp"])
def test_taylor(part: str, architecture: str, made: Made) -> None:
    schedule, model, ids_BT = made("taylor", architecture, part=part, **SIZES)
    layers = list(formula.stack(model))
    inner = {"layer": layers, "attention": [m.self_attn for m in layers]}
    modules = inner.get(part, [m.mlp for m in layers])
    expected = formula.taylor(model, pieces(ids_BT, **SIZES), modules)
    assert schedule.scores == pytest.approx(expected, **NEAR)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("part", ["layer", "attention", "mlp"])
def test_perplexity_without_each_layer(part: str, architecture: str, made: Made) -> None:
    schedule, model, ids_BT = made("perplexity", architecture, part=part, **SIZES)
    cut_BT = pieces(ids_BT, **SIZES)
    dense = formula.log_perplexity(model, cut_BT)
    expected = []
    for layer in formula.stack(model):
        removed = {
            "layer": (layer, lambda x, *_a, **_k: x),
            "attention": (layer.self_attn, lambda *_a, hidden_states, **_k: (0, None)),
            "mlp": (layer.mlp, lambda x, *_a, **_k: torch.zeros_like(x)),
        }
        with formula.without(*removed[part]):
            if part == "attention" and architecture == "gemma3_text":
                norm = layer.post_attention_layernorm
                with formula.without(norm, lambda _x: 0):
                    expected.append(formula.log_perplexity(model, cut_BT) - dense)
            else:
                expected.append(formula.log_perplexity(model, cut_BT) - dense)
    assert schedule.scores == pytest.approx(expected, **NEAR)


def test_laco_follows_the_published_algorithm(made: Made) -> None:
    settings = {"merge": 3, "interval": 1, "threshold": 0.3}
    schedule, model, ids_BT = made("laco", "llama", 7, **settings, **SIZES)
    merged, accepted = formula.laco(
        model, pieces(ids_BT, **SIZES), merge_layers=3, interval=1, threshold=0.3
    )
    assert accepted, "the test needs a threshold that some merge passes"
    for kept, cosine in accepted:
        assert 1 - schedule.losses[kept] == pytest.approx(cosine, abs=1e-4)
        assert schedule.notes[kept] == f"T 0.30, cosine {cosine:.3f}"
    kept = accepted[-1][0]
    for mix, layer in zip(schedule.at(kept).layers, formula.stack(merged), strict=True):
        ours = merged_layer(formula.stack(model), mix)
        for name, parameter in layer.named_parameters():
            torch.testing.assert_close(ours.get_parameter(name), parameter, atol=1e-5, rtol=1e-5)
    later = [size for size in schedule.reachable if size < kept]
    assert all("T 0.30" not in schedule.notes[size] for size in later), "T was relaxed for these"


def test_laco_adds_differences_and_does_not_overwrite(made: Made) -> None:
    schedule, model, _ = made("laco", "qwen3", 5, merge=3, threshold=-1, **SIZES)
    layers = formula.stack(model)
    (mix,) = (mix for mix in schedule.at(3).layers if len(mix) > 1)
    assert mix == ((2, -1.0), (3, 1.0), (4, 1.0))
    ours = merged_layer(layers, mix).self_attn.q_proj.weight
    theta = [layer.self_attn.q_proj.weight for layer in layers]
    torch.testing.assert_close(ours, theta[2] + (theta[3] - theta[2]) + (theta[4] - theta[2]))
    assert not torch.allclose(ours, theta[4], atol=1e-2), "the running sum leaves the last layer"


def test_laco_never_merges_layers_of_different_shapes(made: Made) -> None:
    schedule, _, _ = made("laco", "qwen3_moe", merge=2, threshold=-0.99, **SIZES)
    assert schedule.reachable == (3,), "layer 1 is dense, its neighbours are experts"


def test_laco_relaxes_its_threshold_only_as_far_as_it_must() -> None:
    cosines = {0: 0.2, 1: 0.42, 2: 0.1, 3: 0.5}
    asked: list[tuple[int, int]] = []

    def similarity(layers: tuple[Any, ...], position: int) -> float:
        asked.append((len(layers), position))
        return cosines[position] if len(layers) > 3 else -0.5

    schedule = LaCo(merge=2, interval=1, threshold=0.65).search(5, similarity)
    assert asked[0] == (5, 3), "from the top"
    assert schedule.notes == {4: "T 0.45, cosine 0.500", 3: "T 0.40, cosine 0.420"}
    assert schedule.reachable == (5, 4, 3), "a merge that turns the states around is never made"


def test_laco_goes_on_below_zero_where_its_threshold_is_there() -> None:
    schedule = LaCo(merge=2, interval=2, threshold=-0.8).search(5, lambda *_: -0.5)
    assert schedule.reachable == (5, 4, 3, 2, 1)
    assert set(schedule.notes.values()) == {"T -0.80, cosine -0.500"}
