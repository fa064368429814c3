"""Weights arrive exactly where they belong, from every layout on disk, or an error names them."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import ALL, MOE, build, loaded, logits, reference, sample_ids
from torch import nn

from snapfit.core.errors import CorruptFile, SnapfitError
from snapfit.models.describe import empty_model, family, open_model
from snapfit.models.weights import open_weights
from snapfit.nn.experts import UnfusedExperts, unfuse_experts


@pytest.mark.parametrize("architecture", ALL)
def test_reading_gives_the_model_that_transformers_loads(tiny, architecture):
    source, model = loaded(tiny(architecture))
    expected = logits(reference(source.path))
    assert expected.std() > 0.1
    if architecture in MOE:  # one product an expert instead of a fused one
        torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-5)
    else:
        assert torch.equal(logits(model), expected)


@pytest.mark.parametrize("architecture", ["llama", "gemma3_text", "granite", "phi3"])
def test_bfloat16_checkpoints_stay_bfloat16(tmp_path, architecture):
    source, model = loaded(build(architecture, tmp_path, dtype=torch.bfloat16))
    assert source.dtype == torch.bfloat16
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert torch.equal(logits(model), logits(reference(tmp_path, dtype=torch.bfloat16)))


@pytest.mark.parametrize("architecture", ALL)
def test_get_and_load_into_a_layer(tiny, architecture):
    source = open_model(tiny(architecture))
    model = empty_model(source)
    reader = open_weights(source, model)
    assert set(reader.names) == set(model.state_dict())
    real = reference(source.path)
    unfuse_experts(real)
    for name, tensor in real.state_dict().items():
        assert torch.equal(reader.get(name), tensor), name
    prefix = f"{family(source).layers}.1"
    layer = model.get_submodule(prefix)
    reader.load_into(layer, prefix, dtype=torch.float64)
    for name, parameter in layer.named_parameters():
        assert parameter.dtype == torch.float64
        assert torch.equal(parameter.float(), real.get_parameter(f"{prefix}.{name}"))
    reader.release(layer)
    assert all(p.is_meta and p.dtype == source.dtype for p in layer.parameters())
    assert all(not b.is_meta for b in model.buffers())


def test_ties_survive_loading_and_release(tiny):
    source, model = loaded(tiny("llama"))
    assert model.lm_head.weight is model.model.embed_tokens.weight
    open_weights(source).release(model)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.lm_head.weight.is_meta


@pytest.mark.parametrize("change", [0.0, 1.0])
def test_tied_tensors_that_are_both_on_disk(tiny, tmp_path, change):
    def add_head(tensors):
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] + change

    folder = with_weights(tiny("llama"), tmp_path, add_head)
    if change:
        with pytest.raises(CorruptFile, match="set tie_word_embeddings to false"):
            loaded(folder)
    else:
        _, model = loaded(folder)
        assert torch.equal(logits(model), logits(reference(tiny("llama"))))


@pytest.mark.parametrize("architecture", ["llama", "mixtral"])
def test_sharded_checkpoints(tiny, tmp_path, architecture):
    real = reference(tiny(architecture))
    real.save_pretrained(tmp_path, max_shard_size="20KB")
    source, model = loaded(tmp_path)
    assert len(source.shards.files) > 1
    torch.testing.assert_close(logits(model), logits(real), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("architecture", MOE)
def test_experts_stored_fused(tiny, tmp_path, architecture):
    real = reference(tiny(architecture))
    real.config.save_pretrained(tmp_path)
    save_file(real.state_dict(), tmp_path / "model.safetensors", {"format": "pt"})
    _, model = loaded(tmp_path)
    torch.testing.assert_close(logits(model), logits(real), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("architecture", ["llama", "mixtral"])
def test_keys_without_the_base_model_prefix(tiny, tmp_path, architecture):
    real = reference(tiny(architecture))
    real.config.save_pretrained(tmp_path)
    stored = load_file(tiny(architecture) / "model.safetensors")
    renamed = {key.removeprefix("model."): tensor for key, tensor in stored.items()}
    save_file(renamed, tmp_path / "model.safetensors", {"format": "pt"})
    _, model = loaded(tmp_path)
    torch.testing.assert_close(logits(model), logits(real), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("architecture", MOE)
def test_unfusing_keeps_the_function_and_its_gradients(tiny, architecture):
    fused, unfused = reference(tiny(architecture)), reference(tiny(architecture))
    names = unfuse_experts(unfused)
    assert names
    assert all(isinstance(unfused.get_submodule(n), UnfusedExperts) for n in names)
    ids = sample_ids()
    for model in (fused, unfused):
        model(ids, labels=ids).loss.backward()
    old, new = fused.get_submodule(names[0]), unfused.get_submodule(names[0])
    torch.testing.assert_close(
        torch.stack([e.down.weight.grad for e in new.experts]),
        old.down_proj.grad,
        rtol=1e-4,
        atol=1e-6,
    )
    torch.testing.assert_close(
        torch.stack([torch.cat([e.gate.weight.grad, e.up.weight.grad]) for e in new.experts]),
        old.gate_up_proj.grad,
        rtol=1e-4,
        atol=1e-6,
    )


def with_weights(folder, target, change):
    """A copy of the checkpoint after `change(tensors)`."""
    for name in ("config.json", "tokenizer.json"):
        (target / name).write_bytes((folder / name).read_bytes())
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, target / "model.safetensors", {"format": "pt"})
    return target


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_values_that_are_not_finite_are_named(tiny, tmp_path, value):
    key = "model.layers.1.mlp.up_proj.weight"

    def spoil(tensors):
        tensors[key][3, 4] = value

    source = open_model(with_weights(tiny("llama"), tmp_path, spoil))
    model = empty_model(source)
    reader = open_weights(source, model)
    with pytest.raises(SnapfitError, match=rf"{key} holds 1 NaN or infinite"):
        reader.load_into(model.model.layers[1], "model.layers.1")


def test_values_that_only_overflow_their_sum_are_accepted(tiny, tmp_path):
    def enlarge(tensors):
        tensors["model.norm.weight"][:] = 3e38

    source = open_model(with_weights(tiny("llama"), tmp_path, enlarge))
    model = empty_model(source)
    open_weights(source, model).load_into(model.model.norm, "model.norm")
    assert not model.model.norm.weight.is_meta


def test_a_missing_tensor_is_named(tiny, tmp_path):
    source = open_model(
        with_weights(
            tiny("mistral"), tmp_path, lambda t: t.pop("model.layers.2.mlp.up_proj.weight")
        )
    )
    with pytest.raises(CorruptFile, match=r"lacks 1 of \d+ tensors, model.layers.2.mlp.up_proj"):
        open_weights(source)


def test_weights_of_another_configuration_are_named(tiny, tmp_path):
    def shrink(tensors):
        key = "model.layers.0.mlp.up_proj.weight"
        tensors[key] = tensors[key][:-1].clone()

    source = open_model(with_weights(tiny("llama"), tmp_path, shrink))
    model = empty_model(source)
    reader = open_weights(source, model)
    with pytest.raises(CorruptFile, match=r"up_proj.weight is \(47, 32\) on disk"):
        reader.load_into(model.model.layers[0], "model.layers.0")


@pytest.mark.parametrize(("dtype", "name"), [(torch.int8, "I8"), (torch.float8_e4m3fn, "F8_E4M3")])
def test_a_weight_that_is_packed_is_named(tiny, tmp_path, dtype, name):
    key = "model.layers.0.mlp.up_proj.weight"
    folder = with_weights(tiny("llama"), tmp_path, lambda t: t.update({key: t[key].to(dtype)}))
    with pytest.raises(SnapfitError, match=rf"stores {key} as {name}; snapfit reads"):
        open_weights(open_model(folder))


def test_an_unknown_name_is_an_error(tiny):
    reader = open_weights(open_model(tiny("llama")))
    with pytest.raises(SnapfitError, match=r"no tensor for 'model.nonsense'"):
        reader.get("model.nonsense")
    with pytest.raises(SnapfitError, match=r"no tensor for 'nonsense.weight'"):
        reader.load_into(nn.Linear(2, 2), "nonsense")
