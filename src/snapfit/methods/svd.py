"""`svd`: plain truncated singular value decomposition (Eckart and Young, 1936)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from snapfit.core.space import Group
from snapfit.methods._lowrank import LowRank, finite_weight, to_ordered
from snapfit.methods.base import Stats
from snapfit.nn.linalg import whitened_basis
from snapfit.nn.ordered import Ordered


@dataclass(frozen=True, kw_only=True)
class Compressor(LowRank):
    """Truncated singular value decomposition of the weight alone. Needs no data.

    The curve is the squared Frobenius error of the weight, which is not comparable across
    matrices.
    """

    needs = frozenset[str]()
    unit = "weight error"

    def order(self, group: Group, weight_MN: Tensor, stats: Stats) -> Ordered:  # noqa: ARG002
        """Singular vectors of the weight, largest singular value first."""
        basis = whitened_basis(finite_weight(group, weight_MN), max_rank=group.break_even)
        return to_ordered(group, basis, factor=1.0, unit=self.unit)
