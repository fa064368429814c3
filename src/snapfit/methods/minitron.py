"""`minitron`: mean activation magnitude of channels and heads (arXiv 2407.14679)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from snapfit.core.space import Group
from snapfit.methods._width import Width, expert_routing, reader, to_ordered, uniform_sizes
from snapfit.methods.base import Allocation, Stats
from snapfit.nn.ordered import Ordered


@dataclass(frozen=True, kw_only=True)
class Compressor(Width):
    """Removes what is seldom active: no gradients, one forward pass over the calibration text.

    A channel counts by the mean of abs(x), x being what the down projection reads of it; a
    key-value head by the mean L2 norm of what its query heads put out, a token at a time. Means
    are taken over tokens and windows alike. Whole experts count by usage and router weight. Its
    own allocation keeps the same share of every group, of heads the nearest whole number.

    Settings:
        parts: what may go, of mlp, heads, experts (whole ones, instead of channels of each).
    """

    unit = "activation"

    @property
    def needs(self) -> frozenset[str]:
        """Activations; for whole experts the router's weights too."""
        experts = {"routing"} if "experts" in self.chosen else set()
        return frozenset({"activation_mean", "head_norm", *experts})

    def order(
        self,
        group: Group,
        weights: Mapping[str, Tensor],  # noqa: ARG002
        stats: Mapping[str, Stats],
    ) -> Ordered:
        """Units by activation, largest first."""
        if group.kind == "experts":
            importance_U = expert_routing(group, stats)
        elif group.kind == "kv_heads":
            norms = stats[reader(group).name]["head_norm"].double()
            importance_U = norms.reshape(group.full, -1).mean(1)
        else:
            importance_U = stats[reader(group).name]["activation_mean"].double()
        return to_ordered(group, importance_U, unit=self.unit)

    def allocate(self, request: Allocation) -> Mapping[str, float]:
        """The same share of every group; see `uniform_sizes`."""
        return uniform_sizes(request)
