"""`fwsvd`: input features weighted by their Fisher information (arXiv 2207.00112)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from snapfit.core.errors import UsageError
from snapfit.core.space import Group
from snapfit.methods._lowrank import LowRank, finite_weight, to_ordered
from snapfit.methods.base import Stats
from snapfit.nn.linalg import whitened_basis
from snapfit.nn.ordered import Ordered


@dataclass(frozen=True, kw_only=True)
class Compressor(LowRank):
    """Decomposes W diag(f)^(1/2) with f the Fisher information summed over each input feature.

    The paper writes a layer as x W and weights the rows of W: those are the input features, the
    columns in the (out, in) layout of `nn.Linear`.

    Settings:
        side: 'in' as published; 'out' weights the output features instead.
    """

    side: str = "in"

    needs = frozenset({"fisher_rows"})
    unit = "Fisher-weighted weight error"

    def __post_init__(self) -> None:
        if self.side not in {"in", "out"}:
            raise UsageError(f"fwsvd: side {self.side!r} is not 'in' or 'out'")

    def order(self, group: Group, weight_MN: Tensor, stats: Stats) -> Ordered:
        """Singular vectors of the weighted matrix, the weighting undone in one factor."""
        weight_MN = finite_weight(group, weight_MN)
        if self.side == "out":
            basis = whitened_basis(
                weight_MN, fisher_MM=_positive(stats["fisher_rows"]), max_rank=group.break_even
            )
        else:
            basis = whitened_basis(
                weight_MN, moment_NN=_positive(stats["fisher_columns"]), max_rank=group.break_even
            )
        return to_ordered(group, basis, factor=1.0, unit=self.unit)


def _positive(fisher: Tensor) -> Tensor:
    # A row without gradient would vanish from the basis for good; keep it, at a tiny weight.
    fisher = fisher.double()
    return fisher.clamp_min(1e-12 * float(fisher.max().clamp_min(1e-300)))
