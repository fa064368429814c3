"""A heat map of the order in which methods remove the layers of a model.

Light cells go first, dark ones last: the colour map is monotone in lightness, so it can be read in
grey, and up to `LABELLED` layers the turn is written into the cell.
"""

from __future__ import annotations

import html
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from snapfit.core.errors import UsageError
from snapfit.core.files import atomic_path
from snapfit.viz.canvas import check_drawable, svg

LABELLED = 40
"""Cells of more layers than this are too narrow for a number."""

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<style>body{{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:62rem;color:#111;
background:#fff}}table{{border-collapse:collapse}}td,th{{padding:.15rem .7rem;text-align:right;
border-bottom:1px solid #ddd;font-variant-numeric:tabular-nums}}svg{{max-width:100%;height:auto}}
</style></head><body><h1>{title}</h1><p>{caption}</p>{picture}
<h2>Scores</h2><p>The lowest goes first. {meanings}</p>
<table><tr><th>layer</th>{heads}</tr>{rows}</table></body></html>
"""

_CAPTION = (
    "Each cell says with how many layers less the layer is gone, or merged, for the first time: "
    "light goes first, dark last; '-' never goes."
)


def write_layers(path: Path, report: Mapping[str, Any]) -> None:
    """Write the heat map, as a PNG picture or a page, by the file's ending.

    Args:
        path: ends in '.png' or '.html'.
        report: of `pipeline.layers.layers_report`.

    Raises:
        UsageError: another ending.
        SnapfitError: matplotlib is not installed, or the file cannot be written.

    """
    ending = path.suffix.lower()
    if ending not in {".png", ".html"}:
        raise UsageError(f"{path} must end in .png or .html")
    check_drawable()
    figure = layers_figure(report)
    with atomic_path(path) as temporary:
        if ending == ".png":
            figure.savefig(temporary, format="png", dpi=150)
        else:
            temporary.write_text(
                _page(report, svg(figure, "layers", "Which layers go first")), encoding="utf-8"
            )


def layers_figure(report: Mapping[str, Any]) -> Any:
    """The heat map, methods by layers, as a matplotlib figure."""
    from matplotlib.figure import Figure

    methods, full = report["methods"], report["layers"]
    turns_ML = np.array(
        [[full if t is None else t for t in entry["turns"]] for entry in methods.values()]
    )
    figure = Figure(figsize=(max(6.0, 0.32 * full + 1.8), 1.3 + 0.42 * len(methods)), dpi=100)
    figure.set_layout_engine("constrained")
    axes = figure.add_subplot()
    mesh = axes.pcolormesh(
        turns_ML, vmin=1, vmax=full, cmap="cividis_r", edgecolors="#ffffff", linewidth=0.6
    )
    if full <= LABELLED:
        for row, entry in enumerate(methods.values()):
            for column, turn in enumerate(entry["turns"]):
                axes.text(
                    column + 0.5,
                    row + 0.5,
                    "-" if turn is None else str(turn),
                    ha="center",
                    va="center",
                    fontsize=8,
                    color="#000000" if turns_ML[row, column] < 0.5 * full else "#ffffff",
                )
    axes.invert_yaxis()
    axes.set_yticks(np.arange(len(methods)) + 0.5, list(methods))
    every = 1 if full <= LABELLED else max(2, full // 20)
    places = np.arange(0, full, every)
    axes.set_xticks(places + 0.5, [str(place) for place in places])
    axes.set_xlabel("decoder layer" if report["part"] == "layer" else f"{report['part']} of layer")
    # A path may have '$' in it, which would begin a formula.
    axes.set_title(f"Which layers go first: {report['model']}", fontsize=10, parse_math=False)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    figure.colorbar(mesh, ax=axes, pad=0.015, aspect=14, label="gone with n layers less")
    return figure


def _page(report: Mapping[str, Any], picture: str) -> str:
    scored = {name: entry for name, entry in report["methods"].items() if entry["scores"]}
    rows = (
        "".join(f"<td>{entry['scores'][layer]:.4g}</td>" for entry in scored.values())
        for layer in range(report["layers"])
    )
    return _PAGE.format(
        title=html.escape(f"Layers of {report['model']}"),
        caption=html.escape(_CAPTION),
        picture=picture,
        meanings=html.escape("; ".join(f"{n}: {e['meaning']}" for n, e in scored.items())),
        heads="".join(f"<th>{html.escape(name)}</th>" for name in scored),
        rows="".join(f"<tr><td>{layer}</td>{row}</tr>" for layer, row in enumerate(rows)),
    )
