"""Every architecture: which weights live or die together, and what is left out."""

from __future__ import annotations

import copy
from itertools import pairwise

import pytest
import torch
from tiny_models import ALL, LAYERS, MOE, build, loaded, logits

from snapfit.models.couplings import kv_head_groups, width_groups
from snapfit.models.describe import decoder_layers, describe, family, open_model
from snapfit.models.inspection import inspect_family
from snapfit.models.source import empty_model


@pytest.mark.parametrize("architecture", ALL)
def test_widths_and_heads_cover_every_linear_layer_once(tiny, architecture):
    space = describe(open_model(tiny(architecture)), name=architecture)
    ranks = {g.name: g.matrices[0] for g in space.of_kind("rank").groups}
    covered: dict[str, list[tuple[int, int]]] = {}
    for group in space.of_kind("width", "kv_heads").groups:
        for matrix in group.matrices:
            covered.setdefault(matrix.name, []).append((matrix.start, matrix.start + matrix.rows))
            assert matrix.features % group.full == 0
            assert matrix.cols == ranks[matrix.name].cols
    assert covered.keys() == ranks.keys()
    for name, blocks in covered.items():
        blocks.sort()
        assert blocks[0][0] == 0
        assert blocks[-1][1] == ranks[name].rows
        assert all(one[1] == two[0] for one, two in pairwise(blocks))
    (depth,) = space.of_kind("depth").groups
    assert depth.dense_params == depth.steps[-1] == space.of_kind("rank").dense_params
    assert depth.full == LAYERS
    assert depth.steps[0] == 0
    kinds = [group.kind for group in space.groups]
    assert kinds == sorted(kinds, key=["rank", "width", "kv_heads", "experts", "depth"].index)


@pytest.mark.parametrize("architecture", ALL)
def test_the_frame_says_what_the_configuration_says(tiny, architecture):
    source, model = loaded(tiny(architecture))
    frame = describe(source, name="x").frame
    config = model.config
    assert (frame.hidden, frame.layers, frame.vocab) == (32, LAYERS, 64)
    assert frame.heads == config.num_attention_heads
    assert frame.kv_heads == (getattr(config, "num_key_value_heads", None) or frame.heads)
    expected = getattr(config, "head_dim", None) or 32 // frame.heads
    assert frame.head_dim == expected
    assert frame.tied == (model.lm_head.weight is model.get_input_embeddings().weight)
    assert frame.experts_per_token == (2 if architecture in MOE else 0)
    assert frame.norms == (4 if architecture == "gemma3_text" else 2)


@pytest.mark.parametrize("architecture", MOE)
def test_an_expert_is_a_unit_with_its_row_of_the_router(tiny, architecture):
    source, model = loaded(tiny(architecture))
    groups = describe(source, name="x").of_kind("experts").groups
    assert [g.layer for g in groups] == ([0, 2] if architecture == "qwen3_moe" else [0, 1, 2])
    for group in groups:
        assert (group.full, group.least) == (4, 2)
        units = [m.name.removeprefix(f"{group.name}.") for m in group.matrices]
        assert units == [f"{i}.{leaf}" for i in range(4) for leaf in ("gate", "up", "down")]
        (router,) = group.vectors
        assert model.get_parameter(router.name).shape == (router.length, 32)


def kept_features(features: int, full: int, kept: list[int]) -> torch.Tensor:
    size = features // full
    return torch.cat([torch.arange(unit * size, (unit + 1) * size) for unit in kept])


