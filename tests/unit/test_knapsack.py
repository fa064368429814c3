"""The knapsack equals HiGHS and never exceeds a budget."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import pytest
from helpers import realistic_items
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import optimum

from snapfit.core import knapsack_search
from snapfit.core.errors import Infeasible, SnapfitError
from snapfit.core.knapsack import Item, Solution, solve
from snapfit.core.knapsack_states import undominated
from snapfit.core.relaxation import Choices, relax


@dataclass(frozen=True)
class Instance:
    items: list[Item]
    budgets: list[int]
    ties: list[tuple[str, ...]]


def make_instance(seed: int, columns: int, shape: str, tied: bool) -> Instance:
    rng = np.random.default_rng(seed)
    largest = int(rng.choice([3, 40, 1000]))
    items = []
    for index in range(int(rng.integers(1, 9))):
        k = int(rng.integers(1, 8))
        sizes = rng.choice(12, k, replace=False)
        costs = rng.integers(0, largest + 1, (k, columns))
        losses = {
            "random": lambda n, c: rng.random(n),
            "levels": lambda n, c: rng.integers(0, 4, n).astype(float),
            "subset sum": lambda n, c: -c.sum(axis=1).astype(float),
            "correlated": lambda n, c: -c[:, 0] - largest / 10 * rng.random(n),
            "decaying": lambda n, c: rng.lognormal() * np.exp(-3 * c.sum(axis=1) / largest),
        }[shape](k, costs)
        items.append(Item(name=f"g{index}", sizes=sizes, costs=costs, losses=losses))
    ties = []
    if tied and len(items) > 2 and np.intersect1d(items[0].sizes, items[2].sizes).size:
        ties = [("g0", "g2")]
    low = np.sum([item.costs.min(axis=0) for item in items], axis=0)
    high = np.sum([item.costs.max(axis=0) for item in items], axis=0)
    share = rng.uniform(-0.05, 1.0, columns)
    return Instance(items, [int(x) for x in low + share * (high - low)], ties)


instances = st.builds(
    make_instance,
    seed=st.integers(0, 1 << 30),
    columns=st.sampled_from([1, 2]),
    shape=st.sampled_from(["random", "levels", "subset sum", "correlated", "decaying"]),
    tied=st.booleans(),
)


def check_against_oracle(case: Instance) -> Solution | Infeasible:
    expected = optimum(case.items, case.budgets, case.ties)
    try:
        answer = solve(case.items, case.budgets, case.ties)
    except Infeasible as error:
        assert expected is None, f"HiGHS found {expected}"
        return error
    assert expected is not None, "HiGHS says infeasible"
    assert answer.exact
    assert answer.loss == pytest.approx(expected, rel=1e-9, abs=1e-9)
    assert answer.bound <= answer.loss
    for (name, cost), budget in zip(answer.costs.items(), case.budgets, strict=True):
        column = list(answer.costs).index(name)
        rows = [int(np.flatnonzero(i.sizes == answer.sizes[i.name])[0]) for i in case.items]
        assert cost == sum(int(i.costs[r, column]) for i, r in zip(case.items, rows, strict=True))
        assert cost <= budget
    for tie in case.ties:
        assert len({answer.sizes[name] for name in tie}) == 1
    return answer


@settings(max_examples=150)
@given(instances)
def test_equals_highs(case: Instance) -> None:
    result = check_against_oracle(case)
    if isinstance(result, Solution):
        assert set(result.sizes) == {item.name for item in case.items}
    else:
        assert result.nearest


@settings(max_examples=60)
@given(instances)
def test_nearest_budget_is_reachable_and_tight(case: Instance) -> None:
    try:
        solve(case.items, [0] * len(case.budgets), case.ties)
    except Infeasible as error:
        nearest = error.nearest
    else:
        nearest = {}
    for name, value in nearest.items():
        column = int(name.split()[-1]) - 1
        budgets = [0] * len(case.budgets)
        budgets[column] = int(value) - 1
        with pytest.raises(Infeasible):
            solve(case.items, budgets, case.ties)
        budgets[column] = int(value)
        if len(budgets) == 1 or optimum(case.items, budgets, case.ties) is not None:
            assert solve(case.items, budgets, case.ties).costs[name] == value
        else:
            # Neither budget can be met alone: each one's own minimum was named.
            assert len(nearest) == 2


@pytest.mark.parametrize("width", [1, 4])
def test_what_a_round_has_to_leave_out_is_not_below_its_bound(width: int) -> None:
    exact = []
    for seed in range(8):
        rng = np.random.default_rng(seed)
        costs = rng.integers(0, 1000, (12, 5, 1))
        losses = -costs.sum(axis=2) + 30 * rng.random((12, 5))
        items = [
            Item(name=f"g{index}", sizes=np.arange(5), costs=costs[index], losses=losses[index])
            for index in range(12)
        ]
        budget = int(costs.mean() * 12)
        expected = optimum(items, [budget])
        assert expected is not None
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(knapsack_search, "ROUNDS", ((width, 1 << 30),))
            answer = solve(items, [budget])
        assert answer.bound - answer.tolerance <= expected + 1e-6
        exact.append(answer.exact)
    assert not all(exact), "nothing had to be left out"


@settings(max_examples=60)
@given(instances, st.integers(1, 6), st.integers(1, 4))
def test_narrow_rounds_still_prove_their_bound(case: Instance, width: int, depth: int) -> None:
    expected = optimum(case.items, case.budgets, case.ties)
    if expected is None:
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(knapsack_search, "ROUNDS", ((width, depth),))
        try:
            answer = solve(case.items, case.budgets, case.ties)
        except SnapfitError as error:
            # With two budgets feasibility itself is a search, and may stay undecided.
            assert "could not decide" in str(error)  # noqa: PT017
            return
    slack = 1e-9 * max(1.0, abs(expected))
    assert answer.bound - answer.tolerance <= expected + slack
    assert answer.loss >= expected - slack
    assert all(cost <= b for cost, b in zip(answer.costs.values(), case.budgets, strict=True))
    if answer.exact:
        assert answer.loss == pytest.approx(expected, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("share", [0.3, 0.5, 0.7, 0.9])
@pytest.mark.parametrize("step", [1, 4])
def test_realistic_curves_equal_highs(share: float, step: int) -> None:
    items = realistic_items(3, step)
    budget = int(share * sum(int(item.costs.max()) for item in items))
    result = check_against_oracle(Instance(items, [budget], []))
    assert isinstance(result, Solution)


def test_same_input_same_answer() -> None:
    items = realistic_items(10)
    budget = {"params": int(0.6 * sum(int(item.costs.max()) for item in items))}
    answers = [solve(items, budget) for _ in range(3)]
    assert answers[0] == answers[1] == answers[2]
    assert list(answers[0].sizes) == [item.name for item in items]


def test_of_equal_losses_the_cheaper_then_the_smaller_wins() -> None:
    item = Item(name="g", sizes=np.array([8, 4, 2]), costs=np.array([5, 3, 3]), losses=np.ones(3))
    assert solve([item], [10]).sizes == {"g": 2}


def test_larger_budget_never_loses_more() -> None:
    items = realistic_items(2)
    top = sum(int(item.costs.max()) for item in items)
    losses = [solve(items, [int(top * share)]).loss for share in np.linspace(0.2, 1.0, 15)]
    assert all(a >= b for a, b in itertools.pairwise(losses))
    assert losses[-1] == 0.0


def test_budget_is_met_to_the_unit() -> None:
    # One item of every cost 0..100: the whole budget is always reachable, and always taken.
    items = [
        Item(name=f"g{i}", sizes=np.arange(101), costs=np.arange(101), losses=-np.arange(101.0))
        for i in range(3)
    ]
    for budget in (0, 1, 57, 299, 300):
        assert solve(items, [budget]).costs == {"budget 1": budget}


def test_ties_share_one_size_through_a_chain() -> None:
    items = [
        Item(name=name, sizes=np.array(sizes), costs=np.array(sizes), losses=1.0 / np.array(sizes))
        for name, sizes in (("a", [1, 2, 4]), ("b", [4, 2]), ("c", [2, 4, 8]), ("d", [1, 8]))
    ]
    answer = solve(items, [21], ties=[("a", "b"), ("c", "b")])
    assert answer.sizes == {"a": 4, "b": 4, "c": 4, "d": 8}


def test_huge_costs_stay_exact() -> None:
    step = 10**11 + 7
    items = [
        Item(
            name=f"g{i}",
            sizes=np.arange(1, 9),
            costs=np.arange(1, 9) * step,
            losses=1.0 / np.arange(1, 9),
        )
        for i in range(20)
    ]
    answer = solve(items, [100 * step - 1])
    assert answer.costs["budget 1"] == 99 * step


def test_tiny_and_huge_losses_are_scaled() -> None:
    for factor in (1e-280, 1e-9, 1e200):
        items = [
            Item(name=i.name, sizes=i.sizes, costs=i.costs, losses=i.losses * factor)
            for i in realistic_items(2)
        ]
        budget = int(0.5 * sum(int(item.costs.max()) for item in items))
        scaled = solve(items, [budget])
        assert scaled.exact
        assert scaled.loss / factor == pytest.approx(solve(realistic_items(2), [budget]).loss)


@settings(max_examples=100)
@given(st.integers(0, 1 << 30), st.integers(1, 2), st.integers(1, 60))
def test_dominance_keeps_every_undominated_row(seed: int, columns: int, rows: int) -> None:
    rng = np.random.default_rng(seed)
    costs = rng.integers(0, 6, (rows, columns))
    losses = rng.integers(0, 6, rows).astype(float)
    kept = set(undominated(costs, losses).tolist())
    for row in range(rows):
        beats = np.all(costs <= costs[row], axis=1) & (losses <= losses[row])
        better = beats & (np.any(costs < costs[row], axis=1) | (losses < losses[row]))
        if not better.any():
            twins = set(np.flatnonzero(beats).tolist())
            assert kept & twins, "an undominated row vanished with all its twins"
        elif columns == 1:
            assert row not in kept


def test_of_equal_rows_the_first_stays() -> None:
    for costs in ([[3], [3], [3]], [[3, 1], [3, 1], [3, 1]]):
        assert undominated(np.array(costs), np.array([0.5, 0.5, 0.5])).tolist() == [0]


def test_relaxation_bound_is_below_and_close() -> None:
    items = realistic_items(8)
    starts = np.cumsum([0, *[len(i.sizes) for i in items]])
    choices = Choices(
        starts=starts,
        owner=np.repeat(np.arange(len(items)), np.diff(starts)),
        costs=np.concatenate([i.costs for i in items]),
        losses=np.concatenate([i.losses for i in items]),
        budgets=np.array([int(0.6 * sum(int(i.costs.max()) for i in items))]),
    )
    result = relax(choices, starts[:-1])
    best = solve(items, [int(choices.budgets[0])]).loss
    assert result.bound <= best * (1 + 1e-12)
    assert result.bound >= best * 0.99
    assert np.all(result.reduced >= -1e-12)
