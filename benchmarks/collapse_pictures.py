"""Pictures of reasoning_collapse.py: panels side by side, on white, readable in grey."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from snapfit.viz.canvas import STYLES

INTERVAL_ALPHA = 0.15

Line = tuple[Sequence[float], Sequence[float], Sequence[float] | None, Sequence[float] | None]
"""Places, values, and the ends of their intervals."""


def panels(
    path: Path,
    lines: Mapping[str, Mapping[str, Line]],
    *,
    labels: Sequence[str],
    x: str,
    y: str,
    columns: int = 3,
    style: Callable[[Any], None] | None = None,
) -> None:
    """One panel a title, one line a label; a label has the same style in every picture.

    Args:
        path: of the PNG.
        lines: by panel and label.
        labels: all there are in any picture of a kind, in order: they choose the style.
        x: what the places are.
        y: what the values are.
        columns: panels in a row.
        style: called with the axes of every panel.

    """
    from matplotlib.figure import Figure

    rows = -(-len(lines) // columns)
    figure = Figure(figsize=(4.0 * columns, 3.1 * rows + 0.6), layout="constrained")
    grid = np.atleast_1d(figure.subplots(rows, columns, sharex=True, sharey=True)).ravel()
    styles = dict(zip(labels, STYLES, strict=False))
    handles: dict[str, Any] = {}
    for axes, (title, panel) in zip(grid, lines.items(), strict=False):
        for label, (places, values, low, high) in panel.items():
            colour, dash, marker = styles[label]
            (drawn,) = axes.plot(
                places, values, dash, color=colour, marker=marker, markersize=5, label=label
            )
            handles.setdefault(label, drawn)
            if low is not None and high is not None:
                axes.fill_between(places, low, high, color=colour, alpha=INTERVAL_ALPHA, lw=0)
        axes.set_title(title, fontsize=11, loc="left")
        axes.grid(visible=True, alpha=0.25, linewidth=0.6)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        if style is not None:
            style(axes)
    for axes in grid[len(lines) :]:
        axes.set_visible(False)
    figure.supxlabel(x, fontsize=11)
    figure.supylabel(y, fontsize=11)
    figure.legend(
        list(handles.values()),
        list(handles),
        loc="outside upper center",
        ncols=len(handles),
        frameon=False,
    )
    figure.savefig(path, dpi=110, facecolor="white")


def with_interval(places: Sequence[float], intervals: Sequence[Mapping[str, float]]) -> Line:
    """A line of figures as `evals.summary` gives them."""
    return (
        places,
        [entry["value"] for entry in intervals],
        [entry["low"] for entry in intervals],
        [entry["high"] for entry in intervals],
    )


def shares(axes: Any) -> None:
    """The vertical axis is a share."""
    axes.set_ylim(-0.03, 1.03)


def doubling(places: Sequence[float]) -> Callable[[Any], None]:
    """The vertical axis is a share, the horizontal one doubles from place to place."""

    def style(axes: Any) -> None:
        shares(axes)
        axes.set_xscale("log", base=2)
        axes.set_xticks(list(places), [f"{place:g}" for place in places])
        axes.minorticks_off()

    return style
