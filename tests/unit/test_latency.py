"""The time of a model, and of what one group decides."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from timers import WIDTH, WaveTimer, key_blocks, llama, whole_llama

from snapfit.core.cost import CostModel
from snapfit.core.latency import Stopwatch
from snapfit.core.operators import Elementwise, Linear
from snapfit.core.space import Space
from snapfit.core.workload import Workload

LAYER = "model.layers.0"


def watch_of(space: Space, text: str = "prefill:1x64", whole: Space | None = None) -> Stopwatch:
    return Stopwatch(
        whole=whole or space,
        groups=space.groups,
        timer=WaveTimer(),
        workload=Workload.parse(text),
    )


def test_the_time_of_a_model_is_the_sum_of_its_operators() -> None:
    watch = watch_of(llama(2))
    latency = watch.latency({})
    (phase,) = watch.workload.phases
    expected = {"linear": 0.0, "attention": 0.0, "elementwise": 0.0, "head": 0.0}
    for name, counted in watch.operators({}, phase).items():
        for operator, times in counted:
            kind = "head" if name == "head" else operator.kind
            expected[kind] += times * watch.estimate(operator).microseconds
    assert latency.parts == pytest.approx(expected)
    assert latency.microseconds == pytest.approx(sum(expected.values()))
    # Two layers of q, k, v, o (5 + 1 waves' worth of tiles) and the MLP, by hand.
    by_hand = 2 * (2 * 256 / 20 * 1 + 2 * 256 / 20 * 1 + 2 * 256 / 20 * 2 + 640 / 20 * 1)
    assert latency.parts["linear"] == pytest.approx(by_hand)
    assert latency.shares == {"model": pytest.approx(1.0)}
    assert latency.spread == pytest.approx(0.05)
    assert latency.phases == {"prefill:1x64": pytest.approx(latency.microseconds)}


def test_phases_are_weighted() -> None:
    space = llama(1)
    one = watch_of(space, "prefill:1x64").latency({}).microseconds
    other = watch_of(space, "decode:4x64").latency({}).microseconds
    both = watch_of(space, "prefill:1x64*2,decode:4x64*0.5").latency({})
    assert both.microseconds == pytest.approx(2 * one + 0.5 * other)
    assert both.phases == {
        "prefill:1x64*2": pytest.approx(one),
        "decode:4x64*0.5": pytest.approx(other),
    }


def test_no_kernel_is_faster_than_a_launch() -> None:
    watch = watch_of(llama(1))
    fused = watch.estimate(Elementwise(elements=10, ops=3))
    assert fused.microseconds == 3 * 2.0
    assert fused.how.startswith("bound by the launch")
    assert watch.estimate(Linear(m=64, n=640, k=256)).microseconds == 2 * 256 / 20
    unknown = replace(watch, timer=WaveTimer(launch=None))
    assert unknown.estimate(Elementwise(elements=10)).microseconds == pytest.approx(1e-4)


def test_every_operator_is_asked_about_once() -> None:
    timer = WaveTimer()
    space = llama(3)
    watch = replace(watch_of(space), timer=timer)
    watch.latency({})
    for group in space.groups:
        watch.table(group, np.arange(1, group.full + 1))
    assert len(timer.asked) == len(set(timer.asked))


@pytest.mark.parametrize("kind", ["rank", "width", "kv_heads", "depth"])
def test_tables_add_up_to_the_whole(kind: str) -> None:
    """Between any two choices of sizes, the sum of tables changes by what the model's time does."""
    whole = whole_llama(2)
    space = whole.of_kind(kind)  # type: ignore[arg-type]
    watch = watch_of(space, "prefill:1x64,decode:4x64*3", whole)
    rng = np.random.default_rng(0)
    dense = watch.latency({}).microseconds
    full = sum(int(watch.table(g, np.array([g.full]))[0]) for g in space.groups)
    for _ in range(20):
        sizes = {g.name: int(rng.integers(g.least, g.full + 1)) for g in space.groups}
        total = sum(int(watch.table(g, np.array([sizes[g.name]]))[0]) for g in space.groups)
        saved = dense - watch.latency(sizes).microseconds
        # Rounded so that the sum never says faster than it is.
        assert -1e-6 <= 1000 * saved - (full - total) <= 2 * len(space.groups)


