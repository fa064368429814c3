"""Ordering one decoder layer: weights and statistics in, ordered bases and scalars out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from snapfit.core.curve import NATS
from snapfit.core.errors import SnapfitError
from snapfit.core.space import Group, Matrix
from snapfit.methods._lowrank import COMPARABLE_NEEDS, comparable
from snapfit.methods.base import RankMethod, Stats
from snapfit.nn.ordered import Ordered

BY_OUTPUT = frozenset({"grad_mean_square", "fisher_rows", "fisher_root"})
"""Statistics with one entry an output row; a row block sees its own part."""

MODULE_PROXIES = ("activation", "gradient", "fisher")
"""GAC's importance proxies that calibration gives, a number a module."""

LayerStats = Mapping[str, Mapping[str, Tensor]]
"""Statistics of one layer by module name."""


def order_layer(
    method: RankMethod,
    groups: Sequence[Group],
    weights: Callable[[str], Tensor],
    stats: LayerStats,
) -> tuple[dict[str, Ordered], dict[str, dict[str, float]]]:
    """Order every group of a layer.

    Args:
        method: the compressor.
        groups: the layer's groups, each of one matrix.
        weights: gives a parameter by name.
        stats: statistics by module; empty for a method that needs none.

    Returns:
        Ordered bases and scalars, by group name. Curves are in nats where the statistics allow
        it, else in the method's own unit. Scalars are those of the method and, for every
        importance proxy that was collected, 'score.<proxy>': the worth of one parameter.
    """
    ordered: dict[str, Ordered] = {}
    summaries: dict[str, dict[str, float]] = {}
    for group in groups:
        matrix = group.matrices[0]
        weight_MN = weights(f"{matrix.name}.weight")
        whole_params = weight_MN.numel()
        weight_MN = weight_MN[matrix.start : matrix.start + matrix.rows].double()
        seen = _block(_seen(group, groups, stats), matrix)
        item = method.order(group, weight_MN, seen)
        if item.curve.unit != NATS and seen.keys() >= COMPARABLE_NEEDS:
            item = comparable(item, weight_MN, seen)
        ordered[group.name] = item
        summaries[group.name] = {
            **method.summarise(group, weight_MN, seen),
            "score.magnitude": float(weight_MN.norm()) / weight_MN.numel(),
            **{
                f"score.{proxy}": float(seen[proxy]) / whole_params
                for proxy in MODULE_PROXIES
                if proxy in seen
            },
        }
    return ordered, summaries


def _seen(group: Group, groups: Sequence[Group], stats: LayerStats) -> Stats:
    """The group's statistics, or, for an expert that no token reached, the mean of its siblings'.

    An unseen expert is as likely to matter later as the average one; zero statistics would say
    that it can be deleted.
    """
    if not stats:
        return {}
    own = stats[group.matrices[0].name]
    if int(own["tokens"]) > 0:
        return own
    siblings = [
        stats[other.matrices[0].name]
        for other in groups
        if other.role == group.role and other.full == group.full
    ]
    return mean_of(group, [sibling for sibling in siblings if int(sibling["tokens"]) > 0])


def mean_of(group: Group, siblings: Sequence[Stats]) -> Stats:
    """The mean of each statistic of experts like `group`, which no token reached.

    Raises:
        SnapfitError: there is none.

    """
    if not siblings:
        raise SnapfitError(
            f"no calibration token reached {group.name} or any expert like it; calibrate on more "
            "tokens (--calib-tokens)"
        )
    return {
        name: torch.stack([sibling[name].double() for sibling in siblings]).mean(0)
        for name in siblings[0]
    }


def _block(stats: Stats, matrix: Matrix) -> Stats:
    rows = slice(matrix.start, matrix.start + matrix.rows)
    cut = {name: value[rows] if name in BY_OUTPUT else value for name, value in stats.items()}
    if "grad_second_moment" in cut:
        cut["grad_second_moment"] = cut["grad_second_moment"][rows, rows]
    return cut
