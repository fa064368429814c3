"""Every format for each architecture that it can hold, and its reasons where it cannot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from structures import (
    Case,
    assert_equal_functions,
    case,
    dense,
    generated,
    resized,
    silenced,
    two_of_three,
    with_fewer_experts,
)
from test_structures import EXPERTS, odd_sizes
from tiny_models import ALL, MOE, logits, sample_ids
from transformers import AutoModelForCausalLM, GPT2Config, PreTrainedModel

import snapfit
from snapfit.checkpoint.stock import with_settings
from snapfit.core.errors import SnapfitError, UsageError
from snapfit.core.formats import holds_size, ties
from snapfit.core.settings import HEADS_BY_CONFIG
from snapfit.nn.cache import cache_argument

UNIFORM = {"width": 16, "depth": 2}


def uniform(architecture: str, folder: Path, **changes: Any) -> Case:
    """One width and one head count everywhere, and layer 1 dropped."""
    heads = {"kv_heads": 1} if architecture in HEADS_BY_CONFIG else {}
    schedule = two_of_three(merge=False)
    return case(architecture, folder, {**UNIFORM, **heads}, schedule=schedule, **changes)


def plain(folder: Path, **options: Any) -> PreTrainedModel:
    """As transformers loads it, with nothing missing or left over."""
    model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, **options)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return model.eval()


@pytest.mark.parametrize("architecture", ALL)
def test_stock(architecture: str, tmp_path: Path) -> None:
    given = uniform(architecture, tmp_path / "dense")
    folder = given.save(tmp_path / "small", "stock")
    config = json.loads((folder / "config.json").read_text())
    assert "quantization_config" not in config
    assert "auto_map" not in config
    assert not list(folder.glob("*.py"))
    model = plain(folder)
    assert model.config.num_hidden_layers == 2
    assert_equal_functions(model, silenced(given))
    assert torch.equal(generated(model, use_cache=True), generated(model, use_cache=False))
    model.save_pretrained(tmp_path / "again")
    assert torch.equal(logits(plain(tmp_path / "again")), logits(model))


@pytest.mark.parametrize("architecture", ALL)
def test_an_absent_attention_counts_tokens_in_the_cache(architecture: str, tmp_path: Path) -> None:
    """Positions and masks of a step that is given neither come from the first layer's cache."""
    given = case(architecture, tmp_path / "dense")
    model = snapfit.load(resized(given, odd_sizes(given)).save(tmp_path / "small")).eval()
    ids_BT = sample_ids(batch=2, length=12)
    with torch.no_grad():
        first = model(ids_BT[:, :5], use_cache=True)
        held = {cache_argument(model): first.past_key_values}
        second = model(ids_BT[:, 5:], **held, use_cache=True)
        whole = model(ids_BT).logits[:, 5:]
    assert second.past_key_values.get_seq_length() == 12
    torch.testing.assert_close(second.logits, whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("architecture", MOE)
def test_stock_holds_fewer_experts(architecture: str, tmp_path: Path) -> None:
    given = case(architecture, tmp_path / "dense", {"experts": 3})
    model = plain(given.save(tmp_path / "small", "stock"))
    assert_equal_functions(model, with_fewer_experts(given, EXPERTS[architecture]))


def test_stock_gives_all_layers_the_biases_of_flap(tmp_path: Path) -> None:
    given = case("llama", tmp_path / "dense", {"width": 20, "kv_heads": 1})
    matrices = [m for g in given.space.groups if g.name in given.sizes for m in g.matrices]
    means = {m.name: torch.full((m.cols,), 0.5) for m in matrices if m.axis == "in"}
    biased = Case(**{**vars(given), "means": means})
    folder = biased.save(tmp_path / "stock", "stock")
    config = json.loads((folder / "config.json").read_text())
    assert config["mlp_bias"] is config["attention_bias"] is True
    factored = snapfit.load(biased.save(tmp_path / "factored"))
    assert_equal_functions(plain(folder), factored)
    assert not torch.allclose(logits(factored), logits(silenced(given)))


@pytest.mark.parametrize("architecture", ["llama", "gemma3_text", "phi3", "gpt_neox", "qwen3_moe"])
def test_standalone_is_read_without_its_code_too(architecture: str, tmp_path: Path) -> None:
    given = case(architecture, tmp_path / "dense")
    given = resized(given, odd_sizes(given))
    folder = given.save(tmp_path / "small", "standalone")
    text = (folder / "modeling_snapfit.py").read_text()
    assert "import snapfit" not in text
    assert "from snapfit" not in text
    ours, theirs = snapfit.load(folder), plain(folder, trust_remote_code=True)
    assert type(theirs).__name__ == f"Snapfit{type(ours).__name__}"
    assert_equal_functions(ours, silenced(given))
    assert torch.equal(logits(ours), logits(theirs))
    assert torch.equal(generated(theirs, use_cache=True), generated(theirs, use_cache=False))


@pytest.mark.parametrize("architecture", ["llama", "mistral"])
@pytest.mark.parametrize("widths", [(21, 13, 48), (256, 512, 512)])
def test_decilm(architecture: str, widths: tuple[int, ...], tmp_path: Path) -> None:
    full = max(widths)
    given = case(architecture, tmp_path / "dense", intermediate_size=full, sliding_window=None)
    names = [f"model.layers.{index}.mlp" for index in range(3)]
    sizes = dict(zip(names, widths, strict=True))
    sizes |= {"model.layers.1.self_attn": 0, names[2]: 0}
    given = resized(given, sizes)
    folder = given.save(tmp_path / "small", "decilm")
    blocks = json.loads((folder / "config.json").read_text())["block_configs"]
    assert [block["attention"]["no_op"] for block in blocks] == [False, True, False]
    assert [block["ffn"]["no_op"] for block in blocks] == [False, False, True]
    assert blocks[0]["attention"]["n_heads_in_group"] == 2
    # What vLLM 0.32 and llama.cpp compute of it, which must be the width that is on disk.
    for block, width in zip(blocks[:2], widths, strict=False):
        if full % 256 == 0:
            channels = int(2 * block["ffn"]["ffn_mult"] * 32 / 3)
            assert channels + (-channels) % 256 == width
        else:
            assert block["ffn"]["intermediate_size"] == width
            assert "ffn_mult" not in block["ffn"]
    model = plain(folder, trust_remote_code=True)
    assert_equal_functions(model, silenced(given))
    assert torch.equal(generated(model, use_cache=True), generated(model, use_cache=False))
    names_on_disk = model.state_dict().keys()
    assert not any(name.startswith("model.layers.1.input_layernorm") for name in names_on_disk)


@pytest.mark.parametrize("architecture", ["llama", "phi3", "qwen3_moe"])
def test_folded_multiplies_the_factors(architecture: str, tmp_path: Path) -> None:
    given = case(architecture, tmp_path / "dense", {"rank": 4, "width": 16, "kv_heads": 1})
    generator = torch.Generator().manual_seed(5)
    reference, named = silenced(given), []
    with torch.no_grad():
        for group in given.space.of_kind("rank").groups:
            matrix = group.matrices[0]
            a_RN = torch.randn(4, matrix.cols, generator=generator) * 0.3
            b_MR = torch.randn(matrix.rows, 4, generator=generator) * 0.3
            named += [(f"{group.name}.a.weight", a_RN), (f"{group.name}.b.weight", b_MR)]
            weight = reference.get_submodule(group.name).weight
            weight.copy_(torch.where(weight == 0, weight, b_MR @ a_RN))
    folder = given.save(tmp_path / "small", "folded", tuple(named))
    model = plain(folder)
    assert_equal_functions(model, reference)
    assert not torch.allclose(logits(model), logits(dense(given)))
    unfinished = tuple(named[:-1])
    with pytest.raises(SnapfitError, match="are missing"):
        given.save(tmp_path / "bad", "folded", unfinished)


def test_what_a_format_cannot_hold_is_refused_before_it_is_written(tmp_path: Path) -> None:
    llama = case("llama", tmp_path / "llama")
    neox = case("gpt_neox", tmp_path / "gpt_neox", {"kv_heads": 3})
    moe = case("mixtral", tmp_path / "mixtral", {"width": 21})
    attention, mlp = "model.layers.0.self_attn", "model.layers.1.mlp"
    for given, sizes, name, message in (
        (llama, {mlp: 20}, "stock", "one MLP width for all layers, the plan has 20, 48"),
        (llama, {attention: 1}, "stock", "one number of heads for all layers"),
        (llama, {attention: 1}, "decilm", "one number of heads for all layers"),
        (llama, {attention: 0}, "stock", f"stock cannot leave {attention} out alone"),
        (llama, {attention: 0}, "decilm", "first layer's attention"),
        (llama, {"rank": 4}, "stock", "stock holds no factors"),
        (llama, {"rank": 4}, "decilm", "decilm holds no factors"),
        (neox, {"kv_heads": 3}, "stock", "its configuration ties them to the hidden size"),
        (neox, {"width": 20}, "decilm", "Llama-like models only, not gpt_neox"),
        (moe, {"width": 21}, "stock", "experts of width 21: transformers needs multiples of 8"),
        (llama, {"width": 20}, "gguf", "unknown format 'gguf'"),
    ):
        with pytest.raises(UsageError, match=message):
            resized(given, sizes).save(tmp_path / "x", name)
    windowed = case("mistral", tmp_path / "mistral", {"width": 20})
    with pytest.raises(SnapfitError, match="mistral attends to the last 8 tokens only"):
        windowed.save(tmp_path / "y", "decilm")


@pytest.mark.parametrize("architecture", ALL)
def test_tied_sizes_that_fit_are_never_refused(architecture: str, tmp_path: Path) -> None:
    given = case(architecture, tmp_path / "dense")
    groups = {group.name: group for group in given.space.groups}
    tied = ties("stock", given.space)
    assert {groups[name].kind for tie in tied for name in tie} >= {"kv_heads", "width"}
    sizes = {}
    for tie in tied:
        assert len({groups[name].full for name in tie}) == 1
        group = groups[tie[0]]
        fitting = [
            size
            for size in range(max(1, group.least), group.full)
            if holds_size("stock", group, size, given.space)
        ]
        sizes |= dict.fromkeys(tie, fitting[len(fitting) // 2] if fitting else group.full)
    assert sizes
    model = plain(resized(given, sizes).save(tmp_path / "small", "stock"))
    assert logits(model).isfinite().all()


def test_a_setting_is_changed_under_the_name_that_the_file_has_for_it() -> None:
    """GPT-2 calls layers n_layer and takes num_hidden_layers as well."""
    config, settings = GPT2Config(), {"num_hidden_layers": 2}
    for raw in ({"n_layer": 3}, {"num_hidden_layers": 3}, {"n_layer": 3, "num_hidden_layers": 3}):
        assert with_settings(raw, config, settings) == dict.fromkeys(raw, 2)
    assert with_settings({"n_head": 4}, config, settings) == {"n_head": 4, "n_layer": 2}
