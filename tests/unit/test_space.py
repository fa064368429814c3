"""Spaces: parameters, break-even, and the way to JSON and back."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from helpers import depth_group, heads_group, mlp_group, rank_group, small_space
from hypothesis import given
from hypothesis import strategies as st

from snapfit.core.errors import CorruptFile
from snapfit.core.space import Frame, Group, Matrix, Space, Vector


@given(st.integers(2, 300), st.integers(2, 300))
def test_break_even_is_the_last_rank_that_saves(rows: int, cols: int) -> None:
    group = rank_group("g", rows, cols)
    rank = group.break_even
    assert 0 <= rank < group.full
    assert rank * (rows + cols) < rows * cols
    assert (rank + 1) * (rows + cols) >= rows * cols or rank + 1 == group.full


@pytest.mark.parametrize("size", [0, -1, 17])
def test_sizes_out_of_range_are_a_programming_error(size: int) -> None:
    with pytest.raises(ValueError, match=r"outside 1\.\.16"):
        rank_group("g", 16, 48).params(size)


def test_groups_of_several_matrices_add_up() -> None:
    pair = tuple(Matrix(name=n, axis="rank", rows=8, cols=12) for n in "ab")
    group = Group(name="ab", kind="rank", matrices=pair, full=8, role="other", layer=0)
    assert group.dense_params == 192
    assert group.params(2) == 2 * 20 * 2
    assert group.params(8) == 192


def test_json_round_trip() -> None:
    space = small_space(2, ties=(("model.layers.0.q_proj", "model.layers.1.q_proj"),))
    assert Space.from_json(json.loads(json.dumps(space.to_json()))) == space
    assert space.params({}) == space.dense_params
    assert space.params({"model.layers.0.q_proj": 1}) == space.dense_params - 48 * 48 + 96


@pytest.mark.parametrize("field", ["groups", "ties", "model"])
def test_missing_fields_are_corrupt(field: str) -> None:
    data = small_space(1).to_json()
    del data[field]
    with pytest.raises(CorruptFile, match="not a snapfit space"):
        Space.from_json(data)


def test_a_frame_and_every_kind_survive_json() -> None:
    frame = Frame(hidden=32, vocab=64, layers=3, heads=8, kv_heads=4, head_dim=6)
    vector = Vector(name="l.self_attn.q_norm.weight", length=48)
    heads = replace(heads_group(least=0), vectors=(vector,))
    groups = (rank_group("g", 4, 8), mlp_group(), heads, depth_group())
    space = replace(small_space(1), groups=groups, frame=frame)
    assert Space.from_json(json.loads(json.dumps(space.to_json()))) == space


def test_a_space_can_be_cut_to_some_kinds() -> None:
    space = replace(small_space(1), groups=(rank_group("g", 4, 8), mlp_group(), depth_group()))
    assert [group.kind for group in space.of_kind("width", "depth").groups] == ["width", "depth"]
