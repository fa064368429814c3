"""Every architecture, narrowed, with fewer heads, parts and layers: save, load, compute, save."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from structures import (
    Case,
    assert_equal_functions,
    case,
    dense,
    generated,
    is_expert,
    resized,
    silenced,
    two_of_three,
    with_fewer_experts,
)
from tiny_models import ALL, MOE, logits
from transformers import AutoModelForCausalLM

import snapfit
from snapfit.core.errors import SnapfitError
from snapfit.core.renaming import layers_path

EXPERTS = {"mixtral": "num_local_experts", "qwen3_moe": "num_experts", "olmoe": "num_experts"}


def odd_sizes(given: Case) -> dict[str, int]:
    """Layer 0 without attention, layer 1 without MLP (where it has one), the rest of odd widths."""
    sizes = {}
    for number, group in enumerate(given.space.groups):
        if group.kind == "kv_heads":
            sizes[group.name] = 0 if group.layer == 0 else group.full - group.layer % 2
        elif group.kind == "width":
            gone = group.layer == 1 and not is_expert(group)
            sizes[group.name] = 0 if gone else max(3, group.full * 2 // 3 - 1 - number % 5)
    return sizes


@pytest.mark.parametrize("architecture", ALL)
def test_narrow_and_absent_parts_by_either_door(architecture: str, tmp_path: Path) -> None:
    given = case(architecture, tmp_path / "dense")
    given = resized(given, odd_sizes(given))
    folder = given.save(tmp_path / "small")
    ours = snapfit.load(folder)
    assert_equal_functions(ours, silenced(given))
    expected = logits(ours)
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(folder)), expected)
    assert sum(p.numel() for p in ours.parameters()) < sum(
        p.numel() for p in dense(given).parameters()
    )
    # The first layer has no attention: lengths, positions and masks still come out right.
    cached = generated(ours, use_cache=True)
    assert torch.equal(cached, generated(ours, use_cache=False))
    ours.save_pretrained(tmp_path / "again")
    again = snapfit.load(tmp_path / "again")
    assert torch.equal(logits(again), expected)
    assert again.state_dict().keys() == ours.state_dict().keys()


@pytest.mark.parametrize("merge", [False, True], ids=["dropped", "merged"])
@pytest.mark.parametrize("architecture", ALL)
def test_layers_dropped_and_merged(architecture: str, merge: bool, tmp_path: Path) -> None:
    # qwen3_moe's layer 1 has no experts, so it cannot be merged with one that has.
    changes = {"mlp_only_layers": []} if architecture == "qwen3_moe" and merge else {}
    given = case(
        architecture,
        tmp_path / "dense",
        {"depth": 2},
        schedule=two_of_three(merge=merge),
        **changes,
    )
    model = snapfit.load(given.save(tmp_path / "small"))
    layers = list(model.get_submodule(layers_path(given.space)).children())
    assert len(layers) == model.config.num_hidden_layers == 2
    assert_equal_functions(model, silenced(given))
    assert torch.equal(generated(model, use_cache=True), generated(model, use_cache=False))
    model.save_pretrained(tmp_path / "again")  # refuses settings a layer long that are stale
    assert torch.equal(logits(snapfit.load(tmp_path / "again")), logits(model))


@pytest.mark.parametrize("architecture", MOE)
def test_fewer_experts(architecture: str, tmp_path: Path) -> None:
    given = case(architecture, tmp_path / "dense", {"experts": 3})
    model = snapfit.load(given.save(tmp_path / "small"))
    assert_equal_functions(model, with_fewer_experts(given, EXPERTS[architecture]))
    model.save_pretrained(tmp_path / "again")
    assert torch.equal(logits(snapfit.load(tmp_path / "again")), logits(model))


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gpt_neox", "opt"])
def test_removed_means_become_a_bias(architecture: str, tmp_path: Path) -> None:
    given = case(architecture, tmp_path / "dense", {"width": 20, "kv_heads": 1})
    inputs = [m for g in given.space.groups if g.name in given.sizes for m in g.matrices]
    inputs = [matrix for matrix in inputs if matrix.axis == "in"]
    generator = torch.Generator().manual_seed(3)
    means = {m.name: torch.randn(m.cols, generator=generator) for m in inputs}
    biased = Case(**{**vars(given), "means": means})
    reference = silenced(given)
    whole = dense(given)
    with torch.no_grad():
        for name, mean in means.items():
            old, new = whole.get_submodule(name), reference.get_submodule(name)
            bias = (old.weight - new.weight) @ mean
            new.bias = torch.nn.Parameter(bias if new.bias is None else new.bias + bias)
    model = snapfit.load(biased.save(tmp_path / "small"))
    assert_equal_functions(model, reference)
    assert not torch.allclose(logits(model), logits(silenced(given)))


def test_a_narrowed_matrix_can_be_a_pair_too(tmp_path: Path) -> None:
    given = case("llama", tmp_path / "dense", {"width": 20})
    rank = {"model.layers.0.mlp.down_proj": 5, "model.layers.1.mlp.up_proj": 7}
    both = Case(**{**vars(given), "sizes": {**given.sizes, **rank}})
    generator = torch.Generator().manual_seed(4)
    pairs = {
        name: (
            torch.randn(size, 48 if "down" in name else 32, generator=generator) * 0.3,
            torch.randn(32 if "down" in name else 48, size, generator=generator) * 0.3,
        )
        for name, size in rank.items()
    }
    named = [
        (f"{n}.{k}.weight", t) for n, ab in pairs.items() for k, t in zip("ab", ab, strict=True)
    ]
    reference = dense(given)
    with torch.no_grad():
        for name, (a_RN, b_MR) in pairs.items():
            reference.get_submodule(name).weight.copy_(b_MR @ a_RN)
        for group in given.space.groups:
            if group.name in given.sizes:
                weight = reference.get_submodule(group.matrices[-1].name).weight
                weight[:, np.setdiff1d(np.arange(48), given.kept(group))] = 0
    model = snapfit.load(both.save(tmp_path / "small", factors=tuple(named)))
    assert model.model.layers[0].mlp.down_proj.a.weight.shape == (5, 20)
    assert model.model.layers[1].mlp.up_proj.b.weight.shape == (20, 7)
    assert_equal_functions(model, reference)


def test_layers_of_unlike_shapes_are_not_merged(tmp_path: Path) -> None:
    given = case("qwen3_moe", tmp_path / "dense", {"depth": 2}, schedule=two_of_three(merge=True))
    with pytest.raises(SnapfitError, match="the checkpoint has no tensor"):
        given.save(tmp_path / "small")
