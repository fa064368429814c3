"""`compress --check` and `--require`: the verdict in every place, and what becomes of a failure.

What is asked, and how it is judged, is in test_check.py; here the answer is given.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from snapfit.cli.app import run
from snapfit.core.report import Metric
from snapfit.core.verdict import BROKEN, KEEPS

SMALL = ["--calib-tokens", "1024", "--context", "128"]
HEIGHTS = [f"reasoning.long.{name}" for name in ("dense", "compressed", "retained")]
MODEL = ["compress", "embedded", "--method", "shortgpt", "--layers", "1", *SMALL]


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], list[Path]]:
    """Lets every check end in one verdict; the folders that were judged."""

    def give(verdict: str) -> list[Path]:
        seen: list[Path] = []

        def check(model: Path, base: Path, folder: Path, **_: object) -> dict[str, object]:
            assert (model / "model.safetensors").exists()
            assert (base / "model.safetensors").exists()
            seen.append(model)
            folder.mkdir(parents=True)
            ends = {"low": 0.13, "high": 0.3}
            height = Metric(value=0.2, unit="", kind="measured", n=96, settings=ends)
            (folder / "scaling.html").write_text("<html></html>")
            return {
                "reasoning.verdict": verdict,
                "reasoning.reasons": "long: 18% of 96 problems [13%, 30%]",
                "reasoning.note": "asked what it was trained on",
                "reasoning.long.verdict": verdict,
                **{
                    f"reasoning.long.{name}": height for name in ("dense", "compressed", "retained")
                },
            }

        monkeypatch.setattr(importlib.import_module("snapfit.pipeline.realise"), "run_check", check)
        return seen

    return give


def test_the_verdict_is_in_the_report_the_card_and_the_table(
    judged: Callable[[str], list[Path]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = judged(BROKEN)
    out = tmp_path / "out"
    assert run([*MODEL, "-o", str(out), "--check", "--work", str(tmp_path / "work")]) == 0
    assert BROKEN in capsys.readouterr().out
    assert seen == [tmp_path / "out.unchecked"]
    report = json.loads((out / "report.json").read_text())
    assert report["reasoning"]["verdict"] == BROKEN
    assert report["reasoning"]["long"]["retained"] == 0.2
    assert report["stages"]["check"]["seconds"] >= 0
    assert f"{BROKEN}. long: 18% of 96 problems (13%, 30%)" in (out / "README.md").read_text()
    page = (out / "report.html").read_text()
    assert f"Does it still reason? {BROKEN}" in page
    assert "20.0% [13.0, 30.0]" in page
    assert "reasoning.long" not in page
    assert (out / "scaling.html").exists()
    assert [path.name for path in tmp_path.glob("out*")] == ["out"]


def test_what_is_required_and_holds_is_no_failure(
    judged: Callable[[str], list[Path]], tmp_path: Path
) -> None:
    judged(KEEPS)
    out = tmp_path / "out"
    asked = ["--require", "keeps-reasoning", "--work", str(tmp_path / "work")]
    assert run([*MODEL, "-o", str(out), *asked]) == 0
    assert (out / "model.safetensors").exists()


def test_what_does_not_hold_is_kept_aside_and_marked(
    judged: Callable[[str], list[Path]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    judged(BROKEN)
    out, failed = tmp_path / "out", tmp_path / "out.failed"
    asked = ["--require", "keeps-reasoning", "--work", str(tmp_path / "work")]
    assert run([*MODEL, "-o", str(out), *asked]) == 1
    error = capsys.readouterr().err
    assert f"keeps-reasoning does not hold: {BROKEN}" in error
    assert f"the model is kept in {failed}" in error
    assert not out.exists()
    assert (failed / "model.safetensors").exists()
    assert BROKEN in (failed / "FAILED.txt").read_text()
    assert json.loads((failed / "report.json").read_text())["reasoning"]["verdict"] == BROKEN


def test_an_unknown_requirement_is_bad_use(tmp_path: Path) -> None:
    assert run([*MODEL, "-o", str(tmp_path / "out"), "--require", "keeps-reasonin"]) == 2
