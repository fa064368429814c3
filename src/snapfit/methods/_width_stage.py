"""Ordering the width groups of one decoder layer: weights and statistics in, units in order out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from snapfit.core.curve import NATS, Curve
from snapfit.core.errors import SnapfitError
from snapfit.core.space import Group, Matrix
from snapfit.methods._lowrank import COMPARABLE_NEEDS
from snapfit.methods._stage import MODULE_PROXIES, LayerStats, mean_of
from snapfit.methods._width import reader
from snapfit.methods.base import Stats, WidthMethod
from snapfit.nn.ordered import Ordered, OrderedStore
from snapfit.nn.removal import removal_losses


def width_modules(groups: Iterable[Group]) -> list[str]:
    """Linear layers whose statistics `order_width_layer` looks at, sorted."""
    return sorted({matrix.name for group in groups for matrix in group.matrices})


def order_width_layer(
    method: WidthMethod,
    groups: Sequence[Group],
    weights: Callable[[str], Tensor],
    stats: LayerStats,
) -> tuple[dict[str, Ordered], dict[str, dict[str, float]]]:
    """Order the units of every group of a layer.

    Args:
        method: the compressor.
        groups: the layer's groups, of kind 'width', 'kv_heads' or 'experts'.
        weights: gives a parameter by name.
        stats: statistics by module; empty for a method that needs none.

    Returns:
        Ordered units and scalars, by group name. Curves are over the sizes 0 (all removed) to
        full, in nats where the statistics allow it, else in the method's own unit. Scalars are
        those of the method and, for every importance proxy that was collected, 'score.<proxy>':
        the worth of one parameter.

    """
    ordered: dict[str, Ordered] = {}
    summaries: dict[str, dict[str, float]] = {}
    for group in groups:
        held = {name: _finite(name, weights(f"{name}.weight")) for name in width_modules([group])}
        seen = _seen(group, groups, stats)
        item = method.order(group, held, seen)
        if item.curve.unit != NATS and _in_nats(group, seen):
            losses = predicted_losses(group, held, seen, item).numpy(force=True)
            curve = Curve(sizes=np.arange(group.full + 1), losses=losses, unit=NATS)
            item = Ordered(tensors=item.tensors, curve=curve)
        ordered[group.name] = item
        summaries[group.name] = {
            **method.summarise(group, held, seen),
            **_proxies(group, held, seen),
        }
    return ordered, summaries


def importance(store: OrderedStore, groups: Iterable[Group]) -> dict[str, NDArray[np.float64]]:
    """Scores of every group's units, (full,) each, most important first: `Allocation.importance`.

    Raises:
        CorruptFile: a file of the store is damaged.

    """
    found: dict[str, NDArray[np.float64]] = {}
    for group in groups:
        scores = store.tensor(group.layer, group.name, "importance")
        if scores is not None:
            found[group.name] = scores.double().numpy()
    return found


def predicted_losses(
    group: Group, weights: Mapping[str, Tensor], stats: Mapping[str, Stats], item: Ordered
) -> Tensor:
    """Loss in nats of keeping the first k units, k = 0..full: (full + 1,) float64.

    The error at the output of the matrix that reads the units, weighted by the Fisher information
    there. Where the method leaves the mean input behind, what varies counts only. Experts are
    taken one by one: what each adds to the residual stream is lost, and that the router sends its
    tokens to others instead is not counted.
    """
    order_U = item.tensors["order"]
    if group.kind != "experts":
        matrix = reader(group)
        return _removal(matrix, weights, stats, order_U, mean="mean" in item.tensors)
    each = len(group.matrices) // group.full
    downs = group.matrices[each - 1 :: each]
    lost_U = torch.stack(
        [_removal(down, weights, stats, torch.arange(down.cols), mean=False)[0] for down in downs]
    )[order_U]
    return torch.cat([lost_U.flip(0).cumsum(0).flip(0), lost_U.new_zeros(1)])


def _removal(
    matrix: Matrix,
    weights: Mapping[str, Tensor],
    stats: Mapping[str, Stats],
    order_U: Tensor,
    *,
    mean: bool,
) -> Tensor:
    seen = stats[matrix.name]
    losses = removal_losses(
        weights[matrix.name],
        order_U,
        moment_NN=seen["second_moment"],
        fisher_M=seen["grad_mean_square"],
        mean_N=seen["input_mean"] if mean else None,
        share=float(seen["input_share"]) if mean else 1.0,
    )
    return losses.clamp_min(0)


def _in_nats(group: Group, stats: Mapping[str, Stats]) -> bool:
    axis = "whole" if group.kind == "experts" else "in"
    names = [matrix.name for matrix in group.matrices if matrix.axis == axis]
    return all(name in stats and stats[name].keys() >= COMPARABLE_NEEDS for name in names)


def _finite(name: str, weight_MN: Tensor) -> Tensor:
    if not torch.isfinite(weight_MN).all():
        raise SnapfitError(f"the weight of {name} holds NaN or infinity; the model is broken")
    return weight_MN


def _seen(group: Group, groups: Sequence[Group], stats: LayerStats) -> Mapping[str, Stats]:
    """The group's statistics, or, for an expert that no token reached, the mean of its siblings'.

    An unseen expert's channels are as likely to matter later as the average one's. Of whole
    experts usage is what is asked for, and none is an answer.
    """
    if not stats:
        return {}
    own = {name: stats[name] for name in width_modules([group])}
    if group.kind == "experts" or all(int(one["tokens"]) > 0 for one in own.values()):
        return own
    siblings = [
        other
        for other in groups
        if (other.kind, other.full, len(other.matrices))
        == (group.kind, group.full, len(group.matrices))
        and all(int(stats[matrix.name]["tokens"]) > 0 for matrix in other.matrices)
    ]
    return {
        matrix.name: mean_of(group, [stats[other.matrices[place].name] for other in siblings])
        for place, matrix in enumerate(group.matrices)
    }


def _proxies(
    group: Group, weights: Mapping[str, Tensor], stats: Mapping[str, Stats]
) -> dict[str, float]:
    """GAC's importance proxies a parameter: norms of all matrices together, sums of the others."""
    squares = sum(float(weight.double().square().sum()) for weight in weights.values())
    found = {"score.magnitude": squares**0.5 / group.dense_params}
    for proxy in MODULE_PROXIES:
        values = [float(one[proxy]) for one in stats.values() if proxy in one]
        if len(values) == len(weights):
            joint = sum(v * v for v in values) ** 0.5 if proxy == "activation" else sum(values)
            found[f"score.{proxy}"] = joint / group.dense_params
    return found
