"""Operators: what they count, what they refuse, and that they survive as kind and shape."""

from __future__ import annotations

from typing import Any

import pytest

from snapfit.core.errors import UsageError
from snapfit.core.operators import (
    Attention,
    Elementwise,
    Launch,
    Linear,
    Operator,
    operator_of,
)


def attention(**changes: Any) -> Attention:
    sizes = {
        "batch": 2, "query": 5, "context": 5, "heads": 6, "kv_heads": 3, "head_dim": 8,
    }  # fmt: skip
    return Attention(**(sizes | changes))


def test_linear_counts() -> None:
    product = Linear(m=3, n=5, k=7)
    assert product.flops == 2 * 3 * 5 * 7
    assert product.bytes(2) == 2 * (3 * 7 + 5 * 7 + 3 * 5)
    assert product == Linear(m=3, n=5, k=7)
    assert len({product, Linear(m=3, n=5, k=7), Linear(m=5, n=3, k=7)}) == 2


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("query", "context"), [(5, 5), (1, 9), (3, 9)])
def test_attention_counts_pairs_one_by_one(query: int, context: int, causal: bool) -> None:
    operator = attention(query=query, context=context, causal=causal)
    first = context - query
    pairs = sum(
        1
        for new in range(query)
        for old in range(context)
        if not causal or old <= first + new
    )  # fmt: skip
    assert operator.pairs == pairs
    assert operator.flops == 2 * 2 * (2 * 6 * 8) * pairs
    assert operator.bytes(1) == 2 * 8 * (2 * 6 * query + 2 * 3 * context)


@pytest.mark.parametrize(
    "operator",
    [
        Linear(m=1, n=2, k=3),
        attention(),
        attention(query=1, context=9, causal=False),
        Elementwise(elements=10, ops=3),
        Launch(),
    ],
)
def test_kind_and_shape_are_enough(operator: Operator) -> None:
    assert operator_of(operator.kind, operator.shape) == operator
    assert operator.bytes(2) >= 0
    assert str(operator)


@pytest.mark.parametrize("size", [0, -1, 2.0, True, "4", None, 2**41])
def test_sizes_are_positive_whole_numbers(size: Any) -> None:
    with pytest.raises(UsageError, match=r"linear: n must be a positive whole number"):
        Linear(m=1, n=size, k=1)
    with pytest.raises(UsageError, match=r"head_dim must be a positive whole number"):
        attention(head_dim=size)
    with pytest.raises(UsageError, match=r"ops must be a positive whole number"):
        Elementwise(elements=1, ops=size)


def test_attention_refuses_contradictions() -> None:
    with pytest.raises(UsageError, match="6 heads cannot share 4 key-value heads"):
        attention(kv_heads=4)
    with pytest.raises(UsageError, match="context 4 lacks the 5 new tokens"):
        attention(context=4)
    with pytest.raises(UsageError, match="causal is true or false, found 1"):
        attention(causal=1)


@pytest.mark.parametrize(
    ("kind", "shape", "message"),
    [
        ("conv", (1,), "unknown operator 'conv'; it is linear, attention"),
        ("linear", (1, 2), "a shape of 3 sizes is needed, found 2"),
        ("attention", (1, 1, 1, 1, 1, 1, 2), "causal is 0 or 1, found 2"),
        ("launch", (1,), "a shape of 0 sizes"),
    ],
)
def test_wrong_shapes_are_refused(kind: str, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        operator_of(kind, shape)
