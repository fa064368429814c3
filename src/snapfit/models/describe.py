"""From a checkpoint to the space of what can be made smaller in it."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel

from snapfit.core.errors import SnapfitError
from snapfit.core.space import Group, Matrix, Space
from snapfit.models.families import FAMILIES, Family, Segment, head_size, row_segments
from snapfit.models.inspection import inspect_family, linear_layers
from snapfit.models.source import ModelSource, empty_model, open_model

__all__ = [
    "Family",
    "ModelSource",
    "describe",
    "empty_model",
    "family",
    "open_model",
    "row_segments",
    "segments",
]


def family(source: ModelSource, model: PreTrainedModel | None = None) -> Family:
    """The architecture's data, or what inspection of its modules says.

    Args:
        source: the opened checkpoint.
        model: the empty model, when the caller has it already.

    Raises:
        SnapfitError: the architecture is unknown and has no decoder layers of `nn.Linear`.

    """
    known = FAMILIES.get(source.architecture)
    if known is not None:
        return known
    return inspect_family(empty_model(source) if model is None else model)


def describe(source: ModelSource, *, name: str, model: PreTrainedModel | None = None) -> Space:
    """One rank group for every linear layer of every decoder layer.

    Embeddings, the output layer, routers of experts, and matrices too small to have a break-even
    rank are not in it.

    Args:
        source: the opened checkpoint.
        name: the model as the user named it.
        model: the empty model, when the caller has it already.

    Raises:
        SnapfitError: no decoder layers of `nn.Linear`, or layers that share weights.

    """
    model = empty_model(source) if model is None else model
    data = family(source, model)
    groups = tuple(
        group
        for index, layer in enumerate(decoder_layers(model, data))
        for suffix, module in linear_layers(layer)
        if (group := _group(data, index, suffix, module)).break_even >= 1 and group.role != "router"
    )
    _require_unshared(model, groups)
    if not groups:
        raise SnapfitError(f"{name} has no linear layer that is large enough to be compressed")
    return Space(
        model=name,
        revision=source.revision,
        architecture=source.architecture,
        groups=groups,
        total_params=sum(parameter.numel() for parameter in model.parameters()),
        kv_elements=_kv_elements(source, data, groups),
    )


def segments(source: ModelSource, space: Space, data: Family) -> dict[str, tuple[Segment, ...]]:
    """Row segments of every group's module, by module name (see `row_segments`)."""
    return {group.name: _segments_of(source, data, group) for group in space.groups}


def decoder_layers(model: nn.Module, data: Family) -> list[nn.Module]:
    """The decoder layers, first to last."""
    return list(model.get_submodule(data.layers).children())


def _group(data: Family, index: int, suffix: str, module: nn.Linear) -> Group:
    name = f"{data.layers}.{index}.{suffix}"
    rows, cols = module.out_features, module.in_features
    return Group(
        name=name,
        kind="rank",
        matrices=(Matrix(name=name, axis="rank", rows=rows, cols=cols),),
        full=min(rows, cols),
        role=data.role(suffix),
        layer=index,
    )


def _require_unshared(model: nn.Module, groups: tuple[Group, ...]) -> None:
    owners: dict[int, str] = {}
    for group in groups:
        weight = model.get_submodule(group.name).weight
        other = owners.setdefault(id(weight), group.name)
        if other != group.name:
            raise SnapfitError(
                f"{group.name} and {other} are one weight; snapfit cannot compress models whose "
                "decoder layers share weights"
            )


def _kv_elements(source: ModelSource, data: Family, groups: tuple[Group, ...]) -> int:
    """Keys and values of one token, over all layers: the rows that compute them.

    Where nothing says which rows those are, `num_key_value_heads` keys and values a layer.
    """
    rows = 0
    for group in groups:
        if group.role in {"k", "v"}:
            rows += group.matrices[0].rows
        elif group.role == "qkv":
            parts = _segments_of(source, data, group)
            rows += sum(stop - start for role, start, stop in parts if role in {"k", "v"})
    if rows:
        return rows
    text = source.config.get_text_config()
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    return 2 * int(heads) * head_size(source.config) * int(text.num_hidden_layers)


def _segments_of(source: ModelSource, data: Family, group: Group) -> tuple[Segment, ...]:
    suffix = group.name.removeprefix(f"{data.layers}.{group.layer}.")
    return row_segments(data, source.config, suffix)
