"""Quantisation after compression: what compressed-tensors writes of our formats, vLLM serves.

Weights are rounded to the nearest value by compressed-tensors, the library that llm-compressor
saves with; its own simulation is what vLLM is compared with. See docs/serving.md for what upstream
does not allow.
"""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from engines import running
from served import factors, plain, prompts
from structures import Case, resized
from tiny_models import tiny_tokenizer
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from snapfit.evals.vllm_start import engine_settings

pytest.importorskip("vllm", reason="vLLM is not installed (pip install 'snapfit[serve]')")
pytest.importorskip("compressed_tensors", reason="compressed-tensors is not installed")

ROUNDING = 0.5
"""Difference of log probabilities between vLLM in bfloat16 and a simulation in float32.

The dense model's own is 0.2 for W4A16 and 0.3 for W8A8: tiny random models round badly.
"""


def aligned(given: Case, *, factored: bool) -> Case:
    """Sizes in multiples of 32, which is what vLLM's 4-bit kernel for CPUs asks for."""
    sizes: dict[str, int] = {}
    for group in given.space.groups:
        if group.kind == "depth":
            sizes[group.name] = 3
        elif group.kind == "width":
            sizes[group.name] = 256 - 32 * (1 + group.layer) if factored else 192
        elif group.kind == "rank" and group.layer == 1 and factored:
            sizes[group.name] = 32
    return resized(given, sizes)


def quantise(model: nn.Module, scheme: str) -> None:
    """Give every linear layer but the head the scheme's scales."""
    from compressed_tensors.quantization import (
        QuantizationConfig,
        QuantizationStatus,
        apply_quantization_config,
        preset_name_to_scheme,
    )
    from compressed_tensors.quantization.utils import calculate_qparams

    preset: Any = preset_name_to_scheme(scheme, ["Linear"])
    if preset.weights.group_size:
        preset.weights.group_size = 32
    config = QuantizationConfig(config_groups={"group_0": preset}, ignore=["lm_head"])
    apply_quantization_config(model, config)
    for module in model.modules():
        found: Any = getattr(module, "quantization_scheme", None)
        if found is not None:
            holder: Any = module
            rows = len(holder.weight)
            size = found.weights.group_size or holder.weight.shape[1]
            grouped = holder.weight.data.reshape(rows, -1, size)
            scale, _ = calculate_qparams(grouped.amin(-1), grouped.amax(-1), found.weights)
            holder.weight_scale.data = scale.reshape(holder.weight_scale.shape)
            holder.quantization_status = QuantizationStatus.FROZEN


def quantised(folder: Path, target: Path, scheme: str) -> Callable[[Tensor], Tensor]:
    """Write a quantised checkpoint; the logits of its simulation."""
    from compressed_tensors.compressors import ModelCompressor

    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()
    quantise(model, scheme)
    simulated = copy.deepcopy(model)
    compressor = ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    model.save_pretrained(target)
    compressor.update_config(str(target))
    tiny_tokenizer().save_pretrained(target)
    for code in folder.glob("*.py"):
        shutil.copy(code, target)

    @torch.no_grad()
    def logits(ids_T: Tensor) -> Tensor:
        found: Tensor = simulated(ids_T[None]).logits[0]
        return found

    return logits


def largest_difference(llm: Any, logits: Callable[[Tensor], Tensor]) -> float:
    """Of the log probability of the next token, over all prompts."""
    from vllm import SamplingParams

    asked = [{"prompt_token_ids": prompt} for prompt in prompts()]
    params = SamplingParams(temperature=0.0, max_tokens=1, logprobs=3, detokenize=False)
    found = llm.generate(asked, params, use_tqdm=False)
    differences = []
    for prompt, output in zip(prompts(), found, strict=True):
        expected = torch.log_softmax(logits(torch.tensor(prompt))[-1], -1)
        for token, entry in output.outputs[0].logprobs[0].items():
            differences.append(abs(entry.logprob - float(expected[token])))
    return max(differences)


@pytest.mark.parametrize(
    ("scheme", "format_name"),
    [("W4A16", "standalone"), ("W4A16", "dense"), ("W8A8", "stock"), ("W8A8", "dense")],
)
def test_vllm_serves_what_was_quantised(scheme: str, format_name: str, tmp_path: Path) -> None:
    folder = tmp_path / "dense"
    given = plain("llama", folder, hidden_size=128, intermediate_size=256)
    if format_name != "dense":
        small = aligned(given, factored=format_name == "standalone")
        folder = small.save(tmp_path / "small", format_name, factors=tuple(factors(small)))
    logits = quantised(folder, tmp_path / "quantised", scheme)
    settings = engine_settings(tmp_path / "quantised", trust_remote_code=True)
    with running(tmp_path / "quantised", dtype="bfloat16", **settings) as llm:
        assert largest_difference(llm, logits) < ROUNDING
