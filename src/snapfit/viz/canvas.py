"""What every picture shares: ink that takes the page's colour, line styles that read in grey.

matplotlib writes fixed colours, so text and axes are drawn in one odd colour that is then replaced
by `currentColor`. Lines differ in dashes and markers as well as in colour, and colour maps are
monotone in lightness: everything can be read in grey, on light and on dark pages.
"""

from __future__ import annotations

import html
import importlib.util
import io
from typing import Any

from snapfit.core.errors import SnapfitError

INK = "#010203"

STYLES = tuple(
    (colour, dash, marker)
    for colour, dash, marker in zip(
        ("#3b75af", "#d1803c", "#519e3e", "#a05db1", "#c44e52", "#8a6d3b", "#2a9d9d", "#8c8c8c"),
        ("-", "--", "-.", ":", "-", "--", "-.", ":"),
        ("o", "s", "^", "D", "v", "P", "X", "*"),
        strict=True,
    )
)


def available() -> bool:
    """Whether matplotlib, of the extra 'report', is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def check_drawable() -> None:
    """Fail, before any work, where a picture is asked for and could not be drawn.

    Raises:
        SnapfitError: matplotlib is missing.

    """
    if not available():
        raise SnapfitError("a picture needs matplotlib: pip install 'snapfit[report]'")


def canvas(width: float, height: float) -> tuple[Any, Any]:
    """An empty figure of this size in inches, and its axes; transparent, in ink."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    figure.patch.set_alpha(0)
    axes.patch.set_alpha(0)
    for spine in axes.spines.values():
        spine.set_edgecolor(INK)
    for name in ("top", "right"):
        axes.spines[name].set_visible(False)
    return figure, axes


def svg(figure: Any, salt: str, title: str) -> str:
    """The figure as inline SVG.

    Args:
        figure: of matplotlib.
        salt: tells the pictures of one page apart.
        title: read to those who cannot see it.

    """
    import matplotlib as mpl

    for axes in figure.axes:
        axes.tick_params(colors=INK)
        for label in (axes.xaxis.label, axes.yaxis.label):
            label.set_color(INK)
    buffer = io.StringIO()
    # The salt keeps the ids of several pictures in one page apart, and every run's the same.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": f"snapfit-{salt}"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    drawing = text[text.index("<svg") :].replace(INK, "currentColor")
    return drawing.replace("<svg ", f'<svg role="img" aria-label="{html.escape(title)}" ', 1)