def test_tables_are_whole_and_rounded_up() -> None:
    space = llama(1)
    watch = watch_of(space)
    sizes = np.array([8, 9, 16, 256])
    table = watch.table(space.groups[5], sizes)  # up_proj: one wave for the first factor
    assert table.dtype == np.int64
    # 64 tokens: first factor 256 / 20, second two waves of k / 20; rank 9 is odd and costs double,
    # and no product is faster than a launch.
    assert table.tolist() == [14_800, 27_600, 14_800, 25_600]


def test_alike_groups_share_a_table_and_others_do_not() -> None:
    space = llama(2)
    watch = watch_of(space)
    sizes = np.array([64, 128])
    tables = {g.name: watch.table(g, sizes).tolist() for g in space.groups}
    for suffix in ("mlp.down_proj", "self_attn.k_proj"):
        assert tables[f"{LAYER}.{suffix}"] == tables[f"model.layers.1.{suffix}"]
    assert tables[f"{LAYER}.mlp.up_proj"] != tables[f"{LAYER}.mlp.down_proj"]


def test_noise_is_that_of_what_was_measured() -> None:
    space = llama(1)
    sizes = np.array([64, 128, 256])
    watch = watch_of(space)
    assert watch.noise(space.groups[0], sizes).tolist() == [0, 0, 0]
    measured = replace(watch, timer=WaveTimer(source="measured", spread=0.02))
    assert measured.noise(space.groups[0], sizes) == pytest.approx([0.02] * 3)


def test_row_blocks_of_equal_rank_are_timed_as_they_run() -> None:
    blocks = key_blocks(64)
    whole = llama(1)
    watch = watch_of(replace(whole, groups=blocks), whole=whole)
    saved = (
        watch.latency({}).microseconds
        - watch.latency({block.name: 16 for block in blocks}).microseconds
    )
    tables = [watch.table(block, np.array([16, 64])) for block in blocks]
    assert sum(int(t[1] - t[0]) for t in tables) == pytest.approx(1000 * saved, abs=2)


def test_cost_model_agrees_with_the_stopwatch() -> None:
    space = llama(2)
    workload = Workload.parse("prefill:1x64")
    sizes = {f"{LAYER}.mlp.up_proj": 64}
    found = CostModel(space=space).latency(sizes, WaveTimer(), workload)
    assert found == watch_of(space).latency(sizes)
    dense = CostModel(space=space).latency({}, WaveTimer(), workload)
    assert found.microseconds < dense.microseconds


def test_fewer_layers_save_their_share() -> None:
    whole = whole_llama(4)
    space = whole.of_kind("depth")
    watch = watch_of(space, whole=whole)
    dense, half = watch.latency({}), watch.latency({"model.layers": 2})
    assert half.parts["linear"] == pytest.approx(dense.parts["linear"] / 2)
    assert half.parts["head"] == dense.parts["head"]


def test_a_removed_mlp_takes_no_time() -> None:
    whole = whole_llama(1)
    space = whole.of_kind("width")
    watch = watch_of(space, whole=whole)
    assert watch.table(space.groups[0], np.array([0, WIDTH]))[0] == 0


@pytest.mark.parametrize(("part", "kind"), [("mlp", "width"), ("self_attn", "kv_heads")])
def test_parts_that_go_alone_save_their_own_time_only(part: str, kind: str) -> None:
    whole = whole_llama(4)
    (layers,) = whole.of_kind("depth").groups
    alone = replace(layers, matrices=tuple(m for m in layers.matrices if f".{part}." in m.name))
    workload = Workload.parse("prefill:1x256,decode:1x128")
    one = Stopwatch(whole=whole, groups=(alone,), timer=WaveTimer(), workload=workload)
    parts = whole.of_kind(kind).groups
    each = Stopwatch(whole=whole, groups=parts, timer=WaveTimer(), workload=workload)
    dense = one.latency({}).microseconds
    left = one.latency({alone.name: 2}).microseconds
    assert left == pytest.approx(each.latency({g.name: 0 for g in parts[:2]}).microseconds)
    saved = np.diff(one.table(alone, np.array([2, 4])))[0] / 1000
    assert left == pytest.approx(dense - saved, abs=0.01)
