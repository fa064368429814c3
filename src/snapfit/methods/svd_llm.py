"""`svd-llm`: truncation-aware whitening by the inputs' second moments (arXiv 2403.07378)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from snapfit.core.space import Group
from snapfit.methods._lowrank import LowRank, by_output_error
from snapfit.methods.base import Stats
from snapfit.nn.ordered import Ordered


@dataclass(frozen=True, kw_only=True)
class Compressor(LowRank):
    """Decomposes W C^(1/2) with C = E[x xᵀ]: the discarded squares are the output error.

    The paper takes a Cholesky factor of C; any root gives the same factors, and the one used
    here exists for singular C too. Its allocation is uniform.
    """

    needs = frozenset({"second_moment"})
    unit = "output error"

    def order(self, group: Group, weight_MN: Tensor, stats: Stats) -> Ordered:
        """Components by the output error that they explain, largest first."""
        return by_output_error(group, weight_MN, stats, self.unit)
