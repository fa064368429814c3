"""Which operators a profile should hold, and in which order."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from helpers import heads_group, mlp_group, rank_group

from snapfit.core.candidates import AlignRule, legal_sizes
from snapfit.core.errors import SnapfitError
from snapfit.core.good import nearest_good
from snapfit.core.latency import Stopwatch
from snapfit.core.operators import Attention, Elementwise, Estimate, Launch, Linear, Operator
from snapfit.core.profile import Profile, Timing
from snapfit.core.space import Frame, Space
from snapfit.core.stack import Stack
from snapfit.core.wanted import (
    Recorder,
    general_operators,
    halvings,
    model_operators,
    plan_operators,
)
from snapfit.core.workload import Workload

SHAPES = {
    "self_attn.q_proj": (64, 64),
    "self_attn.k_proj": (32, 64),
    "self_attn.v_proj": (32, 64),
    "self_attn.o_proj": (64, 64),
    "mlp.gate_proj": (96, 64),
    "mlp.up_proj": (96, 64),
    "mlp.down_proj": (64, 96),
}
FRAME = Frame(hidden=64, vocab=500, layers=2, heads=4, kv_heads=2, head_dim=16)
WORK = Workload.parse("prefill:1x32,decode:4x32")
RULES = (AlignRule(axis="rank", multiple=8, source="--align 8"),)


def llama(frame: Frame | None = FRAME) -> Space:
    groups = tuple(
        rank_group(f"l.{layer}.{name}", *shape, role=name.split(".")[1][:-5], layer=layer)
        for layer in range(2)
        for name, shape in SHAPES.items()
    )
    return Space(
        model="m",
        revision="r",
        architecture="llama",
        groups=groups,
        total_params=1,
        kv_elements=1,
        frame=frame,
    )


def products(operators: tuple[Operator, ...]) -> set[tuple[int, ...]]:
    return {op.shape for op in operators if isinstance(op, Linear)}


def test_model_needs_its_dense_operators_and_its_factors() -> None:
    found = model_operators(llama(), RULES, WORK, dtype="float32")
    assert len(set(found)) == len(found)
    shapes = products(found)
    assert {(32, 64, 64), (32, 96, 64), (32, 64, 96), (4, 96, 64)} <= shapes
    assert {(1, 500, 64), (4, 500, 64)} <= shapes, "the output layer reads the last tokens"
    # Ranks of 96 x 64: multiples of 8 up to break-even, 38.
    first = {n for m, n, k in shapes if (m, k) == (32, 64) and n < 64 and n % 8 == 0}
    assert {8, 16, 24, 32} == first
    assert {(32, 96, rank) for rank in (8, 16, 24, 32)} <= shapes
    assert all(n % 8 == 0 and k % 8 == 0 for _, n, k in shapes if n != 500)
    attention = [op for op in found if isinstance(op, Attention)]
    assert {(op.query, op.batch) for op in attention} == {(32, 1), (1, 4)}


def test_what_is_asked_later_is_there() -> None:
    found = set(model_operators(llama(), RULES, WORK, dtype="float32"))
    timer = Recorder("float32")
    whole = llama()
    watch = Stopwatch(whole=whole, groups=whole.groups, timer=timer, workload=WORK)
    watch.latency({group.name: 16 for group in whole.groups})
    assert timer.asked.keys() <= found


def test_a_whole_sweep_answers_for_every_size() -> None:
    """Where every size is legal, few points of a wide range are within a factor of small ranks."""
    group = rank_group("l.0.mlp.up_proj", 4096, 4096, role="up", layer=0)
    space = replace(llama(), groups=(group,))
    swept = model_operators(space, (), WORK, dtype="float32")
    timings = tuple(
        Timing.of(
            op, Estimate(microseconds=1 + op.flops / 1e6, spread=0, source="measured", how="")
        )
        for op in swept
    )
    made = Profile(device="cpu", software="", dtype="float32", rules=(), timings=timings)
    watch = Stopwatch(whole=space, groups=space.groups, timer=made, workload=WORK)
    sizes = legal_sizes(group, ())
    assert len(sizes) > 2000
    assert (np.diff(watch.table(group, sizes)[:-1]) >= 0).all()


def test_the_launch_comes_first_then_dense_work_then_coarse_before_fine() -> None:
    found = model_operators(llama(), RULES, WORK, dtype="float32")
    assert found[0] == Launch()
    dense = plan_operators(llama(), llama().groups, {}, WORK, dtype="float32")
    assert found[: len(dense)] == dense
    sizes = [op.flops + 40 * op.bytes(2) for op in dense[1:]]
    assert sizes == sorted(sizes, reverse=True)
    order = {op: index for index, op in enumerate(found)}
    ends, middle = Linear(m=32, n=32, k=64), Linear(m=32, n=24, k=64)
    assert order[ends] < order[middle]


def test_points_bound_the_sizes() -> None:
    every = products(model_operators(llama(), (), WORK, dtype="float32"))
    few = products(model_operators(llama(), (), WORK, dtype="float32", points=3))
    assert few < every
    ranks = {n for m, n, k in few if (m, k) == (32, 64) and n < 38}
    # Ends and middles of the ranks of 32, 64 and 96 rows, and the dense matrices' own 32 rows.
    assert ranks == {1, 11, 17, 20, 32}


def test_widths_and_heads_are_wanted_too() -> None:
    mlp, attention = mlp_group(64, 96), heads_group(64, 2, 2, 16)
    renamed = tuple(
        rank_group(f"l.{name}", *shape, role=name.split(".")[1][:-5])
        for name, shape in SHAPES.items()
    )
    space = Space(
        model="m",
        revision="r",
        architecture="llama",
        groups=(*renamed, mlp, attention),
        total_params=1,
        kv_elements=1,
        frame=FRAME,
    )
    found = model_operators(space, RULES, WORK, dtype="float32")
    assert {(32, width, 64) for width in (8, 48, 88)} <= products(found)
    assert {(32, 64, width) for width in (8, 48, 88)} <= products(found)
    heads = {(op.heads, op.kv_heads) for op in found if isinstance(op, Attention)}
    assert heads == {(4, 2), (2, 1)}


def test_a_plan_needs_only_its_sizes_and_the_dense_ones() -> None:
    whole = llama()
    sizes = {group.name: 24 if "down" in group.name else group.full for group in whole.groups}
    found = products(plan_operators(whole, whole.groups, sizes, WORK, dtype="float32"))
    dense = products(plan_operators(whole, whole.groups, {}, WORK, dtype="float32"))
    extra = {(m, n, k) for m in (32, 4) for n, k in ((24, 96), (64, 24))}
    assert found == dense | extra


def test_shards_are_one_devices_operators() -> None:
    found = products(model_operators(llama(), RULES, WORK, dtype="float32", shards=2))
    assert (32, 48, 64) in found
    assert (32, 96, 64) not in found


def test_a_space_without_a_frame_is_refused() -> None:
    with pytest.raises(SnapfitError, match="describe the model again"):
        model_operators(llama(None), RULES, WORK, dtype="float32")


def test_general_operators_are_of_the_workload() -> None:
    found = general_operators(WORK)
    assert found[0] == Launch()
    assert {op.m for op in found if isinstance(op, Linear)} == {32, 4}
    assert {op.query for op in found if isinstance(op, Attention)} == {32, 1}
    assert len(set(found)) == len(found)


@pytest.mark.parametrize(
    ("count", "points", "rounds"),
    [
        (1, 9, [[0]]),
        (2, 9, [[1, 0]]),
        (5, 9, [[4, 0], [2], [1, 3]]),
        (100, 5, [[99, 0], [50], [25, 74]]),
        (100, 1, [[99]]),
    ],
)
def test_halvings(count: int, points: int, rounds: list[list[int]]) -> None:
    assert halvings(count, points) == rounds


@pytest.mark.parametrize("count", [3, 17, 18, 33, 1000])
def test_halvings_are_spread_evenly(count: int) -> None:
    found = [index for level in halvings(count, 17) for index in level]
    assert len(set(found)) == len(found) == min(count, 17)
    ordered = sorted(found)
    gaps = [b - a for a, b in zip(ordered, ordered[1:], strict=False)]  # noqa: RUF007
    assert max(gaps) <= 2 * -(-count // 16)


def test_nearest_good_shape() -> None:
    rules = (
        AlignRule(axis="out", multiple=64, source="s"),
        AlignRule(axis="in", multiple=16, source="s"),
    )
    assert nearest_good(Linear(m=3, n=97, k=23), rules) == Linear(m=3, n=128, k=16)
    assert nearest_good(Linear(m=3, n=95, k=24), rules) == Linear(m=3, n=64, k=32)
    assert nearest_good(Linear(m=3, n=5, k=3), rules) == Linear(m=3, n=64, k=16)
    good = Linear(m=5, n=128, k=48)
    assert nearest_good(good, rules) == good
    heads = Attention(batch=1, query=8, context=8, heads=2, kv_heads=2, head_dim=107)
    near = nearest_good(heads, rules)
    assert isinstance(near, Attention)
    assert near.head_dim == 104
    assert nearest_good(heads, ()) == heads
    assert nearest_good(Elementwise(elements=3), rules) is None


@pytest.mark.parametrize(
    ("quant", "asked", "near"),
    [
        ("deepgemm", (192, 640), (192, 640)),  # N 64 and K 128
        ("deepgemm", (192, 600), (192, 640)),
        ("marlin", (192, 1280), (192, 1280)),  # the same, or N 128 and K 64
        ("gguf-k", (100, 500), (100, 512)),  # K 256
    ],
)
def test_nearest_good_shape_of_a_tile(
    quant: str, asked: tuple[int, int], near: tuple[int, int]
) -> None:
    found = nearest_good(Linear(m=3, n=asked[0], k=asked[1]), Stack(quant=quant).rules)
    assert found == Linear(m=3, n=near[0], k=near[1])
