"""Budgets as people give them, and plans that keep them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
from helpers import decaying_curves
from oracle import optimum
from timers import WaveTimer, llama, whole_llama

from snapfit.core.budgets import column, parse_budgets
from snapfit.core.candidates import AlignRule
from snapfit.core.curve import NATS, Curve
from snapfit.core.errors import Infeasible, UsageError
from snapfit.core.knapsack import Item
from snapfit.core.latency import Stopwatch
from snapfit.core.objectives import choose
from snapfit.core.options import OBJECTIVES
from snapfit.core.planner import Planner
from snapfit.core.space import Space
from snapfit.core.workload import Workload

ALIGN_16 = (AlignRule(axis="rank", multiple=16, source="--align 16"),)
SIXTEENTHS = [i / 16 for i in range(1, 17)]


def planner_of(space: Space, whole: Space | None = None, **options: object) -> Planner:
    watch = Stopwatch(
        whole=whole or space,
        groups=space.groups,
        timer=WaveTimer(launch=0.5),
        workload=Workload.parse("prefill:1x512"),
    )
    return Planner(space=space, watch=watch, **{"rules": ALIGN_16, **options})


def allocation(space: Space, share: float) -> tuple[dict[str, float], dict[str, float]]:
    rng = np.random.default_rng(1)
    sizes = {g.name: share * g.break_even * rng.uniform(0.8, 1.2) for g in space.groups}
    return sizes, {g.name: float(rng.lognormal()) for g in space.groups}


def spread_loss(curves: Mapping[str, Curve], sizes: Mapping[str, int]) -> float:
    return math.fsum(float(curves[name].at(size)) for name, size in sizes.items())


def test_budgets_are_read() -> None:
    assert parse_budgets("latency=0.8") == {"latency": 0.8}
    assert list(parse_budgets("params=0.8, kv=0.5").items()) == [("params", 0.8), ("kv", 0.5)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0.8", "'0.8' is no budget; one looks like latency=0.8"),
        ("latencies=0.8", "unknown budget 'latencies'; did you mean 'latency'?"),
        ("latency=80", "above 0 and at most 1; found 'latency=80'"),
        ("latency=0", "found 'latency=0'"),
        ("latency=nan", "found 'latency=nan'"),
        ("kv=half", "found 'kv=half'"),
        ("kv=0.5,kv=0.6", "kv is given twice"),
        ("kv=0.5,params=0.6,bytes=1", "one budget, or two at once"),
    ],
)
def test_bad_budgets_are_named(text: str, message: str) -> None:
    with pytest.raises(UsageError) as error:
        parse_budgets(text)
    assert message in str(error.value)


def test_columns_count_what_they_say() -> None:
    space = llama(2)
    sizes = {g.name: 32 for g in space.groups}
    spent = space.params(sizes)
    outside = space.total_params - space.dense_params
    linear = column("params", space)
    assert (linear.dense, linear.outside) == (space.dense_params, 0)
    assert linear.limit(0.5) == space.dense_params // 2
    assert 0.29 * 100 < 29  # and yet 29 of 100 are 0.29 of it
    assert replace(linear, dense=100).limit(0.29) == 29
    model = column("params", space, of="model")
    assert model.share(spent) == pytest.approx((spent + outside) / space.total_params)
    stored = column("bytes", space, itemsize=4)
    assert stored.share(4 * spent) == pytest.approx(model.share(spent))
    with pytest.raises(UsageError, match="needs a target that knows times"):
        column("latency", space)


def test_the_kv_cache_shrinks_with_heads_and_layers() -> None:
    whole = whole_llama(2)
    heads = column("kv", whole.of_kind("kv_heads"), itemsize=2)
    group = whole.of_kind("kv_heads").groups[0]
    assert heads.dense == 2 * whole.kv_elements
    assert heads.outside == 0
    assert heads.table(group, np.array([0, 1, 4])).tolist() == [0, 128, 512]
    depth = column("kv", whole.of_kind("depth"))
    assert depth.table(whole.of_kind("depth").groups[0], np.array([0, 1, 2])).tolist() == [
        0, 512, 1024,
    ]  # fmt: skip


def test_mlps_that_go_alone_leave_the_kv_cache_as_it_is() -> None:
    space = whole_llama(4).of_kind("depth")
    sizes = np.array([0, 2, 4])
    for role, cached in (("mlp", [0, 0, 0]), ("attention", [0, 1024, 2048])):
        part = replace(space, groups=(replace(space.groups[0], role=role),))
        kv = column("kv", part)
        assert kv.table(part.groups[0], sizes).tolist() == cached
        assert kv.dense == 2 * space.kv_elements
        assert kv.share(cached[1]) == (1.0 if role == "mlp" else 0.5)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize(
    "shares",
    [{"latency": 0.7}, {"params": 0.6}, {"params": 0.6, "latency": 0.7}, {"bytes": 0.8}],
    ids=str,
)
def test_every_objective_keeps_every_budget(objective: str, shares: dict[str, float]) -> None:
    space = llama(2)
    planner = planner_of(space)
    unaligned, scores = allocation(space, 0.6)
    choice = planner.choose(
        objective,
        shares,
        curves=decaying_curves(space),
        unaligned=unaligned,
        scores=scores,
    )
    assert planner.watch is not None
    dense = planner.watch.latency({}).microseconds
    kept = {
        "latency": planner.watch.latency(choice.sizes).microseconds / dense,
        "params": space.params(choice.sizes) / space.dense_params,
        "bytes": planner.column("bytes").share(2 * space.params(choice.sizes)),
    }
    for name, share in shares.items():
        assert kept[name] <= share * (1 + 1e-9)
        assert choice.costs[name] <= planner.column(name).limit(share)
    if objective != "none":
        for group in space.groups:
            size = choice.sizes[group.name]
            assert size == group.full or size % 16 == 0


def test_two_budgets_are_solved_exactly() -> None:
    space = llama(1)
    planner = planner_of(space)
    curves = decaying_curves(space, 3)
    for shares in ({"params": 0.7, "latency": 0.75}, {"params": 0.5, "latency": 0.9}):
        columns = [planner.column(name) for name in shares]
        items = []
        for group in space.groups:
            sizes = planner.candidates(group)
            costs = np.stack([c.table(group, sizes) for c in columns], axis=1)
            losses = curves[group.name].at(sizes)
            items.append(Item(name=group.name, sizes=sizes, costs=costs, losses=losses))
        limits = [c.limit(shares[c.name]) for c in columns]
        choice = planner.choose("curve", shares, curves=curves)
        assert choice.edges
        assert spread_loss(curves, choice.sizes) == pytest.approx(optimum(items, limits))


def test_what_is_named_as_nearest_can_be_met() -> None:
    space = llama(1)
    planner = planner_of(space)
    kwargs = {"curves": decaying_curves(space)}
    for shares in ({"latency": 0.05}, {"params": 0.001}, {"params": 0.3, "latency": 0.05}):
        with pytest.raises(Infeasible, match=r"the nearest that can be met is \w+=0\.\d+") as e:
            planner.choose("curve", shares, **kwargs)
        for name, share in e.value.nearest.items():
            met = planner.choose("curve", {**shares, name: share}, **kwargs)
            assert met.costs[name] <= planner.column(name).limit(share)


def test_what_is_named_as_nearest_counts_operators_that_groups_share() -> None:
    """Row blocks of one module share a product: their own times add up to less than it takes."""
    whole = llama(1)
    halves = tuple(
        replace(group, name=f"{matrix.name}#k:{start}-{start + 64}", full=64, matrices=(half,))
        for group in whole.groups
        if group.role in {"k", "v"}
        for matrix in group.matrices
        for start in (0, 64)
        for half in (replace(matrix, rows=64, start=start),)
    )
    space = replace(whole, groups=halves)
    planner = planner_of(space, whole)
    curves = decaying_curves(space)
    # The sum of the tables is within these; the first choice of the solver takes longer.
    for share in (0.983, 0.984):
        with pytest.raises(Infeasible) as error:
            planner.choose("curve", {"latency": share}, curves=curves)
        nearest = error.value.nearest["latency"]
        assert nearest > share
        assert planner.choose("curve", {"latency": nearest}, curves=curves).sizes


def test_a_budget_that_nothing_can_change_says_so() -> None:
    planner = planner_of(llama(1))
    with pytest.raises(UsageError, match=r"kv cannot be met.*removes heads or layers"):
        planner.choose("curve", {"kv": 0.5}, curves=decaying_curves(planner.space))
    choice = planner.choose("curve", {"kv": 1.0}, curves=decaying_curves(planner.space))
    assert all(choice.sizes[group.name] == group.full for group in planner.space.groups)


def test_heads_meet_a_budget_of_the_cache() -> None:
    whole = whole_llama(4)
    space = whole.of_kind("kv_heads")
    curves = {
        g.name: Curve(sizes=np.arange(5), losses=(i + 1) * np.arange(4.0, -1, -1), unit=NATS)
        for i, g in enumerate(space.groups)
    }
    planner = planner_of(space, whole, rules=())
    choice = planner.choose("curve", {"kv": 0.5}, curves=curves)
    assert [choice.sizes[g.name] for g in space.groups] == [0, 0, 4, 4]


def test_plateau_edges_give_way_when_nothing_else_fits() -> None:
    """Where every pair is slower than dense, no edge is smaller than dense: still params= holds."""
    space = llama(1)
    watch = Stopwatch(
        whole=space,
        groups=space.groups,
        timer=WaveTimer(launch=50.0),
        workload=Workload.parse("decode:1x8"),
    )
    planner = Planner(space=space, rules=ALIGN_16, watch=watch)
    assert all(planner.candidates(g).tolist() == [g.full] for g in space.groups)
    choice = planner.choose("curve", {"params": 0.5}, curves=decaying_curves(space))
    assert choice.params <= space.dense_params // 2
    assert not choice.edges
    with pytest.raises(Infeasible, match="latency=1"):
        planner.choose("curve", {"latency": 0.9}, curves=decaying_curves(space))


def test_repair_steps_over_sizes_that_are_slower() -> None:
    """Dense to the largest rank costs time; the first step is to a rank that saves some."""
    space = llama(1)
    planner = planner_of(space, rules=())
    unaligned = {g.name: float(g.full) for g in space.groups}
    choice = planner.choose("round", {"latency": 0.8}, unaligned=unaligned)
    assert planner.watch is not None
    for group in space.groups:
        size = choice.sizes[group.name]
        ends = planner.watch.table(group, np.array([size, group.full]))
        assert size == group.full or ends[0] < ends[1]


def test_choose_wants_one_way_of_saying_the_budget() -> None:
    space = llama(1)
    curves = decaying_curves(space)
    for budgets in ({}, {"budget": 10**6, "budgets": {"params": 10**6}}):
        with pytest.raises(UsageError, match="either the budget"):
            choose("curve", space, curves=curves, **budgets)
    one = choose("curve", space, curves=curves, budget=150_000)
    assert one == choose("curve", space, curves=curves, budgets={"params": 150_000})
    assert one.costs == {"params": one.params}


def test_tighter_budgets_never_lose_less() -> None:
    space = llama(1)
    planner = planner_of(space)
    curves = decaying_curves(space, 5)
    losses = []
    for share in SIXTEENTHS:
        try:
            choice = planner.choose("curve", {"latency": share}, curves=curves)
        except Infeasible:
            assert not losses
            continue
        losses.append(spread_loss(curves, choice.sizes))
    assert len(losses) >= 8
    assert all(before >= after for before, after in itertools.pairwise(losses))
    assert losses[-1] == 0
