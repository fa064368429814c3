"""Sweeps into a profile: what is timed, what is kept, what a second run does again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from snapfit.core.candidates import AlignRule
from snapfit.core.errors import CorruptFile, SnapfitError, UsageError
from snapfit.core.operators import Estimate, Launch, Linear, Operator
from snapfit.core.profile import Profile, Timing
from snapfit.core.progress import Silent
from snapfit.core.target import Target
from snapfit.hardware._live import LiveTimer, Samples
from snapfit.hardware._multiples import ROUND, TIERS, measured_rules, tier_operators
from snapfit.hardware._sweep import sweep

SHAPES = tuple(Linear(m=8, n=64, k=k) for k in (64, 128, 192, 256))
RULE = AlignRule(axis="in", multiple=16, source="published")


class TableTimer:
    """Knows what `table` does, and counts what it is asked."""

    device, dtype = "gpu", "float16"

    def __init__(self, table: dict[Operator, float]) -> None:
        self._table = table
        self.asked: list[Operator] = []

    def time(self, operator: Operator) -> Estimate:
        self.asked.append(operator)
        if operator not in self._table:
            raise SnapfitError(f"nothing is known near {operator}")
        return Estimate(
            microseconds=self._table[operator], spread=0.1, source="table", how="a table"
        )


def target(timer: TableTimer | LiveTimer | None, **facts: object) -> Target:
    data = {"name": "gpu", "device": "gpu", "dtype": "float16", "rules": (RULE,), **facts}
    return Target(timer=timer, **data)  # type: ignore[arg-type]


def full_table() -> dict[Operator, float]:
    return {shape: float(shape.k) for shape in SHAPES}


def test_everything_is_timed_in_order_with_its_source(tmp_path: Path) -> None:
    timer = TableTimer(full_table())
    done = sweep(target(timer), SHAPES, tmp_path / "p", seconds=None, progress=Silent())
    assert timer.asked == list(SHAPES)
    assert [t.operator for t in done.profile.timings] == list(SHAPES)
    assert {(t.source, t.how) for t in done.profile.timings} == {("table", "a table")}
    assert done.profile.rules == (RULE,)
    assert done.left == done.unknown == ()


def test_a_rerun_goes_on(tmp_path: Path) -> None:
    partial = tmp_path / "p.json.partial"
    first = TableTimer(full_table())
    sweep(target(first), SHAPES[:2], partial, seconds=None, progress=Silent())
    second = TableTimer(full_table())
    done = sweep(target(second), SHAPES, partial, seconds=None, progress=Silent())
    assert second.asked == list(SHAPES[2:])
    assert {t.operator for t in done.profile.timings} == set(SHAPES)


def test_what_was_timed_survives_an_interruption(tmp_path: Path) -> None:
    class Interrupted(TableTimer):
        def time(self, operator: Operator) -> Estimate:
            if operator == SHAPES[2]:
                raise KeyboardInterrupt
            return super().time(operator)

    partial = tmp_path / "p"
    with pytest.raises(KeyboardInterrupt):
        sweep(target(Interrupted(full_table())), SHAPES, partial, seconds=None, progress=Silent())
    kept = Profile.from_json(json.loads(partial.read_text()))
    assert [t.operator for t in kept.timings] == list(SHAPES[:2])


def test_time_that_is_over_leaves_the_rest_out(tmp_path: Path) -> None:
    done = sweep(
        target(TableTimer(full_table())), SHAPES, tmp_path / "p", seconds=0.0, progress=Silent()
    )
    assert done.left == SHAPES
    assert done.profile.timings == ()


def test_what_a_table_does_not_know_is_counted(tmp_path: Path) -> None:
    table = full_table()
    del table[SHAPES[1]]
    done = sweep(target(TableTimer(table)), SHAPES, tmp_path / "p", seconds=None, progress=Silent())
    assert done.unknown == (SHAPES[1],)
    assert len(done.profile.timings) == 3


@pytest.mark.parametrize(("fact", "value"), [("software", "other"), ("dtype", "bfloat16")])
def test_a_partial_file_of_something_else_is_refused(tmp_path: Path, fact: str, value: str) -> None:
    partial = tmp_path / "p"
    sweep(target(TableTimer(full_table())), SHAPES[:1], partial, seconds=None, progress=Silent())
    data = json.loads(partial.read_text())
    partial.write_text(json.dumps({**data, fact: value}))
    with pytest.raises(CorruptFile, match=f"begun with {fact} '{value}'.*delete it"):
        sweep(target(TableTimer(full_table())), SHAPES, partial, seconds=None, progress=Silent())


def test_a_damaged_partial_file_is_refused(tmp_path: Path) -> None:
    partial = tmp_path / "p"
    partial.write_text("{")
    with pytest.raises(CorruptFile, match="delete it to start again"):
        sweep(target(TableTimer({})), SHAPES, partial, seconds=None, progress=Silent())


def test_rules_alone_cannot_be_swept(tmp_path: Path) -> None:
    with pytest.raises(SnapfitError, match="gpu has rules but no times"):
        sweep(target(None), SHAPES, tmp_path / "p", seconds=None, progress=Silent())


class FakeClock:
    """A device that costs what `cost` says, and is measured without noise."""

    def __init__(self, cost: Callable[[Operator], float]) -> None:
        self._cost = cost
        self.asked: list[Operator] = []

    def samples(self, operator: Operator, dtype: str) -> Samples:
        self.asked.append(operator)
        time = self._cost(operator)
        return Samples(microseconds=[time * 0.99, time, time * 1.01], how=f"faked in {dtype}")

    def software(self) -> str:
        return "v1"


def tiered(worst: dict[int, float]) -> Callable[[Operator], float]:
    """Costs of products: `worst` names what sizes cost by their largest power of two."""

    def cost(operator: Operator) -> float:
        if not isinstance(operator, Linear):
            return 1.0
        factors = [worst.get(size & -size, 1.0) for size in (operator.n, operator.k)]
        return operator.n * operator.k * max(factors) / 1000

    return cost


def test_a_live_sweep_finds_the_multiples(tmp_path: Path) -> None:
    clock = FakeClock(tiered({1: 3.0, 2: 1.6, 4: 1.6, 8: 1.12}))
    live = LiveTimer("gpu", "float16", clock)
    done = sweep(target(live), SHAPES, tmp_path / "p", seconds=None, progress=Silent())
    rules = done.profile.rules
    expected = [(16, 1.12), (8, 1.6), (2, 3.0)]
    for axis in ("in", "out"):
        steps = [(rule.multiple, rule.penalty) for rule in rules if rule.axis == axis]
        assert steps == [(multiple, pytest.approx(cost)) for multiple, cost in expected]
    assert all(rule.measured and "8: x1.12" in rule.source for rule in rules)
    assert done.profile.software == "v1"
    assert all(t.source == "measured" for t in done.profile.timings)
    assert clock.asked[: len(SHAPES)] == list(SHAPES), "what was asked for comes first"


@pytest.mark.parametrize(("k", "cost"), [(2576, 1.0), (2568, 1.12), (2564, 1.6), (2563, 3.0)])
def test_a_swept_profile_knows_what_each_multiple_costs(
    tmp_path: Path, k: int, cost: float
) -> None:
    live = LiveTimer("gpu", "float16", FakeClock(tiered({1: 3.0, 2: 1.6, 4: 1.6, 8: 1.12})))
    # Products near those of the tiers, where arithmetic is all of the time.
    shapes = tuple(Linear(m=512, n=2048, k=k) for k in (2048, 3072))
    done = sweep(target(live), shapes, tmp_path / "p", seconds=None, progress=Silent())
    found = done.profile.time(Linear(m=512, n=2048, k=k))
    assert found.microseconds == pytest.approx(cost * 2048 * k / 1000, rel=0.02)


@pytest.mark.parametrize(
    ("name", "capability", "expected"),
    [
        ("a100_sxm", 80, [(16, 1.12), (8, 1.6), (2, 3.0), (16, 1.09), (8, 1.7), (2, 3.1)]),
        ("NVIDIA H100 80GB HBM3", 90, [(8, 2.1), (2, 3.4)] * 2),
        ("l40s", 89, [(16, 1.12), (8, 1.6), (2, 3.0), (16, 1.09), (8, 1.7), (2, 3.1)]),
    ],
)
def test_a_profile_of_a_gpu_has_the_published_tiers(
    tmp_path: Path, name: str, capability: int, expected: list[tuple[int, float]]
) -> None:
    place = target(TableTimer(full_table()), device=name, capability=capability)
    rules = sweep(place, SHAPES, tmp_path / "p", seconds=None, progress=Silent()).profile.rules
    assert [(rule.multiple, rule.penalty) for rule in rules] == expected
    assert [rule.axis for rule in rules] == sorted(rule.axis for rule in rules)
    assert all(("borrowed" in rule.source) == (name == "l40s") for rule in rules)
    assert not any(rule.measured for rule in rules)


def test_a_live_sweep_cut_short_keeps_the_published_rules(tmp_path: Path) -> None:
    live = LiveTimer("gpu", "float16", FakeClock(tiered({1: 3.0})))
    done = sweep(target(live), SHAPES, tmp_path / "p", seconds=0.0, progress=Silent())
    assert done.profile.rules == (RULE,)
    assert set(tier_operators()) <= set(done.left)


@pytest.mark.parametrize(
    ("worst", "multiple"),
    [
        ({}, 1),
        ({1: 1.04, 2: 1.03}, 1),  # too little to be worth a rule
        ({1: 3.0, 2: 2.0, 4: 2.0}, 8),
        ({1: 2.0}, 2),
        ({64: 1.5}, 1),  # no tier: the best multiple is the odd one
        ({1: 3.0, 2: 2.0, 4: 2.0, 64: 1.5}, 8),  # no tier, and those below are what they are
    ],
)
def test_measured_rules(tmp_path: Path, worst: dict[int, float], multiple: int) -> None:
    live = LiveTimer("gpu", "float16", FakeClock(tiered(worst)))
    done = sweep(target(live), (), tmp_path / "p", seconds=None, progress=Silent())
    rules = measured_rules(done.profile)
    assert done.profile.rules == rules
    for axis in ("in", "out"):
        own = [rule for rule in rules if rule.axis == axis]
        assert max(rule.multiple for rule in own) == multiple
        assert all((rule.penalty is None) == (multiple == 1) for rule in own)


def test_noise_is_no_rule() -> None:
    timings = []
    for operator in tier_operators():
        assert isinstance(operator, Linear)
        odd = min(operator.n, operator.k) % 2
        timings.append(
            Timing(
                kind="linear",
                shape=operator.shape,
                microseconds=1.2 if odd else 1.0,
                spread=0.1,
                source="measured",
            )
        )
    noisy = Profile(device="cpu", software="", dtype="float32", rules=(), timings=tuple(timings))
    assert [rule.multiple for rule in measured_rules(noisy)] == [1, 1]


def test_tiers_are_exact_powers_of_two() -> None:
    for tier in TIERS:
        size = ROUND - tier
        assert size & -size == tier


def test_a_live_timer_measures_once() -> None:
    clock = FakeClock(tiered({}))
    live = LiveTimer("gpu", "float16", clock)
    first, second = live.time(SHAPES[0]), live.time(SHAPES[0])
    assert first is second
    assert clock.asked == [SHAPES[0]]
    assert first.microseconds == pytest.approx(64 * 64 / 1000)
    assert first.spread == pytest.approx(0.005)
    assert (first.source, first.how) == ("measured", "faked in float16")


def test_a_live_timer_in_another_type() -> None:
    clock = FakeClock(tiered({}))
    live = LiveTimer("gpu", "float16", clock)
    assert live.with_dtype("float16") is live
    other = live.with_dtype("float32")
    assert other.time(Launch()).how == "faked in float32"
    with pytest.raises(UsageError, match="timed in float32, bfloat16, float16, not in 'int4'"):
        live.with_dtype("int4")
