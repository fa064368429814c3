"""The factored format: what `config.json` says about it, and the keys that guard it.

    "quantization_config": {
        "quant_method": "snapfit", "version": 1,
        "modules": {"model.layers.0.self_attn.q_proj": {"in": 576, "out": 576, "rank": 160}},
        "experts": "unfused"                               (mixtures of experts only)
    }

The other entries are those of `core.structure`. Everything in it may come from a stranger: it is
data, checked here and against the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from snapfit.core.errors import CorruptFile
from snapfit.core.structure import Structure
from snapfit.nn.experts import FUSED_KEYS, UnfusedExperts

METHOD = "snapfit"
VERSION = 1


def describe_format(structure: Structure) -> dict[str, Any]:
    """The `quantization_config` of a factored checkpoint."""
    return {"quant_method": METHOD, "version": VERSION, **structure.to_json()}


def read_format(data: Mapping[str, Any]) -> Structure:
    """The structure that a `quantization_config` describes.

    Raises:
        CorruptFile: the description is not of this format and version, or a size is impossible.

    """
    version = data.get("version")
    if type(version) is not int:
        raise CorruptFile(f"quantization_config: 'version' must be {VERSION}, found {version!r}")
    if version > VERSION:
        raise CorruptFile(
            f"the checkpoint is of format version {version}, this snapfit reads {VERSION}; "
            "upgrade snapfit"
        )
    if version != VERSION:
        raise CorruptFile(f"quantization_config: 'version' must be {VERSION}, found {version!r}")
    rest = {key: data[key] for key in data if key not in {"quant_method", "version"}}
    return Structure.from_json(rest)


def guard_keys(model: nn.Module, dtype: torch.dtype) -> dict[str, Tensor]:
    """Empty tensors under the names of fused experts, one pair a layer of unfused experts.

    A loader that does not know this format finds that their shapes do not fit and stops, instead
    of leaving the experts randomly initialised. (`FactoredLinear.weight` guards linear layers,
    `AbsentPart` what was removed.)
    """
    return {
        f"{name}.{key}": torch.empty(0, dtype=dtype)
        for name, module in model.named_modules()
        if isinstance(module, UnfusedExperts)
        for key in FUSED_KEYS
    }
