"""What any local checkpoint computes, read from its configuration and the headers of its weights.

No weight is loaded and no code of the checkpoint runs; torch is not needed. Factors are found by
the names that tools give them (`models.factors`) and by their shapes; sizes come from the shapes
alone, because the configuration of a pruned model often still describes the unpruned one.
"""

from __future__ import annotations

import importlib.resources
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from snapfit.core.errors import CorruptFile, SnapfitError, UsageError
from snapfit.core.files import read_json
from snapfit.core.footprint import Footprint, Found
from snapfit.core.forward import Module
from snapfit.core.space import Frame
from snapfit.models.factors import Shape, find_modules
from snapfit.models.roles import EXPERTS_PER_TOKEN
from snapfit.models.shards import Shards, find_shards

EMBEDDED = "embedded"
"""The name of the model that is shipped with the package."""

_DTYPES = {"F64": "float64", "F32": "float32", "BF16": "bfloat16", "F16": "float16"}
_PACKED = ("qweight", "weight_packed", "W_q")
_HEADS = frozenset({"lm_head", "embed_out", "output"})
_CONV1D = frozenset({"gpt2", "openai-gpt", "imagegpt"})
"""Architectures that store weights as (in, out)."""

_LAYER = re.compile(r"(.+?)\.(\d+)\.(.+)")


def read_footprint(path: str | Path) -> Footprint:
    """Describe a checkpoint.

    Args:
        path: its folder, or 'embedded'.

    Raises:
        UsageError: there is no such folder.
        SnapfitError: it has no safetensors weights, holds packed integers, or no decoder layers.
        CorruptFile: a file is damaged, or factors do not multiply.

    """
    folder = _folder(path)
    config = _config(folder)
    shards = find_shards(folder)
    shapes = _shapes(folder, shards, config)
    prefix = _layer_prefix(folder, shapes)
    text = _text(config)
    experts = _number(text, "num_experts", "num_local_experts", "n_routed_experts")
    layers: dict[int, dict[str, Shape]] = {}
    outside: dict[str, Shape] = {}
    for key, shape in shapes.items():
        match = _LAYER.fullmatch(key)
        if match and match[1] == prefix:
            layers.setdefault(int(match[2]), {})[match[3]] = shape
        else:
            outside[key] = shape
    hidden = _number(text, "hidden_size", "n_embd", "d_model") or _narrowest(layers)
    found: dict[int, tuple[Found, ...]] = {}
    tools: list[str] = []
    for layer in sorted(layers):
        pairs = find_modules(
            layers[layer], prefix=f"{prefix}.{layer}.", layer=layer, hidden=hidden, experts=experts
        )
        kept = [(one, tool) for one, tool in pairs if one.module.role != "router"]
        found[layer] = tuple(one for one, _ in kept)
        tools += [tool for _, tool in kept]
    head, tied = _head(outside, hidden)
    heads, kv_heads, size = _configured_heads(text)
    head_dims = {layer: _head_dim(of, text) for layer, of in found.items()}
    notes = ["the output layer is the embedding matrix"] if tied else []
    if head is not None and head.blocks:
        notes.append(f"{head.name} is factored, and timed as if it were dense")
    if lost := [layer for layer in found if head_dims[layer] is None and _attends(found[layer])]:
        notes.append(f"the attention of {len(lost)} layers is not understood, and not counted")
        found |= {layer: _without_attention(found[layer]) for layer in lost}
    per_token = _number(text, *EXPERTS_PER_TOKEN)
    return Footprint(
        model=str(path),
        architecture=str(config.get("model_type", "unknown")),
        dtype=_DTYPES.get(shards.main_dtype(), shards.main_dtype().lower()),
        compressor=" and ".join(dict.fromkeys(filter(None, tools))),
        frame=Frame(
            hidden=hidden,
            vocab=head.rows if head else _number(text, "vocab_size"),
            layers=len(layers),
            heads=heads,
            kv_heads=kv_heads,
            head_dim=size,
            norms=_norms(next(iter(layers.values())), hidden),
            tied=tied,
            experts_per_token=per_token or min(2, experts),
        ),
        layers=found,
        head_dims={layer: size for layer, size in head_dims.items() if size is not None},
        notes=tuple(notes),
    )


def _folder(path: str | Path) -> Path:
    if str(path) == EMBEDDED:
        return Path(str(importlib.resources.files("snapfit") / "assets" / EMBEDDED))
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise UsageError(
            f"no model folder {str(path)!r}; give the folder of a checkpoint, or {EMBEDDED!r}"
        )
    return folder


