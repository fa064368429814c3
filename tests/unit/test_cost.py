"""What sizes cost, counted."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from helpers import depth_group, heads_group, mlp_group, rank_group, small_space

from snapfit.core.cost import CostModel, group_kv, group_params
from snapfit.core.space import Frame, Group, Matrix, Space


def test_vectorised_params_equal_the_group_s_own() -> None:
    group = rank_group("g", 24, 40)
    sizes = np.arange(1, group.full + 1)
    assert group_params(group, sizes).tolist() == [group.params(int(size)) for size in sizes]


@pytest.mark.parametrize("group", [mlp_group(), heads_group(), depth_group()], ids=lambda g: g.kind)
def test_other_kinds_cost_what_is_left_of_them(group: Group) -> None:
    sizes = np.arange(group.least, group.full + 1)
    assert group_params(group, sizes).tolist() == [group.params(int(size)) for size in sizes]
    assert group.params(group.full) == group.dense_params


def test_a_narrower_mlp_loses_rows_and_columns() -> None:
    group = mlp_group(hidden=8, channels=12)
    assert group.params(5) == 3 * 8 * 5


def test_fewer_heads_lose_queries_keys_values_and_outputs() -> None:
    group = heads_group(hidden=32, kv_heads=2, queries=2, head_dim=6)
    assert group.params(1) == 2 * 32 * 12 + 2 * 32 * 6


def test_heads_hold_keys_and_values_however_they_are_fused() -> None:
    sizes = np.array([0, 1, 2])
    apart = heads_group(hidden=32, kv_heads=2, queries=3, head_dim=6)
    assert group_kv(apart, sizes, 0).tolist() == [0, 2 * 6, 2 * 2 * 6]
    # GPT-NeoX: query, key and value of a head after one another, in one matrix.
    fused = Matrix(name="l.attention.query_key_value", axis="out", rows=3 * 2 * 6, cols=12)
    output = Matrix(name="l.attention.dense", axis="in", rows=12, cols=2 * 6)
    neox = replace(apart, matrices=(fused, output))
    assert group_kv(neox, sizes, 0).tolist() == [0, 2 * 6, 2 * 2 * 6]


def test_fewer_layers_cost_what_the_schedule_says() -> None:
    assert depth_group(steps=(0, 10, 30, 40)).params(2) == 30


def test_costs_of_a_model() -> None:
    space = small_space(1)
    cost = CostModel(space=space, dtype_bytes=4)
    sizes = {"model.layers.0.q_proj": 8}
    saved = 48 * 48 - 8 * 96
    assert cost.params({}) == space.total_params
    assert cost.params(sizes) == space.total_params - saved
    assert cost.weight_bytes(sizes) == 4 * (space.total_params - saved)
    assert cost.flops_per_token(sizes) == 2 * (space.dense_params - saved)
    assert cost.flops_per_token({}, context=10) == 2 * space.dense_params + 2 * 64 * 10
    assert cost.kv_bytes_per_token() == 256


def mixture(per_token: int = 2) -> Space:
    """A projection of 64 weights and four experts of 3 x 96."""
    experts = "model.layers.0.mlp.experts"
    shapes = {"gate": (12, 8), "up": (12, 8), "down": (8, 12)}
    groups = [rank_group("model.layers.0.self_attn.q_proj", 8, 8, role="q")]
    groups += [
        rank_group(f"{experts}.{number}.{role}", *shape, role=role)
        for number in range(4)
        for role, shape in shapes.items()
    ]
    frame = Frame(
        hidden=8, vocab=9, layers=1, heads=1, kv_heads=1, head_dim=8, experts_per_token=per_token
    )
    return replace(small_space(1), groups=tuple(groups), frame=frame)


def test_a_token_goes_through_as_many_experts_as_count() -> None:
    space = mixture()
    assert CostModel(space=space).flops_per_token({}) == 2 * (64 + 2 * 3 * 96)
    # A pair of rank 2 in one expert of four, through which half of the tokens go.
    sizes = {"model.layers.0.mlp.experts.1.up": 2}
    gone = (96 - 2 * 20) / 2
    assert CostModel(space=space).flops_per_token(sizes) == 2 * (64 + 2 * 3 * 96 - gone)
    assert CostModel(space=mixture(0)).flops_per_token({}) == 2 * (64 + 4 * 3 * 96)


def test_fewer_experts_are_each_used_more_often() -> None:
    whole = mixture()
    experts = Group(
        name="model.layers.0.mlp.experts",
        kind="experts",
        matrices=tuple(
            replace(group.matrices[0], axis="whole") for group in whole.groups if group.role != "q"
        ),
        full=4,
        role="experts",
        layer=0,
    )
    cost = CostModel(space=replace(whole, groups=(experts,)), whole=whole)
    flops = [cost.flops_per_token({experts.name: size}) for size in (4, 3, 2, 1)]
    assert flops == [2 * 2 * 3 * 96, 2 * 2 * 3 * 96, 2 * 2 * 3 * 96, 2 * 3 * 96]
