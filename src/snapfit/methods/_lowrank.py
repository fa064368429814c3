"""What the low-rank methods share: from a basis to an `Ordered`, and the uniform allocation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from snapfit.core.curve import NATS, Curve
from snapfit.core.errors import SnapfitError
from snapfit.core.space import Group, Space
from snapfit.methods.base import Allocation, MethodKind, Segments, Stats
from snapfit.nn.linalg import Basis, prefix_losses, whitened_basis
from snapfit.nn.ordered import Ordered

COMPARABLE_NEEDS = frozenset({"second_moment", "grad_mean_square"})
"""Statistics that turn any method's curve into nats."""


class LowRank:
    """Defaults of a method that factors every matrix by itself and allocates uniformly."""

    kind: ClassVar[MethodKind] = "rank"

    def restrict(self, space: Space, segments: Segments) -> Space:  # noqa: ARG002
        """Every matrix is touched."""
        return space.of_kind("rank")

    def summarise(
        self,
        group: Group,  # noqa: ARG002
        weight_MN: Tensor,  # noqa: ARG002
        stats: Stats,  # noqa: ARG002
    ) -> Mapping[str, float]:
        """Nothing beyond the importance proxies."""
        return {}

    def allocate(self, request: Allocation) -> Mapping[str, float]:
        """The same share of parameters kept in every matrix."""
        return uniform_ranks(request)


def uniform_ranks(request: Allocation) -> dict[str, float]:
    """The rank at which each matrix keeps the budget's share of its own parameters."""
    keep = request.budget / request.space.dense_params
    return {
        group.name: keep * group.dense_params / _pair_cost(group) for group in request.space.groups
    }


def to_ordered(group: Group, basis: Basis, *, factor: float, unit: str) -> Ordered:
    """An `Ordered` whose curve is `factor` times the discarded objective, zero when dense."""
    losses = (basis.discarded[1:] * factor).numpy(force=True)
    ranks = np.arange(1, len(losses) + 1, dtype=np.int64)
    return Ordered(
        tensors={"a": basis.a_RN, "b": basis.b_MR},
        curve=Curve(sizes=np.append(ranks, group.full), losses=np.append(losses, 0.0), unit=unit),
    )


def comparable(ordered: Ordered, weight_MN: Tensor, stats: Stats) -> Ordered:
    """The same basis with its curve in nats.

    The output error of each prefix is weighted by the diagonal of the Fisher information of the
    outputs: ½ Σ_i E[g_i²] E[(Δy_i)²]. It is evaluated exactly for the basis at hand, so that a
    curve that is not additive (ASVD, FWSVD) is not treated as if it were.
    """
    losses = prefix_losses(
        weight_MN,
        ordered.tensors["a"],
        ordered.tensors["b"],
        moment_NN=stats["second_moment"],
        fisher_M=stats["grad_mean_square"],
    )[1:].numpy(force=True)
    curve = Curve(sizes=ordered.curve.sizes, losses=np.append(losses, 0.0), unit=NATS)
    return Ordered(tensors=ordered.tensors, curve=curve)


def by_output_error(group: Group, weight_MN: Tensor, stats: Stats, unit: str) -> Ordered:
    """SVD-LLM's whitening: components by the output error that they explain, largest first."""
    basis = whitened_basis(
        finite_weight(group, weight_MN),
        moment_NN=stats["second_moment"],
        max_rank=group.break_even,
    )
    return to_ordered(group, basis, factor=1.0, unit=unit)


def finite_weight(group: Group, weight_MN: Tensor) -> Tensor:
    """The weight in float64.

    Raises:
        SnapfitError: it holds NaN or infinity.

    """
    if not torch.isfinite(weight_MN).all():
        raise SnapfitError(f"the weight of {group.name} holds NaN or infinity; the model is broken")
    return weight_MN.double()


def _pair_cost(group: Group) -> int:
    return sum(matrix.rows + matrix.cols for matrix in group.matrices)
