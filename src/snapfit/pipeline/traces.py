"""Read traces: a file of them, or a folder that `snapfit scaling` filled."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from snapfit.core.errors import CorruptFile, SnapfitError
from snapfit.core.files import write_json
from snapfit.core.progress import Progress, Silent
from snapfit.evals.records import Answer, Thought
from snapfit.evals.run_settings import read_settings
from snapfit.evals.tasks.base import Task
from snapfit.evals.tasks.embedded import chain_of
from snapfit.evals.tasks.load import load_task
from snapfit.evals.traces.behaviours import HABITS, count_behaviours
from snapfit.evals.traces.chains import anatomy
from snapfit.evals.traces.judge import judged_behaviours
from snapfit.evals.traces.self_bleu import self_bleu
from snapfit.evals.traces.text import REPEATED, repeated_share, sentences, words
from snapfit.pipeline.recorded import RecordedRun
from snapfit.pipeline.trace_drift import drifts
from snapfit.viz.pages import write_traces_page


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
    trust_remote_code: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Habits, repetition, errors by step and drift of the traces at `path`.

    Args:
        path: a JSONL file of traces (`resps` of lm-evaluation-harness, lists of samples under
            `code`, or texts under `text`, `response`, `thinking`, `output`), or a folder of
            `snapfit scaling`. For a folder, chains of the embedded tasks are judged step by step,
            and the drift of every model from the original is measured along the original's traces.
        judge: counts habits too; nobody is asked unless given.
        page: HTML file to write.
        trust_remote_code: allow the own Python code of a run's models to run; that the run was
            made with it is not taken for permission, since the folder may be a stranger's.
        progress: told of every set of traces.

    Returns:
        {'rows', 'anatomies', 'drift', 'layers', 'judged'}, JSON-able; a folder also keeps it as
        traces.json.

    Raises:
        SnapfitError: nothing to read there, or a model of the run is gone.

    """
    progress = progress or Silent()
    run = None
    if path.is_dir():
        run = RecordedRun(
            folder=path, settings=read_settings(path), trust_remote_code=trust_remote_code
        )
    found = _of_run(run) if run else [_of_file(path)]
    if not any(part.texts for part in found):
        raise SnapfitError(f"{path} holds no traces")
    progress.stage("traces", len(found))
    rows = []
    for part in found:
        rows.append(_row(part, judge))
        progress.advance()
    strayed, layers = drifts(run, progress) if run else ({}, {})
    analysis: dict[str, Any] = {
        "rows": rows,
        "anatomies": _anatomies(run) if run else [],
        "drift": strayed,
        "layers": layers,
        "judged": judge is not None,
    }
    if run:
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
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            texts += _read(line, f"{path}, line {number}")
    return TracesOf(model=path.stem, task="", texts=tuple(texts))


def _read(line: bytes, where: str) -> list[str]:
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
    if not isinstance(value, list):
        raise TypeError(f"{str(value)[:40]!r} is no text")
    return [text for entry in value for text in _flat(entry)]


def _of_run(run: RecordedRun) -> list[TracesOf]:
    parts = []
    for model in run.settings["models"]:
        decode = run.dialogue(model).decode
        for task in run.generated:
            texts = tuple(decode(thought.ids) for thought in run.thoughts(model, task))
            parts.append(TracesOf(model=model, task=task, texts=texts))
    return parts


def _anatomies(run: RecordedRun) -> list[dict[str, Any]]:
    """Errors by step, of the tasks whose problems are chains, at the largest budget."""
    found = []
    for name, described in run.settings["tasks"].items():
        task = _chains(name, described)
        if task is None:
            continue
        chains = {problem.id: chain_of(problem) for problem in task.problems}
        last = max(described["budgets"])
        for model in run.settings["models"]:
            decode = run.dialogue(model).decode
            records = run.records(model, name)
            thoughts = {(r.problem, r.sample): r.ids for r in records if isinstance(r, Thought)}
            answers = [
                record
                for record in records
                if isinstance(record, Answer)
                and record.budget == last
                and record.problem in chains
                and (record.problem, record.sample) in thoughts
            ]
            written = [
                f"<think> {decode(thoughts[a.problem, a.sample])} </think> {a.text}"
                for a in answers
            ]
            if answers:
                result = anatomy([chains[a.problem] for a in answers], written)
                found.append({"model": model, "task": name, **asdict(result), "rate": result.rate})
    return found


def _chains(name: str, described: Mapping[str, Any]) -> Task | None:
    """The embedded task of that name, with the problems that were asked."""
    if name not in {"embedded-short", "embedded-long"} or "seed" not in described:
        return None
    spec = name.replace("-", ":", 1)
    return load_task(spec, limit=described["limit"], seed=described["seed"])


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else 0.0
