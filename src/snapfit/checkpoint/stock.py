"""Checkpoints of a stock architecture: what was changed is said by ordinary settings.

`stock` and `folded` are plain transformers checkpoints: no code, no `quantization_config`. The
model is built from the new configuration, and its shapes are what is written, so a setting that
the architecture does not obey is found before a byte is on disk.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from snapfit.checkpoint.blueprint import Blueprint
from snapfit.checkpoint.save import Named, Source, Target
from snapfit.core.errors import SnapfitError
from snapfit.core.files import read_json
from snapfit.core.renaming import EXPERT
from snapfit.core.settings import (
    ALWAYS_BIASED,
    EXPERT_COUNT_SETTINGS,
    EXPERT_WIDTH_SETTINGS,
    WIDTH_SETTINGS,
)
from snapfit.core.structure import Structure
from snapfit.nn.depth import layer_settings
from snapfit.nn.experts import UnfusedExperts, unfuse_experts

_EXPERT_WEIGHT = re.compile(r"^(.*\.experts)\.(\d+)\.(gate|up|down)\.weight$")


def stock_target(source: Source, model: PreTrainedModel, blueprint: Blueprint) -> Target:
    """What a stock checkpoint consists of.

    Args:
        source: the source checkpoint.
        model: its empty model, experts unfused; not changed.
        blueprint: without ranks.

    Raises:
        SnapfitError: transformers cannot build the new configuration.

    """
    settings = stock_settings(source.config, blueprint.structure)
    raw = with_settings(base_config(source, model), source.config, settings)
    target = build(raw)
    return Target(
        model=target,
        blueprint=blueprint,
        config=raw,
        extra={},
        files={},
        to_disk=lambda named: restacked(target, named),
    )


def base_config(source: Source, model: PreTrainedModel) -> dict[str, Any]:
    """The source's own config.json, less what a compressed model must not inherit."""
    config: dict[str, Any] = read_json(source.path / "config.json")
    config.pop("torch_dtype", None)  # the old name of 'dtype'
    config.pop("auto_map", None)  # the code it names is not carried
    config["architectures"] = [type(model).__name__]
    config["dtype"] = str(source.dtype).removeprefix("torch.")
    return config


def with_settings(
    raw: Mapping[str, Any], config: PreTrainedConfig, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """A config.json with changed settings, under every name that it has for them."""
    names: dict[str, str] = config.get_text_config().attribute_map
    changed = dict(raw)
    for key, value in settings.items():
        own = names.get(key, key)
        aliases = {own, *(alias for alias, name in names.items() if name == own)}
        for alias in (aliases & raw.keys()) or {own}:
            changed[alias] = value
    return changed


def depth_settings(config: PreTrainedConfig, structure: Structure) -> dict[str, Any]:
    """Settings that change with the number of layers."""
    return layer_settings(config, structure.sources) if structure.layers else {}


def stock_settings(config: PreTrainedConfig, structure: Structure) -> dict[str, Any]:
    """All settings that differ from the source's."""
    text: Any = config.get_text_config()
    settings = depth_settings(config, structure)
    kind = str(config.model_type)
    attention = tuple(f"{name}." for name in structure.heads)
    for name, layout in structure.modules.items():
        inner = name.startswith(attention)
        if layout.bias and kind not in ALWAYS_BIASED:
            settings["attention_bias" if inner else "mlp_bias"] = True
        # Of the layers of an MLP, down writes to the residual stream. So does up when the width is
        # the hidden size, and then it reads as many features.
        if not inner and layout.outputs == text.hidden_size:
            table = EXPERT_WIDTH_SETTINGS if EXPERT.match(name) else WIDTH_SETTINGS
            if kind not in table:
                raise SnapfitError(f"{kind} has no known setting for the width of {name}")
            settings[table[kind]] = layout.inputs
    for heads, kv_heads in structure.heads.values():
        settings["num_attention_heads"] = heads
        if hasattr(text, "num_key_value_heads"):
            settings["num_key_value_heads"] = kv_heads
        size = getattr(text, "head_dim", None)
        settings["head_dim"] = size or text.hidden_size // text.num_attention_heads
    for count in structure.experts.values():
        settings[EXPERT_COUNT_SETTINGS[kind]] = count
    return settings


def build(raw: Mapping[str, Any]) -> PreTrainedModel:
    """The model of a configuration on the meta device, experts unfused.

    Raises:
        SnapfitError: transformers cannot build it.

    """
    try:
        config = CONFIG_MAPPING[raw["model_type"]].from_dict(dict(raw))
        with torch.device("meta"):
            model: PreTrainedModel = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise SnapfitError(
            f"transformers cannot build the compressed model as a plain {raw['model_type']}: "
            f"{str(error).splitlines()[0]}; use the format 'factored'"
        ) from error
    model.tie_weights()
    unfuse_experts(model)
    return model


def restacked(model: PreTrainedModel, named: Iterator[Named]) -> Iterator[Named]:
    """The names and layouts on disk: experts stacked as transformers does it, keys renamed."""
    waiting: dict[str, dict[tuple[int, str], Tensor]] = {}
    for name, tensor in named:
        match = _EXPERT_WEIGHT.match(name)
        if match is None:
            yield from revert_weight_conversion(model, {name: tensor}).items()
            continue
        container, index, part = match[1], int(match[2]), match[3]
        parts = waiting.setdefault(container, {})
        parts[index, part] = tensor
        experts: Any = model.get_submodule(container)
        assert isinstance(experts, UnfusedExperts)
        if len(parts) == 3 * experts.num_experts:
            stacked = _stacked(container, waiting.pop(container), experts.num_experts)
            yield from revert_weight_conversion(model, stacked).items()


def _stacked(
    container: str, parts: Mapping[tuple[int, str], Tensor], count: int
) -> dict[str, Tensor]:
    """Fused experts (E, 2I, H) and (E, H, I) of one layer."""
    both = [torch.cat([parts[i, "gate"], parts[i, "up"]]) for i in range(count)]
    return {
        f"{container}.gate_up_proj": torch.stack(both),
        f"{container}.down_proj": torch.stack([parts[i, "down"] for i in range(count)]),
    }
