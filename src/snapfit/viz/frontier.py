"""Fronts and staircases: loss against time and parameters, and time against the size of a group.

Pictures are SVG that takes the page's text colour, as in `snapfit.viz.figures`, or PNG.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from snapfit.core.errors import UsageError
from snapfit.core.files import atomic_path, write_json
from snapfit.core.pareto import Front, Point
from snapfit.core.plateaus import Staircase
from snapfit.viz.canvas import INK, STYLES, available, check_drawable, svg
from snapfit.viz.pages import environment

SUFFIXES = (".html", ".png", ".json")

_AXES = {"latency": "predicted time, share of dense", "params": "parameters, share of dense"}
_MARKS = {
    "dense": ("s", "#555555"),
    "unaligned": ("X", "#c44e52"),
    "rounded": ("v", "#8a6d3b"),
    "GAC": ("D", "#a05db1"),
    "curve": ("o", "#3b75af"),
}
"""Marker and colour of each familiar plan: told apart by shape as well."""


def check_front_path(path: Path) -> None:
    """Fail before work starts when a front could not be written there.

    Raises:
        UsageError: the name does not end in .html, .png or .json.
        SnapfitError: a picture is asked for and matplotlib is missing.

    """
    if path.suffix not in SUFFIXES:
        raise UsageError(f"--pareto writes {', '.join(SUFFIXES)}; got {path.name!r}")
    if path.suffix == ".png":
        check_drawable()


def write_front(path: Path, front: Front) -> None:
    """Write a front as a page (.html), a picture (.png) or data (.json).

    Raises:
        UsageError: another suffix.
        SnapfitError: matplotlib is missing for a picture, or the file cannot be written.

    """
    check_front_path(path)
    if path.suffix == ".json":
        write_json(path, front.to_json())
        return
    with atomic_path(path) as temporary:
        if path.suffix == ".png":
            temporary.write_bytes(_png(_front_figure(front)))
        else:
            temporary.write_text(front_page(front), encoding="utf-8")


def front_page(front: Front) -> str:
    """One page: the pictures, the marked plans as a table, and what is not known."""
    # Drawn by matplotlib, which escapes the names that it writes.
    picture = Markup(front_picture(front)) if available() else ""  # noqa: S704
    return environment().get_template("frontier.html").render(front=front, picture=picture)


def front_picture(front: Front) -> str:
    """Loss against time (where the target has times) and against parameters, as SVG."""
    return svg(_front_figure(front), "front", "Predicted loss against time and parameters")


def staircase_picture(stairs: Staircase) -> str:
    """Time of one group at every legal size, its candidates marked, as SVG.

    The full size is drawn as a level: of a rank group it is the dense matrix, no rank.
    """
    return svg(_staircase(stairs), "staircase", _title(stairs))


def write_staircase(path: Path, stairs: Staircase) -> None:
    """Write the same as .svg or .png.

    Raises:
        UsageError: another suffix.
        SnapfitError: matplotlib is missing, or the file cannot be written.

    """
    check_staircase_path(path)
    with atomic_path(path) as temporary:
        if path.suffix == ".png":
            temporary.write_bytes(_png(_staircase(stairs)))
        else:
            temporary.write_text(staircase_picture(stairs), encoding="utf-8")


def check_staircase_path(path: Path) -> None:
    """Fail before work starts when a staircase could not be written there.

    Raises:
        UsageError: the name does not end in .svg or .png.
        SnapfitError: matplotlib is missing.

    """
    if path.suffix not in {".svg", ".png"}:
        raise UsageError(f"--plot writes .svg or .png; got {path.name!r}")
    check_drawable()


def _title(stairs: Staircase) -> str:
    return f"{stairs.group} on {stairs.device}, {stairs.workload}"


def _staircase(stairs: Staircase) -> Any:
    figure, (axes,) = _panels(1, 9.5, 4.0)
    sizes, times, noise = stairs.sizes, stairs.nanoseconds / 1000, stairs.noise
    # A rank group's full size is no rank, but the dense matrix.
    below = slice(0, len(sizes) - (stairs.kind == "rank"))
    colour, _, marker = STYLES[0]
    axes.plot(sizes[below], times[below], "-", color=colour, linewidth=1.2, label="legal sizes")
    if noise.any():
        low, high = times * (1 - noise), times * (1 + noise)
        axes.fill_between(sizes[below], low[below], high[below], color=colour, alpha=0.2, lw=0)
    chosen = np.isin(sizes, stairs.edges)
    chosen[-1] &= stairs.kind != "rank"
    total = len(sizes[below])
    label = f"candidates: {int(chosen.sum())} of {total} sizes"
    axes.plot(sizes[chosen], times[chosen], marker, color=STYLES[1][0], markersize=3, label=label)
    name = "dense" if stairs.kind == "rank" else f"full size {sizes[-1]}"
    axes.axhline(times[-1], color=INK, linestyle=":", linewidth=1.2, label=name)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("rank" if stairs.kind == "rank" else "size")
    axes.set_ylabel("time (us)")
    # A device names itself, and may have '$' in its name, which would begin a formula.
    axes.set_title(_title(stairs), color=INK, fontsize=10, loc="left", parse_math=False)
    axes.legend(frameon=False, labelcolor=INK, fontsize=9)
    return figure


def _front_figure(front: Front) -> Any:
    names = [name for name in ("latency", "params") if name in front.fronts]
    figure, panels = _panels(len(names), 9.5, 4.2)
    for axes, name in zip(panels, names, strict=True):
        _draw(axes, name, front.fronts[name], front)
    panels[0].set_ylabel(f"predicted loss ({front.unit})")
    panels[-1].legend(frameon=False, labelcolor=INK, fontsize=9)
    return figure


def _draw(axes: Any, name: str, points: Sequence[Point], front: Front) -> None:
    colour, dash, _ = STYLES[0]
    places = np.array([_place(point, name) for point in points])
    losses = np.array([point.loss for point in points])
    axes.plot(places, losses, dash, color=colour, linewidth=1.6, label="least loss")
    axes.plot(places, losses, ".", color=colour, markersize=4)
    for point in front.marks:
        marker, shade = _MARKS[point.label]
        axes.plot(
            [_place(point, name)], [point.loss], marker,
            color=shade, markersize=8, label=point.label, clip_on=False, zorder=3,
        )  # fmt: skip
    # Most of a front is near zero, its end far away: linear below what the plans lose.
    marked = [point.loss for point in front.marks if point.loss > 0]
    positive = losses[losses > 0]
    axes.set_yscale("symlog", linthresh=min([*marked, *positive.tolist()], default=1.0))
    axes.set_ylim(bottom=0)
    share = f" (of {front.of})" if name == "params" else ""
    axes.set_xlabel(_AXES[name] + share)


def _place(point: Point, name: str) -> float:
    return point.params if name == "params" else float(point.latency or 0.0)


def _panels(count: int, width: float, height: float) -> tuple[Any, list[Any]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    panels = list(figure.subplots(1, count, squeeze=False, sharey=True)[0])
    figure.patch.set_alpha(0)
    for axes in panels:
        axes.patch.set_alpha(0)
        axes.grid(visible=True, color=INK, alpha=0.15, linewidth=0.6)
        for name, spine in axes.spines.items():
            spine.set_edgecolor(INK)
            spine.set_visible(name not in {"top", "right"})
    return figure, panels


def _png(figure: Any) -> bytes:
    figure.patch.set_alpha(1)
    figure.patch.set_facecolor("white")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=144, metadata={"Software": None})
    return buffer.getvalue()