def _config(folder: Path) -> Mapping[str, Any]:
    if not (folder / "config.json").is_file():
        raise SnapfitError(f"{folder} has no config.json; give a folder that save_pretrained wrote")
    config = read_json(folder / "config.json")
    if not isinstance(config, dict):
        raise CorruptFile(f"{folder / 'config.json'} is no table of settings")
    return config


def _text(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of the configuration that is about the language model."""
    text = config.get("text_config")
    return text if isinstance(text, dict) else config


def _number(config: Mapping[str, Any], *names: str) -> int:
    """The first of the settings that is a positive whole number; 0 if none is."""
    found = (config.get(name) for name in names)
    return next((n for n in found if isinstance(n, int) and n > 0), 0)


def _shapes(folder: Path, shards: Shards, config: Mapping[str, Any]) -> dict[str, Shape]:
    """Shapes by key, weights as (out, in)."""
    turned = str(config.get("model_type")) in _CONV1D
    shapes: dict[str, Shape] = {}
    for key, (_, entry) in shards.entries.items():
        if key.rpartition(".")[2] in _PACKED:
            raise SnapfitError(
                f"{folder} holds packed integers ({key}): its kernels are not those of plain "
                "products; diagnose the model before it was quantised"
            )
        leaf = key.split(".")[-2] if "." in key else ""
        conv = turned and len(entry.shape) == 2 and leaf.startswith("c_")
        shapes[key] = entry.shape[::-1] if conv else entry.shape
    return shapes


def _layer_prefix(folder: Path, shapes: Mapping[str, Shape]) -> str:
    """The name of the list that holds most of the matrices: the decoder layers."""
    weights: dict[str, int] = {}
    for key, shape in shapes.items():
        match = _LAYER.fullmatch(key)
        if match and len(shape) in {2, 3}:
            weights[match[1]] = weights.get(match[1], 0) + shape[-1] * shape[-2]
    if not weights:
        raise SnapfitError(f"{folder} has no decoder layers: no tensor is named like layers.0.x")
    return max(weights, key=lambda name: weights[name])


def _narrowest(layers: Mapping[int, Mapping[str, Shape]]) -> int:
    """Width of the residual stream where the configuration does not say: that of the norms."""
    first = next(iter(layers.values()))
    norms = [shape[0] for key, shape in first.items() if len(shape) == 1 and "norm" in key]
    return max(norms, default=0)


def _norms(layer: Mapping[str, Shape], hidden: int) -> int:
    return sum(
        shape == (hidden,) and key.endswith("weight") and ("norm" in key or "ln" in key)
        for key, shape in layer.items()
    )


def _head(outside: Mapping[str, Shape], hidden: int) -> tuple[Module | None, bool]:
    """The output layer, and whether it is the embedding matrix."""
    found = [
        one.module
        for one, _ in find_modules(outside, prefix="", layer=-1, hidden=hidden, experts=0)
    ]
    for module in found:
        if module.name.rpartition(".")[2] in _HEADS:
            return module, False
    embeddings = [module for module in found if module.cols == hidden and "pos" not in module.name]
    return max(embeddings, key=lambda module: module.rows, default=None), bool(embeddings)


def _configured_heads(text: Mapping[str, Any]) -> tuple[int, int, int]:
    """(query heads, key-value heads, features of one), zeros where nothing says."""
    heads = _number(text, "num_attention_heads", "n_head")
    kv_heads = _number(text, "num_key_value_heads") or heads
    size = _number(text, "head_dim")
    return heads, kv_heads, size or _number(text, "hidden_size", "n_embd") // max(1, heads)


def _head_dim(found: tuple[Found, ...], text: Mapping[str, Any]) -> int | None:
    """Features of a head from the rows of projections; None where no number of heads fits.

    Either there are fewer heads of the configured size, or as many smaller heads. Where both fit,
    rows alone cannot tell them apart, and fewer heads are assumed.
    """
    rows = {one.module.role: one.module.rows for one in found}
    heads, kv_heads, size = _configured_heads(text)
    if not heads or "o" not in rows or not rows.keys() & {"q", "qkv"}:
        return None
    q = rows.get("q") or rows["qkv"] * heads // (heads + 2 * kv_heads)
    k = rows.get("k") or q * kv_heads // heads
    if size and q % size == 0 and k % size == 0 and k >= size and q // size % (k // size) == 0:
        return size
    smaller = q // heads
    return smaller if smaller and q == smaller * heads and k == smaller * kv_heads else None


def _attends(found: tuple[Found, ...]) -> bool:
    return any("att" in one.suffix for one in found)


def _without_attention(found: tuple[Found, ...]) -> tuple[Found, ...]:
    """The same linear layers, none of which is taken for a part of an attention."""
    roles = {"q", "k", "v", "o", "qkv"}
    return tuple(
        replace(one, module=replace(one.module, role="other")) if one.module.role in roles else one
        for one in found
    )