@torch.no_grad()
def cut(model, group, kept):
    """Slice the group's modules in place: rows of out, columns of in, vectors, and head counts."""
    rows: dict[str, list[torch.Tensor]] = {}
    for matrix in group.matrices:
        index = kept_features(matrix.features, group.full, kept)
        module = model.get_submodule(matrix.name)
        if matrix.axis == "in":
            module.weight = torch.nn.Parameter(module.weight[:, index])
        else:
            rows.setdefault(matrix.name, []).append(index + matrix.start)
    for name, blocks in rows.items():
        module = model.get_submodule(name)
        for leaf, tensor in list(module.named_parameters()):
            setattr(module, leaf, torch.nn.Parameter(tensor[torch.cat(blocks)]))
    for vector in group.vectors:
        module = model.get_submodule(vector.name.rpartition(".")[0])
        index = kept_features(vector.length, group.full, kept)
        # The dense norm divides by the mean over all heads, the removed ones being zero.
        module.variance_epsilon = 0.0
        module.weight = torch.nn.Parameter(module.weight[index] * (group.full / len(kept)) ** 0.5)
    if group.kind == "kv_heads":
        attention = model.get_submodule(group.name)
        attention.config = copy.deepcopy(attention.config)
        for owner in (attention, attention.config):
            for attribute in ("num_attention_heads", "num_heads", "num_key_value_heads"):
                if getattr(owner, attribute, None):
                    count = getattr(owner, attribute) * len(kept) // group.full
                    setattr(owner, attribute, count)


@torch.no_grad()
def zero(model, group, kept):
    """Zero what reads the removed units, and what norms over all heads would still see of them."""
    for matrix in group.matrices:
        index = kept_features(matrix.features, group.full, kept)
        gone = torch.ones(matrix.features, dtype=torch.bool)
        gone[index] = False
        module = model.get_submodule(matrix.name)
        if matrix.axis == "in":
            module.weight[:, gone] = 0
        elif group.vectors:
            module.weight[gone] = 0
    for vector in group.vectors:
        model.get_submodule(vector.name.rpartition(".")[0]).variance_epsilon = 0.0


@pytest.mark.parametrize("kind", ["width", "kv_heads"])
@pytest.mark.parametrize("architecture", ALL)
def test_slicing_a_unit_away_is_zeroing_what_reads_it(tiny, architecture, kind):
    """So nothing else depends on a unit: the rows, columns and norms that are listed are all."""
    source = open_model(tiny(architecture))
    groups = [g for g in describe(source, name="x").of_kind(kind).groups if g.layer != 1]
    model = loaded(source.path)[1]
    whole = logits(model)
    sliced, zeroed = copy.deepcopy(model), copy.deepcopy(model)
    for group in groups:
        kept = [1] if group.full == 2 else list(range(1, group.full, 3))
        cut(sliced, group, kept)
        zero(zeroed, group, kept)
    torch.testing.assert_close(logits(sliced), logits(zeroed), rtol=1e-3, atol=1e-4)
    assert not torch.allclose(logits(sliced), whole, atol=0.05)


def test_norms_of_single_heads_keep_the_heads_out(tmp_path):
    space = describe(open_model(build("stablelm", tmp_path, qk_layernorm=True)), name="x")
    assert space.of_kind("kv_heads").groups == ()
    assert len(space.of_kind("width").groups) == LAYERS


@pytest.mark.parametrize("architecture", ["phi3", "gpt_neox"])
def test_heads_of_an_unknown_fused_projection_are_not_guessed(tiny, architecture):
    source = open_model(tiny(architecture))
    model = empty_model(source)
    data = inspect_family(model)
    assert data.rows == {}
    layer = decoder_layers(model, data)[0]
    assert list(kv_head_groups(data, 0, layer)) == []
    # Halves of a fused gate and up are unknown too, but an MLP without a gate is plain.
    assert len(list(width_groups(data, 0, layer))) == (architecture == "gpt_neox")


def test_a_norm_between_up_and_down_keeps_the_mlp_out(tiny):
    source = open_model(tiny("llama"))
    model = empty_model(source)
    layer = decoder_layers(model, family(source))[0]
    layer.mlp.add_module("inner_norm", torch.nn.LayerNorm(48, device="meta"))
    assert list(width_groups(family(source), 0, layer)) == []


def test_experts_that_are_chosen_by_groups_are_not_removed(tiny):
    source = open_model(tiny("mixtral"))
    source.config.n_group = 2
    space = describe(source, name="x")
    assert space.of_kind("experts").groups == ()
    assert {g.kind for g in space.groups} == {"rank", "width", "kv_heads", "depth"}
