"""Factored checkpoints on disk: both doors in, the loud failure, and every way they can be bad."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedModel

import snapfit
from snapfit.checkpoint.blueprint import Blueprint
from snapfit.checkpoint.formats import save
from snapfit.checkpoint.load import load, load_tokenizer
from snapfit.checkpoint.save import MAX_SHARD_SIZE, carry_files, check_saveable
from snapfit.checkpoint.writer import Written
from snapfit.core.errors import CorruptFile, SnapfitError
from snapfit.core.layout import Block, ModuleLayout
from snapfit.core.structure import Structure
from snapfit.models.source import ModelSource, empty_model, open_model
from snapfit.models.weights import open_weights
from snapfit.nn.factored import FactoredLinear

Q = "model.layers.0.self_attn.q_proj"
IDS = torch.arange(4, 16)[None]


def dense(folder: Path, architecture: str = "llama", **changes: Any) -> Path:
    settings = {
        "vocab_size": 32,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "tie_word_embeddings": True,
        **changes,
    }
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(architecture, **settings))
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    return folder


def chosen(source: ModelSource, suffix: str) -> dict[str, ModuleLayout]:
    """Rank 5 for every linear layer whose name ends in `suffix`."""
    return {
        name: ModuleLayout(
            inputs=module.in_features, blocks=(Block(rows=module.out_features, rank=5),)
        )
        for name, module in empty_model(source).named_modules()
        if isinstance(module, nn.Linear) and "layers." in name and name.endswith(suffix)
    }


def random_factors(layouts: dict[str, ModuleLayout]) -> Iterator[tuple[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(2)
    for name, layout in layouts.items():
        yield f"{name}.a.weight", torch.randn(5, layout.inputs, generator=generator)
        yield f"{name}.b.weight", torch.randn(layout.outputs, 5, generator=generator)


def write(
    base: Path, folder: Path, suffix: str = "_proj", max_shard_size: int = MAX_SHARD_SIZE
) -> Written:
    source = open_model(base)
    layouts = chosen(source, suffix)
    folder.mkdir()
    return save(
        folder,
        source=source,
        model=empty_model(source),
        reader=open_weights(source),
        blueprint=Blueprint(structure=Structure(modules=layouts)),
        factors=random_factors(layouts),
        max_shard_size=max_shard_size,
    )


@pytest.fixture
def small(tmp_path: Path) -> Path:
    write(dense(tmp_path / "dense"), tmp_path / "small")
    return tmp_path / "small"


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


def python(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", "-c", code, *map(str, arguments)]
    # A command line test may have silenced transformers in this process.
    env = {name: value for name, value in os.environ.items() if name != "TRANSFORMERS_VERBOSITY"}
    return subprocess.run(
        command, capture_output=True, text=True, timeout=100, check=False, env=env
    )


# What is on disk.


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
    assert torch.equal(load(tmp_path / "small")(IDS).logits, load(tmp_path / "whole")(IDS).logits)


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


# The two doors, in any order of imports.


def test_importing_snapfit_loads_nothing_heavy() -> None:
    code = (
        "import sys, snapfit; "
        "print([n for n in ('torch', 'transformers', 'numpy', 'safetensors') if n in sys.modules])"
    )
    assert python(code).stdout.strip() == "[]"


@pytest.mark.parametrize(
    "imports",
    [
        "import snapfit",
        "import transformers.quantizers.auto, snapfit",
        "import transformers, snapfit, importlib; importlib.reload(snapfit)",
    ],
)
def test_transformers_learns_the_format_in_any_order(small: Path, imports: str) -> None:
    code = (
        f"import sys; {imports}; from transformers import AutoModelForCausalLM; "
        "import importlib; importlib.reload(snapfit); "
        "from transformers.quantizers import auto; "
        "model = AutoModelForCausalLM.from_pretrained(sys.argv[1]); "
        "print(type(model).__name__, type(model.model.layers[0].self_attn.q_proj).__name__, "
        "type(auto.__loader__).__name__, type(auto.__spec__.loader).__name__, "
        "[f for f in sys.meta_path if type(f).__module__ == 'snapfit._hooks'])"
    )
    done = python(code, small)
    expected = "LlamaForCausalLM FactoredLinear SourceFileLoader SourceFileLoader []"
    assert done.stdout.strip() == expected, done.stderr


BARE = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "snapfit":
            raise ModuleNotFoundError("blocked")
sys.meta_path.insert(0, Block())
from transformers import AutoModelForCausalLM
for folder in sys.argv[1:]:
    try:
        AutoModelForCausalLM.from_pretrained(folder)
        print("loaded")
    except RuntimeError as error:
        print(error)
"""


def test_without_the_plugin_transformers_fails_loudly(tmp_path: Path) -> None:
    llama = dense(tmp_path / "llama")
    mixtral = dense(tmp_path / "mixtral", "mixtral", num_local_experts=2, num_experts_per_tok=1)
    # All layers, one layer, one expert, and experts that are only unfused.
    cases = (llama, "_proj"), (llama, "1.mlp.up_proj"), (mixtral, "experts.0.up"), (mixtral, "none")
    folders = [tmp_path / str(index) for index in range(len(cases))]
    for folder, (base, suffix) in zip(folders, cases, strict=True):
        write(base, folder, suffix)
        assert load(folder)(IDS).logits.isfinite().all()
    done = python(BARE, *folders)
    message = "You set `ignore_mismatched_sizes` to `False`, thus raising an error."
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(message) == len(done.stdout.splitlines()) == len(cases)
    assert "Unknown quantization type, got snapfit" in done.stderr


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
    assert torch.equal(again(IDS).logits, model(IDS).logits)
    assert not torch.equal(again(IDS).logits, load(small)(IDS).logits)


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


# Damaged and hostile checkpoints: both doors.


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


def test_a_lazy_verb_is_found_and_an_unknown_one_is_not() -> None:
    assert snapfit.load is load
    assert "compress" in dir(snapfit)
    with pytest.raises(AttributeError, match="no attribute 'compres'"):
        _ = snapfit.compres  # type: ignore[attr-defined]
