"""The check after compressing: a model without a layer fails it, its original does not."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
from dropped_layer import without_layer
from tiny_models import build

from snapfit.core.errors import UsageError
from snapfit.core.report import Metric, Plain, Report
from snapfit.models.source import open_model
from snapfit.pipeline.check import questions, require, run_check

Entries = Mapping[str, Metric | Plain]


@pytest.fixture(scope="module")
def shallow(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Entries]:
    folder = tmp_path_factory.mktemp("check")
    model = without_layer(folder / "shallow", 3)
    return model, folder / "records", run_check(model, "embedded", folder / "records")


def value(entries: Entries, name: str) -> float:
    entry = entries[name]
    assert isinstance(entry, Metric)
    assert entry.kind == "measured"
    return entry.value


def test_a_model_without_a_layer_knows_and_does_not_reason(
    shallow: tuple[Path, Path, Entries],
) -> None:
    _, _, entries = shallow
    assert entries["reasoning.verdict"] == "broken"
    assert entries["reasoning.long.verdict"] == "broken"
    assert value(entries, "reasoning.long.retained") < 0.4
    assert value(entries, "reasoning.knowledge.retained") > 0.95
    assert value(entries, "reasoning.long.dense") > 0.7
    assert value(entries, "reasoning.long.compressed") < 0.3
    assert "long: " in str(entries["reasoning.reasons"])


def test_the_requirement_fails_with_the_reasons(shallow: tuple[Path, Path, Entries]) -> None:
    _, _, entries = shallow
    said = require("keeps-reasoning", entries)
    assert said is not None
    assert said.startswith("keeps-reasoning does not hold: broken: ")
    with pytest.raises(UsageError, match="unknown requirement 'speed'"):
        require("speed", entries)


def test_entries_make_a_report(shallow: tuple[Path, Path, Entries]) -> None:
    _, _, entries = shallow
    report = Report(entries=entries, environment={}).to_json()
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert report["reasoning"]["long"]["verdict"] == "broken"
    detail = report["details"]["reasoning.long.retained"]
    assert detail["n"] == 96
    assert detail["settings"]["low"] <= report["reasoning"]["long"]["retained"]
    assert detail["settings"]["budgets"] == "96,160"


def test_what_was_generated_is_kept_and_goes_on(shallow: tuple[Path, Path, Entries]) -> None:
    model, folder, entries = shallow
    assert (folder / "scaling.html").is_file()
    kept = {path: path.read_bytes() for path in folder.glob("*/*.jsonl")}
    assert len(kept) == 6
    assert run_check(model, "embedded", folder) == entries
    assert {path: path.read_bytes() for path in folder.glob("*/*.jsonl")} == kept


def test_the_original_keeps_reasoning(shallow: tuple[Path, Path, Entries], tmp_path: Path) -> None:
    """A copy of it; its answers are those that were recorded."""
    _, records, _ = shallow
    same = tmp_path / "same"
    same.symlink_to(open_model("embedded").path)
    for name in ("same", "embedded"):
        (tmp_path / "records" / name).mkdir(parents=True)
        for file in (records / "embedded").iterdir():
            (tmp_path / "records" / name / file.name).write_bytes(file.read_bytes())
    settings = json.loads((records / "settings.json").read_text())
    settings["models"], settings["paths"] = ["embedded"], {"embedded": "embedded"}
    (tmp_path / "records" / "settings.json").write_text(json.dumps(settings))
    entries = run_check(same, "embedded", tmp_path / "records")
    assert entries["reasoning.verdict"] == "keeps reasoning"
    assert require("keeps-reasoning", entries) is None


def test_other_models_are_asked_reasoning_gym(tmp_path: Path) -> None:
    """A random model solves nothing, and it is said that it cannot be judged by that."""
    pytest.importorskip("reasoning_gym", reason="reasoning-gym is not installed")
    base = build("llama", tmp_path / "base", max_position_embeddings=400)
    asked = questions(base)
    assert all("reasoning-gym:" in task for task in asked.tasks)
    assert "knowledge was not asked" in asked.note
    other = build("llama", tmp_path / "other", seed=1, max_position_embeddings=400)
    entries = run_check(other, base, tmp_path / "records")
    assert entries["reasoning.verdict"] == "not enough samples to say"
    assert "reasoning.knowledge.verdict" not in entries
    assert "the original itself solves 0.0%" in str(entries["reasoning.reasons"])
    assert require("keeps-reasoning", entries) is not None


@pytest.mark.parametrize("nested", [False, True])
def test_a_context_without_room_is_said(tmp_path: Path, nested: bool) -> None:
    """Of a model that also sees, the language model's settings lie one level deeper."""
    base = build("llama", tmp_path / "base")
    file = base / "config.json"
    if nested:
        file.write_text(json.dumps({"text_config": json.loads(file.read_text())}))
    entries = run_check(base, base, tmp_path / "records")
    assert entries["reasoning.verdict"] == "not enough samples to say"
    assert "context is too short" in str(entries["reasoning.reasons"])
    assert not (tmp_path / "records").exists()
