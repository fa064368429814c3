"""The published allocations of width methods, against loops that say the same."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import heads_group, mlp_group, small_space
from hypothesis import given
from hypothesis import strategies as st

from snapfit.core.curve import Curve
from snapfit.core.errors import SnapfitError, UsageError
from snapfit.core.space import Group, Space
from snapfit.methods._width import ranked_sizes, to_ordered, uniform_sizes
from snapfit.methods._width_stage import order_width_layer
from snapfit.methods.base import Allocation
from snapfit.methods.registry import load_method


def layered(layers: int) -> Space:
    groups = tuple(
        replace(group, name=f"{layer}.{group.name}", layer=layer)
        for layer in range(layers)
        for group in (mlp_group(32, 36), heads_group())
    )
    return replace(small_space(1), groups=groups)


def request(space: Space, keep: float, seed: int = 0) -> Allocation:
    rng = np.random.default_rng(seed)
    # Whole numbers, so that there are ties.
    scores = {g.name: np.sort(rng.integers(0, 9, g.full))[::-1] * 1.0 for g in space.groups}
    return Allocation(
        space=space,
        curves={},
        summaries={},
        budget=int(keep * space.dense_params),
        perplexity=lambda *_: 0.0,
        importance=scores,
    )


def spent(space: Space, sizes: dict[str, float]) -> float:
    return sum(g.dense_params * sizes[g.name] / g.full for g in space.groups)


def one_by_one(asked: Allocation, spared: set[str]) -> dict[str, float]:
    """Take the least important unit that is left, again and again."""
    sizes = {group.name: float(group.full) for group in asked.space.groups}
    while (excess := spent(asked.space, sizes) - asked.budget) > 1e-9:
        left = [
            (group.name in spared, asked.importance[group.name][int(sizes[group.name]) - 1], index)
            for index, group in enumerate(asked.space.groups)
            if sizes[group.name] > group.least
        ]
        if not left:
            break
        group = asked.space.groups[min(left)[2]]
        sizes[group.name] -= min(1.0, excess * group.full / group.dense_params)
    return sizes


@given(st.integers(0, 99), st.floats(0.02, 1.0), st.integers(0, 3))
def test_ranking_is_taking_units_one_by_one(seed: int, keep: float, spare: int) -> None:
    space = layered(4)
    asked = request(space, keep, seed)
    spared = {group.name for group in space.groups if group.layer < spare}
    found = ranked_sizes(asked, spared)
    assert found == pytest.approx(one_by_one(asked, spared), abs=1e-6)


@given(st.floats(0.05, 1.0), st.integers(0, 3))
def test_uniform_sizes_meet_the_budget_with_one_share(keep: float, spare: int) -> None:
    space = layered(4)
    asked = request(space, keep)
    spared = {group.name for group in space.groups if group.layer < spare}
    sizes = uniform_sizes(asked, spared)
    least = spent(space, {group.name: float(group.least) for group in space.groups})
    total = spent(space, sizes)
    assert total <= max(asked.budget, least) * (1 + 1e-9)
    widths = {
        sizes[g.name] / g.full for g in space.groups if g.kind == "width" and g.name not in spared
    }
    heads = {sizes[g.name] for g in space.groups if g.kind == "kv_heads" and g.name not in spared}
    assert max(widths) - min(widths) < 1e-9
    assert len(heads) == 1
    if total < asked.budget * (1 - 1e-9):  # whole heads went, and widths cannot grow beyond full
        assert any(g.kind == "width" and sizes[g.name] == g.full for g in space.groups)
    if any(sizes[g.name] < g.full for g in space.groups if g.name in spared):
        assert all(sizes[g.name] == g.least for g in space.groups if g.name not in spared)


def test_heads_are_whole_where_widths_can_make_up_for_it() -> None:
    space = layered(2)
    sizes = uniform_sizes(request(space, 0.9))
    assert [sizes[g.name] for g in space.groups if g.kind == "kv_heads"] == [4.0, 4.0]
    heads = space.of_kind("kv_heads")
    assert list(uniform_sizes(request(heads, 0.9)).values()) == pytest.approx([3.6] * 2, rel=1e-3)


@pytest.mark.parametrize(
    ("layers", "spared"), [(30, {0, 1, 2, 29}), (12, {0, 1, 11}), (4, {3}), (3, set())]
)
def test_llm_pruner_leaves_the_first_three_layers_and_the_last_alone(
    layers: int, spared: set[int]
) -> None:
    space = layered(layers)
    for ranking in ("global", "layer"):
        sizes = load_method("llm-pruner", {"ranking": ranking}).allocate(request(space, 0.9))
        whole = {g.layer for g in space.groups if sizes[g.name] == g.full}
        cut = {g.layer for g in space.groups if sizes[g.name] < g.full}
        assert spared <= whole
        assert spared.isdisjoint(cut)
        if ranking == "layer":
            assert cut == set(range(layers)) - spared


def test_more_layers_can_be_left_alone() -> None:
    space = layered(20)
    method = load_method("llm-pruner", {"skip_first": "1", "skip_last": "3"})
    sizes = method.allocate(request(space, 0.5))
    cut = {g.layer for g in space.groups if sizes[g.name] < g.full}
    assert cut == set(range(1, 17))


@pytest.mark.parametrize(
    "settings",
    [{"importance": "l3"}, {"ranking": "local"}, {"skip_first": "-1"}, {"seed": str(1 << 62)}],
)
def test_settings_are_checked(settings: dict[str, str]) -> None:
    with pytest.raises(UsageError, match=r"llm-pruner: .*(l3|local|at least 0|62 bits)"):
        load_method("llm-pruner", settings)


def weights(group: Group) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        f"{m.name}.weight": torch.randn(m.rows, m.cols, generator=generator) for m in group.matrices
    }


def test_random_depends_on_the_seed_and_the_group_alone() -> None:
    def order(name: str, seed: int) -> list[int]:
        method = load_method("llm-pruner", {"importance": "random", "seed": str(seed)})
        assert method.needs == frozenset()
        group = replace(mlp_group(channels=40), name=name)
        ordered, _ = order_width_layer(method, [group], weights(group).__getitem__, {})
        return ordered[name].tensors["order"].tolist()

    assert order("a", 0) == order("a", 0)
    assert order("a", 0) != order("a", 1)
    assert order("a", 0) != order("b", 0)


def test_without_statistics_curves_are_in_the_method_s_own_unit() -> None:
    group = mlp_group()
    method = load_method("llm-pruner", {"importance": "l2"})
    ordered, summaries = order_width_layer(method, [group], weights(group).__getitem__, {})
    curve: Curve = ordered[group.name].curve
    total = sum(float(w.double().square().sum()) for w in weights(group).values())
    assert curve.unit == "importance"
    assert curve.losses[0] == pytest.approx(total)
    assert np.diff(curve.losses) == pytest.approx(
        -ordered[group.name].tensors["importance"].numpy()
    )
    assert summaries[group.name] == {
        "score.magnitude": pytest.approx(total**0.5 / group.dense_params)
    }


def test_an_expert_without_tokens_takes_the_mean_of_its_siblings() -> None:
    experts = [
        replace(
            mlp_group(),
            name=f"e.{i}",
            matrices=tuple(
                replace(m, name=m.name.replace("l.mlp", f"e.{i}")) for m in mlp_group().matrices
            ),
        )
        for i in range(3)
    ]
    generator = torch.Generator().manual_seed(1)
    stats = {
        m.name: {
            "tokens": torch.tensor(5 * (i != 1)),
            "activation_mean": torch.rand(m.cols, generator=generator) * (i != 1),
            "head_norm": torch.ones(1),
        }
        for i, expert in enumerate(experts)
        for m in expert.matrices
    }
    held = {k: v for expert in experts for k, v in weights(expert).items()}
    method = load_method("minitron")
    ordered, _ = order_width_layer(method, experts, held.__getitem__, stats)
    both = (stats["e.0.down_proj"]["activation_mean"], stats["e.2.down_proj"]["activation_mean"])
    mean = torch.stack(both).double().mean(0)
    assert ordered["e.1"].tensors["importance"].tolist() == pytest.approx(
        mean.sort(descending=True).values.tolist()
    )
    for i in (0, 2):
        for m in experts[i].matrices:
            stats[m.name]["tokens"] = torch.tensor(0)
    with pytest.raises(SnapfitError, match=r"no calibration token reached e\.0"):
        order_width_layer(method, experts, held.__getitem__, stats)


def test_what_is_not_finite_is_refused() -> None:
    group = mlp_group()
    broken = weights(group)
    broken["l.mlp.up_proj.weight"][2, 3] = torch.nan
    method = load_method("llm-pruner", {"importance": "l1"})
    with pytest.raises(SnapfitError, match=r"the weight of l\.mlp\.up_proj holds NaN"):
        order_width_layer(method, [group], broken.__getitem__, {})
    with pytest.raises(SnapfitError, match=r"importance of l\.mlp is not finite"):
        to_ordered(group, torch.full((12,), torch.inf), unit="importance")


def test_equal_units_keep_their_order() -> None:
    item = to_ordered(mlp_group(), torch.ones(12), unit="importance")
    assert item.tensors["order"].tolist() == list(range(12))
