"""The factored format: what `config.json` says about it, and the keys that guard it.

    "quantization_config": {
        "quant_method": "snapfit", "version": 1,
        "modules": {"model.layers.0.self_attn.q_proj": {"in": 576, "out": 576, "rank": 160}},
        "experts": "unfused"                               (mixtures of experts only)
    }

Everything in it may come from a stranger: it is data, checked here and against the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from snapfit.core.errors import CorruptFile
from snapfit.core.layout import Layouts, ModuleLayout
from snapfit.nn.experts import UnfusedExperts

METHOD = "snapfit"
VERSION = 1
UNFUSED = "unfused"
FUSED_KEYS = ("gate_up_proj", "down_proj")
"""Parameters of transformers' fused experts, which an unfused checkpoint does not have."""


def describe_format(layouts: Mapping[str, ModuleLayout], *, unfused: bool) -> dict[str, Any]:
    """The `quantization_config` of a factored checkpoint."""
    modules = {name: layout.to_json() for name, layout in layouts.items()}
    data: dict[str, Any] = {"quant_method": METHOD, "version": VERSION, "modules": modules}
    return {**data, "experts": UNFUSED} if unfused else data


def read_format(data: Mapping[str, Any]) -> tuple[Layouts, bool]:
    """Layouts by module name, and whether experts are unfused.

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
    if unknown := sorted(set(data) - {"quant_method", "version", "modules", "experts"}):
        raise CorruptFile(f"quantization_config: unknown entry {unknown[0]!r}")
    modules, experts = data.get("modules"), data.get("experts")
    if not isinstance(modules, Mapping):
        raise CorruptFile(f"quantization_config: 'modules' must be a table, found {modules!r}")
    if experts is not None and experts != UNFUSED:
        raise CorruptFile(f"quantization_config: 'experts' must be {UNFUSED!r}, found {experts!r}")
    layouts = {name: ModuleLayout.from_json(name, entry) for name, entry in modules.items()}
    return layouts, experts == UNFUSED


def guard_keys(model: nn.Module, dtype: torch.dtype) -> dict[str, Tensor]:
    """Empty tensors under the names of fused experts, one pair a layer of unfused experts.

    A loader that does not know this format finds that their shapes do not fit and stops, instead
    of leaving the experts randomly initialised. (`FactoredLinear.weight` guards linear layers.)
    """
    return {
        f"{name}.{key}": torch.empty(0, dtype=dtype)
        for name, module in model.named_modules()
        if isinstance(module, UnfusedExperts)
        for key in FUSED_KEYS
    }
