"""Mixed plans: the composite knapsack against every combination, and what its answers mean."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snapfit.core.cost import group_params
from snapfit.core.curve import Curve
from snapfit.core.errors import Infeasible, UsageError
from snapfit.core.frontier import Front, either, merged, single, thinned
from snapfit.core.mixed import MixedSpace, covered_params, is_dropped, parts_of, reasons, ways
from snapfit.core.mixed_items import choose_mixed, layer_items
from snapfit.core.space import Group, Matrix

HIDDEN = 8


def rank(name, rows, cols, layer, role):
    matrix = Matrix(name=name, axis="rank", rows=rows, cols=cols)
    return Group(
        name=name, kind="rank", matrices=(matrix,), full=min(rows, cols), role=role, layer=layer
    )


def layer_groups(layer, *, least=0):
    """Attention of two heads (q, o) and an MLP of 12 channels (up, down), ranks and widths."""
    attention, mlp = f"m.layers.{layer}.self_attn", f"m.layers.{layer}.mlp"
    q = Matrix(name=f"{attention}.q", axis="out", rows=HIDDEN, cols=HIDDEN)
    o = Matrix(name=f"{attention}.o", axis="in", rows=HIDDEN, cols=HIDDEN)
    up = Matrix(name=f"{mlp}.up", axis="out", rows=12, cols=HIDDEN)
    down = Matrix(name=f"{mlp}.down", axis="in", rows=HIDDEN, cols=12)
    shared = {"layer": layer, "least": least}
    return [
        rank(q.name, q.rows, q.cols, layer, "q"),
        rank(o.name, o.rows, o.cols, layer, "o"),
        rank(up.name, up.rows, up.cols, layer, "up"),
        rank(down.name, down.rows, down.cols, layer, "down"),
        Group(name=attention, kind="kv_heads", matrices=(q, o), full=2, role="attention", **shared),
        Group(name=mlp, kind="width", matrices=(up, down), full=12, role="mlp", **shared),
    ]


def mixed_space(layers=2, *, least=0):
    groups = tuple(group for layer in range(layers) for group in layer_groups(layer, least=least))
    total = covered_params(groups) + 100
    return MixedSpace(
        model="toy",
        revision="r",
        architecture="a",
        groups=groups,
        total_params=total,
        kv_elements=4,
    )


CANDIDATES = {"rank": [2, 3], "kv_heads": [1], "width": [4, 8]}


def candidates(group):
    removed = [0] if group.least == 0 else []
    return np.array([*removed, *CANDIDATES[group.kind], group.full], dtype=np.int64)


def random_curves(space, seed):
    rng = np.random.default_rng(seed)
    curves = {}
    for group in space.groups:
        sizes = np.arange(group.least, group.full + 1)
        losses = np.sort(rng.integers(0, 40, len(sizes)))[::-1] / 8.0
        curves[group.name] = Curve(sizes=sizes, losses=np.append(losses[:-1], 0.0), unit="nats")
    return curves


def every_choice(groups, curves, drop, tables):
    """(costs, loss, sizes) of all that may become of a layer, by the definition."""
    found = []
    for combination in itertools.product(*(candidates(group).tolist() for group in groups)):
        sizes = dict(zip((group.name for group in groups), combination, strict=True))
        below = [group for group in groups if sizes[group.name] < group.full]
        clash = any(
            len({g.name if g.kind != "rank" else "rank" for g in part if g in below}) > 1
            for part in parts_of(groups)
        )
        if clash:
            continue
        loss = sum(float(curves[g.name].at(sizes[g.name])) for g in groups)
        if is_dropped(groups, sizes):
            if drop is None:
                continue
            loss = drop
        costs = tuple(
            sum(int(table(g, np.array([sizes[g.name]]))[0]) for g in groups) for table in tables
        )
        found.append((costs, loss, sizes))
    return found


def noisy_time(group, sizes):
    """A second cost that is not proportional to the first."""
    return np.where(sizes > 0, 5 + (sizes * 7) % 11 + 3 * (sizes == group.full), 0).astype(np.int64)


@settings(max_examples=12)
@given(
    seed=st.integers(0, 10**6),
    share=st.floats(0.0, 1.0),
    drops=st.tuples(*[st.none() | st.floats(0, 6)] * 2),
    two=st.booleans(),
)
def test_the_composite_solution_is_the_best_of_all_combinations(seed, share, drops, two):
    space = mixed_space()
    curves = random_curves(space, seed)
    tables = [group_params, noisy_time] if two else [group_params]
    items = layer_items(
        space,
        curves=curves,
        drops={layer: loss for layer, loss in enumerate(drops) if loss is not None},
        candidates=candidates,
        tables=tables,
    )
    full = [sum(int(t(g, np.array([g.full]))[0]) for g in space.groups) for t in tables]
    limits = [
        int(f - share * 0.6 * space.dense_params) if i == 0 else f for i, f in enumerate(full)
    ]
    if two:
        limits[1] = int(full[1] * (1 - 0.2 * share))
    everything = [
        every_choice([g for g in space.groups if g.layer == layer], curves, drops[layer], tables)
        for layer in range(2)
    ]
    fitting = [
        a[1] + b[1]
        for a, b in itertools.product(*everything)
        if all(x + y <= limit for x, y, limit in zip(a[0], b[0], limits, strict=True))
    ]
    budgets = dict(zip(("params", "time"), limits, strict=False))
    if not fitting:
        with pytest.raises(Infeasible):
            choose_mixed(space, items, budgets)
        return
    choice = choose_mixed(space, items, budgets)
    loss = 0.0
    for layer in range(2):
        groups = [g for g in space.groups if g.layer == layer]
        own = {g.name: choice.sizes[g.name] for g in groups}
        (match,) = [c for c in everything[layer] if c[2] == own]
        loss += match[1]
    assert loss == pytest.approx(min(fitting), rel=1e-9, abs=1e-12)
    assert choice.gap == 0
    assert all(choice.costs[name] <= limit for name, limit in budgets.items())


def test_totals_count_shared_weights_once():
    space = mixed_space(1)
    dense = 2 * HIDDEN * HIDDEN + 2 * 12 * HIDDEN
    assert space.dense_params == dense
    full = {group.name: group.full for group in space.groups}
    assert space.params(full) == dense
    attention, mlp = "m.layers.0.self_attn", "m.layers.0.mlp"
    assert space.params({**full, f"{mlp}": 4}) == dense - 2 * 8 * HIDDEN
    assert space.params({**full, f"{attention}.q": 3}) == dense - HIDDEN * HIDDEN + 3 * 2 * HIDDEN
    assert space.params({**full, attention: 0, mlp: 0}) == 0


def test_row_blocks_that_meet_count_once():
    matrix = {"axis": "out", "cols": 3}
    blocks = tuple(
        Matrix(name="qkv", rows=rows, start=start, **matrix)
        for start, rows in ((0, 4), (2, 6), (10, 2))
    )
    group = Group(name="g", kind="width", matrices=blocks, full=2, role="mlp", layer=0)
    assert covered_params([group, group]) == (8 + 2) * 3


def test_every_way_has_its_reason():
    space = mixed_space(3)
    sizes = {group.name: group.full for group in space.groups}
    sizes |= {"m.layers.0.self_attn.q": 2, "m.layers.0.mlp": 4}
    sizes |= {"m.layers.1.self_attn": 0, "m.layers.2.self_attn": 0, "m.layers.2.mlp": 0}
    assert ways(space, sizes) == {
        "m.layers.0.self_attn.q": "factored",
        "m.layers.0.mlp": "narrowed",
        "m.layers.1.self_attn": "removed",
        "m.layers.2.self_attn": "dropped",
        "m.layers.2.mlp": "dropped",
    }
    texts = reasons(space, sizes)
    assert set(texts) == set(sizes)
    assert texts["m.layers.0.self_attn.q"] == "factored: rank 2"
    assert texts["m.layers.0.self_attn.o"] == "dense, among factored matrices"
    assert texts["m.layers.0.mlp"] == "narrowed: 4 of 12"
    assert texts["m.layers.0.mlp.up"] == "does not apply: narrowed"
    assert texts["m.layers.1.mlp"].startswith("full:")
    assert texts["m.layers.2.mlp.down"] == "does not apply: dropped"


def test_what_cannot_be_asked():
    space = mixed_space(1, least=1)
    curves = random_curves(space, 0)
    asked = {"candidates": candidates, "tables": [group_params]}
    with pytest.raises(UsageError, match="layer 0 cannot be dropped"):
        layer_items(space, curves=curves, drops={0: 1.0}, **asked)
    first = space.groups[0].name
    curves[first] = curves[first].scaled(1.0, "output error")
    with pytest.raises(UsageError, match="'output error'; a mixed plan needs nats"):
        layer_items(space, curves=curves, drops={}, **asked)


def random_front(seed, size, columns, name="g"):
    rng = np.random.default_rng(seed)
    return Front(
        names=(name,),
        sizes_KG=np.arange(size)[:, None],
        costs_KJ=rng.integers(0, 60, (size, columns)),
        losses_K=rng.integers(0, 60, size) / 4.0,
    )


@given(seed=st.integers(0, 10**6), size=st.integers(1, 60), columns=st.integers(1, 3))
def test_a_front_is_what_nothing_dominates(seed, size, columns):
    front = random_front(seed, size, columns)
    kept = thinned(front)
    points = {(*c, loss) for c, loss in zip(front.costs_KJ.tolist(), front.losses_K, strict=True)}
    best = {
        p
        for p in points
        if not any(q != p and all(x <= y for x, y in zip(q, p, strict=True)) for q in points)
    }
    left = [(*c, loss) for c, loss in zip(kept.costs_KJ.tolist(), kept.losses_K, strict=True)]
    assert len(left) == len(set(left))
    assert set(left) == best
    for row, size_ in enumerate(kept.sizes_KG[:, 0]):
        assert (front.costs_KJ[size_] == kept.costs_KJ[row]).all()


@given(seed=st.integers(0, 10**6), columns=st.integers(1, 2), most=st.integers(3, 12))
def test_a_front_that_is_too_long_says_what_it_may_cost(seed, columns, most):
    front = random_front(seed, 300, columns)
    kept = thinned(front, most=most)
    spread = np.ptp(thinned(front).losses_K)
    assert len(kept) <= most or (columns > 1 and kept.slack >= spread)
    for costs_J, loss in zip(front.costs_KJ, front.losses_K, strict=True):
        cheaper = (kept.costs_KJ <= costs_J).all(1)
        assert (kept.losses_K[cheaper] <= loss + kept.slack + 1e-12).any()


def test_a_front_of_two_costs_is_thinned_as_far_as_it_can_be():
    rows = np.arange(200)
    front = Front(
        names=("g",),
        sizes_KG=rows[:, None],
        costs_KJ=np.stack([rows, 2 * rows], axis=1),
        losses_K=rows[::-1] / 199,
    )
    kept = thinned(front, most=10)
    assert 3 < len(kept) <= 10
    assert kept.slack < 1


def test_slack_adds_up_over_parts_but_not_over_ways():
    one, two = (
        thinned(
            Front(
                names=(name,),
                sizes_KG=np.arange(50)[:, None],
                costs_KJ=np.arange(50)[:, None],
                losses_K=np.arange(50)[::-1] * scale,
            ),
            most=3,
        )
        for name, scale in (("g", 1.0), ("h", 0.3))
    )
    assert one.slack > 0 < two.slack
    assert merged(one, two).slack == one.slack + two.slack
    assert either([one, two], {"g": 9, "h": 9}).slack == max(one.slack, two.slack)


def test_a_way_leaves_the_groups_of_the_others_alone():
    one = single("g", np.array([1]), np.array([[5]]), np.array([1.0]))
    two = single("h", np.array([2]), np.array([[4]]), np.array([2.0]))
    front = either([one, two], {"g": 9, "h": 7})
    assert front.names == ("g", "h")
    assert front.sizes_KG.tolist() == [[9, 2], [1, 7]]
