"""`decilm` checkpoints: Llama-like models with a shape in every layer, served without a plug-in.

See `decilm_model` for the format. The norm before a removed sub-layer is not written: the engines
have no place for it.
"""

from __future__ import annotations

import importlib.resources
from collections.abc import Mapping
from typing import Any

import torch
from transformers import PreTrainedModel

from snapfit.checkpoint.blueprint import Blueprint
from snapfit.checkpoint.decilm_model import DeciLMConfig, DeciLMForCausalLM
from snapfit.checkpoint.save import Source, Target
from snapfit.checkpoint.stock import base_config, stock_settings, with_settings
from snapfit.core.errors import SnapfitError
from snapfit.core.structure import Structure

MODEL_FILE = "modeling_decilm.py"
ROUNDED = 256
"""The engines round a width that is given as `ffn_mult` up to a multiple of this."""


def decilm_target(source: Source, model: PreTrainedModel, blueprint: Blueprint) -> Target:
    """What a decilm checkpoint consists of.

    Raises:
        SnapfitError: the model has a sliding window, which the engines' DeciLM does not.

    """
    if getattr(source.config, "sliding_window", None) is not None:
        raise SnapfitError(
            f"decilm has no sliding window, {source.config.model_type} attends to the last "
            f"{source.config.sliding_window} tokens only; use the format 'factored'"
        )
    settings = decilm_settings(source, blueprint.structure, blueprint.path)
    raw = with_settings(base_config(source, model), source.config, settings)
    raw.pop("sliding_window", None)
    raw["model_type"] = DeciLMConfig.model_type
    raw["architectures"] = [DeciLMForCausalLM.__name__]
    raw["auto_map"] = {
        "AutoConfig": f"{MODEL_FILE.removesuffix('.py')}.{DeciLMConfig.__name__}",
        "AutoModelForCausalLM": f"{MODEL_FILE.removesuffix('.py')}.{DeciLMForCausalLM.__name__}",
    }
    with torch.device("meta"):
        target = DeciLMForCausalLM(DeciLMConfig(**raw))
    target.tie_weights()
    text = importlib.resources.files("snapfit.checkpoint").joinpath("decilm_model.py")
    return Target(
        model=target,
        blueprint=blueprint,
        config=raw,
        extra={},
        files={MODEL_FILE: text.read_text(encoding="utf-8")},
        to_disk=lambda named: named,
    )


def decilm_settings(source: Source, structure: Structure, path: str) -> dict[str, Any]:
    """Settings that differ from the source's: `block_configs`, and what all layers share."""
    text: Any = source.config.get_text_config()
    settings = stock_settings(source.config, structure)
    full = int(text.intermediate_size)
    count = settings.get("num_hidden_layers", text.num_hidden_layers)
    widths = [_width(structure, f"{path}.{index}.mlp", full) for index in range(count)]
    heads = settings.get("num_attention_heads", text.num_attention_heads)
    kv_heads = settings.get("num_key_value_heads", text.num_key_value_heads)
    multiples = all(width is None or width % ROUNDED == 0 for width in widths)
    settings["intermediate_size"] = max((w for w in widths if w is not None), default=full)
    settings["block_configs"] = [
        {
            "attention": _attention(structure, f"{path}.{index}.self_attn", heads // kv_heads),
            "ffn": _ffn(width, int(text.hidden_size), multiples=multiples),
        }
        for index, width in enumerate(widths)
    ]
    return settings


def _width(structure: Structure, mlp: str, full: int) -> int | None:
    if mlp in structure.absent:
        return None
    layout = structure.modules.get(f"{mlp}.down_proj")
    return full if layout is None else layout.inputs


def _attention(structure: Structure, name: str, shared: int) -> Mapping[str, Any]:
    gone = name in structure.absent
    return {
        "no_op": gone,
        "replace_with_linear": False,
        "n_heads_in_group": None if gone else shared,
    }


def _ffn(width: int | None, hidden: int, *, multiples: bool) -> Mapping[str, Any]:
    fields: dict[str, Any] = {"no_op": width is None, "replace_with_linear": False}
    if not multiples:
        return {**fields, "intermediate_size": width}
    # Half a step below the width, so that no error of rounding can reach another multiple.
    mult = None if width is None else 1.5 * (width - ROUNDED / 2) / hidden
    return {**fields, "ffn_mult": mult}
