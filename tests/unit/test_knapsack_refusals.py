"""What a knapsack refuses, and what it says can be met instead."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import realistic_items

from snapfit.core.errors import Infeasible, UsageError
from snapfit.core.knapsack import Item, solve


def test_infeasible_names_the_nearest_budget() -> None:
    items = realistic_items(2)
    least = sum(int(item.costs.min()) for item in items)
    with pytest.raises(Infeasible, match=f"params {least}") as caught:
        solve(items, {"params": least - 1})
    assert caught.value.nearest == {"params": float(least)}
    assert solve(items, {"params": least}).costs == {"params": least}


def test_infeasible_with_two_budgets_says_what_each_can_be() -> None:
    # Cheap in one is dear in the other: (1, 9), (5, 5), (9, 1).
    costs = np.array([[1, 9], [5, 5], [9, 1]])
    items = [Item(name=n, sizes=np.arange(3), costs=costs, losses=np.zeros(3)) for n in "ab"]
    with pytest.raises(Infeasible) as caught:
        solve(items, {"params": 9, "latency": 9})
    assert caught.value.nearest == {"params": 14.0, "latency": 14.0}
    with pytest.raises(Infeasible) as caught:
        solve(items, {"params": 1, "latency": 1})
    assert caught.value.nearest == {"params": 2.0, "latency": 2.0}
    with pytest.raises(Infeasible) as caught:
        solve(items, {"params": 1, "latency": 18})
    assert caught.value.nearest == {"params": 2.0}


def item(**changes: object) -> Item:
    fields = {
        "name": "g",
        "sizes": np.array([1, 2]),
        "costs": np.array([1, 2]),
        "losses": np.array([1.0, 0.0]),
    }
    return Item(**(fields | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sizes": np.array([], dtype=int), "losses": np.array([])}, "at least one"),
        ({"losses": np.array([1.0])}, "as many losses"),
        ({"costs": np.array([1, 2, 3])}, "costs have shape"),
        ({"costs": np.array([1.0, 2.0])}, "must be integers"),
        ({"sizes": np.array([1.5, 2.0])}, "must be integers"),
        ({"sizes": np.array([2, 2])}, "listed twice"),
        ({"costs": np.array([-1, 2])}, "negative"),
        ({"losses": np.array([np.nan, 0.0])}, "not finite"),
    ],
)
def test_malformed_items_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        item(**changes)


def test_malformed_problems_are_refused() -> None:
    good = item()
    for items, budgets, ties, message in (
        ([], [1], (), "nothing to choose"),
        ([good, good], [1], (), "two items are named 'g'"),
        ([good], [], (), "one or two budgets"),
        ([good], [1, 2, 3], (), "one or two budgets"),
        ([good], [1.5], (), "whole number"),
        ([good], [True], (), "whole number"),
        ([good], [1, 2], (), "1 cost columns for 2 budgets"),
        ([good], [5], [("g", "h")], "names 'h'"),
        ([good, item(name="h", sizes=np.array([3, 4]))], [9], [("g", "h")], "share no size"),
        ([item(costs=np.array([1, 1 << 60]))], [5], (), "too large"),
    ):
        with pytest.raises(UsageError, match=message):
            solve(items, budgets, ties)  # type: ignore[arg-type]
