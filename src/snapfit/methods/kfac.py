"""`kfac`: two-sided whitening by input and output-gradient moments; losses in nats.

The Fisher information of a linear layer is approximated by a Kronecker product, F ≈ C ⊗ G
(Martens and Grosse, arXiv 1503.05671), so a change ΔW costs about ½ tr(G ΔW C ΔWᵀ) nats a token.
Its minimiser at each rank is a truncated decomposition of G^(1/2) W C^(1/2), and half the sum of
the discarded squares is the loss. Being in nats, losses of different matrices can be added.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from snapfit.core.curve import NATS
from snapfit.core.errors import UsageError
from snapfit.core.objectives import choose
from snapfit.core.space import Group
from snapfit.methods._lowrank import LowRank, finite_weight, to_ordered
from snapfit.methods.base import Allocation, Stats
from snapfit.nn.linalg import damped, whitened_basis
from snapfit.nn.ordered import Ordered


@dataclass(frozen=True, kw_only=True)
class Compressor(LowRank):
    """Kronecker-factored Fisher whitening: what a truncation costs the *model*, not the layer.

    Settings:
        damping: share of the mean eigenvalue added to the diagonal of both moments; keeps
            directions that few calibration tokens touched from being thrown away. SmolLM2-135M on
            24k tokens, perplexity at ratio 0.2: 43.15 without, 42.80 with 0.01; at ratio 0.1:
            33.43 without, 33.37 with 0.01, 33.87 with 0.1.
    """

    damping: float = 0.01

    needs = frozenset({"second_moment", "grad_second_moment"})
    unit = NATS

    def __post_init__(self) -> None:
        if self.damping < 0:
            raise UsageError(f"kfac: damping must be at least 0, found {self.damping}")

    def order(self, group: Group, weight_MN: Tensor, stats: Stats) -> Ordered:
        """Components by the loss that they save, largest first."""
        basis = whitened_basis(
            finite_weight(group, weight_MN),
            moment_NN=damped(stats["second_moment"], self.damping),
            fisher_MM=damped(stats["grad_second_moment"], self.damping),
            max_rank=group.break_even,
        )
        return to_ordered(group, basis, factor=0.5, unit=self.unit)

    def allocate(self, request: Allocation) -> Mapping[str, float]:
        """The ranks of least total loss, free of any alignment rule."""
        best = choose("curve", request.space, budget=request.budget, curves=request.curves)
        return {name: float(size) for name, size in best.sizes.items()}
