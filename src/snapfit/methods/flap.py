"""`flap`: fluctuation of the activations, their mean folded into a bias (arXiv 2312.11983)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from snapfit.core.space import Group
from snapfit.methods._width import Width, expert_routing, ranked_sizes, reader, to_ordered
from snapfit.methods.base import Allocation, Stats
from snapfit.nn.ordered import Ordered


@dataclass(frozen=True, kw_only=True)
class Compressor(Width):
    """Removes what hardly varies, since a bias can stand in for a constant.

    An input channel of down or of the output projection counts by its variance times the squared
    norm of its column. For the ranking over all layers ('AL-AM' in the paper) these are
    standardised within the matrix, and a key-value head counts by the mean over its channels.
    (The release squares the metric of attention first, which the paper does not; not done here.)
    What is removed leaves its mean input behind, as a bias of the matrix that reads it. Whole
    experts, which leave no bias, count by usage and router weight, standardised within the layer.

    Settings:
        parts: what may go, of mlp, heads, experts (whole ones, instead of channels of each).
    """

    unit = "fluctuation"

    @property
    def needs(self) -> frozenset[str]:
        """Means and variances; for whole experts the router's weights too."""
        return frozenset({"fluctuation", *(["routing"] if "experts" in self.chosen else [])})

    def order(
        self, group: Group, weights: Mapping[str, Tensor], stats: Mapping[str, Stats]
    ) -> Ordered:
        """Units by standardised fluctuation, largest first."""
        if group.kind == "experts":
            routing_U = expert_routing(group, stats)
            return to_ordered(group, _standard(routing_U), unit=self.unit, lost_U=routing_U)
        name = reader(group).name
        seen = stats[name]
        metric_N = seen["input_variance"].double() * weights[name].double().square().sum(0)
        return to_ordered(
            group,
            _standard(metric_N).reshape(group.full, -1).mean(1),
            unit=self.unit,
            lost_U=metric_N.reshape(group.full, -1).sum(1),
            mean_N=seen["input_mean"],
        )

    def allocate(self, request: Allocation) -> Mapping[str, float]:
        """What a ranking over all layers leaves."""
        return ranked_sizes(request)


def _standard(values: Tensor) -> Tensor:
    """Less the mean, over the (unbiased) standard deviation; zeros where nothing varies."""
    apart = values - values.mean()
    deviation = values.std()
    return apart / deviation if deviation > 0 else torch.zeros_like(apart)
