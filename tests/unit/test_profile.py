"""A profile as a timer: exact answers, honest ones between points, and none far away."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from snapfit.core.candidates import AlignRule
from snapfit.core.errors import CorruptFile, SnapfitError
from snapfit.core.operators import Attention, Elementwise, Estimate, Launch, Linear, Operator
from snapfit.core.profile import Profile, Timing


def timing(operator: Operator, microseconds: float, spread: float = 0.01) -> Timing:
    estimate = Estimate(
        microseconds=microseconds, spread=spread, source="measured", how="3 x 200 runs"
    )
    return Timing.of(operator, estimate)


def linear(n: int, k: int = 1024, m: int = 64) -> Linear:
    return Linear(m=m, n=n, k=k)


def attention(query: int, context: int, **changes: Any) -> Attention:
    sizes = {"batch": 1, "heads": 8, "kv_heads": 2, "head_dim": 64, "causal": True}
    return Attention(query=query, context=context, **(sizes | changes))


def profile(*timings: Timing, rules: tuple[AlignRule, ...] = ()) -> Profile:
    return Profile(device="gpu", software="", dtype="float16", rules=rules, timings=timings)


def test_a_measured_point_is_answered_as_measured() -> None:
    found = profile(timing(linear(512), 7.5, 0.04)).time(linear(512))
    assert found == Estimate(microseconds=7.5, spread=0.04, source="measured", how="3 x 200 runs")


def test_between_two_points_of_one_size_time_is_linear_and_a_model() -> None:
    timings = [timing(linear(n), t) for n, t in ((256, 99.0), (512, 10.0), (1024, 30.0))]
    found = profile(*timings).time(linear(640))
    assert found.microseconds == pytest.approx(15.0)
    assert found.source == "model"
    assert "N 512" in found.how
    assert "N 1024" in found.how
    # The two ends are 10 and 30: the truth may be at either.
    assert found.spread == pytest.approx(1.0 + 0.01)


def test_between_two_far_points_is_better_than_no_answer() -> None:
    far = profile(timing(linear(16), 4.0), timing(linear(4096), 100.0))
    found = far.time(linear(256))
    share = (256 - 16) / (4096 - 16)
    assert found.microseconds == pytest.approx(4.0 + share * 96.0)
    assert found.source == "model"
    assert found.spread > 5, "a staircase may lie anywhere between"
    with pytest.raises(SnapfitError, match="times nothing near"):
        far.time(linear(2))
    with pytest.raises(SnapfitError, match="times nothing near"):
        far.time(linear(256, k=2048))


def test_the_tighter_bracket_wins() -> None:
    wide = [timing(linear(640, k), t) for k, t in ((512, 1.0), (2048, 1.0))]
    tight = [timing(linear(n), t) for n, t in ((576, 20.0), (704, 22.0))]
    assert profile(*wide, *tight).time(linear(640)).microseconds == pytest.approx(21.0)


def test_off_every_line_work_scales_the_neighbours() -> None:
    # Far above the launch and bound by arithmetic: time is proportional to work.
    def exact(n: int, k: int) -> float:
        return 2 * 4096 * n * k / 1e6

    timings = [timing(linear(n, k, m=4096), exact(n, k)) for n in (512, 1024) for k in (512, 1024)]
    found = profile(*timings).time(linear(700, 900, m=4096))
    assert found.microseconds == pytest.approx(exact(700, 900), rel=1e-6)
    assert found.source == "model"
    assert found.spread > 0.01


def test_disagreeing_neighbours_widen_the_spread() -> None:
    agreeing = [timing(linear(n, k), float(n * k)) for n in (512, 1024) for k in (512, 1024)]
    noisy = [timing(linear(n, k), n * k * (3.0 if n == k else 1.0)) for n in (512, 1024)
             for k in (512, 1024)]  # fmt: skip
    where = linear(700, 900)
    assert profile(*noisy).time(where).spread > profile(*agreeing).time(where).spread + 0.3


@pytest.mark.parametrize(
    "operator",
    [
        linear(512 * 5),
        linear(512, k=64),
        attention(1, 64),
        attention(64, 64, causal=False),
        Elementwise(elements=100),
        Launch(),
    ],
)
def test_nothing_near_is_an_error_that_says_what_to_do(operator: Operator) -> None:
    known = profile(timing(linear(512), 7.5), timing(attention(64, 64), 9.0))
    with pytest.raises(SnapfitError, match=r"profile of gpu times nothing near .*snapfit profile"):
        known.time(operator)


def test_decoding_is_not_taken_from_prompts() -> None:
    chunk = timing(attention(2, 128), 50.0)
    with pytest.raises(SnapfitError, match="times nothing near"):
        profile(chunk).time(attention(1, 128))
    steps = (timing(attention(1, 64), 9.0), timing(attention(1, 256), 12.0))
    found = profile(chunk, *steps).time(attention(1, 128))
    assert found.microseconds == pytest.approx(10.0)


def test_one_neighbour_is_trusted_less_the_further_it_is() -> None:
    known = profile(timing(linear(512), 10.0, 0.01))
    for n in (640, 1024):
        assert known.time(linear(n)).spread == pytest.approx(0.1 * math.log(n / 512) + 0.01)


def test_a_broken_rule_costs_its_penalty_where_arithmetic_decides() -> None:
    rule = AlignRule(axis="out", multiple=8, source="sweep", penalty=2.0)
    heavy = [timing(linear(n, 4096, m=4096), float(n)) for n in (512, 1024)]
    # Bound by traffic: a product with one vector at the rate of the element-wise kernel.
    light = [timing(linear(n, 4096, m=1), 2 * (4096 * (n + 1) + n) / 1e4) for n in (512, 1024)]
    stream = timing(Elementwise(elements=10**6), 2e6 / 1e4)
    known = profile(*heavy, *light, stream, rules=(rule,))
    assert known.time(linear(768, 4096, m=4096)).microseconds == pytest.approx(768.0)
    assert known.time(linear(769, 4096, m=4096)).microseconds == pytest.approx(2 * 769.0)
    near = known.time(linear(768, 4096, m=1)).microseconds
    assert known.time(linear(769, 4096, m=1)).microseconds == pytest.approx(near, rel=0.01)


WHOLE = profile(
    timing(linear(512), 7.5),
    timing(attention(1, 64), 9.0),
    timing(Elementwise(elements=100, ops=2), 3.0),
    timing(Launch(), 2.5),
    rules=(AlignRule(axis="width", multiple=64, source="vendor", penalty=1.5),),
)


def test_every_kind_survives_json() -> None:
    again = Profile.from_json(json.loads(json.dumps(WHOLE.to_json())))
    assert again == WHOLE
    assert again.time(Launch()).microseconds == 2.5


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("timings", 0, "kind"), "gemm", "kind 'gemm'; it is one of linear"),
        (("timings", 0, "kind"), ["linear"], "kind"),
        (("timings", 0, "shape"), {"m": 1}, "shape must be a short list"),
        (("timings", 0, "shape"), [1] * 17, "shape must be a short list"),
        (("timings", 0, "shape"), [1, 2], "a shape of 3 sizes"),
        (("timings", 0, "shape"), [1, 2, 3.0], "k must be a positive whole number"),
        (("timings", 0, "shape"), [1, 2, 2**60], "k must be a positive whole number"),
        (("timings", 0, "shape"), [1, 2, [3]], "k must be a positive whole number"),
        (("timings", 1, "shape"), [1, 1, 64, 8, 2, 64, 7], "causal is 0 or 1"),
        (("timings", 1, "shape"), [1, 1, 64, 8, 2, 64, []], "causal is 0 or 1"),
        (("timings", 1, "shape"), [1, 1, 64, 8, 2, 64, True], "causal is 0 or 1"),
        (("timings", 1, "shape"), [1, 9, 4, 8, 2, 64, 1], "context 4 lacks"),
        (("timings", 0, "spread"), -0.1, "spread must be a number of at least 0"),
        (("timings", 0, "spread"), float("nan"), "spread must be a number"),
        (("timings", 0, "microseconds"), 10**400, "microseconds must be a number"),
        (("timings", 0, "microseconds"), "7", "microseconds must be a number"),
        (("timings", 0, "how"), 3, "how must be a short line"),
        (("rules", 0, "axis"), "depth", "axis 'depth'; it is one of in, out, rank, width, heads"),
        (("rules", 0, "axis"), ["in"], "rule has axis"),
        (("rules", 0, "penalty"), 0.5, "penalty must be a number of at least 1"),
        (("rules", 0, "penalty"), True, "penalty must be a number"),
    ],
)
def test_a_hostile_file_is_refused(place: tuple[Any, ...], value: Any, message: str) -> None:
    data = json.loads(json.dumps(WHOLE.to_json()))
    entry: Any = data
    for step in place[:-1]:
        entry = entry[step]
    entry[place[-1]] = value
    with pytest.raises(CorruptFile, match=message):
        Profile.from_json(data)


def test_an_operator_may_be_timed_once_only() -> None:
    data = WHOLE.to_json()
    data["timings"].append(data["timings"][0])
    with pytest.raises(CorruptFile, match="times linear M 64 N 512 K 1024 twice"):
        Profile.from_json(data)
