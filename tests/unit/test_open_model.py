"""Everything that can be wrong with a model's folder gets its own message."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from tiny_models import build

from snapfit.core.errors import CorruptFile, SnapfitError, UsageError
from snapfit.models.describe import describe, empty_model, open_model
from snapfit.models.shards import INDEX, read_header


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return build("llama", tmp_path_factory.mktemp("llama"))


@pytest.fixture
def folder(original, tmp_path):
    return Path(shutil.copytree(original, tmp_path / "model"))


def edit(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_good_folder(folder):
    source = open_model(folder)
    assert (source.path, source.architecture) == (folder, "llama")
    assert source.dtype == source.config.dtype == torch.float32
    assert open_model(str(folder)).revision == source.revision


def test_revision_follows_weights_and_config(folder):
    before = open_model(folder).revision
    edit(folder, rms_norm_eps=1e-3)
    changed_config = open_model(folder).revision
    weights = folder / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert len({before, changed_config, open_model(folder).revision}) == 3


def test_embedded_model_is_found():
    space = describe(open_model("embedded"), name="embedded")
    assert space.architecture == "llama"
    assert len({group.layer for group in space.groups}) >= 8


@pytest.mark.parametrize("name", ["/no/such/folder", "./nothing", "gpt2", "a/b/c", ""])
def test_missing_folder(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="no model folder") as error:
        open_model(name or tmp_path / "nothing")
    assert error.value.exit_code == 2


def test_a_file_is_not_a_folder(folder):
    with pytest.raises(UsageError, match="is a file; give the model's folder"):
        open_model(folder / "model.safetensors")


def test_hub_name_offline(tmp_path, monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SnapfitError, match="hub cannot be reached"):
        open_model("nobody/nothing-of-that-name")


def test_no_config(folder):
    (folder / "config.json").unlink()
    with pytest.raises(SnapfitError, match=r"has no config\.json"):
        open_model(folder)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"model_type": 3}'])
def test_config_that_is_none(folder, text):
    (folder / "config.json").write_text(text)
    with pytest.raises(CorruptFile, match=r"config\.json"):
        open_model(folder)


def test_config_with_impossible_values(folder):
    edit(folder, hidden_size="many")
    with pytest.raises(CorruptFile, match=r"config\.json is not valid"):
        open_model(folder)


@pytest.mark.parametrize(
    ("name", "value"), [("head_dim", 0), ("num_key_value_heads", 0), ("pad_token_id", 10**6)]
)
def test_settings_that_no_model_can_have(folder, name, value):
    edit(folder, **{name: value})
    with pytest.raises(SnapfitError, match="transformers cannot build"):
        empty_model(open_model(folder))


@pytest.mark.parametrize(
    ("name", "value"), [("architectures", 1), ("architectures", {"a": 1}), ("auto_map", [])]
)
def test_entries_of_another_type_say_nothing(folder, name, value):
    edit(folder, **{name: value})
    assert open_model(folder).architecture == "llama"


@pytest.mark.parametrize(
    ("model_type", "architecture", "kind"),
    [
        ("bert", "BertForMaskedLM", "a BertForMaskedLM model"),
        ("bert", None, "a bert encoder"),
        ("t5", "T5ForConditionalGeneration", "an encoder-decoder"),
        ("llama", "LlamaForSequenceClassification", "a LlamaForSequenceClassification model"),
        ("vit", "ViTForImageClassification", "a ViTForImageClassification model"),
    ],
)
def test_other_kinds_of_model(folder, model_type, architecture, kind):
    names = None if architecture is None else [architecture]
    (folder / "config.json").write_text(
        json.dumps({"model_type": model_type, "architectures": names})
    )
    with pytest.raises(SnapfitError, match=f"is {kind}.*not a causal language model"):
        open_model(folder)


def test_multimodal_models(folder):
    (folder / "config.json").write_text(
        json.dumps({"model_type": "gemma3", "architectures": ["Gemma3ForConditionalGeneration"]})
    )
    with pytest.raises(SnapfitError, match="not a causal language model of text"):
        open_model(folder)


def test_code_in_the_folder_is_not_run(folder):
    (folder / "config.py").write_text("raise SystemExit('this code was run')")
    edit(folder, model_type="homemade", auto_map={"AutoConfig": "config.Config"})
    with pytest.raises(SnapfitError, match="--trust-remote-code"):
        open_model(folder)


def test_unknown_architecture(folder):
    edit(folder, model_type="llama9000")
    with pytest.raises(SnapfitError, match="does not know the architecture 'llama9000'"):
        open_model(folder)


@pytest.mark.parametrize(
    ("method", "message"),
    [("gptq", r"quantised already \(gptq\)"), ("snapfit", "by snapfit already")],
)
def test_quantised_already(folder, method, message):
    edit(folder, quantization_config={"quant_method": method})
    with pytest.raises(SnapfitError, match=message):
        open_model(folder)


def test_standalone_is_compressed_already(folder):
    edit(folder, snapfit={"quant_method": "snapfit", "version": 1, "modules": {}})
    with pytest.raises(SnapfitError, match="by snapfit already; start from its base model"):
        open_model(folder)


def test_an_entry_that_says_nothing_is_no_quantisation(folder):
    edit(folder, quantization_config=None, compression_config={"quant_method": "marlin-24"})
    with pytest.raises(SnapfitError, match=r"quantised already \(marlin-24\)"):
        open_model(folder)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pth"])
def test_pickles_are_refused(folder, name):
    (folder / "model.safetensors").rename(folder / name)
    with pytest.raises(SnapfitError, match=rf"{name}.*convert"):
        open_model(folder)


@pytest.mark.parametrize(
    ("name", "found"), [("model.gguf", "only model.gguf"), ("x.txt", "no weights")]
)
def test_no_weights(folder, name, found):
    (folder / "model.safetensors").rename(folder / name)
    with pytest.raises(SnapfitError, match=f"has {found}; expected"):
        open_model(folder)


@pytest.mark.parametrize("keep", [0, 5, 100, -1])
def test_truncated_shard(folder, keep):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CorruptFile, match=r"model\.safetensors.*download it again"):
        open_model(folder)


def test_a_web_page_instead_of_weights(folder):
    (folder / "model.safetensors").write_text("<html>404</html>" * 100)
    with pytest.raises(CorruptFile, match="truncated or no safetensors file"):
        open_model(folder)


def write_header(path, header, payload=b""):
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + payload)


@pytest.mark.parametrize(
    "header",
    [
        b"not json",
        b"[1]",
        b"[" * 100_000,
        b'{"w": {"dtype": "F32", "shape": [1e999], "data_offsets": [0, 8]}}',
        {"w": {"dtype": "F32", "shape": [2]}},
        {"w": {"dtype": "F32", "shape": "ab", "data_offsets": [0, 8]}},
        {"w": {"dtype": "F32", "shape": [2], "data_offsets": [0]}},
        {"w": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}},
        {"w": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}},
        {"w": 7},
        {},
    ],
)
def test_headers_written_by_strangers(folder, header):
    write_header(folder / "model.safetensors", header, b"\0" * 8)
    with pytest.raises(CorruptFile, match="download"):
        open_model(folder)


def test_header_is_read_as_written(folder):
    path = folder / "small.safetensors"
    write_header(
        path, {"w": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12]}}, b"\0" * 12
    )
    (entry,) = read_header(path).values()
    assert (entry.dtype, entry.shape, entry.numel) == ("BF16", (2, 3), 6)


def test_weights_in_whole_numbers(folder):
    write_header(
        folder / "model.safetensors",
        {"w": {"dtype": "I8", "shape": [8], "data_offsets": [0, 8]}},
        b"\0" * 8,
    )
    with pytest.raises(SnapfitError, match="stores its weights as I8"):
        open_model(folder)


def sharded(folder, names):
    (folder / INDEX).write_text(json.dumps({"weight_map": names}))


def test_missing_shard(folder):
    sharded(folder, {"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"})
    with pytest.raises(CorruptFile, match=r"lacks model-00002-of-00002.safetensors"):
        open_model(folder)


def test_shard_outside_the_folder(folder):
    sharded(folder, {"a": "../model.safetensors"})
    with pytest.raises(CorruptFile, match="outside the model's folder"):
        open_model(folder)


@pytest.mark.parametrize("text", ["{}", "[]", '{"weight_map": {}}', "{"])
def test_broken_index(folder, text):
    (folder / INDEX).write_text(text)
    with pytest.raises(CorruptFile, match="index"):
        open_model(folder)
