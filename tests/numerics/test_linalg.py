"""The identities that the low-rank methods stand on, against direct computation."""

import numpy as np
import pytest
import torch

from snapfit.core.errors import SnapfitError
from snapfit.nn.linalg import damped, prefix_losses, symmetric_roots, whitened_basis

SHAPES = [(12, 20), (20, 12), (16, 16)]


def moments(size: int, samples: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(samples, size, generator=generator, dtype=torch.float64)
    x = x * torch.logspace(-2, 1, size, dtype=torch.float64)
    return x.T @ x / samples


def weighted_error(
    delta: torch.Tensor, c: torch.Tensor | None, g: torch.Tensor | None
) -> torch.Tensor:
    c = torch.eye(delta.shape[1], dtype=torch.float64) if c is None else c
    g = torch.eye(delta.shape[0], dtype=torch.float64) if g is None else g
    c = torch.diag(c) if c.ndim == 1 else c
    g = torch.diag(g) if g.ndim == 1 else g
    return torch.trace(g @ delta @ c @ delta.T)


@pytest.mark.parametrize(("rows", "cols"), SHAPES)
@pytest.mark.parametrize("whitening", ["none", "inputs", "both", "diagonal"])
def test_discarded_is_the_weighted_error_of_every_prefix(rows, cols, whitening):
    torch.manual_seed(0)
    weight = torch.randn(rows, cols, dtype=torch.float64)
    c = g = None
    if whitening in {"inputs", "both"}:
        c = moments(cols, 200, 1)
    if whitening == "both":
        g = moments(rows, 200, 2)
    if whitening == "diagonal":
        c, g = moments(cols, 200, 1).diagonal(), moments(rows, 200, 2).diagonal()
    basis = whitened_basis(weight, moment_NN=c, fisher_MM=g, max_rank=min(rows, cols))
    for rank in range(min(rows, cols) + 1):
        delta = weight - basis.b_MR[:, :rank] @ basis.a_RN[:rank]
        error = weighted_error(delta, c, g)
        torch.testing.assert_close(error, basis.discarded[rank], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(("rows", "cols"), SHAPES)
def test_two_sided_truncation_is_optimal(rows, cols):
    """Equal to truncating G^(1/2) W C^(1/2) with numpy, which Eckart-Young proves optimal."""
    torch.manual_seed(1)
    weight = torch.randn(rows, cols, dtype=torch.float64)
    c, g = moments(cols, 300, 3), moments(rows, 300, 4)
    basis = whitened_basis(weight, moment_NN=c, fisher_MM=g, max_rank=min(rows, cols))
    whitened = symmetric_roots(g)[0] @ weight @ symmetric_roots(c)[0]
    squares = np.linalg.svd(whitened.numpy(), compute_uv=False) ** 2
    expected = np.append(np.cumsum(squares[::-1])[::-1], 0.0)
    np.testing.assert_allclose(basis.discarded.numpy(), expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(("rows", "cols"), SHAPES)
def test_singular_moments_lose_nothing_that_was_measured(rows, cols):
    """Five samples for up to twenty dimensions: Cholesky fails, full rank is exact on data."""
    torch.manual_seed(2)
    weight = torch.randn(rows, cols, dtype=torch.float64)
    x = torch.randn(5, cols, dtype=torch.float64)
    basis = whitened_basis(weight, moment_NN=x.T @ x / 5, max_rank=min(rows, cols))
    torch.testing.assert_close(x @ (basis.b_MR @ basis.a_RN).T, x @ weight.T, rtol=1e-7, atol=1e-7)


def test_prefix_losses_of_a_basis_that_is_not_orthogonal():
    torch.manual_seed(3)
    weight = torch.randn(10, 14, dtype=torch.float64)
    a = torch.randn(6, 14, dtype=torch.float64)
    b = torch.randn(10, 6, dtype=torch.float64) * 0.1
    c, fisher = moments(14, 100, 5), moments(10, 100, 6).diagonal()
    losses = prefix_losses(weight, a, b, moment_NN=c, fisher_M=fisher)
    for rank in range(7):
        direct = weighted_error(weight - b[:, :rank] @ a[:rank], c, fisher) / 2
        torch.testing.assert_close(losses[rank], direct, rtol=1e-9, atol=1e-12)


def test_factors_are_balanced():
    torch.manual_seed(4)
    basis = whitened_basis(torch.randn(8, 30), moment_NN=moments(30, 100, 7) * 1e8, max_rank=8)
    torch.testing.assert_close(basis.a_RN.norm(dim=1), basis.b_MR.norm(dim=0))


def test_damping_adds_a_share_of_the_mean_eigenvalue():
    root, inverse = symmetric_roots(damped(torch.diag(torch.tensor([4.0, 0.0])), 0.5))
    torch.testing.assert_close(root.diagonal() ** 2, torch.tensor([5.0, 1.0]).double())
    torch.testing.assert_close(root @ inverse, torch.eye(2).double())


def test_directions_of_rounding_noise_are_dropped():
    root, inverse = symmetric_roots(torch.diag(torch.tensor([4.0, 1e-10, 1e-13, 0.0])).double())
    torch.testing.assert_close(root.diagonal()[:2], torch.tensor([2.0, 1e-5]).double())
    torch.testing.assert_close(inverse.diagonal()[:2], torch.tensor([0.5, 1e5]).double())
    assert root.diagonal()[2:].tolist() == inverse.diagonal()[2:].tolist() == [0.0, 0.0]


def test_statistics_that_are_not_finite_are_refused():
    with pytest.raises(SnapfitError, match="NaN or infinity"):
        symmetric_roots(torch.full((3, 3), float("nan")))
    nothing = torch.zeros(3, 3)
    with pytest.raises(SnapfitError, match="NaN or infinity"):
        whitened_basis(nothing * float("nan"), moment_NN=nothing, max_rank=2)


@pytest.mark.parametrize(("rows", "cols"), SHAPES)
@pytest.mark.parametrize("side", ["inputs", "gradients"])
def test_what_nothing_reaches_or_nobody_feels_costs_nothing(rows, cols, side):
    """A projection of zeros behind a matrix leaves it without gradient."""
    torch.manual_seed(6)
    weight = torch.randn(rows, cols, dtype=torch.float64)
    c, g = moments(cols, 200, 8), moments(rows, 200, 9)
    if side == "inputs":
        c = torch.zeros_like(c)
    else:
        g = torch.zeros_like(g)
    basis = whitened_basis(weight, moment_NN=c, fisher_MM=g, max_rank=5)
    assert basis.discarded.tolist() == [0.0] * 6
    u, s, vh = torch.linalg.svd(weight, full_matrices=False)
    expected = (u[:, :5] * s[:5]) @ vh[:5]
    torch.testing.assert_close(basis.b_MR @ basis.a_RN, expected)


def test_small_decompositions_give_the_threads_back():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        symmetric_roots(torch.eye(4))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
