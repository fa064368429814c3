"""Which weights of a decoder layer live or die together: channels, heads, experts, layers.

    width      channel i: row i of gate and up, column i of down; an expert is an MLP of its own
    kv_heads   key-value head i, with the contiguous query heads that read it: their rows of q, k
               and v, their columns of o
    experts    everything of expert i, and its row of the router
    depth      everything of a layer

Fused projections are row blocks of one module. Norms of queries and keys have one weight a feature
of a head, which all heads share, and stay; where a norm spans all heads (OLMo 2, OLMoE) its weights
are cut along. What does not fit this picture (unknown fused layouts, a norm between up and down, a
gate on the attention's output, latent attention) is left out rather than guessed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from torch import nn
from transformers import PreTrainedConfig

from snapfit.core.space import Axis, Group, Matrix, Vector
from snapfit.models.families import Family, pattern
from snapfit.models.inspection import linear_layers
from snapfit.models.roles import EXPERTS_PER_TOKEN
from snapfit.nn.experts import UnfusedExperts
from snapfit.nn.observe import head_features

Parts = Mapping[str, tuple[str, nn.Linear]]
"""(name below the layer, module) of the linear layers of one holder, by role."""

_NORMS = {"q_norm": "q", "k_norm": "k", "q_layernorm": "q", "k_layernorm": "k"}
"""Norms of queries and keys, by the last module of their name."""


def width_groups(data: Family, index: int, layer: nn.Module) -> Iterator[Group]:
    """The MLPs of a decoder layer, experts one by one; size = channels."""
    for holder, parts in _holders(data, layer):
        matrices = _mlp(data, index, parts)
        channels = matrices[-1].cols if matrices else 0
        if channels < 2 or _has_inner_norm(layer.get_submodule(holder), channels):
            continue
        yield Group(
            name=f"{data.layers}.{index}.{holder or 'mlp'}",
            kind="width",
            matrices=matrices,
            full=channels,
            role="mlp",
            layer=index,
        )


def kv_head_groups(data: Family, index: int, layer: nn.Module) -> Iterator[Group]:
    """The attention of a decoder layer; size = key-value heads."""
    for holder, parts in _holders(data, layer):
        if "o" not in parts:
            continue
        module = layer.get_submodule(holder)
        size = head_features(module, parts["o"][1])
        matrices = _attention(data, index, parts, size)
        if not matrices:
            continue
        rows = {"q": matrices[0].rows, "k": matrices[1].rows if len(matrices) > 2 else 0}
        heads = matrices[-1].cols // size
        kv_heads = rows["k"] // size or heads
        vectors = _vectors(f"{data.layers}.{index}.{holder}", module, parts, rows, size)
        if vectors is None or kv_heads < 2 or heads % kv_heads:
            continue
        yield Group(
            name=f"{data.layers}.{index}.{holder}",
            kind="kv_heads",
            matrices=matrices,
            full=kv_heads,
            role="attention",
            layer=index,
            vectors=vectors,
        )


def expert_groups(
    data: Family, config: PreTrainedConfig, index: int, layer: nn.Module
) -> Iterator[Group]:
    """The experts of a decoder layer; size = experts. The router is a 'vector' of rows."""
    text = config.get_text_config()
    if (getattr(text, "n_group", None) or 1) > 1:  # experts are chosen by groups of equal size
        return
    for name, module in layer.named_modules():
        least = experts_per_token(config)
        if not isinstance(module, UnfusedExperts) or module.num_experts <= least:
            continue
        prefix = f"{data.layers}.{index}.{name}"
        vectors = _router(prefix, layer.get_submodule(name.rpartition(".")[0]), module)
        if not vectors:
            continue
        matrices = tuple(
            _matrix(f"{prefix}.{number}.{leaf}", "whole", getattr(expert, leaf))
            for number, expert in enumerate(module.experts)
            for leaf in ("gate", "up", "down")
        )
        yield Group(
            name=prefix,
            kind="experts",
            matrices=matrices,
            full=module.num_experts,
            role="experts",
            layer=index,
            least=max(least, 1),
            vectors=vectors,
        )


def depth_group(data: Family, layers: Sequence[nn.Module]) -> Group:
    """All layers; size = layers kept.

    `steps` counts the first layers. Where layers differ in size, what is left depends on which of
    them go, and a method that knows its order replaces `steps`.
    """
    matrices: list[Matrix] = []
    steps = [0]
    for index, layer in enumerate(layers):
        for suffix, module in linear_layers(layer):
            if data.role(suffix) != "router":
                matrices.append(_matrix(f"{data.layers}.{index}.{suffix}", "whole", module))
        steps.append(sum(matrix.rows * matrix.cols for matrix in matrices))
    return Group(
        name=data.layers,
        kind="depth",
        matrices=tuple(matrices),
        full=len(layers),
        role="depth",
        layer=0,
        steps=tuple(steps),
    )


def experts_per_token(config: PreTrainedConfig) -> int:
    """Experts that compute a token; 0 without a mixture of experts."""
    text = config.get_text_config()
    return next((int(n) for name in EXPERTS_PER_TOKEN if (n := getattr(text, name, None))), 0)


def _holders(data: Family, layer: nn.Module) -> Iterator[tuple[str, Parts]]:
    """Modules that hold linear layers, each role at most once among them."""
    holders: dict[str, dict[str, tuple[str, nn.Linear]]] = {}
    twice: set[str] = set()
    for suffix, module in linear_layers(layer):
        holder, role = suffix.rpartition(".")[0], data.role(suffix)
        if role in holders.setdefault(holder, {}) and role != "other":
            twice.add(holder)
        holders[holder][role] = (suffix, module)
    for holder, parts in holders.items():
        if holder not in twice:
            yield holder, parts


def _matrix(name: str, axis: Axis, module: nn.Linear, start: int = 0, rows: int = 0) -> Matrix:
    return Matrix(
        name=name,
        axis=axis,
        rows=rows or module.out_features,
        cols=module.in_features,
        start=start,
    )


def _mlp(data: Family, index: int, parts: Parts) -> tuple[Matrix, ...]:
    """Gate and up (or up alone), then down; () where this is no MLP that can be narrowed."""
    if "down" not in parts:
        return ()
    down = parts["down"][1]
    prefix = f"{data.layers}.{index}"
    outs: list[Matrix] = []
    if "gate_up" in parts:
        suffix, fused = parts["gate_up"]
        if (data.rows or {}).get(pattern(suffix)) != "halves":
            return ()
        half = fused.out_features // 2
        outs = [_matrix(f"{prefix}.{suffix}", "out", fused, n * half, half) for n in (0, 1)]
    elif "up" in parts:
        outs = [
            _matrix(f"{prefix}.{parts[role][0]}", "out", parts[role][1])
            for role in ("gate", "up")
            if role in parts
        ]
    if not outs or any(matrix.rows != down.in_features for matrix in outs):
        return ()
    return (*outs, _matrix(f"{prefix}.{parts['down'][0]}", "in", down))


def _has_inner_norm(holder: nn.Module, channels: int) -> bool:
    """Whether something in the MLP has a weight a channel that a narrower MLP would have to cut."""
    return any(
        parameter.shape == (channels,)
        for module in holder.modules()
        if not isinstance(module, nn.Linear)
        for parameter in module.parameters(recurse=False)
    )


def _attention(data: Family, index: int, parts: Parts, size: int) -> tuple[Matrix, ...]:
    """q, k and v (or one matrix of whole heads), then o; () where heads cannot be told apart."""
    prefix = f"{data.layers}.{index}"
    name, output = parts["o"]
    o = _matrix(f"{prefix}.{name}", "in", output)
    if o.cols % size:
        return ()
    rows = data.rows or {}
    if {"q", "k", "v"} <= parts.keys():
        if any(rows.get(pattern(parts[role][0])) != "heads" for role in "qkv"):
            return ()
        q, k, v = (_matrix(f"{prefix}.{parts[r][0]}", "out", parts[r][1]) for r in "qkv")
        fits = q.rows == o.cols and k.rows == v.rows and k.rows % size == 0
        return (q, k, v, o) if fits else ()
    if "qkv" not in parts:
        return ()
    suffix, fused = parts["qkv"]
    kind = rows.get(pattern(suffix))
    name = f"{prefix}.{suffix}"
    if kind == "interleaved" and fused.out_features == 3 * o.cols:
        return (_matrix(name, "out", fused), o)
    if kind != "stacked":
        return ()
    keys = (fused.out_features - o.cols) // 2
    if keys < size or keys % size or o.cols + 2 * keys != fused.out_features:
        return ()
    starts = ((0, o.cols), (o.cols, keys), (o.cols + keys, keys))
    return (*(_matrix(name, "out", fused, start, count) for start, count in starts), o)


def _vectors(
    prefix: str, module: nn.Module, parts: Parts, rows: Mapping[str, int], size: int
) -> tuple[Vector, ...] | None:
    """Norms over all heads; None where the module holds a parameter that is not understood."""
    linears = {part for _, part in parts.values()}
    found = []
    for path, child in module.named_modules():
        if child in linears:
            continue
        role = _NORMS.get(path)
        for leaf, parameter in child.named_parameters(recurse=False):
            if role is None:
                return None
            if parameter.shape == (size,):
                continue
            length = rows[role] if parameter.ndim == 1 else rows[role] // size
            if parameter.shape[0] != length or not length:
                return None
            found.append(Vector(name=f"{prefix}.{path}.{leaf}", length=length))
    return tuple(found)


def _router(prefix: str, parent: nn.Module, experts: UnfusedExperts) -> tuple[Vector, ...]:
    """What has one row an expert beside the experts themselves: weights, biases, corrections."""
    container = prefix.rpartition(".")[0]
    inner = {id(tensor) for tensor in (*experts.parameters(), *experts.buffers())}
    found = []
    for path, module in parent.named_modules():
        linear = isinstance(module, nn.Linear)
        if linear and module.out_features != experts.num_experts:
            continue
        tensors = (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
        for leaf, tensor in tensors:
            if id(tensor) not in inner and tensor.shape[:1] == (experts.num_experts,):
                name = f"{container}.{path}.{leaf}" if path else f"{container}.{leaf}"
                found.append(Vector(name=name, length=experts.num_experts))
    return tuple(found)
