"""Read traces: a file of them, or a folder that `snapfit scaling` filled."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from snapfit.checkpoint.load import load, load_tokenizer
from snapfit.core.errors import CorruptFile, SnapfitError
from snapfit.core.files import read_json, write_json
from snapfit.core.progress import Progress, Silent
from snapfit.evals.dialogue import Delimiters, Dialogue
from snapfit.evals.records import Answer, Thought, read_records
from snapfit.evals.summary import SETTINGS
from snapfit.evals.tasks.base import Task
from snapfit.evals.tasks.embedded import chain_of
from snapfit.evals.tasks.load import load_task
from snapfit.evals.traces.behaviours import HABITS, count_behaviours
from snapfit.evals.traces.chains import anatomy
from snapfit.evals.traces.drift import by_position, drift
from snapfit.evals.traces.judge import judged_behaviours
from snapfit.evals.traces.self_bleu import self_bleu
from snapfit.evals.traces.text import REPEATED, repeated_share, sentences, words
from snapfit.pipeline.respondent import device, model_folder
from snapfit.viz.pages import write_traces_page

BINS = 16
"""Equal parts of a trace that drift is averaged in."""

DRIFT_TRACES = 16
"""Traces that drift is measured on: each costs a pass through two models."""


@dataclass(frozen=True, kw_only=True)
class Judge:
    """An OpenAI-compatible chat model that counts habits too."""

    url: str
    model: str
    key: str | None = None


@dataclass(frozen=True, kw_only=True)
class TracesOf:
    """Traces of one model on one task."""

    model: str
    task: str
    texts: tuple[str, ...]


def analyse(
    path: Path,
    *,
    judge: Judge | None = None,
    page: Path | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Habits, repetition, errors by step and drift of the traces at `path`.

    Args:
        path: a JSONL file of traces (`resps` of lm-evaluation-harness, lists of samples under
            `code`, or texts under `text`, `response`, `thinking`), or a folder of
            `snapfit scaling`. For a folder, chains of the embedded tasks are judged step by step,
            and the drift of every model from the original is measured along the original's traces.
        judge: counts habits too; nobody is asked unless given.
        page: HTML file to write.
        progress: told of every set of traces.

    Returns:
        {'rows', 'anatomies', 'drift', 'layers', 'judged'}, JSON-able; a folder also keeps it as
        traces.json.

    Raises:
        SnapfitError: nothing to read there, or a model of the run is gone.

    """
    progress = progress or Silent()
    folder = path.is_dir()
    found = _of_run(path) if folder else [_of_file(path)]
    if not any(part.texts for part in found):
        raise SnapfitError(f"{path} holds no traces")
    progress.stage("traces", len(found))
    rows = []
    for part in found:
        rows.append(_row(part, judge))
        progress.advance()
    settings = read_json(path / SETTINGS) if folder else None
    drifts, layers = _drifts(path, settings, progress) if settings else ({}, {})
    analysis: dict[str, Any] = {
        "rows": rows,
        "anatomies": _anatomies(path, settings) if settings else [],
        "drift": drifts,
        "layers": layers,
        "judged": judge is not None,
    }
    if folder:
        write_json(path / "traces.json", analysis)
    if page is not None:
        write_traces_page(page, f"Traces of {path.name}", analysis)
    return analysis


def _row(part: TracesOf, judge: Judge | None) -> dict[str, Any]:
    texts = [text for text in part.texts if text.strip()]
    counts = [count_behaviours(text) for text in texts]
    row: dict[str, Any] = {
        "model": part.model,
        "task": part.task,
        "traces": len(texts),
        "words": _mean([len(words(text)) for text in texts]),
        "self_bleu": _mean([self_bleu(sentences(text)) for text in texts]),
        "repeated": _mean([repeated_share(words(text), REPEATED) for text in texts]),
        "behaviours": {habit: _mean([count[habit] for count in counts]) for habit in HABITS},
    }
    if judge is not None:
        told = [
            judged_behaviours(text, url=judge.url, model=judge.model, key=judge.key)
            for text in texts
        ]
        row["judged"] = {habit: _mean([count[habit] for count in told]) for habit in HABITS}
    return row


def _of_file(path: Path) -> TracesOf:
    texts: list[str] = []
    if not path.is_file():
        raise SnapfitError(f"no traces at {path}")
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            texts += _read(line, f"{path}, line {number}")
    return TracesOf(model=path.stem, task="", texts=tuple(texts))


def _read(line: str, where: str) -> list[str]:
    try:
        return _texts(json.loads(line))
    except (ValueError, TypeError, AttributeError) as error:
        raise CorruptFile(f"{where} holds no trace: {error}") from error


def _texts(row: Mapping[str, Any]) -> list[str]:
    for key in ("resps", "code", "text", "response", "thinking", "output"):
        if key in row:
            return _flat(row[key])
    raise ValueError(f"none of its keys is known: {', '.join(row)}")


