"""Pages of test-time scaling and of traces, made of the shared base."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

import snapfit
from snapfit.core.files import atomic_path
from snapfit.viz.canvas import available
from snapfit.viz.scaling import (
    budget_picture,
    contrast_picture,
    drift_picture,
    error_picture,
    layers_picture,
    passk_picture,
)


def environment() -> Environment:
    """Templates of this folder; everything is escaped, nothing undefined passes."""
    return Environment(
        loader=PackageLoader("snapfit", "viz"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def scaling_pictures(summary: Mapping[str, Any]) -> list[tuple[str, Markup]]:
    """Heading and picture of every curve of a summary; none without matplotlib."""
    if not available():
        return []
    pictures: list[tuple[str, Markup]] = []
    for task in summary["settings"]["tasks"]:
        told = {
            model: entry["tasks"][task]
            for model, entry in summary["models"].items()
            if task in entry["tasks"]
        }
        generated = {model: found for model, found in told.items() if found["kind"] == "generate"}
        if not generated:
            continue
        # matplotlib escapes the names that it writes.
        drawn = Markup(budget_picture(task, generated))  # noqa: S704
        pictures.append((f"{task}: accuracy against the budget", drawn))
        sampled = {model: found for model, found in generated.items() if "k" in found}
        if sampled:
            drawn = Markup(passk_picture(task, sampled))  # noqa: S704
            pictures.append((f"{task}: samples", drawn))
    contrast = contrasted(summary)
    if contrast:
        drawn = Markup(contrast_picture("at the largest budget", contrast))  # noqa: S704
        pictures.append(("Families against layers removed", drawn))
    return pictures


def contrasted(summary: Mapping[str, Any]) -> dict[str, dict[str, list[Any]]]:
    """'removed' and 'accuracy' of each family, over models that differ in their number of layers.

    Empty where two models have the same number: they are then no steps of one schedule.
    """
    layers, against = summary["settings"].get("layers", {}), summary["against"]
    known = {model: layers.get(model) for model in summary["models"]}
    counts = list(known.values())
    if against is None or None in counts or len(set(counts)) < max(2, len(counts)):
        return {}
    found: dict[str, dict[str, list[Any]]] = {}
    for model in sorted(known, key=lambda name: -known[name]):
        for family, curve in summary["models"][model]["families"].items():
            line = found.setdefault(family, {"removed": [], "accuracy": []})
            line["removed"].append(known[against] - known[model])
            line["accuracy"].append(curve["accuracy"][-1])
    return found


def write_scaling_page(path: Path, summary: Mapping[str, Any]) -> None:
    """The page of a run of `snapfit scaling`.

    Args:
        path: the file to write.
        summary: as `evals.summary.summarise` gives it.

    """
    against = summary["against"]
    models = [model for model in summary["models"] if model != against]
    title = f"Does it still reason? {', '.join(models) or against}"
    page = (
        environment()
        .get_template("scaling_page.html")
        .render(
            title=title,
            version=snapfit.__version__,
            summary=summary,
            marked=_marked(summary["settings"]["delimiters"]),
            pictures=scaling_pictures(summary),
            drawn=available(),
        )
    )
    _write(path, page)


def _marked(
    delimiters: Mapping[str, Mapping[str, Any]],
) -> list[tuple[Mapping[str, Any], list[str]]]:
    """Delimiters of thinking, and the models that have them."""
    found: list[tuple[Mapping[str, Any], list[str]]] = []
    for model, marks in delimiters.items():
        for known, models in found:
            if known == marks:
                models.append(model)
                break
        else:
            found.append((marks, [model]))
    return found


def write_traces_page(path: Path, title: str, analysis: Mapping[str, Any]) -> None:
    """The page of a run of `snapfit traces`.

    Args:
        path: the file to write.
        title: of the page.
        analysis: as `pipeline.traces.analyse` gives it.

    """
    pictures: list[tuple[str, Markup]] = []
    if available():
        errors = {f"{row['model']}, {row['task']}": row for row in analysis["anatomies"]}
        if errors:
            pictures.append(("First errors by step", Markup(error_picture(errors))))  # noqa: S704
        for label, models in analysis["drift"].items():
            drawn = Markup(drift_picture(models, label))  # noqa: S704
            pictures.append((f"{label[0].upper()}{label[1:]} against position", drawn))
        if analysis["layers"]:
            drawn = Markup(layers_picture(analysis["layers"]))  # noqa: S704
            pictures.append(("Hidden states by layer", drawn))
    page = (
        environment()
        .get_template("traces_page.html")
        .render(
            title=title,
            version=snapfit.__version__,
            rows=analysis["rows"],
            anatomies=analysis["anatomies"],
            judged=analysis["judged"],
            pictures=pictures,
            drawn=available(),
        )
    )
    _write(path, page)


def _write(path: Path, page: str) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
