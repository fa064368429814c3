"""Drift of every model of a run from the original, along the original's own traces."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from snapfit.core.progress import Progress
from snapfit.evals.records import Thought
from snapfit.evals.traces.drift import by_position, comparable, drift
from snapfit.pipeline.recorded import RecordedRun

BINS = 16
"""Equal parts of a trace that drift is averaged in."""

TRACES = 16
"""Traces that drift is measured on: each costs a pass through two models."""


def drifts(
    run: RecordedRun, progress: Progress
) -> tuple[dict[str, dict[str, Any]], dict[str, list[float | None]]]:
    """Drift by position, for each figure and model, and the cosine by layer, for each model.

    All models read the original's own traces, each after its prompt; positions are those of the
    thinking.
    """
    base = run.settings["against"]
    others = [model for model in run.settings["models"] if model != base]
    traces = _longest(run, base) if base else []
    if not traces or not others:
        return {}, {}
    original = run.loaded(base)
    progress.stage("drift", len(others) * len(traces))
    divergences: dict[str, Any] = {}
    cosines: dict[str, Any] = {}
    layers: dict[str, list[float | None]] = {}
    for model in others:
        changed = run.loaded(model)
        if not comparable(original, changed):
            progress.note(f"{model} and {base} have other sizes or tokens: no drift between them")
            continue
        found = []
        for thought in traces:
            whole = drift(original, changed, thought.prompt + thought.ids)
            start = len(thought.prompt)
            found.append((whole.divergence_T[start:], whole.cosine_LT[:, start:]))
            progress.advance()
        divergences[model] = _binned([gaps_T for gaps_T, _ in found])
        cosines[model] = _binned([states_LT[-1] for _, states_LT in found])
        means = [states_LT.mean(axis=1) for _, states_LT in found]
        layers[model] = _known(np.mean(means, axis=0))
        del changed
    if not layers:
        return {}, {}
    return {"divergence (nats)": divergences, "cosine of the last hidden state": cosines}, layers


def _longest(run: RecordedRun, model: str) -> list[Thought]:
    """The longest of a model's own traces, of all tasks."""
    traces = [
        thought
        for task in run.generated
        for thought in run.thoughts(model, task)
        if len(thought.ids) >= BINS
    ]
    return sorted(traces, key=lambda thought: -len(thought.ids))[:TRACES]


def _binned(values: Sequence[Any]) -> tuple[list[float | None], list[float | None]]:
    """Means and standard errors by position."""
    mean, error = by_position(values, BINS)
    return _known(mean), _known(error)


def _known(values: Any) -> list[float | None]:
    """JSON has no NaN: of a single trace's error, or of a model that predicts nothing else."""
    return [float(value) if np.isfinite(value) else None for value in values]
