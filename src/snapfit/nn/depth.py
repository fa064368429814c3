"""Fewer decoder layers: the modules, their numbers, and the settings that are a layer long."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from torch import nn

INDEX_LISTS = ("mlp_only_layers",)
"""Settings that list layers by index, rather than one entry a layer."""


def layer_settings(config: Any, sources: Sequence[int]) -> dict[str, Any]:
    """What of a configuration changes when only the layers `sources` are left.

    Lists that are one entry a layer (`layer_types`, ...) are thinned out; lists of indices and
    "every n-th layer" rules of mixtures of experts are rewritten as lists of indices.

    Args:
        config: of transformers.
        sources: indices of the kept layers, ascending.

    Returns:
        New values by the configuration's own names (`attribute_map` is not applied).

    """
    text = config.get_text_config()
    total = int(text.num_hidden_layers)
    settings: dict[str, Any] = {"num_hidden_layers": len(sources)}
    for key, value in text.to_dict().items():
        a_layer_long = isinstance(value, list | tuple) and len(value) == total
        if a_layer_long and "layer" in key and key not in INDEX_LISTS:
            settings[key] = [value[index] for index in sources]
    if getattr(text, "layer_types", None) is not None:
        settings["layer_types"] = [text.layer_types[index] for index in sources]
    if hasattr(text, "mlp_only_layers"):
        step = int(getattr(text, "decoder_sparse_step", None) or 1)
        dense = {*(text.mlp_only_layers or ()), *(i for i in range(total) if (i + 1) % step)}
        settings["mlp_only_layers"] = [j for j, i in enumerate(sources) if i in dense]
        if hasattr(text, "decoder_sparse_step"):
            settings["decoder_sparse_step"] = 1
    if hasattr(text, "first_k_dense_replace"):
        settings["first_k_dense_replace"] = sum(i < text.first_k_dense_replace for i in sources)
    return settings


def keep_layers(model: nn.Module, path: str, sources: Sequence[int]) -> None:
    """Leave the decoder layers `sources` in a model, numbered without gaps; in place.

    The cache of keys and values is found by `layer_idx`, so that is renumbered too.

    Args:
        model: of transformers.
        path: qualified name of its list of decoder layers.
        sources: indices of the kept layers, ascending.

    """
    settings = layer_settings(model.config, sources)
    layers: Any = model.get_submodule(path)
    kept = nn.ModuleList([layers[index] for index in sources])
    parent, _, child = path.rpartition(".")
    setattr(model.get_submodule(parent), child, kept)
    for new, layer in enumerate(kept):
        for module in layer.modules():
            if hasattr(module, "layer_idx"):
                setattr(module, "layer_idx", new)  # noqa: B010 - not declared by the class
    # A copy: the given configuration is the source's, and may be used to build it again.
    old: Any = model.config
    new_config = copy.deepcopy(old)
    for key, value in settings.items():
        setattr(new_config.get_text_config(), key, value)
    for module in model.modules():
        if getattr(module, "config", None) is old:
            module.config = new_config
