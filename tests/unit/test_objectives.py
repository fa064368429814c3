"""Four ways to legal sizes, all within the budget."""

from __future__ import annotations

import math

import numpy as np
import pytest
from helpers import decaying_curves, rank_group, small_space
from hypothesis import given, settings
from hypothesis import strategies as st

from snapfit.core.candidates import AlignRule
from snapfit.core.errors import Infeasible, UsageError
from snapfit.core.objectives import Choice, choose
from snapfit.core.options import OBJECTIVES
from snapfit.core.space import Space
from snapfit.core.units import Unit

ALIGN_4 = (AlignRule(axis="rank", multiple=4, source="--align 4"),)


def draw(space: Space, seed: int) -> tuple[dict[str, float], dict[str, float]]:
    rng = np.random.default_rng(seed)
    sizes = {group.name: float(rng.uniform(0.5, 1.1 * group.break_even)) for group in space.groups}
    return sizes, {group.name: float(rng.lognormal()) for group in space.groups}


def run(objective: str, space: Space, share: float, seed: int = 0) -> tuple[Choice, int]:
    unaligned, scores = draw(space, seed)
    budget = int(space.dense_params * share)
    choice = choose(
        objective,
        space,
        budget=budget,
        rules=ALIGN_4,
        curves=decaying_curves(space, seed),
        unaligned=unaligned,
        scores=scores,
    )
    return choice, budget


@settings(max_examples=40)
@given(st.sampled_from(OBJECTIVES), st.floats(0.25, 1.0), st.integers(0, 1000), st.booleans())
def test_every_objective_is_legal_and_within_budget(
    objective: str, share: float, seed: int, tied: bool
) -> None:
    ties = (("model.layers.0.q_proj", "model.layers.2.q_proj"),) if tied else ()
    space = small_space(3, ties)
    choice, budget = run(objective, space, share, seed)
    assert choice.params == space.params(choice.sizes) <= budget
    assert list(choice.sizes) == [group.name for group in space.groups]
    assert choice.reasons.keys() == choice.sizes.keys()
    for group in space.groups:
        size = choice.sizes[group.name]
        assert size == group.full or size <= group.break_even
        assert objective == "none" or size == group.full or size % 4 == 0
        assert 0 < len(choice.reasons[group.name]) < 80
    for tie in ties:
        assert len({choice.sizes[name] for name in tie}) == 1


def test_curve_beats_every_other_objective() -> None:
    space = small_space(3)
    curves = decaying_curves(space)

    def loss(choice: Choice) -> float:
        return sum(float(curves[name].at(size)) for name, size in choice.sizes.items())

    best = loss(run("curve", space, 0.6)[0])
    for objective in ("gac", "round"):
        assert best <= loss(run(objective, space, 0.6)[0])
    free = choose("curve", space, budget=int(space.dense_params * 0.6), curves=curves)
    assert loss(free) <= best


def test_curve_keeps_everything_when_it_may() -> None:
    space = small_space(1)
    choice = choose("curve", space, budget=space.dense_params, curves=decaying_curves(space))
    assert choice.sizes == {group.name: group.full for group in space.groups}
    assert choice.reasons["model.layers.0.q_proj"] == "dense: costs less than any rank above 23"


def one_group(rows: int = 64, cols: int = 64) -> Space:
    return Space(
        model="toy",
        revision="r",
        architecture="llama",
        groups=(rank_group("g", rows, cols),),
        total_params=rows * cols,
        kv_elements=1,
    )


@pytest.mark.parametrize(
    ("objective", "wanted", "budget", "size", "reason"),
    [
        ("gac", 13.2, 16 * 128, 16, "up from 13.2 to 16"),
        ("gac", 13.2, 16 * 128 - 1, 12, "down from 13.2 to 12"),
        ("gac", 12.0, 12 * 128, 12, "12, as the method wants it"),
        ("gac", 12.0, 4096, 16, "up from 12 to 16"),
        ("gac", 29.0, 4096, 64, "dense: up from 29, break-even is 32.0"),
        ("gac", 50.0, 4096, 64, "dense, as the method wants it"),
        ("gac", 50.0, 4095, 28, "down from dense to 28"),
        ("gac", 20.0, 8 * 128, 8, "down from 20 to 8"),  # three windows down
        ("gac", 1.5, 4096, 4, "up from 1.5 to 4"),
        ("round", 13.2, 4096, 12, "down from 13.2 to 12"),
        ("round", 14.0, 4096, 12, "down from 14 to 12"),
        ("round", 14.1, 4096, 16, "up from 14.1 to 16"),
        ("round", 14.1, 15 * 128, 12, "down from 14.1 to 12"),
        ("round", 30.1, 4096, 64, "dense: up from 30.1, break-even is 32.0"),
        ("none", 13.9, 4096, 13, "down from 13.9 to 13"),
        ("none", 31.9, 4096, 31, "down from 31.9 to 31"),
        ("none", 32.0, 4096, 64, "dense, as the method wants it"),
        ("none", 32.0, 4095, 31, "down from dense to 31"),
        ("none", 0.3, 4096, 1, "up from 0.3 to 1"),
    ],
)
def test_one_group(objective: str, wanted: float, budget: int, size: int, reason: str) -> None:
    choice = choose(
        objective,
        one_group(),
        budget=budget,
        rules=ALIGN_4,
        unaligned={"g": wanted},
        scores={"g": 1.0},
    )
    assert choice.sizes == {"g": size}
    assert choice.reasons == {"g": reason}


