"""Damaged and hostile checkpoints, by both doors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import Q, dense, write
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PreTrainedModel

import snapfit
from snapfit.checkpoint.load import load, load_tokenizer
from snapfit.core.errors import CorruptFile, SnapfitError


def edit_config(folder: Path, **entries: Any) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["quantization_config"].update(entries)
    path.write_text(json.dumps(config))


def edit_module(folder: Path, name: str, entry: Any) -> None:
    modules = json.loads((folder / "config.json").read_text())["quantization_config"]["modules"]
    edit_config(folder, modules={**modules, name: entry})


def edit_weights(folder: Path, changes: dict[str, torch.Tensor | None]) -> None:
    path = folder / "model.safetensors"
    tensors = {**load_file(path), **changes}
    save_file({k: v for k, v in tensors.items() if v is not None}, path, {"format": "pt"})


def by_transformers(folder: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder)


DOORS = pytest.mark.parametrize("door", [snapfit.load, by_transformers])


@DOORS
@pytest.mark.parametrize(
    ("name", "entry", "message"),
    [
        (Q, {"in": 16, "out": 16, "rank": 17}, "rank 17 exceeds"),
        (Q, {"in": 16, "out": 16, "rank": 0}, "'rank' must be a positive integer"),
        (Q, {"in": 16, "out": 16, "rank": "5"}, "'rank' must be a positive integer"),
        (Q, {"in": 16, "out": 16, "rank": True}, "'rank' must be a positive integer"),
        (Q, {"in": 1 << 40, "out": 16, "rank": 5}, "'in' must be a positive integer"),
        (Q, {"in": 32, "out": 16, "rank": 5}, "is 16 x 16"),
        (Q, {"in": 8, "out": 16, "rank": 5}, "is \\[5, 16\\] in the weight files"),
        (Q, {"in": 16, "out": 16, "rank": 5, "bias": 1}, "'bias' must be true or false"),
        (Q, {"in": 16, "out": 16, "rank": 5, "bias": True}, f"lacks {Q}.b.bias"),
        (Q, {"in": 16, "out": 16, "rank": 5, "code": "x"}, "unknown entry 'code'"),
        (Q, {"in": 16, "out": 16, "rank": 4}, "is \\[5, 16\\] in the weight files"),
        (Q, {"in": 16, "out": 16, "rank": None}, "is \\[0\\] in the weight files"),
        (Q, {"in": 16, "out": 16, "blocks": []}, "'blocks' must be a non-empty list"),
        (Q, {"in": 16, "out": 16, "blocks": [{"rows": 8, "rank": 2}]}, "have 8 rows"),
        (Q, [16, 16, 5], "expected a table"),
        ("model.layers.9.self_attn.q_proj", {"in": 16, "out": 16, "rank": 5}, "no module"),
        ("../../etc/passwd", {"in": 16, "out": 16, "rank": 5}, "no module"),
        ("", {"in": 16, "out": 16, "rank": 5}, "not a linear layer"),
        ("model.norm", {"in": 16, "out": 16, "rank": 5}, "not a linear layer"),
        ("forward", {"in": 16, "out": 16, "rank": 5}, "no module"),
        ("lm_head", {"in": 16, "out": 32, "rank": 5}, "is tied to another weight"),
    ],
)
def test_a_hostile_module_entry_is_refused(
    small: Path, door: Any, name: str, entry: Any, message: str
) -> None:
    edit_module(small, name, entry)
    with pytest.raises(SnapfitError, match=message):
        door(small)


@DOORS
@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"version": 2}, "format version 2, this snapfit reads 1; upgrade snapfit"),
        ({"version": "1"}, "'version' must be 1"),
        ({"version": True}, "'version' must be 1"),
        ({"modules": None}, "'modules' must be a table"),
        ({"modules": ["x"]}, "'modules' must be a table"),
        ({"experts": "fused"}, "'experts' must be 'unfused'"),
        ({"experts": ["x"]}, "'experts' must be 'unfused'"),
        ({"code": "import os"}, "unknown entry 'code'"),
        ({"layers": [0, 1, 2]}, "lists 3 layers, num_hidden_layers is 2"),
        ({"vectors": {"lm_head.weight": 32}}, "lm_head.weight is tied to another weight"),
    ],
)
def test_a_hostile_description_is_refused(
    small: Path, door: Any, entries: dict[str, Any], message: str
) -> None:
    edit_config(small, **entries)
    with pytest.raises(CorruptFile, match=message):
        door(small)


@DOORS
def test_a_missing_factor_is_not_made_up(small: Path, door: Any) -> None:
    edit_weights(small, {f"{Q}.b.weight": None})
    with pytest.raises(CorruptFile, match=f"lacks {Q}.b.weight"):
        door(small)


def test_a_missing_norm_is_not_made_up(small: Path) -> None:
    edit_weights(small, {"model.norm.weight": None})
    with pytest.raises(CorruptFile, match=r"lacks model\.norm\.weight"):
        load(small)


def test_a_tensor_without_a_place_is_refused(small: Path) -> None:
    edit_weights(small, {"model.layers.7.x.weight": torch.zeros(2)})
    with pytest.raises(CorruptFile, match=r"has no place for model\.layers\.7\.x\.weight"):
        load(small)


@DOORS
def test_a_misshapen_norm_is_refused(small: Path, door: Any) -> None:
    edit_weights(small, {"model.norm.weight": torch.zeros(3)})
    # transformers 5.24 refuses by itself, before the plug-in can name the tensor.
    message = r"model.norm.weight is \[3\]|other shapes|ignore_mismatched_sizes"
    with pytest.raises((CorruptFile, RuntimeError), match=message):
        door(small)


@DOORS
def test_a_truncated_shard_is_named(tmp_path: Path, door: Any) -> None:
    written = write(dense(tmp_path / "dense"), tmp_path / "small", max_shard_size=3000)
    shard = tmp_path / "small" / written.files[1]
    shard.write_bytes(shard.read_bytes()[:-20])
    with pytest.raises(CorruptFile, match=shard.name):
        door(tmp_path / "small")


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    written = write(dense(tmp_path / "dense"), tmp_path / "small", max_shard_size=3000)
    (tmp_path / "small" / written.files[1]).unlink()
    with pytest.raises(SnapfitError, match=written.files[1]):
        load(tmp_path / "small")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("hidden_size", "16"),
        ("hidden_size", -1),
        ("num_attention_heads", 0),
        ("num_key_value_heads", 0),
        ("layer_types", ["x"]),
        ("rope_parameters", 1),
        ("pad_token_id", 10**6),
    ],
)
def test_impossible_settings_are_one_line(small: Path, name: str, value: Any) -> None:
    for folder in (small, small.parent / "dense"):
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), name: value}))
        with pytest.raises(SnapfitError, match="cannot load") as caught:
            load(folder)
        assert "\n" not in str(caught.value)


def test_missing_folders_and_files_are_named(small: Path, tmp_path: Path) -> None:
    with pytest.raises(SnapfitError, match="no model folder"):
        load(tmp_path / "absent")
    with pytest.raises(SnapfitError, match="no tokenizer"):
        load_tokenizer(small)
    (small / "model.safetensors").unlink()
    with pytest.raises(SnapfitError, match="cannot load"):
        load(small)
    (small / "config.json").write_text("{")
    with pytest.raises(SnapfitError, match="is not readable JSON"):
        load(small)
    (small / "config.json").unlink()
    with pytest.raises(SnapfitError, match=r"no config\.json"):
        load(small)


def test_a_damaged_tokenizer_is_named(small: Path) -> None:
    (small / "tokenizer.json").write_text("{")
    with pytest.raises(SnapfitError, match="cannot read the tokenizer"):
        load_tokenizer(small)
