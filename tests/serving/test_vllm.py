"""vLLM's own classes serve factored checkpoints as transformers runs them, token for token."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from engines import answers, assert_same, engine, running, saved
from safetensors import safe_open
from safetensors.torch import save_file
from served import odd, prompts, rough, shared
from structures import case

import snapfit
from snapfit.core.errors import CorruptFile, SnapfitError

pytest.importorskip("vllm", reason="vLLM is not installed (pip install 'snapfit[serve]')")
from vllm.config import ParallelConfig, VllmConfig, set_current_vllm_config

ARCHITECTURES = ("llama", "qwen2", "qwen3", "mistral", "gemma3_text")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_ranks_widths_and_dropped_layers(architecture: str, tmp_path: Path) -> None:
    folder = saved(odd, architecture, tmp_path)
    with running(folder) as llm:
        assert_same(folder, answers(llm))


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gemma3_text"])
def test_heads_absent_parts_and_gained_biases(architecture: str, tmp_path: Path) -> None:
    folder = saved(rough, architecture, tmp_path)
    with running(folder) as llm:
        assert_same(folder, answers(llm))


def test_two_workers_share_what_one_computes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0|1" if (os.cpu_count() or 1) > 1 else "0|0")
    folder = saved(shared, "llama", tmp_path)
    with running(folder, tensor_parallel_size=2) as llm:
        assert_same(folder, answers(llm))


def test_compiled_models_are_the_same(tmp_path: Path) -> None:
    folder = saved(odd, "llama", tmp_path)
    with running(folder, enforce_eager=False) as llm:
        assert_same(folder, answers(llm))


def test_half_precision_differs_after_ties_only(tmp_path: Path) -> None:
    from snapfit.evals.serving import TIES, compare
    from snapfit.evals.serving_engines import TransformersEngine

    folder = saved(odd, "qwen3", tmp_path, dtype=torch.bfloat16)
    with running(folder, dtype="bfloat16") as llm:
        found = [tuple(tokens) for tokens in answers(llm)]
    logits = TransformersEngine(snapfit.load(folder, dtype=torch.float32)).logits
    asked = [tuple(prompt) for prompt in prompts()]
    assert compare(logits, asked, found, TIES["bfloat16"]).holds


@pytest.mark.parametrize(
    ("architecture", "sizes", "match"),
    [
        ("qwen3_moe", {"width": 16}, "experts of their own sizes"),
        ("olmo2", {"kv_heads": 1}, "no place for a shorter model.layers.0.self_attn"),
    ],
)
def test_what_no_class_of_vllm_holds_is_refused(
    architecture: str, sizes: dict[str, int], match: str, tmp_path: Path
) -> None:
    folder = case(architecture, tmp_path / "dense", sizes).save(tmp_path / "small")
    with pytest.raises(Exception, match=match):
        engine(folder)


def test_adapters_are_refused(tmp_path: Path) -> None:
    folder = saved(odd, "llama", tmp_path)
    with pytest.raises(SnapfitError, match="LoRA adapters are made for the uncompressed"):
        engine(folder, enable_lora=True)


def test_heads_that_two_workers_cannot_share_are_refused(tmp_path: Path) -> None:
    folder = saved(odd, "llama", tmp_path)
    with pytest.raises(SnapfitError, match=r"73 features, which 2 workers cannot share equally"):
        share_of_two(folder)


def test_pipelines_are_refused(tmp_path: Path) -> None:
    folder = saved(odd, "llama", tmp_path)
    with pytest.raises(SnapfitError, match="share it by --tensor-parallel-size instead"):
        share_of_two(folder, VllmConfig(parallel_config=ParallelConfig(pipeline_parallel_size=2)))


def share_of_two(folder: Path, config: VllmConfig | None = None) -> None:
    """What the second of two workers would build, in this process."""
    from vllm.model_executor.layers.linear import RowParallelLinear

    from snapfit.checkpoint.vllm.config import SnapfitConfig

    description = json.loads((folder / "config.json").read_text())["quantization_config"]
    ours = SnapfitConfig.from_config(description)
    name = "model.layers.0.mlp.down_proj"
    layer: Any = RowParallelLinear.__new__(RowParallelLinear)
    torch.nn.Module.__init__(layer)
    layer.tp_size, layer.tp_rank, layer.skip_bias_add, layer.has_bias = 2, 1, False, False
    layer.input_size, layer.output_size = 80, 64
    with set_current_vllm_config(config or VllmConfig()):
        method: Any = ours.get_quant_method(layer, name)
        method.create_weights(layer, 40, [64], 80, 64, params_dtype=torch.float32)


def test_a_missing_tensor_stops_the_engine(tmp_path: Path) -> None:
    folder = saved(odd, "llama", tmp_path)
    file = folder / "model.safetensors"
    with safe_open(file, "pt") as tensors:
        kept = {n: tensors.get_tensor(n) for n in tensors.keys() if "o_proj.b" not in n}  # noqa: SIM118
    save_file(kept, file, metadata={"format": "pt"})
    with pytest.raises(CorruptFile, match=r"lacks model.layers.0.self_attn.o_proj.b.weight"):
        engine(folder)
