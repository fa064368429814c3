"""What removing inputs of a linear layer is predicted to cost, for every prefix of an order.

Removing a set S of inputs changes the output by Δy = -W_S x_S. With F the diagonal of the Fisher
information of the outputs and C the second moments of the inputs, that costs about

    ½ E[Δyᵀ F Δy]  =  ½ Σ_{i,j in S} C_ij (Wᵀ F W)_ij    nats a token.

When the mean of what is removed goes into a bias (FLAP), C is the covariance instead. The double
sum over the units behind every prefix is a suffix sum, so that all prefixes together cost one
product WᵀFW, of which a few rows are in memory at a time.

Shape suffixes: M outputs, N inputs, n of a block, U units, u of a block.
"""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 1024
"""Inputs whose rows of WᵀFW are in memory at once."""


def removal_losses(
    weight_MN: Tensor,
    order_U: Tensor,
    *,
    moment_NN: Tensor,
    fisher_M: Tensor,
    mean_N: Tensor | None = None,
    share: float = 1.0,
) -> Tensor:
    """Predicted loss when the first k units of `order_U` are kept, k = 0..U: (U + 1,) float64.

    Args:
        weight_MN: the layer that reads the units.
        order_U: units, the last to go first; unit i is inputs i * N / U up to (i + 1) * N / U.
        moment_NN: C, a calibration token.
        fisher_M: E[g²] of each output.
        mean_N: mean input over the tokens that reached the layer, if a bias will stand in for it.
        share: those tokens, of all calibration tokens.

    Returns:
        The losses as they are: where errors of two units cancel, less can cost more. Never
        negative but for rounding, and 0 at U.

    """
    units = len(order_U)
    size = weight_MN.shape[1] // units
    index_N = (order_U[:, None] * size + torch.arange(size)).flatten()
    root_M1 = fisher_M.double().clamp_min(0).sqrt()[:, None]
    weighted_MN = weight_MN.double()[:, index_N] * root_M1
    mean_N = None if mean_N is None else mean_N.double()[index_N]
    own_U = torch.empty(units, dtype=torch.float64)
    step = max(1, BLOCK // size)
    for start in range(0, units, step):
        first = start * size
        rows = slice(first, (start + step) * size)
        moment_nN = moment_NN[index_N[rows]][:, index_N[first:]].double()
        if mean_N is not None:
            moment_nN -= share * torch.outer(mean_N[rows], mean_N[first:])
        loss_nN = (weighted_MN[:, rows].T @ weighted_MN[:, first:]).mul_(moment_nN)
        loss_uU = loss_nN.reshape(-1, size, units - start, size).sum((1, 3))
        # A unit with itself once, with each later one twice.
        own_U[start : start + step] = loss_uU.diagonal() + 2 * loss_uU.triu(1).sum(1)
    zero = own_U.new_zeros(1)
    return 0.5 * torch.cat([own_U.flip(0).cumsum(0).flip(0), zero])
