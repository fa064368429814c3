"""What sizes cost, counted."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import rank_group, small_space

from snapfit.core.cost import CostModel, group_params
from snapfit.core.space import Group, Matrix


def test_vectorised_params_equal_the_group_s_own() -> None:
    group = rank_group("g", 24, 40)
    sizes = np.arange(1, group.full + 1)
    assert group_params(group, sizes).tolist() == [group.params(int(size)) for size in sizes]


def test_kinds_without_a_cost_model_say_so() -> None:
    matrix = Matrix(name="m", axis="out", rows=12, cols=8)
    group = Group(name="g", kind="width", matrices=(matrix,), full=12, role="up", layer=0)
    assert group_params(group, np.array([12])).tolist() == [96]
    with pytest.raises(ValueError, match="no cost model"):
        group_params(group, np.array([4]))


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
