"""Fronts: solved from one set of curves, and drawn."""

from __future__ import annotations

import html
import itertools
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from helpers import decaying_curves
from timers import WaveTimer, llama

from snapfit.core.candidates import AlignRule
from snapfit.core.errors import UsageError
from snapfit.core.latency import Stopwatch
from snapfit.core.pareto import Front, solve_front
from snapfit.core.planner import Planner
from snapfit.core.plateaus import staircase
from snapfit.core.workload import Workload
from snapfit.viz.frontier import (
    check_front_path,
    staircase_picture,
    write_front,
    write_staircase,
)

RULES = (AlignRule(axis="rank", multiple=16, source="--align 16"),)


def front_of(*, timed: bool = True, own: bool = True) -> Front:
    space = llama(2)
    watch = Stopwatch(
        whole=space,
        groups=space.groups,
        timer=WaveTimer(launch=0.5),
        workload=Workload.parse("prefill:1x512"),
    )
    unaligned = {g.name: 0.6 * g.break_even + 0.3 for g in space.groups}
    return solve_front(
        Planner(space=space, rules=RULES, watch=watch if timed else None),
        decaying_curves(space, 2),
        shares={"params": 0.6},
        unaligned=unaligned if own else None,
        scores=dict.fromkeys(unaligned, 1.0),
        points=6,
    )


def test_a_front_falls_from_the_smallest_plan_to_dense() -> None:
    front = front_of()
    assert list(front.fronts) == ["params", "latency"]
    for name, points in front.fronts.items():
        assert points[0].label == "dense"
        assert points[0].loss == 0
        assert points[0].latency == pytest.approx(1)
        assert len(points) > 4
        places = [getattr(point, name) for point in points]
        for one, other in itertools.pairwise(range(len(points))):
            assert places[other] <= places[one] + 1e-9
            assert points[other].loss >= points[one].loss
            assert places[other] <= points[other].budget[name] + 1e-9


def test_familiar_plans_are_marked_and_none_beats_the_curve() -> None:
    front = front_of()
    marks = {point.label: point for point in front.marks}
    assert list(marks) == ["dense", "unaligned", "rounded", "GAC", "curve"]
    assert marks["unaligned"].aligned < 1 == marks["curve"].aligned
    for label in ("unaligned", "rounded", "GAC", "curve"):
        assert marks[label].params <= 0.6
    for label in ("rounded", "GAC"):
        assert marks["curve"].loss <= marks[label].loss
    assert marks["unaligned"].latency > marks["curve"].latency  # type: ignore[operator]
    assert front.sources == {"model": pytest.approx(1.0)}


def test_a_device_where_nothing_is_faster_has_a_front_of_parameters() -> None:
    space = llama(1)
    watch = Stopwatch(
        whole=space,
        groups=space.groups,
        timer=WaveTimer(launch=1e6),
        workload=Workload.parse("prefill:1x16"),
    )
    front = solve_front(
        Planner(space=space, rules=RULES, watch=watch),
        decaying_curves(space, 2),
        shares={"params": 0.6},
        points=6,
    )
    assert [point.label for point in front.fronts["latency"]] == ["dense"]
    points = front.fronts["params"]
    assert len(points) > 4
    assert [p.loss for p in points] == sorted(p.loss for p in points)
    assert all(p.latency > 1 for p in points[1:])  # type: ignore[operator]


def test_without_times_or_sizes_of_its_own() -> None:
    front = front_of(timed=False, own=False)
    assert list(front.fronts) == ["params"]
    assert [point.label for point in front.marks] == ["dense", "curve"]
    assert len(front.notes) == 3
    assert front.marks[1].microseconds is None


def test_files(tmp_path: Path) -> None:
    front = front_of()
    for suffix in ("html", "png", "json"):
        write_front(tmp_path / f"front.{suffix}", front)
    page = (tmp_path / "front.html").read_text()
    assert page.count("<svg") == 1
    assert "currentColor" in page
    assert "#010203" not in page
    assert re.search(r"unaligned params=0\.6</td>", page)
    assert (tmp_path / "front.png").read_bytes().startswith(b"\x89PNG")
    data = json.loads((tmp_path / "front.json").read_text())
    assert data["marks"][0]["label"] == "dense"
    assert len(data["fronts"]["latency"]) == len(front.fronts["latency"])
    untimed = tmp_path / "untimed.html"
    write_front(untimed, front_of(timed=False))
    assert "No target with times" in untimed.read_text()


def test_other_files_are_refused() -> None:
    with pytest.raises(UsageError, match=r"\.html, \.png, \.json; got 'front\.pdf'"):
        check_front_path(Path("front.pdf"))


def test_a_staircase_is_drawn(tmp_path: Path) -> None:
    space = llama(1)
    watch = Stopwatch(
        whole=space,
        groups=space.groups,
        timer=WaveTimer(source="measured", spread=0.01),
        workload=Workload.parse("prefill:1x512"),
    )
    group = space.groups[4]
    stairs = staircase(watch, group, (AlignRule(axis="rank", multiple=8, source="--align 8"),))
    stairs = replace(stairs, group=f"{group.name} <toy>", device=r"$\none$ & co")
    drawing = staircase_picture(stairs)
    assert r'<toy> on $\none$ & co, prefill:1x512"' in html.unescape(drawing), "no formula"
    assert drawing.startswith("<svg")
    below = len(stairs.sizes) - 1
    assert f"candidates: {len(stairs.edges) - 1} of {below} sizes" in drawing
    assert 1 < len(stairs.edges) - 1 < below
    assert "<toy>" not in drawing
    for suffix in ("svg", "png"):
        write_staircase(tmp_path / f"stairs.{suffix}", stairs)
    assert (tmp_path / "stairs.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "stairs.svg").read_text() == drawing
    with pytest.raises(UsageError, match=r"--plot writes \.svg or \.png; got 'stairs\.pdf'"):
        write_staircase(tmp_path / "stairs.pdf", stairs)
    found = stairs.to_json()
    assert [row["size"] for row in found["times"] if row["candidate"]] == stairs.edges.tolist()
    assert {row["sources"] for row in found["times"]} == {("measured",)}
