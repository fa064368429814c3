"""A model from its configuration alone is described as the whole checkpoint is."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from snapfit.core.errors import CorruptFile, SnapfitError, UsageError
from snapfit.models.describe import describe, open_model
from snapfit.models.shapes import describe_shapes, open_shapes
from snapfit.models.source import EMBEDDED

LLAMA_8B = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "tie_word_embeddings": False,
}


def folder_of(tmp_path: Path, config: object) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


def test_eight_billion_parameters_without_a_weight(tmp_path: Path) -> None:
    space = describe_shapes(folder_of(tmp_path, LLAMA_8B))
    assert space.total_params == 8_030_261_248
    assert space.of_kind("rank").dense_params == 6_979_321_856
    assert space.kv_elements == 32 * 2 * 8 * 128
    assert space.frame is not None
    assert (space.frame.heads, space.frame.kv_heads, space.frame.head_dim) == (32, 8, 128)
    assert space.revision.startswith("shapes-")


def test_the_space_is_that_of_the_checkpoint(tmp_path: Path) -> None:
    source = open_model(EMBEDDED)
    config = tmp_path / "config.json"
    config.write_bytes((source.path / "config.json").read_bytes())
    whole = describe(source, name="m")
    for place in (tmp_path, config):
        shapes = open_shapes(place)
        assert shapes.dtype == source.dtype
        found = describe(shapes, name="m")
        assert found != whole
        assert replace(found, revision=whole.revision) == whole


def test_an_odd_dtype_is_read_as_bfloat16(tmp_path: Path) -> None:
    assert open_shapes(folder_of(tmp_path, LLAMA_8B)).dtype == torch.bfloat16
    half = {**LLAMA_8B, "dtype": "float16"}
    assert open_shapes(folder_of(tmp_path, half)).dtype == torch.float16


@pytest.mark.parametrize(
    ("config", "error", "message"),
    [
        (None, UsageError, "give one that has a config.json"),
        ({"model_type": "bert"}, SnapfitError, "not a causal language model"),
        ({"model_type": "nonsense"}, SnapfitError, "does not know the architecture 'nonsense'"),
        ([], CorruptFile, "names no 'model_type'"),
        (
            {**LLAMA_8B, "quantization_config": {"quant_method": "gptq"}},
            SnapfitError,
            "quantised already",
        ),
    ],
)
def test_what_is_no_model_says_so(
    tmp_path: Path, config: object, error: type[SnapfitError], message: str
) -> None:
    place = tmp_path / "missing" if config is None else folder_of(tmp_path, config)
    with pytest.raises(error, match=message):
        open_shapes(place)
