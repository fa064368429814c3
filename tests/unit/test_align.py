"""`snapfit align`: aligned sizes for a table that any tool can write."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snapfit.core.align import align_dims
from snapfit.core.errors import Infeasible, UsageError


def group(name: str = "a", **changes: Any) -> dict[str, Any]:
    return {"name": name, "size": 107.3, "full": 256, "cost": 100, "score": 1.0} | changes


groups = st.lists(
    st.builds(
        lambda full, part, cost, score: {
            "size": max(part * full, 0.01), "full": full, "cost": cost, "score": score
        },
        st.integers(16, 512),
        st.floats(0.05, 1.0),
        st.integers(1, 5000),
        st.floats(0, 10),
    ),
    min_size=1,
    max_size=12,
)  # fmt: skip


@settings(max_examples=80)
@given(groups, st.sampled_from([1, 4, 8, 16]))
def test_sizes_are_aligned_and_within_budget(rows: list[dict[str, Any]], align: int) -> None:
    data = {"groups": [{"name": f"g{i}", **row} for i, row in enumerate(rows)]}
    try:
        out = align_dims(data, align=align)
    except Infeasible as error:
        least = sum(min(align, r["full"]) * r["cost"] for r in rows)
        assert error.nearest == {"params": float(least)}  # noqa: PT017
        assert least > sum(r["size"] * r["cost"] for r in rows) * (1 - 1e-9)
        return
    total = 0
    for row, source in zip(out["groups"], data["groups"], strict=True):
        assert row["size"] % align == 0 or row["size"] == source["full"]
        assert row["was"] == source["size"]
        assert row["params"] == row["size"] * source["cost"]
        total += row["params"]
    assert out["params"]["after"] == total <= out["budget"] <= out["params"]["before"] + 1e-3
    assert json.loads(json.dumps(out, allow_nan=False)) == out


def test_importance_decides_who_is_rounded_up() -> None:
    data = {"groups": [group("a", size=12, score=1), group("b", size=12, score=3)]}
    out = align_dims(data, align=8)
    assert [row["size"] for row in out["groups"]] == [8, 16]
    assert [row["reason"] for row in out["groups"]] == ["down from 12 to 8", "up from 12 to 16"]
    assert out["alignment"]["mod8"] == {"before": 0.0, "after": 1.0}
    assert out["alignment"]["mod16"] == {"before": 0.0, "after": 0.5}
    assert (out["schema"], out["align"], out["budget"]) == (1, 8, 2400)


def test_budgets() -> None:
    one = {"groups": [group(size=100.5)]}
    assert align_dims(one, align=8)["budget"] == 10050
    assert align_dims(one, keep=0.85, align=8)["budget"] == 21760
    assert align_dims(one | {"budget": 9000}, align=8)["groups"][0]["size"] == 88
    assert align_dims(one | {"budget": 25600}, align=8)["groups"][0]["size"] == 104


def test_a_rank_that_costs_as_much_as_dense_is_dense() -> None:
    rank = group(size=63.9, full=100, cost=200, dense=10000)
    out = align_dims({"groups": [rank]}, keep=1.0, align=8)
    assert out["groups"][0]["size"] == 100
    assert out["groups"][0]["params"] == out["params"]["dense"] == 10000
    out = align_dims({"groups": [rank], "budget": 9999}, align=8)
    assert out["groups"][0]["size"] == 48
    # As a pair, 48 of 200 would be aligned and cost just what the matrix does.
    even = rank | {"dense": 9600}
    out = align_dims({"groups": [even], "budget": 9600}, align=8)
    assert out["groups"][0]["size"] == 100


def test_sizes_that_are_not_exact_in_binary_are_not_a_parameter_short() -> None:
    size, cost = 10.2, 50
    assert size * cost < 510
    assert align_dims({"groups": [group(size=size, cost=cost)]}, align=1)["budget"] == 510


def test_out_of_reach_is_explained() -> None:
    with pytest.raises(Infeasible, match=r"multiples of 8 cannot meet the budget of 799 .* is 800"):
        align_dims({"groups": [group()], "budget": 799}, align=8)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], 'table with a list "groups"'),
        ({}, 'table with a list "groups"'),
        ({"groups": {}}, 'table with a list "groups"'),
        ({"groups": []}, "empty"),
        ({"groups": [7]}, "group 1 must be a table"),
        ({"groups": [group(name=None)]}, "group 1: name must be"),
        ({"groups": [group(name="a\nb")]}, "group 1: name must be"),
        ({"groups": [group(), group()]}, r"group 2 \(a\): the name is used twice"),
        ({"groups": [{"name": "a", "size": 1}]}, r"group 1 \(a\) lacks full, cost, score"),
        ({"groups": [group(full=0)]}, "full must be"),
        ({"groups": [group(full=2.5)]}, "full must be"),
        ({"groups": [group(full=1 << 40)]}, "full must be"),
        ({"groups": [group(cost=0)]}, "cost must be"),
        ({"groups": [group(cost=1.5)]}, "cost must be"),
        ({"groups": [group(cost=1 << 60)]}, "cost must be"),
        ({"groups": [group(size=0)]}, "size must be above 0 and at most full"),
        ({"groups": [group(size=257)]}, "size must be above 0 and at most full"),
        ({"groups": [group(size="12")]}, "size must be"),
        ({"groups": [group(size=float("nan"))]}, "size must be"),
        ({"groups": [group(score=-1)]}, "score must be 0 or more"),
        ({"groups": [group(score=float("inf"))]}, "score must be"),
        (
            {"groups": [group(score=1e308)]},
            "score must be 0 or more, up to 1e.100",
        ),
        ({"groups": [group(score=10**400)]}, "score must be"),
        ({"groups": [group(size=10**400)]}, "size must be"),
        ({"groups": [group(dense=99)]}, "dense must be"),
        ({"groups": [group()], "budget": 0}, "budget must be"),
        ({"groups": [group()], "budget": "12"}, "budget must be"),
        ({"groups": [group()], "budget": 10**400}, "budget must be"),
    ],
)
def test_malformed_tables_are_refused(data: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        align_dims(data)


def test_malformed_settings_are_refused() -> None:
    good = {"groups": [group()]}
    for kwargs, message in (
        ({"align": 0}, "--align must be"),
        ({"align": 2.5}, "--align must be"),
        ({"keep": 0.0}, "--keep must be"),
        ({"keep": 1.01}, "--keep must be"),
    ):
        with pytest.raises(UsageError, match=message):
            align_dims(good, **kwargs)
    with pytest.raises(UsageError, match="both were given"):
        align_dims(good | {"budget": 9000}, keep=0.5)