def _flat(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    return [text for entry in value for text in _flat(entry)]


def _of_run(folder: Path) -> list[TracesOf]:
    path = folder / SETTINGS
    if not path.is_file():
        raise SnapfitError(f"{folder} holds no run of snapfit scaling: {SETTINGS} is missing")
    settings = read_json(path)
    parts = []
    for model in settings["models"]:
        decode = _dialogue(settings, model).decode
        for task, described in settings["tasks"].items():
            if described["kind"] == "generate":
                thoughts = _thoughts(folder, model, task)
                texts = tuple(decode(thought.ids) for thought in thoughts)
                parts.append(TracesOf(model=model, task=task, texts=texts))
    return parts


def _thoughts(folder: Path, model: str, task: str) -> list[Thought]:
    records = read_records(folder / model / f"{task}.jsonl")
    return [record for record in records if isinstance(record, Thought)]


def _anatomies(folder: Path, settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Errors by step, of the tasks whose problems are chains, at the largest budget."""
    found = []
    for name, described in settings["tasks"].items():
        task = _chains(name, described)
        if task is None:
            continue
        chains = {problem.id: chain_of(problem) for problem in task.problems}
        for model in settings["models"]:
            decode = _dialogue(settings, model).decode
            thoughts = {(t.problem, t.sample): t for t in _thoughts(folder, model, name)}
            last = max(described["budgets"])
            answers = [
                record
                for record in read_records(folder / model / f"{name}.jsonl")
                if isinstance(record, Answer) and record.budget == last
            ]
            written = [
                f"<think> {decode(thoughts[a.problem, a.sample].ids)} </think> {a.text}"
                for a in answers
            ]
            if answers:
                result = anatomy([chains[a.problem] for a in answers], written)
                found.append({"model": model, "task": name, **asdict(result), "rate": result.rate})
    return found


def _chains(name: str, described: Mapping[str, Any]) -> Task | None:
    if name not in {"embedded-short", "embedded-long"}:
        return None
    spec = name.replace("-", ":", 1)
    return load_task(spec, limit=described["limit"], seed=described["seed"])


def _drifts(
    folder: Path, settings: Mapping[str, Any], progress: Progress
) -> tuple[dict[str, dict[str, Any]], dict[str, list[float]]]:
    """Drift by position, for each figure and model, and the cosine by layer, for each model.

    All models read the original's own traces, each after its prompt; positions are those of the
    thinking.
    """
    base = settings.get("against")
    others = [model for model in settings["models"] if model != base]
    tasks = [name for name, task in settings["tasks"].items() if task["kind"] == "generate"]
    traces = [
        thought
        for task in tasks
        for thought in (_thoughts(folder, base, task) if base else ())
        if len(thought.ids) >= BINS
    ]
    traces = sorted(traces, key=lambda thought: -len(thought.ids))[:DRIFT_TRACES]
    if not traces or not others:
        return {}, {}
    original = _loaded(settings, str(base))
    progress.stage("drift", len(others) * len(traces))
    divergences: dict[str, Any] = {}
    cosines: dict[str, Any] = {}
    layers: dict[str, list[float]] = {}
    for model in others:
        changed = _loaded(settings, model)
        drifts = []
        for thought in traces:
            whole = drift(original, changed, thought.prompt + thought.ids)
            start = len(thought.prompt)
            drifts.append((whole.divergence_T[start:], whole.cosine_LT[:, start:]))
            progress.advance()
        divergences[model] = _binned([gaps_T for gaps_T, _ in drifts])
        cosines[model] = _binned([states_LT[-1] for _, states_LT in drifts])
        means = [states_LT.mean(axis=1) for _, states_LT in drifts]
        layers[model] = np.mean(means, axis=0).tolist()
        del changed
    return {"divergence (nats)": divergences, "cosine of the last hidden state": cosines}, layers


def _binned(values: Sequence[Any]) -> tuple[list[float], list[float | None]]:
    """Means and standard errors by position; JSON has no NaN for those of a single trace."""
    mean, error = by_position(values, BINS)
    return mean.tolist(), [float(e) if np.isfinite(e) else None for e in error]


def _dialogue(settings: Mapping[str, Any], model: str) -> Dialogue:
    tokenizer = load_tokenizer(
        _place(settings, model), trust_remote_code=settings["trust_remote_code"]
    )
    return Dialogue(tokenizer, Delimiters(**settings["delimiters"][model]))


def _loaded(settings: Mapping[str, Any], model: str) -> Any:
    return load(
        _place(settings, model),
        device=device(),
        trust_remote_code=settings["trust_remote_code"],
    )


def _place(settings: Mapping[str, Any], model: str) -> Path:
    return model_folder(settings["paths"][model], trust_remote_code=settings["trust_remote_code"])


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else 0.0
