"""Each method against a direct transcription of its published formula."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from snapfit.core.curve import NATS, Curve
from snapfit.core.errors import SnapfitError, UsageError
from snapfit.core.space import Group, Matrix, Space
from snapfit.methods._lowrank import comparable
from snapfit.methods._stage import order_layer
from snapfit.methods.asvd import KEEP_GRID
from snapfit.methods.base import Allocation
from snapfit.methods.registry import load_method

M, N, RANK = 18, 26, 5


def group(name: str = "w", rows: int = M, cols: int = N, **more: object) -> Group:
    matrix = Matrix(name=name, axis="rank", rows=rows, cols=cols)
    facts = {"kind": "rank", "full": min(rows, cols), "role": "q", "layer": 0, **more}
    return Group(name=name, matrices=(matrix,), **facts)


@pytest.fixture
def weight() -> torch.Tensor:
    return torch.randn(M, N, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.fixture
def inputs() -> torch.Tensor:
    x = torch.randn(400, N, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return x * torch.logspace(-1, 1, N, dtype=torch.float64)


@pytest.fixture
def gradients() -> torch.Tensor:
    g = torch.randn(400, M, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return g * torch.logspace(-2, 0, M, dtype=torch.float64)


def truncated(matrix: torch.Tensor, rank: int) -> torch.Tensor:
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    return (u[:, :rank] * s[:rank]) @ vh[:rank]


def kept(ordered, rank: int = RANK) -> torch.Tensor:
    return ordered.tensors["b"][:, :rank] @ ordered.tensors["a"][:rank]


def test_svd(weight):
    ordered = load_method("svd").order(group(), weight, {})
    torch.testing.assert_close(kept(ordered), truncated(weight, RANK))
    lost = (weight - truncated(weight, RANK)).square().sum()
    assert ordered.curve.at(RANK) == pytest.approx(float(lost))


def test_asvd(weight, inputs):
    """SVD(W S) S^-1 with S = diag(mean |x|)^0.5."""
    mean = inputs.abs().mean(0)
    scale = mean.sqrt()
    ordered = load_method("asvd").order(group(), weight, {"activation_mean": mean})
    torch.testing.assert_close(kept(ordered), truncated(weight * scale, RANK) / scale)


def test_a_column_without_weight_is_kept_as_well_as_it_can_be():
    weight = torch.outer(torch.arange(1.0, 10.0), torch.arange(1.0, 6.0)).double()
    mean = torch.tensor([1.0, 0.0, 2.0, 1.0, 3.0])
    ordered = load_method("asvd").order(group(rows=9, cols=5), weight, {"activation_mean": mean})
    torch.testing.assert_close(kept(ordered, 1), weight)
    stats = {"fisher_columns": mean, "fisher_rows": torch.ones(9)}
    ordered = load_method("fwsvd").order(group(rows=9, cols=5), weight, stats)
    torch.testing.assert_close(kept(ordered, 1), weight)


@pytest.mark.parametrize("side", ["in", "out"])
def test_fwsvd(side, weight, inputs, gradients):
    """The row sums of the Fisher information weigh the rows of x W, the paper's layout."""
    fisher = (gradients[:, :, None] * inputs[:, None, :]).square().sum(0)
    stats = {"fisher_rows": fisher.sum(1), "fisher_columns": fisher.sum(0)}
    ordered = load_method("fwsvd", {"side": side}).order(group(), weight, stats)
    if side == "in":
        root = fisher.sum(0).sqrt()
        expected = truncated(weight * root, RANK) / root
    else:
        root = fisher.sum(1).sqrt()[:, None]
        expected = truncated(root * weight, RANK) / root
    torch.testing.assert_close(kept(ordered), expected)


def test_svd_llm(weight, inputs):
    """With a Cholesky factor, as the paper has it: S Sᵀ = C, W' = SVD(W S) S^-1."""
    moment = inputs.T @ inputs / len(inputs)
    factor = torch.linalg.cholesky(moment)
    expected = truncated(weight @ factor, RANK) @ torch.linalg.inv(factor)
    ordered = load_method("svd-llm").order(group(), weight, {"second_moment": moment})
    torch.testing.assert_close(kept(ordered), expected)
    error = ((inputs @ (weight - kept(ordered)).T) ** 2).sum(1).mean()
    assert ordered.curve.at(RANK) == pytest.approx(float(error))


