"""Families of architectures that nobody has described: found by looking at the modules."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn
from transformers import PreTrainedModel

from snapfit.core.errors import SnapfitError
from snapfit.models.families import Family, Fusion, pattern
from snapfit.models.roles import ROLES


def linear_layers(layer: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    """(name, module) of the linear layers below `layer` that a factor pair can replace.

    A subclass that computes something else than `nn.Linear` is not one of them.
    """
    for name, module in layer.named_modules():
        if isinstance(module, nn.Linear) and type(module).forward is nn.Linear.forward:
            yield name, module


def inspect_family(model: PreTrainedModel) -> Family:
    """Describe the decoder layers of an architecture by their modules and names.

    Heads are taken as known only where names say so.

    Raises:
        SnapfitError: there is no list of two or more like layers that contain linear layers.

    """
    name, layers = _longest_list(model)
    roles: dict[str, str] = {}
    rows: dict[str, Fusion] = {}
    for layer in layers:
        for suffix, module in linear_layers(layer):
            role = _role(suffix, module, model)
            roles.setdefault(pattern(suffix), role)
            if role in {"q", "k", "v"} and module.out_features == _expected_rows(model, role):
                rows[pattern(suffix)] = "heads"
    return Family(layers=name, roles=roles, rows=rows)


def _longest_list(model: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    found: list[tuple[str, nn.ModuleList]] = []
    for name, module in model.named_modules():
        if not isinstance(module, nn.ModuleList) or len(module) < 2:
            continue
        inner = any(name.startswith(f"{outer}.") for outer, _ in found)
        alike = len({type(child) for child in module}) == 1
        if alike and not inner and all(any(linear_layers(child)) for child in module):
            found.append((name, module))
    if not found:
        raise SnapfitError(
            f"{type(model).__name__} has no list of like decoder layers made of nn.Linear, so "
            "snapfit cannot compress it (GPT-2, for one, is made of Conv1D)"
        )
    return max(found, key=lambda item: len(item[1]))


def _role(suffix: str, module: nn.Linear, model: PreTrainedModel) -> str:
    parts = pattern(suffix).split(".")
    leaf = parts[-1]
    text = model.config.get_text_config()
    counts = {getattr(text, n, 0) for n in ("num_experts", "num_local_experts", "n_routed_experts")}
    if module.out_features in counts - {0, None} or module.out_features == 1:
        return "router"
    if leaf == "dense" and any("att" in part for part in parts[:-1]):
        return "o"
    return ROLES.get(leaf, "other")


def _expected_rows(model: PreTrainedModel, role: str) -> int:
    text = model.config.get_text_config()
    heads = getattr(text, "num_attention_heads", 0) or 0
    kv_heads = getattr(text, "num_key_value_heads", None) or heads
    size = getattr(text, "head_dim", None) or (text.hidden_size // heads if heads else 0)
    return int((heads if role == "q" else kv_heads) * size)
