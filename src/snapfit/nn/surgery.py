"""Gives a model, live or on the meta device, the shapes of a compressed one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from snapfit.core.errors import SnapfitError
from snapfit.core.layout import ModuleLayout
from snapfit.core.structure import Structure
from snapfit.nn.experts import UnfusedExperts
from snapfit.nn.factored import FactoredLinear
from snapfit.nn.modules import find_module, replace_module
from snapfit.nn.parts import absent_like, set_heads


def reshape(model: nn.Module, structure: Structure) -> None:
    """Give a model the shapes of `structure`, in place.

    Its layers are taken to be the output layers already (`nn.depth.keep_layers`). New weights are
    uninitialised, or on the meta device where the replaced ones were.

    Raises:
        SnapfitError: a module is missing, is of the wrong kind, or is smaller than asked for.

    """
    for name, count in structure.experts.items():
        _keep_experts(model, name, count, structure.vectors)
    for name, layout in structure.modules.items():
        replace_module(model, name, _changed(name, find_module(model, name), layout))
    for name, (heads, kv_heads) in structure.heads.items():
        set_heads(find_module(model, name), heads, kv_heads)
    for name, length in structure.vectors.items():
        _shorten(model, name, length)
    for name, part in structure.absent.items():
        old = find_module(model, name)
        if not name or next(old.parameters(), None) is None:
            raise SnapfitError(f"{name!r} is no part of a layer that could be absent")
        new = absent_like(old, attention=part == "attention")
        new.train(old.training)
        replace_module(model, name, new)


def _changed(name: str, old: nn.Module, layout: ModuleLayout) -> nn.Module:
    """An empty layer of `layout` in the place of `old`; device and dtype are its own."""
    if not isinstance(old, nn.Linear):
        raise SnapfitError(f"{name} is a {type(old).__name__}, not a linear layer")
    if layout.inputs > old.in_features or layout.outputs > old.out_features:
        raise SnapfitError(
            f"{name} is {old.out_features} x {old.in_features}, "
            f"the plan says {layout.outputs} x {layout.inputs}"
        )
    options: dict[str, Any] = {"device": old.weight.device, "dtype": old.weight.dtype}
    bias = layout.bias or old.bias is not None
    new: nn.Module
    if layout.ranks:
        new = FactoredLinear(layout, bias=bias, **options)
    else:
        new = nn.Linear(layout.inputs, layout.outputs, bias=bias, **options)
    new.train(old.training)
    return new


def _shorten(model: nn.Module, name: str, length: int) -> None:
    """Leave `length` entries, or rows, of a parameter or buffer."""
    owner_name, _, leaf = name.rpartition(".")
    owner: Any = find_module(model, owner_name)
    table = owner._buffers if owner._buffers.get(leaf) is not None else owner._parameters
    old = table.get(leaf)
    if old is None or old.ndim == 0 or length > len(old):
        raise SnapfitError(f"{name} is no parameter of at least {length} entries")
    new = old.new_empty(length, *old.shape[1:])
    for attribute in ("num_experts", "n_routed_experts", "out_features"):
        if getattr(owner, attribute, None) == len(old):
            setattr(owner, attribute, length)
    if hasattr(owner, "normalized_shape"):
        owner.normalized_shape = (length,)
    table[leaf] = nn.Parameter(new, old.requires_grad) if table is owner._parameters else new


def _keep_experts(model: nn.Module, name: str, count: int, vectors: Mapping[str, int]) -> None:
    """Leave `count` experts in a container; the rows of the router are among `vectors`."""
    container: Any = find_module(model, name)
    if not isinstance(container, UnfusedExperts) or not count <= container.num_experts:
        raise SnapfitError(f"{name} is no container of {count} or more experts")
    block_name = name.rpartition(".")[0]
    block: Any = find_module(model, block_name)
    routed = [n for n, rows in vectors.items() if n.startswith(f"{block_name}.") and rows == count]
    if not routed:
        raise SnapfitError(f"{name} has {count} experts left, but nothing says so to its router")
    for module in (block, *block.children()):
        if getattr(module, "top_k", 1) > count:
            raise SnapfitError(f"{name} has {count} experts, but a token uses {module.top_k}")
    for index in range(count, container.num_experts):
        delattr(container, str(index))
    container.num_experts = count
    if hasattr(block, "num_experts"):
        block.num_experts = count
