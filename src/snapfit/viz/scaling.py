"""The pictures of test-time scaling: curves with intervals, contrasts, errors by position."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from snapfit.viz.canvas import INK, STYLES, canvas, svg

FEWEST_CHAINS = 5


def budget_picture(task: str, curves: Mapping[str, Mapping[str, Any]]) -> str:
    """Accuracy against the thinking budget, a line a model, with its interval.

    Args:
        task: its name.
        curves: by model, as `evals.summary` gives them: 'budgets' and 'accuracy'.

    """
    figure, axes = canvas(9.5, 3.6)
    for style, (model, curve) in zip(_styles(), curves.items(), strict=False):
        _band(axes, curve["budgets"], curve["accuracy"], style, model)
    _doubling(axes, sorted({b for curve in curves.values() for b in curve["budgets"]}))
    _accuracy(axes)
    axes.set_xlabel("thinking budget (tokens)")
    _legend(axes)
    return svg(figure, f"budget-{task}", f"{task}: accuracy against the thinking budget")


def passk_picture(task: str, figures: Mapping[str, Mapping[str, Any]]) -> str:
    """pass@k and maj@k against k, two lines a model.

    Args:
        task: its name.
        figures: by model: 'k', 'pass_at_k', 'maj_at_k'.

    """
    figure, axes = canvas(9.5, 3.6)
    for style, (model, found) in zip(_styles(), figures.items(), strict=False):
        _band(axes, found["k"], found["pass_at_k"], style, f"{model}, pass@k")
        values = [entry["value"] for entry in found["maj_at_k"]]
        axes.plot(
            found["k"],
            values,
            style[1],
            color=style[0],
            marker=style[2],
            markerfacecolor="none",
            linewidth=0.9,
            label=f"{model}, maj@k",
        )
    _doubling(axes, sorted({k for found in figures.values() for k in found["k"]}))
    _accuracy(axes)
    axes.set_xlabel("samples k")
    _legend(axes)
    return svg(figure, f"passk-{task}", f"{task}: pass@k and maj@k")


def contrast_picture(title: str, families: Mapping[str, Mapping[str, Any]]) -> str:
    """Accuracy of each family against layers removed: the first figure of arXiv 2510.22228.

    Args:
        title: of the method.
        families: by family: 'removed' and 'accuracy' (intervals).

    """
    figure, axes = canvas(7.4, 3.4)
    for style, (family, found) in zip(_styles(), families.items(), strict=False):
        _band(axes, found["removed"], found["accuracy"], style, family)
    axes.set_xticks(sorted({n for found in families.values() for n in found["removed"]}))
    _accuracy(axes)
    axes.set_xlabel("layers removed")
    axes.set_title(title, color=INK, fontsize=11, loc="left")
    _legend(axes)
    return svg(figure, f"contrast-{title}", f"{title}: accuracy by family against layers removed")


def error_picture(models: Mapping[str, Mapping[str, Sequence[int]]]) -> str:
    """Share of chains whose first error is a step, of those right before it, by position.

    Where hardly a chain is left, a share says nothing and is not drawn.

    Args:
        models: by model: 'reached' and 'failed', by position from step 1.

    """
    figure, axes = canvas(9.5, 3.4)
    for style, (model, found) in zip(_styles(), models.items(), strict=False):
        reached = np.array(found["reached"], dtype=float)
        failed = np.array(found["failed"], dtype=float)
        seen = reached >= FEWEST_CHAINS
        place = np.flatnonzero(seen) + 1
        rate = failed[seen] / reached[seen]
        axes.plot(place, rate, style[1], color=style[0], marker=style[2], markersize=4, label=model)
    _accuracy(axes, "first errors a step")
    highest = max((float(line.get_ydata().max(initial=0.0)) for line in axes.lines), default=0.0)
    top = min(1.0, max(0.1, 1.2 * highest))
    axes.set_ylim(-0.02 * top, top)
    axes.set_xlabel(f"step of the chain (where at least {FEWEST_CHAINS} chains are right so far)")
    _legend(axes)
    return svg(figure, "errors", "First errors by step of the chain")


def drift_picture(
    models: Mapping[str, tuple[Sequence[float | None], Sequence[float | None]]], label: str
) -> str:
    """Drift against position in the trace, with standard errors.

    Args:
        models: by model: means of equal parts of the trace, and their standard errors; None where
            nothing is known.
        label: of the figure that drifts.

    """
    figure, axes = canvas(9.5, 3.4)
    for (colour, dash, marker), (model, (means, errors)) in zip(
        _styles(), models.items(), strict=False
    ):
        mean, error = np.array(means, dtype=float), np.array(errors, dtype=float)
        place = (np.arange(len(mean)) + 0.5) / len(mean)
        axes.plot(place, mean, dash, color=colour, marker=marker, markersize=4, label=model)
        if np.isfinite(error).all():
            axes.fill_between(place, mean - error, mean + error, color=colour, alpha=0.18, lw=0)
    axes.set_xlim(0, 1)
    axes.set_xlabel("position in the trace")
    axes.set_ylabel(label)
    axes.grid(visible=True, color=INK, alpha=0.15, linewidth=0.6)
    _legend(axes)
    return svg(figure, f"drift-{label}", f"{label} against position in the trace")


def layers_picture(models: Mapping[str, Sequence[float | None]]) -> str:
    """Cosine of the hidden states with the original's, against the layer of the compressed model.

    Args:
        models: by model: after the embedding, then after every layer.

    """
    figure, axes = canvas(9.5, 3.4)
    for (colour, dash, marker), (model, cosines) in zip(_styles(), models.items(), strict=False):
        cosine = np.array(cosines, dtype=float)
        axes.plot(cosine, dash, color=colour, marker=marker, markersize=4, label=model)
    axes.set_xlabel("layer (0: embedding)")
    axes.set_ylabel("cosine")
    axes.grid(visible=True, color=INK, alpha=0.15, linewidth=0.6)
    _legend(axes)
    return svg(figure, "layers", "Cosine of the hidden states by layer")


def _styles() -> tuple[tuple[str, str, str], ...]:
    return STYLES * 4


def _band(
    axes: Any,
    places: Sequence[float],
    intervals: Sequence[Mapping[str, float | None]],
    style: tuple[str, str, str],
    label: str,
) -> None:
    colour, dash, marker = style
    values = np.array([entry["value"] for entry in intervals], dtype=float)
    low = np.array([entry["low"] for entry in intervals], dtype=float)
    high = np.array([entry["high"] for entry in intervals], dtype=float)
    axes.plot(places, values, dash, color=colour, marker=marker, markersize=5, label=label)
    if np.isfinite(low).all() and np.isfinite(high).all():
        axes.fill_between(places, low, high, color=colour, alpha=0.18, lw=0)


def _doubling(axes: Any, places: Sequence[float]) -> None:
    """A logarithmic axis whose ticks are the places that were measured."""
    if places and min(places) > 0:
        axes.set_xscale("log", base=2)
    axes.set_xticks(list(places), [str(place) for place in places])
    axes.minorticks_off()


def _accuracy(axes: Any, label: str = "accuracy") -> None:
    axes.set_ylim(-0.02, 1.02)
    axes.set_ylabel(label)
    axes.grid(visible=True, color=INK, alpha=0.15, linewidth=0.6)


def _legend(axes: Any) -> None:
    if axes.lines:
        # Beside the axes: curves at 1 and at 0 are the rule here.
        axes.legend(
            frameon=False,
            labelcolor=INK,
            fontsize=9,
            loc="center left",
            bbox_to_anchor=(1.0, 0.5),
            handlelength=3.5,
        )
