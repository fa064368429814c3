"""Factored checkpoints: what is on disk, what is refused, and what a loaded model can do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from checkpoints import IDS, Q, dense, write
from safetensors import safe_open
from safetensors.torch import load_file
from tiny_models import logits
from transformers import AutoModel, AutoModelForCausalLM

from snapfit.checkpoint.blueprint import Blueprint
from snapfit.checkpoint.formats import save
from snapfit.checkpoint.load import load
from snapfit.checkpoint.save import carry_files, check_saveable
from snapfit.core.errors import SnapfitError
from snapfit.core.layout import Block, ModuleLayout
from snapfit.core.structure import Structure
from snapfit.models.source import empty_model, open_model
from snapfit.models.weights import open_weights
from snapfit.nn.factored import FactoredLinear


def test_the_folder_holds_what_a_checkpoint_holds(tmp_path: Path) -> None:
    base = dense(tmp_path / "dense", attention_bias=True)
    (base / "modeling_evil.py").write_text("raise SystemExit")
    (base / "pytorch_model.bin").write_bytes(b"pickle")
    (base / "tokenizer.json").write_text("{}")
    (base / "chat_template.jinja").write_text("{{ messages }}")
    (base / "additional_chat_templates").mkdir()
    (base / "additional_chat_templates" / "tool.jinja").write_text("x")
    written = write(base, tmp_path / "small")
    found = {str(p.relative_to(tmp_path / "small")) for p in (tmp_path / "small").rglob("*.*")}
    assert found == {
        "additional_chat_templates/tool.jinja",
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
    }
    config = json.loads((tmp_path / "small" / "config.json").read_text())
    assert config["model_type"] == "llama"
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["dtype"] == "float32"
    assert config["quantization_config"]["modules"][Q] == {"in": 16, "out": 16, "rank": 5}
    tensors = load_file(tmp_path / "small" / "model.safetensors")
    assert "lm_head.weight" not in tensors
    assert tensors[f"{Q}.weight"].shape == (0,)
    assert torch.equal(tensors[f"{Q}.b.bias"], load_file(base / "model.safetensors")[f"{Q}.bias"])
    assert written.params == sum(t.numel() for t in tensors.values())
    assert written.bytes == 4 * written.params
    assert written.files == ("model.safetensors",)


def test_untied_embeddings_keep_their_head(tmp_path: Path) -> None:
    write(dense(tmp_path / "dense", tie_word_embeddings=False), tmp_path / "small")
    before = load_file(tmp_path / "dense" / "model.safetensors")
    after = load_file(tmp_path / "small" / "model.safetensors")
    assert torch.equal(before["lm_head.weight"], after["lm_head.weight"])
    assert torch.equal(before["model.norm.weight"], after["model.norm.weight"])


def test_shards_are_named_and_indexed_as_transformers_does(tmp_path: Path) -> None:
    written = write(dense(tmp_path / "dense"), tmp_path / "small", max_shard_size=3000)
    count = len(written.files)
    assert count > 2
    assert written.files[0] == f"model-00001-of-{count:05d}.safetensors"
    index = json.loads((tmp_path / "small" / "model.safetensors.index.json").read_text())
    for name, file in index["weight_map"].items():
        with safe_open(tmp_path / "small" / file, "pt") as tensors:
            assert name in tensors.keys()  # noqa: SIM118
    assert set(index["weight_map"].values()) == set(written.files)
    assert index["metadata"]["total_size"] == written.bytes
    assert not list((tmp_path / "small").glob("*.partial"))
    write(tmp_path / "dense", tmp_path / "whole")
    assert torch.equal(logits(load(tmp_path / "small"), IDS), logits(load(tmp_path / "whole"), IDS))


def test_carrying_files_never_follows_a_list_it_was_not_given(tmp_path: Path) -> None:
    (tmp_path / "from").mkdir()
    (tmp_path / "to").mkdir()
    for name in ("vocab.json", "LICENSE", "optimizer.bin", "notes.txt", "tokenization_x.py"):
        (tmp_path / "from" / name).write_text(name)
    carry_files(tmp_path / "from", tmp_path / "to")
    assert {path.name for path in (tmp_path / "to").iterdir()} == {"vocab.json", "LICENSE"}


# Refusals while saving.


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ((f"{Q}.a.weight", torch.zeros(6, 16)), r"is \[6, 16\], the plan says \[5, 16\]"),
        ((f"{Q}.a.weight", torch.full((5, 16), float("nan"))), "NaN or infinity"),
        ((f"{Q}.c.weight", torch.zeros(5, 16)), "no place for"),
        (None, f"no factor came for {Q}.a.weight"),
    ],
)
def test_bad_factors_are_refused(
    tmp_path: Path, wrong: tuple[str, torch.Tensor] | None, message: str
) -> None:
    source = open_model(dense(tmp_path / "dense"))
    layout = ModuleLayout(inputs=16, blocks=(Block(rows=16, rank=5),))
    with pytest.raises(SnapfitError, match=message):
        save(
            tmp_path,
            source=source,
            model=empty_model(source),
            reader=open_weights(source),
            blueprint=Blueprint(structure=Structure(modules={Q: layout})),
            factors=[wrong] if wrong else [],
        )


def test_a_model_of_foreign_code_is_refused() -> None:
    foreign = FactoredLinear(ModuleLayout(inputs=2, blocks=(Block(rows=2, rank=1),)), bias=False)
    with pytest.raises(SnapfitError, match="FactoredLinear is defined by code beside its weights"):
        check_saveable(foreign)


# What the loaded model can do.


def test_a_loaded_model_is_an_ordinary_model(small: Path) -> None:
    model = load(small, dtype=torch.bfloat16, device="cpu")
    assert model.dtype == torch.bfloat16
    assert model.half().dtype == torch.float16
    model.float().train()
    model(IDS, labels=IDS).loss.backward()
    without = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []
    assert json.loads(model.config.to_json_string())["quantization_config"]["version"] == 1


def test_a_trained_model_is_saved_with_its_changes(small: Path, tmp_path: Path) -> None:
    model = load(small)
    with torch.no_grad():
        model.get_submodule(Q).a.weight.add_(1)
    model.save_pretrained(tmp_path / "again")
    again = load(tmp_path / "again")
    assert torch.equal(logits(again, IDS), logits(model, IDS))
    assert not torch.equal(logits(again, IDS), logits(load(small), IDS))


def test_the_bare_decoder_loads_too(small: Path) -> None:
    decoder = AutoModel.from_pretrained(small)
    assert isinstance(decoder.get_submodule(Q.removeprefix("model.")), FactoredLinear)
    whole = load(small)
    assert torch.equal(decoder(IDS).last_hidden_state, whole.model(IDS).last_hidden_state)


def test_an_uncompressed_checkpoint_loads_too(tmp_path: Path) -> None:
    model = load(dense(tmp_path / "dense"))
    assert not any(isinstance(module, FactoredLinear) for module in model.modules())


def test_a_dense_model_cannot_be_made_factored_on_the_way(small: Path, tmp_path: Path) -> None:
    entry = json.loads((small / "config.json").read_text())["quantization_config"]
    from snapfit.checkpoint.plugin import SnapfitConfig

    with pytest.raises(ValueError, match="does require the model to be pre-quantized"):
        AutoModelForCausalLM.from_pretrained(
            tmp_path / "dense", quantization_config=SnapfitConfig(**entry)
        )
