"""Layouts of factored layers: shapes add up, and a stranger's file is checked."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapfit.core.errors import CorruptFile
from snapfit.core.layout import MAX_DIMENSION, Block, ModuleLayout

blocks = st.builds(
    lambda rows, rank: Block(rows=rows, rank=rank),
    st.integers(8, 64),
    st.one_of(st.none(), st.integers(1, 8)),
)


@given(st.integers(8, 64), st.lists(blocks, min_size=1, max_size=4), st.booleans())
def test_json_round_trip(inputs: int, parts: list[Block], bias: bool) -> None:
    layout = ModuleLayout(inputs=inputs, blocks=tuple(parts), bias=bias)
    assert ModuleLayout.from_json("m", layout.to_json()) == layout
    assert layout.outputs == sum(part.rows for part in parts)


def test_params_of_pairs_and_dense_blocks() -> None:
    layout = ModuleLayout(inputs=10, blocks=(Block(rows=4, rank=2), Block(rows=6, rank=None)))
    assert layout.params == 2 * 14 + 60
    assert layout.ranks == (2,)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([1, 2], "expected a table"),
        ({"out": 4, "rank": 2}, "'in' must be a positive integer, found None"),
        ({"in": 4, "out": 4.0, "rank": 2}, "'out' must be"),
        ({"in": True, "out": 4, "rank": 2}, "'in' must be"),
        ({"in": 4, "out": MAX_DIMENSION + 1, "rank": 2}, "'out' must be"),
        ({"in": 4, "out": 4, "rank": 0}, "'rank' must be"),
        ({"in": 4, "out": 4, "rank": 5}, "rank 5 exceeds a 4 x 4 block"),
        ({"in": 4, "out": 4, "blocks": []}, "non-empty list"),
        ({"in": 4, "out": 4, "blocks": [3]}, "a block must be a table"),
        ({"in": 4, "out": 4, "blocks": [{"rows": 3, "rank": 1}]}, "blocks have 3 rows"),
        ({"in": 4, "out": 4, "blocks": [{"rank": 1}]}, "'rows' must be"),
        ({"in": 4, "out": 4, "rank": 2, "blocks": [{"rows": 4}]}, "'blocks' and a 'rank'"),
        ({"in": 4, "out": 4, "blocks": [{"rows": 4, "size": 1}]}, "the unknown entry 'size'"),
        ({"in": 4, "out": 4, "rank": 2, "bias": "yes"}, "'bias' must be true or false"),
        ({"in": 4, "out": 4, "rank": 2, "scale": 3}, "unknown entry 'scale'"),
    ],
)
def test_malformed_layouts_are_refused(data: Any, message: str) -> None:
    with pytest.raises(CorruptFile, match=message):
        ModuleLayout.from_json("m", data)


def test_the_dense_layout_has_the_same_outer_shape() -> None:
    layout = ModuleLayout(inputs=10, blocks=(Block(rows=4, rank=2), Block(rows=6, rank=None)))
    assert layout.dense() == ModuleLayout(inputs=10, blocks=(Block(rows=10, rank=None),))
