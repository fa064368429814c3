"""One function to save in any format; see `core.formats` for what each can hold."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from transformers import PreTrainedModel

from snapfit.checkpoint.blueprint import Blueprint, TensorMaker
from snapfit.checkpoint.decilm import decilm_target
from snapfit.checkpoint.folded import folded
from snapfit.checkpoint.format import describe_format, guard_keys
from snapfit.checkpoint.save import (
    MAX_SHARD_SIZE,
    Named,
    Source,
    Step,
    Target,
    check_saveable,
    write_checkpoint,
)
from snapfit.checkpoint.standalone import standalone_target
from snapfit.checkpoint.stock import base_config, depth_settings, stock_target, with_settings
from snapfit.checkpoint.writer import Written
from snapfit.core.formats import check_format
from snapfit.nn.depth import keep_layers
from snapfit.nn.experts import UnfusedExperts
from snapfit.nn.reader import WeightReader
from snapfit.nn.surgery import reshape


def save(
    folder: Path,
    *,
    source: Source,
    model: PreTrainedModel,
    reader: WeightReader,
    blueprint: Blueprint,
    factors: Iterable[Named] = (),
    format_name: str = "factored",
    max_shard_size: int = MAX_SHARD_SIZE,
    step: Step = lambda _done, _total: None,
) -> Written:
    """Write weights, configuration, tokenizer and generation settings into `folder`.

    Args:
        folder: exists; the caller makes it appear whole (`core.files.atomic_directory`).
        source: where configuration and tokenizer come from.
        model: the source's empty model, experts unfused; it gets the shapes of the checkpoint.
        reader: the source's weights, by the names of `model`.
        blueprint: what to make of them.
        factors: (name, tensor) as in `FactoredLinear.state_dict`, by the names of the compressed
            model, in any order: '<module>.a.weight' and every factored block's '<module>.b.weight'
            or '<module>.b.<i>.weight'. Those of a narrowed module may be of the whole matrix. What
            does not come (biases, dense blocks) is cut from the source.
        format_name: one of `core.formats.Format`.
        max_shard_size: bytes a weight file.
        step: told how many tensors are written, of how many.

    Raises:
        UsageError: there is no such format.
        SnapfitError: a tensor is missing, has the wrong shape, or is not finite in the
            checkpoint's dtype; the format cannot hold the structure; the model's own code would
            have to be carried.

    """
    check_saveable(model)
    name = check_format(format_name)
    if name == "folded":
        maker = TensorMaker(reader, blueprint, source.dtype)
        factors = folded(factors, blueprint, maker)
        target = stock_target(source, model, blueprint.without_ranks())
    elif name == "stock":
        target = stock_target(source, model, blueprint)
    elif name == "decilm":
        target = decilm_target(source, model, blueprint)
    else:
        target = factored_target(source, model, blueprint)
        if name == "standalone":
            target = standalone_target(target)
    return write_checkpoint(
        folder,
        source=source,
        reader=reader,
        target=target,
        factors=factors,
        max_shard_size=max_shard_size,
        step=step,
    )


def factored_target(source: Source, model: PreTrainedModel, blueprint: Blueprint) -> Target:
    """What a factored checkpoint consists of; `model` gets its shapes."""
    unfused = any(isinstance(module, UnfusedExperts) for module in model.modules())
    structure = replace(blueprint.structure, unfused=unfused)
    settings = depth_settings(source.config, structure)
    config = with_settings(base_config(source, model), source.config, settings)
    config["quantization_config"] = describe_format(structure)
    if structure.layers:
        keep_layers(model, blueprint.path, structure.sources)
    reshape(model, structure)
    return Target(
        model=model,
        blueprint=blueprint,
        config=config,
        extra=guard_keys(model, source.dtype),
        files={},
        to_disk=lambda named: named,
    )
