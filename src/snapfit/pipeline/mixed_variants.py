"""What a plan's sizes make of the dense model's weights, in memory and at their full shapes.

A unit that is removed is one whose reader has zeros in its columns, so that a narrowed part, a
part that is gone, and a layer whose two parts are gone compute what the small checkpoint does.

Shape suffixes: M outputs, N inputs, R rank.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from snapfit.core.errors import SnapfitError
from snapfit.core.space import Group
from snapfit.evals.divergence import Variant
from snapfit.methods._width import reader
from snapfit.nn.ordered import OrderedStore


def variant(
    model: nn.Module, store: OrderedStore, groups: Iterable[Group], sizes: Mapping[str, int]
) -> Variant:
    """The variant of a dense model whose groups have `sizes`.

    Args:
        model: dense, in float32.
        store: the groups' ordered bases.
        groups: of kind 'rank', 'width' or 'kv_heads'; of several over one weight, one is smaller.
        sizes: of the groups; those that are not named stay as they are.

    Raises:
        SnapfitError: a group's units have no order.

    """
    weights: dict[str, Tensor] = {}
    shifts: dict[str, Tensor] = {}
    for group in groups:
        size = sizes.get(group.name, group.full)
        if size == group.full:
            continue
        if group.kind == "rank":
            _factor(model, store, group, size, weights)
        elif size == 0:
            _silence(model, reader(group).name, weights)
        else:
            _narrow(model, store, group, size, weights, shifts)
    return Variant(weights=weights, shifts=shifts)


def _own(model: nn.Module, name: str, weights: dict[str, Tensor]) -> Tensor:
    return weights.setdefault(name, model.get_parameter(name).data.clone())


def _factor(
    model: nn.Module, store: OrderedStore, group: Group, rank: int, weights: dict[str, Tensor]
) -> None:
    matrix = group.matrices[0]
    a_RN, b_MR = store.factors(group.layer, group.name, rank)
    weight_MN = _own(model, f"{matrix.name}.weight", weights)
    weight_MN[matrix.start : matrix.start + matrix.rows] = b_MR.float() @ a_RN.float()


def _silence(model: nn.Module, module: str, weights: dict[str, Tensor]) -> None:
    for leaf in ("weight", "bias"):
        if _has(model, f"{module}.{leaf}"):
            weights[f"{module}.{leaf}"] = torch.zeros_like(model.get_parameter(f"{module}.{leaf}"))


def _narrow(
    model: nn.Module,
    store: OrderedStore,
    group: Group,
    size: int,
    weights: dict[str, Tensor],
    shifts: dict[str, Tensor],
) -> None:
    order_U = store.tensor(group.layer, group.name, "order")
    if order_U is None:
        raise SnapfitError(f"{group.name} is cut, but its units have no order; rerun the job")
    matrix = reader(group)
    each = matrix.cols // group.full
    gone = (order_U[size:, None] * each + torch.arange(each)).flatten()
    weight_MN = _own(model, f"{matrix.name}.weight", weights)
    mean_N = store.tensor(group.layer, group.name, "mean")
    if mean_N is not None:
        gained_M = weight_MN[:, gone] @ mean_N.float()[gone]
        bias = f"{matrix.name}.bias"
        if _has(model, bias):
            weights[bias] = model.get_parameter(bias).data + gained_M
        else:
            shifts[matrix.name] = gained_M
    weight_MN[:, gone] = 0


def _has(model: nn.Module, name: str) -> bool:
    module, _, leaf = name.rpartition(".")
    return getattr(model.get_submodule(module), leaf, None) is not None
