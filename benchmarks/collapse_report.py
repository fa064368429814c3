"""Tables and pictures of reasoning_collapse.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from collapse_anatomy import BINS, FAULTS, WORDS
from collapse_pictures import Line, doubling, panels, shares, with_interval
from snapfit.models.source import EMBEDDED

FAMILIES = {"facts": "facts", "short": "chains of 1-3 steps", "long": "chains of 8-24 steps"}
PREFIX = "reasoning_collapse"
LEAST_REACHED = 10
"""Chains that must have reached a step for its error rate to be drawn."""


def draw(folder: Path, result: Mapping[str, Any]) -> None:
    """All pictures, as PNG files beside the results."""
    rows, base = result["models"], result["models"][EMBEDDED]
    by_series = _by_series(rows)
    panels(
        folder / f"{PREFIX}_contrast.png",
        {name: _contrast(base, own) for name, own in by_series.items()},
        labels=list(FAMILIES.values()),
        x="layers removed, or as many parameters",
        y="accuracy at the largest budget",
        style=lambda axes: (shares(axes), axes.set_xticks(range(4))),
    )
    by_removed, labels = _by_removed(rows), ["base", *by_series]
    panels(
        folder / f"{PREFIX}_budget.png",
        {
            title: {
                label: with_interval(result["budgets"], row["tasks"]["long"]["accuracy"])
                for label, row in own.items()
            }
            for title, own in by_removed.items()
        },
        labels=labels,
        x="thinking budget (tokens)",
        y="accuracy, chains of 8-24 steps",
        style=doubling(result["budgets"]),
    )
    ks = base["tasks"]["long"]["k"]
    panels(
        folder / f"{PREFIX}_passk.png",
        {
            title: {
                label: with_interval(ks, row["tasks"]["long"]["pass_at_k"])
                for label, row in own.items()
            }
            for title, own in by_removed.items()
        },
        labels=labels,
        x="samples k",
        y="pass@k, chains of 8-24 steps",
        style=doubling(ks),
    )
    panels(
        folder / f"{PREFIX}_errors.png",
        {title: _errors(own) for title, own in by_removed.items()},
        labels=labels,
        x="step of the chain",
        y="first errors a step",
        style=shares,
    )
    panels(
        folder / f"{PREFIX}_drift.png",
        {title: _drift(own) for title, own in by_removed.items()},
        labels=labels,
        x="position in the base model's trace",
        y="divergence from the base (nats)",
        style=lambda axes: axes.set_yscale("log"),
    )


def _by_series(rows: Mapping[str, Any]) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for row in rows.values():
        if "series" in row:
            found.setdefault(row["series"], []).append(row)
    return found


def _by_removed(rows: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """By what was removed, the base first in each."""
    found: dict[str, dict[str, Any]] = {}
    for row in rows.values():
        if "series" in row:
            count = row["removed"]
            title = f"{count} layer{'s' if count > 1 else ''}, or as much"
            found.setdefault(title, {"base": rows[EMBEDDED]})[row["series"]] = row
    return found


def _contrast(base: Mapping[str, Any], own: Sequence[Mapping[str, Any]]) -> dict[str, Line]:
    points = [base, *own]
    return {
        label: with_interval(
            [row["removed"] for row in points],
            [row["tasks"][family]["accuracy"][-1] for row in points],
        )
        for family, label in FAMILIES.items()
    }


def _errors(own: Mapping[str, Any]) -> dict[str, Line]:
    found: dict[str, Line] = {}
    for label, row in own.items():
        reached, failed = (np.array(row["long"][key], float) for key in ("reached", "failed"))
        seen = reached >= LEAST_REACHED
        found[label] = (
            (np.flatnonzero(seen) + 1).tolist(),
            (failed[seen] / reached[seen]).tolist(),
            None,
            None,
        )
    return found


def _drift(own: Mapping[str, Any]) -> dict[str, Line]:
    places = ((np.arange(BINS) + 0.5) / BINS).tolist()
    return {
        label: (places, row["drift"]["divergence"][0], None, None)
        for label, row in own.items()
        if "drift" in row
    }


def report(result: Mapping[str, Any]) -> str:
    """The results as Markdown."""
    problems, held = result["problems"], result["holds"]
    seconds = result["seconds"]
    wall, cpu = (sum(stage[kind] for stage in seconds.values()) for kind in ("wall", "cpu"))
    stages = ", ".join(f"{name} {stage['cpu']:.0f}" for name, stage in seconds.items())
    found = f"The finding holds, at: {', '.join(held)}." if held else "The finding does not hold."
    lines = [
        f"# {found}",
        "",
        (
            "It holds where facts keep at least 90% of the base model's accuracy and long chains "
            f"at most 50%. Embedded model; {problems['embedded-facts']} facts, "
            f"{problems['embedded-short']} chains of 1-3 steps, {problems['embedded-long']} of "
            f"8-24 steps, {result['samples']} samples a chain at temperature 1. Accuracy is at the "
            f"largest budget of {result['budgets'][-1]} thinking tokens, with 95% "
            "intervals over problems. An answer by chance is right one time in ten."
        ),
        "",
        (
            f"It took {wall / 60:.1f} minutes, {cpu / 60:.1f} of them CPU time "
            f"({stages} s); {result['machine']}."
        ),
        "",
        "## What was kept",
        "",
        f"![accuracy by family]({PREFIX}_contrast.png)",
        "",
        "`retained` is the area under accuracy against budget, relative to the base.",
        "",
        (
            "| model | parameters | facts | short | long | retained, short | retained, long "
            f"| pass@{_last(result)} long | verdict |"
        ),
        "|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [_kept(name, row) for name, row in result["models"].items()]
    lines += [
        "",
        "## Accuracy against budget",
        "",
        f"![accuracy against budget]({PREFIX}_budget.png)",
        "",
        f"![pass at k]({PREFIX}_passk.png)",
        "",
        "## Why: the first wrong step of long chains",
        "",
        (
            "`a step`: first errors a step that was reached. `expected`: right chains if every "
            "step failed at that rate, whatever its position. Kinds of first error in per cent of "
            "all chains."
        ),
        "",
        "| model | a step, short | a step, long | right | expected | "
        + " | ".join(FAULTS)
        + " | corrected | said Wait |",
        "|---|---|---|---|---|" + "---|" * (len(FAULTS) + 2),
    ]
    lines += [_broken(name, row) for name, row in result["models"].items()]
    lines += [
        "",
        f"![first errors by step]({PREFIX}_errors.png)",
        "",
        "## Drift along the base model's own traces",
        "",
        (
            "Divergence KL(base || compressed) in nats of the prediction of each kind of word. "
            "Label, operator and operand are copied from the question, the value is computed."
        ),
        "",
        "| model | " + " | ".join(WORDS) + " | last hidden state, cosine |",
        "|---|" + "---|" * (len(WORDS) + 1),
    ]
    lines += [_drifted(name, row) for name, row in result["models"].items() if "drift" in row]
    lines += ["", f"![drift]({PREFIX}_drift.png)"]
    return "\n".join(lines) + "\n"


def _last(result: Mapping[str, Any]) -> int:
    return int(result["models"][EMBEDDED]["tasks"]["long"]["k"][-1])


def _kept(name: str, row: Mapping[str, Any]) -> str:
    cells = [_share(row["tasks"][family]["accuracy"][-1]) for family in FAMILIES]
    retained = row.get("retained", {})
    cells += [_share(retained[f]) if f in retained else "" for f in ("shallow", "long")]
    cells += [_share(row["tasks"]["long"]["pass_at_k"][-1]), row.get("verdict", "")]
    return f"| {name} | {row['params']:,} | " + " | ".join(cells) + " |"


def _broken(name: str, row: Mapping[str, Any]) -> str:
    found = row["long"]
    faults = " | ".join(f"{found['faults'][fault] / found['chains']:.0%}" for fault in FAULTS)
    return (
        f"| {name} | {row['short']['rate']:.2%} | {found['rate']:.2%} | {found['right']} of "
        f"{found['chains']} | {found['expected']:.0f} | {faults} | {found['corrected']} of "
        f"{found['wrong']} | {found['looked_again']} |"
    )


def _drifted(name: str, row: Mapping[str, Any]) -> str:
    words = " | ".join(f"{row['drift']['by_word'][word]:.3f}" for word in WORDS)
    return f"| {name} | {words} | {np.mean(row['drift']['cosine'][0]):.3f} |"


def _share(interval: Mapping[str, float | None]) -> str:
    value, low, high = interval["value"], interval["low"], interval["high"]
    if value is None:
        return "?"
    if low is None or high is None:
        return f"{value:.0%}"
    return f"{value:.0%} [{low:.0%}, {high:.0%}]"
