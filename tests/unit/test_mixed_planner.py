"""Mixed plans under budgets stated as shares, and losses put on one scale by measurements."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from helpers import heads_group, mlp_group, rank_group
from timers import WaveTimer, llama, whole_llama

from snapfit.core.candidates import AlignRule
from snapfit.core.cost import CostModel
from snapfit.core.curve import NATS, Curve
from snapfit.core.errors import Infeasible, UsageError
from snapfit.core.latency import Stopwatch
from snapfit.core.measured import Loss, Point, calibrated, probe_sizes, typical_ratio
from snapfit.core.mixed import DROPPED, NARROWED, MixedSpace, ways
from snapfit.core.mixed_planner import Losses, MixedPlanner, allowed_by, one_kind
from snapfit.core.plan import alignment
from snapfit.core.space import Space
from snapfit.core.workload import Workload

RULES = (AlignRule(axis="rank", multiple=16, source="test"),)


def mixed(layers=3):
    """A Llama-like space of ranks, widths and heads over the same weights."""
    given = llama(layers, kinds=("rank", "width", "kv_heads"))
    return MixedSpace(**{name: getattr(given, name) for name in Space.__dataclass_fields__})


def losses_of(space, *, drop=0.5, seed=0):
    """Smooth curves of random steepness."""
    rng = np.random.default_rng(seed)
    curves = {}
    for group in space.groups:
        sizes = np.arange(group.least, group.full + 1)
        losses = rng.uniform(0.05, 0.4) * (1 - sizes / group.full) ** 2
        curves[group.name] = Curve(sizes=sizes, losses=losses, unit=NATS)
    layers = {group.layer for group in space.groups}
    return Losses(curves=curves, drops={layer: drop * rng.uniform(0.5, 2) for layer in layers})


def watched(space):
    watch = Stopwatch(
        whole=whole_llama(space.frame.layers),
        groups=space.groups,
        timer=WaveTimer(),
        workload=Workload.parse("prefill:1x256,decode:1x128"),
    )
    return MixedPlanner(space=space, rules=RULES, watch=watch)


@pytest.mark.parametrize("of", ["linear", "model"])
@pytest.mark.parametrize("share", [0.9, 0.6])
def test_parameters_are_counted_once(of, share):
    space = mixed()
    planner = MixedPlanner(space=space, rules=RULES, of=of)
    choice = planner.choose_mixed(
        {"params": share}, losses_of(space), allowed_by("factored", space)
    )
    dense = space.dense_params if of == "linear" else space.total_params
    left = space.params(choice.sizes) + dense - space.dense_params
    assert choice.costs["params"] == choice.params == space.params(choice.sizes)
    assert share * dense - 16 * 1024 < left <= share * dense
    assert planner.column("params").limit(share) >= choice.params


def test_bytes_and_kv_cache_at_once():
    space = mixed()
    planner = MixedPlanner(space=space, rules=RULES)
    shares = {"bytes": 0.8, "kv": 0.6}
    choice = planner.choose_mixed(shares, losses_of(space), allowed_by("factored", space))
    cost = CostModel(space=space)
    assert cost.weight_bytes(choice.sizes) <= 0.8 * cost.weight_bytes({})
    assert cost.kv_bytes_per_token(choice.sizes) <= 0.6 * cost.kv_bytes_per_token()
    assert choice.costs["kv"] == cost.kv_bytes_per_token(choice.sizes)


@pytest.mark.parametrize("share", [0.85, 0.6])
def test_latency_of_the_whole_plan_is_within_its_budget(share):
    space = mixed()
    planner = watched(space)
    choice = planner.choose_mixed(
        {"latency": share}, losses_of(space), allowed_by("factored", space)
    )
    assert planner.watch is not None
    dense = planner.watch.latency({}).microseconds
    found = planner.watch.latency(choice.sizes).microseconds
    assert found <= share * dense
    assert found > (share - 0.1) * dense


def test_dropping_a_layer_saves_all_of_its_time():
    space = mixed(2)
    planner = watched(space)
    gone = {"model.layers.1.self_attn": 0, "model.layers.1.mlp": 0}
    one = watched(mixed(1))
    assert planner.watch is not None
    assert one.watch is not None
    assert planner.watch.latency(gone).microseconds == pytest.approx(
        one.watch.latency({}).microseconds
    )


def test_what_cannot_be_met_says_what_can():
    space = mixed()
    planner = MixedPlanner(space=space, rules=RULES)
    few = one_kind(allowed_by("factored", space), "kv_heads")
    given = replace(losses_of(space), drops={})
    with pytest.raises(Infeasible, match=r"keeps within params=0\.3 of the dense model") as caught:
        planner.choose_mixed({"params": 0.3}, given, few)
    nearest = caught.value.nearest["params"]
    found = planner.choose_mixed({"params": nearest}, given, few)
    assert found.params <= nearest * space.dense_params
    assert set(ways(space, found.sizes).values()) == {NARROWED}
    with pytest.raises(Infeasible, match=r"nearest that can be met is kv=1;"):
        planner.choose_mixed({"kv": 0.5}, given, one_kind(allowed_by("factored", space), "rank"))


def test_only_what_is_allowed_alone_is_removed_alone():
    space = mixed()
    steep = losses_of(space, drop=1e-6)
    curves = {
        name: Curve(sizes=c.sizes, losses=np.where(c.sizes == 0, 1e-9, c.losses * 0), unit=NATS)
        for name, c in steep.curves.items()
    }
    everything = frozenset(group.name for group in space.groups if group.least == 0)
    assert everything
    for alone, found in ((everything, True), (frozenset(), False)):
        allowed = allowed_by("factored", space, alone=alone)
        zero = [allowed(g, np.array([0, 4, g.full])).tolist()[0] == 0 for g in space.groups]
        assert any(zero) is found
    planner = MixedPlanner(space=space, rules=RULES)
    dropping = one_kind(allowed_by("factored", space))
    choice = planner.choose_mixed(
        {"params": 0.5}, Losses(curves=curves, drops=steep.drops), dropping
    )
    assert set(ways(space, choice.sizes).values()) == {DROPPED}


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("factored", {"rank", "width", "kv_heads"}),
        ("standalone", {"rank", "width", "kv_heads"}),
        ("folded", {"rank"}),
        ("decilm", {"width"}),
        ("stock", set()),
    ],
)
def test_formats_allow_what_they_hold(name, kinds):
    space = mixed()
    every = frozenset(group.name for group in space.groups if group.least == 0)
    allowed = allowed_by(name, space, alone=every)
    for group in space.groups:
        zero = [0] if group.least == 0 else []
        sizes = allowed(group, np.array([*zero, 2, group.full])).tolist()
        assert sizes[-1] == group.full
        assert (2 in sizes) == (group.kind in kinds)
        first = name == "decilm" and group.kind == "kv_heads" and group.layer == 0
        absent = name not in {"stock", "folded"} and group.least == 0 and not first
        assert (0 in sizes) == absent


def test_a_format_that_cannot_hold_the_model_is_refused():
    space = replace(mixed(), architecture="gpt2")
    with pytest.raises(UsageError, match="decilm holds Llama-like models only, not gpt2"):
        allowed_by("decilm", space)


def test_flops_and_alignment_count_every_weight_once():
    space = mixed(1)
    plain = llama(1)
    whole = {group.name: group.full for group in space.groups}
    assert CostModel(space=space).flops_per_token(whole) == CostModel(space=plain).flops_per_token(
        {}
    )
    assert alignment(space, whole, 16) == alignment(plain, {}, 16) == 1
    narrow = {**whole, "model.layers.0.mlp": 100}
    gone = 540 * 3 * 256 * 2
    assert CostModel(space=space).flops_per_token(narrow) == 2 * space.dense_params - gone
    # Four matrices of the attention fit; three of the narrowed MLP do not.
    assert alignment(space, narrow, 16) == pytest.approx(4 / 7)
    assert alignment(space, {**narrow, "model.layers.0.self_attn": 0}, 16) == 0


def test_a_curve_goes_through_what_was_measured():
    sizes = np.arange(0, 101)
    curve = Curve(sizes=sizes, losses=(100 - sizes) / 50, unit="activation")
    points = [Point(size=40, loss=Loss(nats=0.3)), Point(size=80, loss=Loss(nats=0.05))]
    found = calibrated(curve, points)
    assert found.unit == NATS
    assert found.at(40) == pytest.approx(0.3)
    assert found.at(80) == pytest.approx(0.05)
    assert found.at(90) == pytest.approx(0.025), "the ratio is constant beyond"
    assert 0.05 < float(found.at(60)) < 0.3
    assert found.at(100) == 0
    typical = typical_ratio([(curve, points)])
    assert typical == pytest.approx(np.sqrt(0.3 / 1.2 * 0.05 / 0.4))
    assert calibrated(curve, [], typical=typical).at(50) == pytest.approx(typical)
    assert typical_ratio([(curve, [])]) == 1


def test_a_size_that_no_method_predicts_is_what_was_measured():
    curve = Curve(sizes=np.array([1, 2, 4]), losses=np.array([0.2, 0.1, 0.0]), unit=NATS)
    gone = Point(size=0, loss=Loss(nats=0.7))
    found = calibrated(curve, [gone])
    assert found.sizes.tolist() == [0, 1, 2, 4]
    assert found.losses.tolist() == [0.7, 0.2, 0.1, 0.0]
    assert calibrated(curve, [gone], typical=2.0).losses.tolist() == [0.7, 0.4, 0.2, 0.0]
    assert typical_ratio([(curve, [gone])]) == 1, "it says nothing of what is predicted"
    flat = Curve(sizes=np.array([0, 4]), losses=np.zeros(2), unit=NATS)
    straight = calibrated(flat, [Point(size=2, loss=Loss(nats=0.5))])
    assert straight.at(2) == pytest.approx(0.5, rel=1e-9)


def test_sizes_to_measure_do_not_depend_on_rules():
    assert probe_sizes(rank_group("a", 576, 576), (0.5,), removed=False) == (144,)
    assert probe_sizes(mlp_group(channels=100, least=0), (0.5, 0.85), removed=True) == (0, 50, 85)
    assert probe_sizes(heads_group(kv_heads=2), (1 / 3, 2 / 3), removed=False) == (1,)
    assert probe_sizes(heads_group(kv_heads=2), (0.1, 1.0), removed=False) == ()
