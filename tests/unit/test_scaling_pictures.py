"""Pictures of test-time scaling: they draw what was measured, and nothing breaks the page."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from snapfit.viz.pages import contrasted, write_scaling_page, write_traces_page
from snapfit.viz.scaling import (
    budget_picture,
    contrast_picture,
    drift_picture,
    error_picture,
    layers_picture,
    passk_picture,
)

pytest.importorskip("matplotlib", reason="matplotlib is not installed")


def around(value: float) -> dict[str, float | None]:
    return {"value": value, "low": max(0.0, value - 0.1), "high": min(1.0, value + 0.1)}


def curve(*values: float) -> dict[str, Any]:
    budgets = [64 * 2**i for i in range(len(values))]
    return {"budgets": budgets, "accuracy": [around(value) for value in values]}


def texts(svg: str) -> list[str]:
    root = ET.fromstring(svg)
    return [element.text or "" for element in root.iter() if element.tag.endswith("}text")]


def dashes(svg: str) -> set[str]:
    return set(re.findall(r"stroke-dasharray: ([^;\"]+)", svg))


def test_curves_differ_in_more_than_colour() -> None:
    svg = budget_picture("t", {f"m{i}": curve(0.1, 0.4, 0.9) for i in range(3)})
    shown = texts(svg)
    assert {"m0", "m1", "m2", "64", "128", "256", "thinking budget (tokens)"} <= set(shown)
    assert len(dashes(svg)) >= 2
    assert "currentColor" in svg
    assert "#010203" not in svg


def test_names_cannot_break_out() -> None:
    name = '<b>"m" & co'
    for svg in (
        budget_picture(name, {name: curve(0.1, 0.4)}),
        contrast_picture(
            name, {name: {"removed": [0, 1], "accuracy": curve(1.0, 0.5)["accuracy"]}}
        ),
    ):
        assert name in texts(svg)
        assert "<b>" not in svg


def test_unknown_intervals_are_left_out() -> None:
    bare = [{"value": 0.5, "low": None, "high": None}] * 2
    with_band = budget_picture("t", {"m": curve(0.5, 0.5)})
    without = budget_picture("t", {"m": {"budgets": [64, 128], "accuracy": bare}})
    assert "FillBetween" in with_band or with_band.count("PolyCollection") == 1
    assert without.count("PolyCollection") + without.count("FillBetween") == 0


def test_pass_and_majority_are_told_apart() -> None:
    ks = [1, 2, 4]
    values = [around(0.2), around(0.4), around(0.6)]
    shown = texts(passk_picture("t", {"m": {"k": ks, "pass_at_k": values, "maj_at_k": values}}))
    assert {"m, pass@k", "m, maj@k", "samples k", "1", "2", "4"} <= set(shown)


def test_families_against_layers_removed() -> None:
    families = {
        family: {"removed": [0, 1, 2], "accuracy": curve(1.0, value, value / 2)["accuracy"]}
        for family, value in (("knowledge", 0.9), ("shallow", 0.6), ("long", 0.2))
    }
    shown = texts(contrast_picture("shortgpt", families))
    assert {"knowledge", "shallow", "long", "layers removed", "shortgpt"} <= set(shown)


def test_errors_are_drawn_where_enough_chains_are_left() -> None:
    full = error_picture({"m": {"reached": [100, 90, 80], "failed": [10, 10, 40]}})
    few = error_picture({"m": {"reached": [100, 90, 4], "failed": [10, 10, 4]}})
    none = error_picture({"m": {"reached": [], "failed": []}})
    assert "first errors a step" in texts(full)
    assert "0.6" in texts(full)  # half of the chains fail at the third step
    assert "0.6" not in texts(few)
    assert "step of the chain" in " ".join(texts(none))


def test_drift_of_one_trace_has_no_band() -> None:
    several = drift_picture({"m": ([0.1, 0.2], [0.01, 0.02])}, "divergence (nats)")
    single = drift_picture({"m": ([0.1, 0.2], [None, None])}, "divergence (nats)")
    assert "PolyCollection" in several
    assert "PolyCollection" not in single
    assert {"m", "position in the trace", "divergence (nats)"} <= set(texts(single))
    assert "layer (0: embedding)" in texts(layers_picture({"m": [1.0, 0.9, 0.8]}))


def summary(**changes: Any) -> dict[str, Any]:
    found = {
        **curve(0.2, 0.8),
        "kind": "generate",
        "problems": 9,
        "samples": 2,
        "slope_a_doubling": around(0.6),
        "truncated": [0.5, 0.25],
        "no_answer": [0.0, 0.125],
        "repeated_ngrams": 0.01,
        "tokens_a_solved_problem": [None, 77.0],
        "seconds_a_solved_problem": [None, 0.5],
        **changes,
    }
    marks = {"start": "<think>", "end": "</think>", "source": "chat template"}
    return {
        "against": None,
        "settings": {
            "tasks": {"t": {"family": "long"}},
            "delimiters": {"m<b>": marks},
            "sampling": {"temperature": 1.0, "seeds": [7, 11]},
            "backend": "hf",
        },
        "models": {"m<b>": {"tasks": {"t": found}}},
    }


def test_the_page_says_what_was_asked_and_with_which_delimiters(tmp_path: Path) -> None:
    write_scaling_page(tmp_path / "a.html", summary())
    page = (tmp_path / "a.html").read_text()
    for part in ("80.0%", "+60.0", "25.0%", "12.5%", ">77<", "&lt;think&gt;", "chat template"):
        assert part in page
    assert "m<b>" not in page
    assert "seeds 7, 11" in page
    write_scaling_page(tmp_path / "b.html", summary(tokens_a_solved_problem=[None, None]))
    assert "none solved" in (tmp_path / "b.html").read_text()


def test_the_page_of_traces_explains_its_columns(tmp_path: Path) -> None:
    row = {"model": "m", "task": "t", "traces": 3, "words": 9.0, "self_bleu": 0.5, "repeated": 0.1}
    habits = {"verification": 1.0, "backtracking": 2.0, "sub-goals": 3.0}
    errors = {
        "model": "m",
        "task": "t",
        "chains": 3,
        "right": 1,
        "expected": 1.5,
        "rate": 0.25,
        "overrun": 1,
        "corrected": 0,
        "wrong": 2,
        "reached": [9, 8],
        "failed": [1, 1],
    }
    analysis = {
        "rows": [{**row, "behaviours": habits}],
        "anatomies": [errors],
        "drift": {"divergence (nats)": {"m": ([0.1, 0.2], [None, None])}},
        "layers": {"m": [1.0, 0.5]},
        "judged": False,
    }
    write_traces_page(tmp_path / "t.html", "Traces of x", analysis)
    page = (tmp_path / "t.html").read_text()
    for part in ("25.00%", "0 of 2", "First errors by step", "Divergence (nats) against position"):
        assert part in page
    assert page.count("<svg") == 3


def told(layers: dict[str, int | None]) -> dict[str, Any]:
    interval = {"value": 0.5, "low": 0.4, "high": 0.6}
    curve = {"families": {"long": {"accuracy": [interval, {**interval, "value": 0.7}]}}}
    return {
        "settings": {"layers": layers},
        "against": "base",
        "models": dict.fromkeys(layers, curve),
    }


def test_families_are_contrasted_over_a_schedule_of_layers() -> None:
    found = contrasted(told({"one": 7, "base": 8, "two": 6}))
    assert found["long"]["removed"] == [0, 1, 2]
    assert [interval["value"] for interval in found["long"]["accuracy"]] == [0.7] * 3


@pytest.mark.parametrize(
    "layers", [{"base": 8, "a": 7, "b": 7}, {"base": 8}, {"base": 8, "a": None}]
)
def test_other_models_are_not_contrasted(layers: dict[str, int | None]) -> None:
    assert contrasted(told(layers)) == {}
