"""Schedules: what is gone at every size, and files written by strangers."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from snapfit.core.combination import collapse, untouched
from snapfit.core.errors import CorruptFile, SnapfitError
from snapfit.core.schedule import Depth, Schedule


def merging() -> Schedule:
    merged = collapse(untouched(range(5)), 2, 3)
    again = collapse(merged, 0, 3)
    return Schedule(
        full=5,
        sizes={
            5: Depth(layers=untouched(range(5))),
            3: Depth(layers=merged),
            1: Depth(layers=again),
        },
        losses={5: 0.0, 3: 0.25, 1: 0.5},
        unit="1 - cosine",
        notes={3: "T 0.65"},
    )


def silencing() -> Schedule:
    names = tuple(f"model.layers.{layer}.mlp" for layer in (2, 0))
    return Schedule(
        part="mlp",
        full=3,
        sizes={3 - n: Depth(layers=untouched(range(3)), removed=names[:n]) for n in range(3)},
        losses={3: 0.0, 2: 1.0, 1: 3.0},
        unit="weight norm",
        scores=(2.0, 5.0, 1.0),
        meaning="sum of abs(w)",
    )


@pytest.mark.parametrize("schedule", [merging(), silencing()], ids=["merge", "mlp"])
def test_a_schedule_survives_its_file(schedule: Schedule) -> None:
    assert Schedule.from_json(json.loads(json.dumps(schedule.to_json()))) == schedule


def test_sizes_that_are_not_reached_are_refused_with_those_that_are() -> None:
    with pytest.raises(SnapfitError, match=r"cannot remove 3 of 5 layers; it can remove: 0, 2, 4"):
        merging().at(2)
    with pytest.raises(SnapfitError, match="cannot remove 3 of 3 mlp modules"):
        silencing().at(0)


def test_what_is_gone_at_a_size() -> None:
    assert merging().gone(3) == {2, 3, 4}
    assert merging().gone(5) == frozenset()
    assert merging().turns == (4, 4, 2, 2, 2)
    assert silencing().gone(1) == {0, 2}
    assert silencing().turns == (2, None, 1)


def test_the_curve_never_rises_with_size() -> None:
    odd = replace(merging(), losses={5: 0.0, 3: 0.9, 1: 0.5})
    assert odd.curve.losses.tolist() == [0.9, 0.9, 0.0]
    assert odd.curve.sizes.tolist() == [1, 3, 5]


def broken(change: str, value: Any, size: str = "3") -> dict[str, Any]:
    data = merging().to_json()
    if change in data:
        data[change] = value
    else:
        data["sizes"][size][change] = value
    return data


@pytest.mark.parametrize(
    "data",
    [
        [],
        {},
        {**merging().to_json(), "more": 1},
        broken("schema", 2),
        broken("schema", True),
        broken("part", "head"),
        broken("full", 4),
        broken("full", 10**9),
        broken("unit", 3),
        broken("scores", [1.0]),
        broken("scores", [1.0, 2.0, 3.0, 4.0, float("nan")]),
        broken("sizes", {}),
        broken("sizes", {"3": merging().to_json()["sizes"]["3"]}),
        broken("sizes", {**merging().to_json()["sizes"], "x": {}}),
        broken("sizes", {**merging().to_json()["sizes"], "03": merging().to_json()["sizes"]["3"]}),
        broken("sizes", {**merging().to_json()["sizes"], "9" * 5000: {}}),
        broken("loss", -1),
        broken("loss", float("inf")),
        broken("loss", 10**400),
        broken("note", "x" * 1000),
        broken("removed", ["model.layers.0.mlp"]),
        broken("layers", [0, 1]),
        broken("layers", [0, 1, 5]),
        broken("layers", [1, 0, 2]),
        broken("layers", [0, 0, 1]),
        broken("layers", [0, 1, []]),
        broken("layers", [0, 1, [[2]]]),
        broken("layers", [0, 1, [[2, "1"]]]),
        broken("layers", [0, 1, [[2, 1.0], [0, 1.0]]]),
        broken("layers", [0, 1, True]),
    ],
)
def test_a_schedule_from_a_stranger_is_not_believed(data: Any) -> None:
    with pytest.raises(CorruptFile):
        Schedule.from_json(data)


@pytest.mark.parametrize(
    "removed",
    [
        ["../../etc/passwd"],
        ["model.norm"],
        ["model.layers.7.mlp"],
        [1],
        [],
        ["model.layers.0.mlp", "model.layers.1.mlp"],
    ],
)
def test_removed_modules_are_names_of_modules_of_layers(removed: list[Any]) -> None:
    data = silencing().to_json()
    data["sizes"]["2"]["removed"] = removed
    with pytest.raises(CorruptFile):
        Schedule.from_json(data)
