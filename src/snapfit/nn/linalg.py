"""Ordered low-rank bases of one weight matrix, and the exact loss of every prefix of a basis.

For y = W x with second moments C = E[x xᵀ] of the inputs and G = E[g gᵀ] of the output gradients,
all methods minimise tr(G (W - Wr) C (W - Wr)ᵀ) over rank-r matrices Wr = b a, for their own choice
of C and G (the identity where a method ignores one). The solution is a truncated singular value
decomposition of G^(1/2) W C^(1/2); its discarded squares are the objective.

Only the smaller side is ever decomposed, and only that side's root is ever inverted:

    m <= n:  G^(1/2) W C Wᵀ G^(1/2) = U S Uᵀ;   a = Uᵀ G^(1/2) W,   b = G^(-1/2) U
    m >  n:  C^(1/2) Wᵀ G W C^(1/2) = V S Vᵀ;   a = Vᵀ C^(-1/2),    b = W C^(1/2) V

so there is no Cholesky factor to fail on few samples (the failure that users of SVD-LLM meet
most). Directions without measured energy are dropped from the inverse root. Everything is
computed in float64: the condition number of C exceeds 1e8 in real models.

Shape suffixes: M output features, N input features, K = min(M, N), R kept components.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from snapfit.core.errors import SnapfitError

NULL_ENERGY = 1e-12
"""Eigenvalues below this share of the largest are rounding noise of a float32 Gram matrix."""

SMALL = 1024
"""Decompositions up to this size run on one thread: more gain nothing, and where another process
wants a core their spinning made a 576 x 576 one fifty times slower (0.09 s -> 4.5 s)."""


@dataclass(frozen=True, kw_only=True)
class Basis:
    """An ordered low-rank basis: rank r keeps `a_RN[:r]` and `b_MR[:, :r]`.

    Attributes:
        a_RN: first factors.
        b_MR: second factors.
        discarded: (R + 1,) float64; the objective left after keeping 0, 1, ..., R components.

    """

    a_RN: Tensor
    b_MR: Tensor
    discarded: Tensor


def symmetric_roots(matrix_KK: Tensor) -> tuple[Tensor, Tensor]:
    """Square root and pseudo-inverse square root of a symmetric positive (K, K), in float64.

    Raises:
        SnapfitError: the matrix holds NaN or infinity.

    """
    values_K, vectors_KK = _eigh(matrix_KK.double())
    kept_K = values_K > values_K.max().clamp_min(0) * NULL_ENERGY
    roots_K = torch.where(kept_K, values_K.clamp_min(0).sqrt(), torch.zeros_like(values_K))
    inverse_K = torch.where(kept_K, 1 / roots_K.clamp_min(1e-300), torch.zeros_like(values_K))
    return (vectors_KK * roots_K) @ vectors_KK.T, (vectors_KK * inverse_K) @ vectors_KK.T


def damped(matrix_KK: Tensor, damping: float) -> Tensor:
    """float64 copy with `damping` times the mean eigenvalue added to the diagonal."""
    matrix_KK = matrix_KK.double()
    if damping:
        matrix_KK = matrix_KK.clone()
        matrix_KK.diagonal().add_(damping * matrix_KK.diagonal().mean())
    return matrix_KK


def whitened_basis(
    weight_MN: Tensor,
    *,
    moment_NN: Tensor | None = None,
    fisher_MM: Tensor | None = None,
    max_rank: int,
) -> Basis:
    """Optimal ordered basis of `weight_MN` under input moments C and output-gradient moments G.

    Where C or G is zero, every basis loses nothing, and that of the bare weight is taken.

    Args:
        weight_MN: the weight, (out, in).
        moment_NN: C, (in, in) or the diagonal (in,); the identity when None.
        fisher_MM: G, (out, out) or the diagonal (out,); the identity when None.
        max_rank: components to keep (larger prefixes are never chosen).

    Raises:
        SnapfitError: NaN or infinity in the inputs.

    """
    if any(moments is not None and not moments.any() for moments in (moment_NN, fisher_MM)):
        # Nothing comes in, or what comes out is not felt: behind a projection of zeros, say.
        basis = whitened_basis(weight_MN, max_rank=max_rank)
        return replace(basis, discarded=torch.zeros_like(basis.discarded))
    weight_MN = weight_MN.double()
    rows, cols = weight_MN.shape
    if rows <= cols:
        root_MM, inverse_MM = _roots(fisher_MM)
        left_MN = _left(root_MM, weight_MN)
        values_K, vectors_MK = _eigh(_right(left_MN, moment_NN) @ left_MN.T)
        order_R = _descending(values_K)[:max_rank]
        b_MR = _left(inverse_MM, vectors_MK[:, order_R])
        a_RN = vectors_MK[:, order_R].T @ left_MN
    else:
        root_NN, inverse_NN = _roots(moment_NN)
        right_MN = _right(weight_MN, root_NN)
        values_K, vectors_NK = _eigh(right_MN.T @ _left(fisher_MM, right_MN))
        order_R = _descending(values_K)[:max_rank]
        a_RN = _right(vectors_NK[:, order_R].T, inverse_NN)
        b_MR = right_MN @ vectors_NK[:, order_R]
    energies_K = values_K[_descending(values_K)].clamp_min(0)
    tail_K = energies_K.flip(0).cumsum(0).flip(0)
    discarded = torch.cat([tail_K, tail_K.new_zeros(1)])[: len(order_R) + 1]
    a_RN, b_MR = balanced(a_RN, b_MR)
    return Basis(a_RN=a_RN, b_MR=b_MR, discarded=discarded)


def balanced(a_RN: Tensor, b_MR: Tensor) -> tuple[Tensor, Tensor]:
    """Give the two factors of each component equal norms, so that half precision holds both."""
    norm_a_R = a_RN.norm(dim=1).clamp_min(1e-300)
    norm_b_R = b_MR.norm(dim=0).clamp_min(1e-300)
    scale_R = (norm_b_R / norm_a_R).sqrt()
    return a_RN * scale_R[:, None], b_MR / scale_R


def prefix_losses(
    weight_MN: Tensor,
    a_RN: Tensor,
    b_MR: Tensor,
    *,
    moment_NN: Tensor,
    fisher_M: Tensor,
) -> Tensor:
    """Exact ½ tr(D (W - Wr) C (W - Wr)ᵀ) for every prefix r = 0..R of any basis, D diagonal.

    Expanding the square, every prefix is a corner sum of three small matrices, so all R + 1 losses
    cost a few products. No orthogonality is assumed: it serves a basis of any method.

    Args:
        weight_MN: the weight.
        a_RN: first factors, in order.
        b_MR: second factors, in order.
        moment_NN: C, the inputs' second moments a token.
        fisher_M: diagonal of the output gradients' second moments a token.

    Returns:
        (R + 1,) float64, nats a token.

    """
    weight_MN, a_RN, b_MR = weight_MN.double(), a_RN.double(), b_MR.double()
    moment_NN, fisher_M = moment_NN.double(), fisher_M.double()
    moved_MN = weight_MN @ moment_NN
    whole = (fisher_M * (moved_MN * weight_MN).sum(1)).sum()
    weighted_MR = fisher_M[:, None] * b_MR
    cross_R = ((moved_MN.T @ weighted_MR) * a_RN.T).sum(0)
    pairs_RR = (b_MR.T @ weighted_MR) * (a_RN @ moment_NN @ a_RN.T)
    corners_R = pairs_RR.cumsum(0).cumsum(1).diagonal()
    zero = whole.new_zeros(1)
    losses = whole - 2 * torch.cat([zero, cross_R.cumsum(0)]) + torch.cat([zero, corners_R])
    return losses.clamp_min(0) / 2


def _roots(moments: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    if moments is None:
        return None, None
    if moments.ndim == 1:
        roots = moments.double().clamp_min(0).sqrt()
        if not torch.isfinite(roots).all():
            raise SnapfitError("a statistics vector holds NaN or infinity")
        inverse = torch.where(roots > 0, 1 / roots.clamp_min(1e-300), torch.zeros_like(roots))
        return roots, inverse
    return symmetric_roots(moments)


def _left(scale: Tensor | None, matrix_MN: Tensor) -> Tensor:
    if scale is None:
        return matrix_MN
    scale = scale.double()
    return scale[:, None] * matrix_MN if scale.ndim == 1 else scale @ matrix_MN


def _right(matrix_MN: Tensor, scale: Tensor | None) -> Tensor:
    if scale is None:
        return matrix_MN
    scale = scale.double()
    return matrix_MN * scale if scale.ndim == 1 else matrix_MN @ scale


def _eigh(matrix_KK: Tensor) -> tuple[Tensor, Tensor]:
    if not torch.isfinite(matrix_KK).all():
        raise SnapfitError("a weight or statistics matrix holds NaN or infinity")
    with _one_thread(when=len(matrix_KK) <= SMALL):
        values_K, vectors_KK = torch.linalg.eigh((matrix_KK + matrix_KK.T) / 2)
    return values_K, vectors_KK


@contextlib.contextmanager
def _one_thread(*, when: bool) -> Iterator[None]:
    """Run the block on one thread, then give torch its threads back."""
    threads = torch.get_num_threads()
    if not when or threads == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _descending(values_K: Tensor) -> Tensor:
    return torch.argsort(values_K, descending=True, stable=True)
