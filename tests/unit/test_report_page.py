"""The HTML report: complete, self-contained, honest about how figures are known, and escaped."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from snapfit.core.candidates import AlignRule
from snapfit.core.curve import NATS, Curve
from snapfit.core.plan import Plan
from snapfit.core.report import Metric, Report
from snapfit.core.space import Group, Matrix, Space
from snapfit.viz import html
from snapfit.viz.canvas import STYLES, svg
from snapfit.viz.figures import curves_picture
from snapfit.viz.html import render, write_report
from snapfit.viz.layers import layers_figure
from snapfit.viz.summary import by_role, figures

HOSTILE = "<script>alert('x')</script>"
VOID = {"meta", "link", "br", "hr", "img", "input"}


def group(layer: int, role: str) -> Group:
    name = f"model.layers.{layer}.{role}_proj"
    matrix = Matrix(name=name, axis="rank", rows=64, cols=64)
    return Group(name=name, kind="rank", matrices=(matrix,), full=64, role=role, layer=layer)


GROUPS = tuple(group(layer, role) for layer in range(3) for role in ("q", "down"))
SPACE = Space(
    model="tiny",
    revision="r",
    architecture="llama",
    groups=GROUPS,
    total_params=40_000,
    kv_elements=8,
)
CURVE = Curve(sizes=np.array([8, 16, 64]), losses=np.array([0.3, 0.1, 0.0]), unit=NATS)
CURVES = {g.name: CURVE for g in GROUPS}
PLAN = Plan(
    model="tiny",
    revision="r",
    architecture="llama",
    method="kfac",
    objective="curve",
    sizes={g.name: 16 if g.role == "q" else 64 for g in GROUPS},
    budget={"of": "linear", "ratio": 0.2},
    predicted={"loss": 0.3, "unit": NATS},
    rules=(AlignRule(axis="rank", multiple=16, source="--align 16"),),
    version="0.1.0",
)
REPORT = Report(
    entries={
        "params.dense": 40_000,
        "ratio.linear": 0.25,
        "loss.predicted": Metric(value=0.3, unit=NATS, kind="predicted"),
        "perplexity.dense": Metric(
            value=31.5,
            unit="perplexity",
            kind="measured",
            stderr=1.8,
            n=16352,
            settings={"windows": 32},
        ),
        "perplexity.compressed": Metric(value=float("inf"), unit="perplexity", kind="measured"),
        "stages.order.seconds": 12.5,
    },
    environment={"torch": "2.13", "absent": None},
).to_json()


class Balanced(HTMLParser):
    """Raises if a tag is closed that is not open."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.fetched: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.fetched += [
            v for k, v in attrs if v and k in {"src", "href", "xlink:href"} and v[0] != "#"
        ]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def page(**changes: Any) -> str:
    return render(**{"report": REPORT, "plan": PLAN, "space": SPACE, "curves": CURVES, **changes})


def test_page_is_well_formed_and_fetches_nothing() -> None:
    parser = Balanced()
    parser.feed(page())
    assert parser.open == []
    assert [url for url in parser.fetched if not url.startswith("data:")] == []
    assert "<script" not in page()
    assert "@import" not in page()


def test_figures_say_how_they_are_known() -> None:
    rows = {row.name: row for row in figures(REPORT)}
    assert rows["loss.predicted"].kind == "predicted"
    assert rows["params.dense"].kind == "counted"
    assert rows["perplexity.dense"].kind == "measured"
    assert rows["perplexity.dense"].stderr == "± 1.8"
    assert rows["perplexity.dense"].n == "16,352"
    assert rows["perplexity.dense"].settings == "windows 32"
    assert rows["perplexity.compressed"].value == "inf"
    assert "stages.order.seconds" not in rows


def test_page_holds_what_was_done() -> None:
    shown = re.sub(r"<[^>]+>", " ", page(warnings=["too few tokens"]))
    for text in ("kfac", "--align 16", "too few tokens", "2.13", "snapfit.load", "12.5", "25.00%"):
        assert text in shown
    assert "absent" not in shown


def test_pictures_take_the_colour_of_the_page() -> None:
    shown = page()
    assert shown.count("<svg") == 2
    assert "currentColor" in shown
    assert "#010203" not in shown


def test_same_input_gives_the_same_page() -> None:
    assert page() == page()


def test_hostile_names_are_escaped() -> None:
    hostile = replace(GROUPS[0], role=HOSTILE, name=HOSTILE)
    space = replace(SPACE, groups=(hostile, *GROUPS[1:]), model=HOSTILE)
    plan = replace(PLAN, model=HOSTILE, sizes={**PLAN.sizes, HOSTILE: 16})
    curves = {**CURVES, HOSTILE: CURVE}
    shown = page(plan=plan, space=space, curves=curves, warnings=[HOSTILE])
    assert "<script" not in shown
    assert "&lt;script&gt;" in shown


def test_without_matplotlib_the_page_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(html, "available", lambda: False)
    shown = page()
    assert "<svg" not in shown
    assert "snapfit[report]" in shown


def test_without_curves_there_is_no_predicted_loss_by_role() -> None:
    shown = page(curves=None)
    assert "Predicted loss," not in shown
    assert shown.count("<svg") == 1
    assert all(total.loss is None for total in by_role(SPACE, PLAN, None))


def test_totals_by_role() -> None:
    q, down = by_role(SPACE, PLAN, CURVES)
    assert (q.role, q.groups, q.untouched, q.dense, q.kept) == ("q", 3, 0, 3 * 4096, 3 * 16 * 128)
    assert q.loss == pytest.approx(0.3)
    assert (down.role, down.untouched, down.kept, down.loss) == ("down", 3, 3 * 4096, 0.0)


def test_of_more_roles_than_lines_can_show_the_costliest_are_drawn() -> None:
    roles = [f"role{index}" for index in range(len(STYLES) + 1)]
    groups = tuple(group(0, role) for role in roles)
    curves = {g.name: CURVE.scaled(1 + n, NATS) for n, g in enumerate(groups)}
    plan = replace(PLAN, sizes={g.name: 16 for g in groups})
    drawing = curves_picture(replace(SPACE, groups=groups), plan, curves)
    assert [role for role in roles if f"{role}, layer 0" in drawing] == roles[1:]


def test_the_name_of_a_model_is_no_formula() -> None:
    methods = {"random": {"turns": [1, None], "scores": [], "meaning": ""}}
    report = {"model": r"/models/$\a$", "layers": 2, "part": "layer", "methods": methods}
    assert r"/models/$\a$" in svg(layers_figure(report), "layers", "a map")


def test_file_is_written(tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    write_report(file, report=REPORT, plan=PLAN, space=SPACE, curves=CURVES)
    assert file.read_text(encoding="utf-8") == page()