@pytest.mark.parametrize("transpose", [False, True])
def test_kfac(transpose, weight, inputs, gradients):
    if transpose:
        weight, inputs, gradients = weight.T, gradients, inputs
    c, g = inputs.T @ inputs / len(inputs), gradients.T @ gradients / len(gradients)
    left, right = torch.linalg.cholesky(g).T, torch.linalg.cholesky(c)
    best = truncated(left @ weight @ right, RANK)
    expected = torch.linalg.inv(left) @ best @ torch.linalg.inv(right)
    stats = {"second_moment": c, "grad_second_moment": g}
    matrix = group(rows=len(weight), cols=weight.shape[1])
    ordered = load_method("kfac", {"damping": "0"}).order(matrix, weight, stats)
    torch.testing.assert_close(kept(ordered), expected)
    delta = weight - expected
    assert ordered.curve.at(RANK) == pytest.approx(float(torch.trace(g @ delta @ c @ delta.T)) / 2)
    assert ordered.curve.unit == NATS


@pytest.mark.parametrize(("name", "setting"), [("kfac", "damping"), ("asvd", "alpha")])
def test_a_negative_setting_is_refused(name, setting):
    assert load_method(name, {setting: "0"})
    with pytest.raises(UsageError, match=f"{name}: {setting} must be at least 0, found -0.5"):
        load_method(name, {setting: "-0.5"})


def test_comparable_curves_are_fisher_weighted_output_errors(weight, inputs, gradients):
    stats = {
        "second_moment": inputs.T @ inputs / len(inputs),
        "grad_mean_square": gradients.square().mean(0),
        "activation_mean": inputs.abs().mean(0),
    }
    ordered = load_method("asvd").order(group(), weight, stats)
    curve = comparable(ordered, weight, stats).curve
    errors = inputs @ (weight - kept(ordered)).T
    expected = (errors.square().mean(0) * stats["grad_mean_square"]).sum() / 2
    assert curve.at(RANK) == pytest.approx(float(expected))
    assert curve.unit == NATS


def space_of(groups: list[Group]) -> Space:
    total = sum(g.dense_params for g in groups)
    return Space(
        model="m", revision="r", architecture="llama", groups=tuple(groups),
        total_params=total, kv_elements=1,
    )  # fmt: skip


def request(groups, budget, summaries=None, perplexity=None) -> Allocation:
    curve = Curve(sizes=np.array([1, 2]), losses=np.array([1.0, 0.0]), unit="x")
    return Allocation(
        space=space_of(groups),
        curves={g.name: curve for g in groups},
        summaries=summaries or {g.name: {} for g in groups},
        budget=budget,
        perplexity=perplexity or (lambda name, rank: 0.0),
    )


def test_uniform_allocation_spends_the_budget_evenly():
    groups = [group("a"), group("b", 40, 30)]
    budget = int(0.7 * space_of(groups).dense_params)
    ranks = load_method("svd-llm").allocate(request(groups, budget))
    for g in groups:
        pair = ranks[g.name] * sum(m.rows + m.cols for m in g.matrices)
        assert pair / g.dense_params == pytest.approx(0.7, rel=1e-3)


def test_asvd_takes_the_most_sensitive_matrices_last():
    """A matrix whose perplexity explodes when truncated stays whole; the other pays."""
    groups = [group("fragile", 100, 100), group("robust", 100, 100)]
    method = load_method("asvd", {"sensitivity": "perplexity"})
    perplexity = {"fragile": 1000.0, "robust": 10.0}
    probed = []

    def probe(name: str, rank: int) -> float:
        probed.append((name, rank))
        return perplexity[name] + 1 / rank

    ranks = method.allocate(request(groups, 14_000, perplexity=probe))
    assert ranks["fragile"] == 100.0
    assert ranks["robust"] == pytest.approx(0.4 * 100 * 100 / 200)
    assert len(probed) == 2 * len(KEEP_GRID)


def test_asvd_by_stable_rank_is_the_published_order():
    """Sensitivity -stable_rank * ratio^0.1: the larger stable rank is truncated first."""
    groups = [group("flat", 100, 100), group("steep", 100, 100)]
    summaries = {"flat": {"stable_rank": 9.0}, "steep": {"stable_rank": 1.5}}
    method = load_method("asvd", {"sensitivity": "stable-rank"})
    ranks = method.allocate(request(groups, 15_000, summaries))
    assert ranks["flat"] < ranks["steep"]


def test_a_matrix_of_zeros_is_the_least_sensitive(weight):
    method, zeros = load_method("asvd", {"sensitivity": "stable-rank"}), torch.zeros(M, N)
    other = method.summarise(group(), weight, {})["stable_rank"]
    assert other == pytest.approx(float(weight.norm() / torch.linalg.svdvals(weight)[0]))
    assert other < method.summarise(group(), zeros, {})["stable_rank"] == pytest.approx(M**0.5)


