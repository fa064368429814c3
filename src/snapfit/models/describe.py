"""From a checkpoint to the space of what can be made smaller in it."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel

from snapfit.core.errors import SnapfitError
from snapfit.core.space import Frame, Group, Matrix, Space
from snapfit.models.couplings import (
    depth_group,
    expert_groups,
    experts_per_token,
    kv_head_groups,
    width_groups,
)
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
    """Groups of every kind: ranks, then MLP widths, key-value heads, experts, and one of layers.

    There is one rank group for every linear layer of every decoder layer. Embeddings, the output
    layer, routers of experts, and matrices too small to have a break-even rank are not in any.
    Groups of different kinds cover the same weights, so only a space that a method has restricted
    has meaningful totals.

    Args:
        source: the opened checkpoint.
        name: the model as the user named it.
        model: the empty model, when the caller has it already.

    Raises:
        SnapfitError: no decoder layers of `nn.Linear`, or layers that share weights.

    """
    model = empty_model(source) if model is None else model
    data = family(source, model)
    layers = list(enumerate(decoder_layers(model, data)))
    ranks = tuple(
        group
        for index, layer in layers
        for suffix, module in linear_layers(layer)
        if (group := _group(data, index, suffix, module)).break_even >= 1 and group.role != "router"
    )
    _require_unshared(model, ranks)
    if not ranks:
        raise SnapfitError(f"{name} has no linear layer that is large enough to be compressed")
    config = source.config
    groups = (
        *ranks,
        *(group for index, layer in layers for group in width_groups(data, index, layer)),
        *(group for index, layer in layers for group in kv_head_groups(data, index, layer)),
        *(group for index, layer in layers for group in expert_groups(data, config, index, layer)),
        depth_group(data, [layer for _, layer in layers]),
    )
    return Space(
        model=name,
        revision=source.revision,
        architecture=source.architecture,
        groups=groups,
        total_params=sum(parameter.numel() for parameter in model.parameters()),
        kv_elements=_kv_elements(source, data, ranks),
        frame=_frame(source, model, data, groups),
    )


def segments(source: ModelSource, space: Space, data: Family) -> dict[str, tuple[Segment, ...]]:
    """Row segments of every linear layer, by module name (see `row_segments`)."""
    ranks = space.of_kind("rank").groups
    return {group.name: _segments_of(source, data, group) for group in ranks}


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


def _frame(
    source: ModelSource, model: PreTrainedModel, data: Family, groups: tuple[Group, ...]
) -> Frame:
    text = source.config.get_text_config()
    layers = decoder_layers(model, data)
    heads = int(getattr(text, "num_attention_heads", 0) or 0)
    kv_heads = int(getattr(text, "num_key_value_heads", None) or heads)
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()  # type: ignore[no-untyped-call]
    weight = getattr(head, "weight", None)
    routed = any(group.kind == "experts" for group in groups)
    return Frame(
        hidden=int(text.hidden_size),
        vocab=int(text.vocab_size if weight is None else weight.shape[0]),
        layers=len(layers),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_size(source.config),
        norms=sum("norm" in type(child).__name__.lower() for child in layers[0].children()),
        tied=weight is not None and weight is embedding.weight,
        experts_per_token=experts_per_token(source.config) if routed else 0,
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
