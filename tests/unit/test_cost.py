"""What sizes cost, counted."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import depth_group, heads_group, mlp_group, rank_group, small_space

from snapfit.core.cost import CostModel, group_params
from snapfit.core.space import Group


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