def test_palu_groups_heads_and_shares_ranks_by_fisher_information():
    method = load_method("palu", {"heads": "2"})
    k = group("layer.k", 40, 64, role="k")
    q = group("layer.q", 40, 64, role="q")
    segments = {
        "layer.k": tuple(("k", 8 * i, 8 * i + 8) for i in range(5)),
        "layer.q": tuple(("q", 8 * i, 8 * i + 8) for i in range(5)),
    }
    space = method.restrict(space_of([q, k]), segments)
    assert [g.name for g in space.groups] == [
        "layer.k#k:0-16", "layer.k#k:16-32", "layer.k#k:32-40",
    ]  # fmt: skip
    shares = {"layer.k#k:0-16": 1.0, "layer.k#k:16-32": 3.0, "layer.k#k:32-40": 1.0}
    summaries = {name: {"fisher_root": share} for name, share in shares.items()}
    budget = 1000
    ranks = method.allocate(request(list(space.groups), budget, summaries))
    assert ranks["layer.k#k:16-32"] == pytest.approx(3 * ranks["layer.k#k:0-16"])
    spent = sum(ranks[g.name] * (g.matrices[0].rows + 64) for g in space.groups)
    assert spent == pytest.approx(budget, rel=1e-6)
    summaries["layer.k#k:0-16"] = {"fisher_root": 0.0}
    ranks = method.allocate(request(list(space.groups), budget, summaries))
    assert ranks["layer.k#k:0-16"] == 1, "nothing is left out altogether"


def test_an_expert_without_tokens_takes_its_siblings_statistics():
    groups = [group(f"e{i}", role="gate") for i in range(3)]
    torch.manual_seed(3)
    weights = {f"e{i}.weight": torch.randn(M, N) for i in range(3)}
    moments = [torch.eye(N) * 2, torch.eye(N) * 4, torch.zeros(N, N)]
    stats = {
        f"e{i}": {"second_moment": c, "tokens": torch.tensor(9 if i < 2 else 0)}
        for i, c in enumerate(moments)
    }
    ordered, _ = order_layer(load_method("svd-llm"), groups, weights.__getitem__, stats)
    lost = (weights["e2.weight"] - kept(ordered["e2"]).float()).square().sum()
    assert float(ordered["e2"].curve.at(RANK)) == pytest.approx(3 * float(lost), rel=1e-4)


def test_siblings_are_experts_of_the_same_role_and_size():
    def expert(name, rows=M, cols=N, role="up"):
        return group(name, rows, cols, role=role)

    groups = [expert("a"), expert("b"), expert("c"), expert("d", 4), expert("e", role="gate")]
    tokens = {"a": 0, "b": 5, "c": 9, "d": 7, "e": 7}
    stats = {
        name: {"tokens": torch.tensor(count), "activation_mean": torch.full((N,), float(count))}
        for name, count in tokens.items()
    }
    made = torch.Generator().manual_seed(3)
    weights = {
        f"{g.name}.weight": torch.randn(g.matrices[0].rows, N, generator=made) for g in groups
    }
    method = load_method("asvd", {"sensitivity": "stable-rank"})
    ordered, _ = order_layer(method, groups, weights.__getitem__, stats)
    weight = weights["a.weight"].double()
    expected = method.order(groups[0], weight, {"activation_mean": torch.full((N,), 7.0)})
    torch.testing.assert_close(kept(ordered["a"]), kept(expected))
    assert ordered["a"].curve.at(RANK) == pytest.approx(float(expected.curve.at(RANK)))
    for name in ("b", "c"):
        stats[name]["tokens"] = torch.tensor(0)
    with pytest.raises(SnapfitError, match="no calibration token reached a or any expert like it"):
        order_layer(method, groups, weights.__getitem__, stats)


def test_a_block_of_rows_has_its_own_part_of_the_statistics(weight, inputs, gradients):
    matrix = Matrix(name="w", axis="rank", rows=6, cols=N, start=4)
    block = Group(name="w#k:4-10", kind="rank", matrices=(matrix,), full=6, role="k", layer=0)
    moment, fisher = inputs.T @ inputs / 400, gradients.T @ gradients / 400
    stats = {"tokens": torch.tensor(400), "second_moment": moment, "grad_second_moment": fisher}
    method = load_method("kfac")
    ordered, _ = order_layer(method, [block], {"w.weight": weight}.__getitem__, {"w": stats})
    own = {"second_moment": moment, "grad_second_moment": fisher[4:10, 4:10]}
    alone = method.order(group(rows=6), weight[4:10], own)
    torch.testing.assert_close(kept(ordered[block.name], 3), kept(alone, 3))