def test_gac_rounds_up_what_is_worth_most() -> None:
    space = small_space(1)
    names = [group.name for group in space.groups if "k_proj" not in group.name]
    unaligned = dict.fromkeys([group.name for group in space.groups], 10.0)
    unaligned["model.layers.0.k_proj"] = 8.0
    budget = 10 * sum(sum((m.rows, m.cols)) for g in space.groups for m in g.matrices)
    for favourite in names:
        scores = {group.name: 5.0 if group.name == favourite else 1.0 for group in space.groups}
        choice = choose(
            "gac", space, budget=budget, rules=ALIGN_4, unaligned=unaligned, scores=scores
        )
        assert choice.sizes[favourite] == 12
        assert choice.params <= budget


def test_round_gives_up_the_least_worth_first() -> None:
    space = small_space(1)
    unaligned = {group.name: 7.5 for group in space.groups}
    scores = {group.name: float(2 + index) for index, group in enumerate(space.groups)}
    all_up = space.params({group.name: 8 for group in space.groups})
    kwargs = {"rules": ALIGN_4, "unaligned": unaligned, "scores": scores}
    assert set(choose("round", space, budget=all_up, **kwargs).sizes.values()) == {8}
    less = choose("round", space, budget=all_up - 1, **kwargs)
    # score x parameters of a step of 4: q 2*384, k 3*256, up 4*576, down 5*576; q and k are
    # equal, and the earlier goes first.
    assert [less.sizes[group.name] for group in space.groups] == [4, 8, 8, 8]


def test_budget_out_of_reach_names_the_nearest() -> None:
    space = small_space(1)
    least = {4: 4 * 448, 1: 448}  # one unit of all four groups
    unaligned, scores = draw(space, 0)
    for objective in OBJECTIVES:
        smallest = least[1 if objective == "none" else 4]
        kwargs = {
            "rules": ALIGN_4,
            "curves": decaying_curves(space),
            "unaligned": unaligned,
            "scores": scores,
        }
        with pytest.raises(Infeasible, match=f"nearest that can be met is params {smallest}") as e:
            choose(objective, space, budget=smallest - 1, **kwargs)
        assert e.value.nearest == {"params": float(smallest)}
        assert choose(objective, space, budget=smallest, **kwargs).params == smallest


def test_bad_requests_say_what_to_do() -> None:
    space = small_space(1)
    curves = decaying_curves(space)
    unaligned, scores = draw(space, 0)
    raw = decaying_curves(space, unit="output error")
    missing = {name: curve for name, curve in curves.items() if "down" not in name}
    for objective, kwargs, message in (
        ("best", {}, "unknown objective 'best'; choose from curve, gac, round, none"),
        ("curve", {}, "needs a loss curve for every group"),
        ("curve", {"curves": raw}, "'output error'.*cannot be added.*--method kfac"),
        ("curve", {"curves": missing}, "down_proj; it has none"),
        ("gac", {"scores": scores}, "needs the method's own unaligned sizes"),
        ("gac", {"unaligned": unaligned}, "needs a score for every group"),
        ("round", {"unaligned": {}}, "no unaligned size was given for model.layers.0.q_proj"),
        ("gac", {"unaligned": unaligned, "scores": {}}, "no score was given for"),
        (
            "none",
            {"unaligned": {**unaligned, "model.layers.0.k_proj": math.nan}},
            "unaligned size of model.layers.0.k_proj must be >= 0, found nan",
        ),
    ):
        with pytest.raises(UsageError, match=message):
            choose(objective, space, budget=10**6, rules=ALIGN_4, **kwargs)


def test_ties_of_unequal_full_size_are_refused() -> None:
    space = small_space(1, ties=(("model.layers.0.q_proj", "model.layers.0.k_proj"),))
    unaligned, scores = draw(space, 0)
    with pytest.raises(UsageError, match="one full size"):
        choose("round", space, budget=10**6, unaligned=unaligned, scores=scores)


def test_gac_looks_at_larger_sizes_too_where_they_take_less_time() -> None:
    """Two small products may be slower than one: then the dense matrix is all that fits."""

    def time(_: object, sizes: np.ndarray) -> np.ndarray:
        return np.where(sizes == 64, 5, 10 + sizes)

    kwargs = {"tables": {"latency": time}, "rules": ALIGN_4, "unaligned": {"g": 4.0}}
    choice = choose("gac", one_group(), budgets={"latency": 9}, scores={"g": 1.0}, **kwargs)
    assert choice.sizes == {"g": 64}
    with pytest.raises(Infeasible) as caught:
        choose("gac", one_group(), budgets={"latency": 4}, scores={"g": 1.0}, **kwargs)
    assert caught.value.nearest == {"latency": 5.0}


@pytest.mark.parametrize(
    ("wanted", "width", "near"),
    [
        (20.0, 1, [16, 24]),
        (16.0, 1, [8, 16, 24]),
        (16.0, 2, [8, 16, 24, 32]),
        (3.0, 1, [8]),
        (40.0, 1, [32, 64]),
    ],
)
def test_a_window_is_the_wanted_size_and_those_on_either_side(
    wanted: float, width: int, near: list[int]
) -> None:
    sizes = np.array([8, 16, 24, 32, 64])
    unit = Unit(
        names=("a",),
        sizes=sizes,
        costs=np.append(sizes[:-1] * 10, 400),
        limit=40.0,
        wanted=wanted,
        wanted_params=wanted * 10,
        score=1.0,
    )
    assert sizes[unit.window(width)].tolist() == near
