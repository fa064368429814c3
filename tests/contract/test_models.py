"""Every architecture: described completely, read back exactly, heads where the data says."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from tiny_models import ALL, ARCHITECTURES, LAYERS, loaded, logits, reference, sample_ids

from snapfit.core.budgets import column as column_of
from snapfit.core.errors import SnapfitError
from snapfit.core.space import Space
from snapfit.models.describe import (
    decoder_layers,
    describe,
    empty_model,
    family,
    open_model,
    row_segments,
    segments,
)
from snapfit.models.families import pattern
from snapfit.models.inspection import inspect_family, linear_layers
from snapfit.nn.experts import unfuse_experts


@pytest.mark.parametrize("architecture", ALL)
def test_space_covers_every_linear_layer_and_counts_every_parameter(tiny, architecture):
    source = open_model(tiny(architecture))
    space = describe(source, name=architecture)
    real = reference(source.path)
    unfuse_experts(real)
    data = family(source)
    expected = {
        f"{data.layers}.{index}.{suffix}"
        for index, layer in enumerate(decoder_layers(real, data))
        for suffix, _ in linear_layers(layer)
    }
    ranks = space.of_kind("rank")
    assert {group.name for group in ranks.groups} == expected
    assert space.total_params == sum(p.numel() for p in real.parameters())
    assert ranks.dense_params == sum(real.get_submodule(n).weight.numel() for n in expected)
    assert {group.layer for group in ranks.groups} == set(range(LAYERS))
    assert space.architecture == architecture
    assert space.revision == source.revision
    assert Space.from_json(json.loads(json.dumps(space.to_json()))) == space


@pytest.mark.parametrize("architecture", ALL)
def test_kv_elements_is_what_the_cache_holds(tiny, architecture):
    source, model = loaded(tiny(architecture))
    with torch.no_grad():
        cache = model(sample_ids(batch=1, length=5), use_cache=True).past_key_values
    held = sum(layer.keys.numel() + layer.values.numel() for layer in cache.layers)
    space = describe(source, name="x")
    assert space.kv_elements == held // 5
    column = column_of("kv", space.of_kind("kv_heads"), itemsize=1)
    assert (column.dense, column.outside) == (held // 5, 0)


@pytest.mark.parametrize("architecture", ALL)
def test_groups_have_roles_and_sizes(tiny, architecture):
    space = describe(open_model(tiny(architecture)), name=architecture)
    for group in space.of_kind("rank").groups:
        (matrix,) = group.matrices
        assert group.role != "other", group.name
        assert matrix.name == group.name
        assert group.full == min(matrix.rows, matrix.cols)
        assert 1 <= group.break_even < group.full


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_family_data_names_modules_that_exist(tiny, architecture):
    source = open_model(tiny(architecture))
    model = empty_model(source)
    data = family(source)
    layers = decoder_layers(model, data)
    names = {pattern(name) for layer in layers for name, _ in layer.named_modules()}
    assert set(data.roles) | set(data.rows) <= names


@pytest.mark.parametrize("architecture", ALL)
def test_segments_cut_all_rows(tiny, architecture):
    source = open_model(tiny(architecture))
    space = describe(source, name="x")
    ranks = space.of_kind("rank").groups
    rows = {group.name: group.matrices[0].rows for group in ranks}
    roles = {group.name: group.role for group in ranks}
    found = segments(source, space, family(source))
    assert set(found) == set(rows)
    for name, parts in found.items():
        assert bool(parts) == (roles[name] in {"q", "k", "v", "qkv", "gate_up"})
        if parts:
            assert [start for _, start, _ in parts] == [0, *(stop for _, _, stop in parts[:-1])]
            assert parts[-1][2] == rows[name]


@pytest.mark.parametrize(
    ("architecture", "role"),
    [
        (architecture, role)
        for architecture in ARCHITECTURES
        for role in ("q", "k", "v")
        # OLMo 2 norms all query heads together, and all key heads: one head changes every other.
        if role == "v" or architecture != "olmo2"
    ],
)
def test_a_segment_is_the_head_that_it_claims_to_be(tiny, architecture, role):
    """Zeroing one head's rows changes what exactly its query heads pass to the output layer."""
    source, model = loaded(tiny(architecture))
    data = family(source)
    layer = decoder_layers(model, data)[0]
    output = next(m for s, m in linear_layers(layer) if data.role(s) == "o")
    read: list[torch.Tensor] = []
    output.register_forward_hook(lambda _m, args, _out: read.append(args[0]))
    logits(model)
    heads = model.config.num_attention_heads
    kv_heads = getattr(model.config, "num_key_value_heads", None) or heads
    per_head = heads // (heads if role == "q" else kv_heads)
    found = [
        (module, start, stop)
        for suffix, module in linear_layers(layer)
        for kind, start, stop in row_segments(data, model.config, suffix)
        if kind == role
    ]
    assert len(found) == heads // per_head
    for index, (module, start, stop) in enumerate(found):
        before = copy.deepcopy(module.state_dict())
        with torch.no_grad():
            for parameter in module.parameters():
                parameter[start:stop] = 0
        logits(model)
        module.load_state_dict(before)
        changed = (read[-1] != read[0]).unflatten(-1, (heads, -1)).any(-1).flatten(0, -2).any(0)
        own = range(index * per_head, (index + 1) * per_head)
        assert changed.tolist() == [head in own for head in range(heads)]


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "phi3", "gpt_neox", "qwen3_moe"])
def test_inspection_agrees_with_the_data(tiny, architecture):
    source = open_model(tiny(architecture))
    data, found = family(source), inspect_family(empty_model(source))
    assert found.layers == data.layers
    assert found.roles == dict(data.roles)


def test_conv1d_is_refused(tiny):
    with pytest.raises(SnapfitError, match="GPT2LMHeadModel has no list of like decoder layers"):
        describe(open_model(tiny("gpt2")), name="gpt2")


def test_shared_layers_are_refused(tiny):
    source = open_model(tiny("llama"))
    model = empty_model(source)
    model.model.layers[1].mlp = model.model.layers[0].mlp
    with pytest.raises(SnapfitError, match="are one weight"):
        describe(source, name="x", model=model)
