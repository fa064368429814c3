"""Runs of `snapfit scaling` that would mix what was asked of different things, and strangers'."""

from __future__ import annotations

import importlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from tiny_models import build

from snapfit.core.errors import CorruptFile, SnapfitError, UsageError
from snapfit.core.progress import Silent
from snapfit.evals.thinking import Sampling
from snapfit.models.source import open_model
from snapfit.pipeline import recorded, respondent
from snapfit.pipeline.respondent import LocalModel
from snapfit.pipeline.scaling import ScalingOptions, rescore, scaling
from snapfit.pipeline.traces import analyse

SAMPLING = Sampling(budgets=(16,), samples=1, answer_tokens=4)
FACTS = ScalingOptions(tasks=("embedded:facts",), sampling=SAMPLING, limit=2)


class Notes(Silent):
    """Remembers what it is told in words."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, text: str) -> None:
        """Keep it."""
        self.said.append(text)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the embedded model."""
    folder = tmp_path / "model"
    shutil.copytree(open_model("embedded").path, folder)
    return folder


def change(model: Path, factor: float) -> None:
    """Scale its last norm."""
    file = model / "model.safetensors"
    weights = load_file(file)
    weights["model.norm.weight"] *= factor
    save_file(weights, file, metadata={"format": "pt"})


def test_another_model_at_the_same_place_does_not_inherit_the_answers(
    copy: Path, tmp_path: Path
) -> None:
    scaling([str(copy)], tmp_path / "run", FACTS)
    scaling([str(copy)], tmp_path / "run", FACTS)
    change(copy, 0.5)
    with pytest.raises(SnapfitError, match="a run in which model has other weights"):
        scaling([str(copy)], tmp_path / "run", FACTS)


def test_two_tasks_of_one_name_are_refused(tmp_path: Path) -> None:
    files = [tmp_path / folder / "test.jsonl" for folder in ("a", "b")]
    for number, file in enumerate(files):
        file.parent.mkdir()
        file.write_text(json.dumps({"question": "q", "answer": str(number)}) + "\n")
    both = replace(FACTS, tasks=tuple(map(str, files)))
    with pytest.raises(
        UsageError, match=r"a/test\.jsonl and .*b/test\.jsonl are both named 'test'"
    ):
        scaling(["embedded"], tmp_path / "run", both)
    assert not (tmp_path / "run").exists()


def test_records_without_their_question_are_not_adopted(tmp_path: Path) -> None:
    scaling(["embedded"], tmp_path / "run", FACTS)
    (tmp_path / "run" / "settings.json").unlink()
    with pytest.raises(SnapfitError, match=r"facts\.jsonl is there without settings\.json"):
        scaling(["embedded"], tmp_path / "run", FACTS)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"seeds": (7, 11, 7)}, "equal seeds draw equal samples"),
        ({"temperature": float("nan")}, "temperature is 0 or more, got nan"),
        ({"temperature": float("inf")}, "temperature is 0 or more, got inf"),
    ],
)
def test_samples_that_would_be_no_samples_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        replace(FACTS, sampling=replace(SAMPLING, **changes))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"tasks": None}, "the file has no 'tasks'"),
        ({"models": 5}, "the file has no 'models'"),
        ({"tasks": {"t": {}}}, "task 't' has no 'family'"),
        ({"paths": {}}, "names model 'embedded' without its paths"),
        ({"against": "other"}, "judges against 'other', none of its models"),
        ({"sampling": {}}, "the sampling has no 'temperature'"),
        ({"delimiters": {"embedded": {"start": ""}}}, "by its delimiters, has no 'end'"),
        ([], "the file is no JSON object"),
    ],
)
def test_settings_that_are_not_ours_are_named(tmp_path: Path, changes: Any, said: str) -> None:
    scaling(["embedded"], tmp_path, FACTS)
    file = tmp_path / "settings.json"
    settings = json.loads(file.read_text())
    file.write_text(json.dumps({**settings, **changes} if changes else changes))
    for read in (rescore, analyse):
        with pytest.raises(CorruptFile, match=said):
            read(tmp_path)
    with pytest.raises(CorruptFile, match=said):
        scaling(["embedded"], tmp_path, FACTS)


def test_a_run_s_own_word_is_no_permission_to_run_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = replace(FACTS, tasks=("embedded:short",), trust_remote_code=True)
    scaling(["embedded"], tmp_path, short)
    allowed = []

    def tokenizer(path: Path, *, trust_remote_code: bool) -> Any:
        allowed.append(trust_remote_code)
        return LocalModel(path=path).tokenizer

    monkeypatch.setattr(recorded, "load_tokenizer", tokenizer)
    analyse(tmp_path)
    assert set(allowed) == {False}
    allowed.clear()
    analyse(tmp_path, trust_remote_code=True)
    assert set(allowed) == {True}


def test_models_that_cannot_be_compared_have_no_drift(tmp_path: Path) -> None:
    """Their traces are read all the same."""

    other = build("llama", tmp_path / "other")
    options = replace(FACTS, tasks=("embedded:long",), sampling=replace(SAMPLING, budgets=(32,)))
    scaling([str(other)], tmp_path / "run", options, against="embedded")
    notes = Notes()
    found = analyse(tmp_path / "run", progress=notes)
    assert {row["model"] for row in found["rows"]} == {"embedded", "other"}
    assert (found["drift"], found["layers"]) == ({}, {})
    assert notes.said == ["other and embedded have other sizes or tokens: no drift between them"]


def test_a_model_that_predicts_nan_is_analysed_all_the_same(copy: Path, tmp_path: Path) -> None:
    change(copy, float("nan"))
    options = replace(FACTS, tasks=("embedded:long",), sampling=replace(SAMPLING, budgets=(32,)))
    scaling([str(copy)], tmp_path / "run", options, against="embedded")
    found = analyse(tmp_path / "run", page=tmp_path / "page.html")
    assert found["drift"]["divergence (nats)"]["model"] == ([None] * 16, [None] * 16)
    assert found["layers"]["model"][-1] is None
    assert json.loads((tmp_path / "run" / "traces.json").read_text())["layers"] == found["layers"]
    assert (tmp_path / "page.html").read_text().count("<svg") == 4


def test_a_server_is_asked_by_the_name_that_was_given(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fetched model lies in a folder that is named by a digest, which no server knows."""
    names = []

    def server(_url: str, *, model: str, **_: Any) -> None:
        names.append(model)
        raise SnapfitError("enough")

    monkeypatch.setattr(respondent, "ServerGenerator", server)
    monkeypatch.setattr(importlib.import_module(scaling.__module__), "model_folder", _lies_at(copy))
    options = replace(FACTS, tasks=("embedded:short",), backend="openai:http://localhost:1/v1")
    for number, model in enumerate(("some/name", str(copy))):
        with pytest.raises(SnapfitError, match="enough"):
            scaling([model], tmp_path / f"run{number}", options)
    assert names == ["some/name", "model"]


def _lies_at(folder: Path) -> Callable[..., Path]:
    return lambda _model, **_: folder


def test_every_backend_ends_at_the_same_tokens(copy: Path) -> None:
    file = copy / "generation_config.json"
    settings = json.loads(file.read_text())
    file.write_text(json.dumps({**settings, "eos_token_id": [2, 5]}))
    for backend in ("hf", "vllm", "openai:http://localhost:1/v1"):
        assert LocalModel(path=copy, backend=backend).eos == {2, 5}
