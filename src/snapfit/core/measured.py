"""Curves that agree with what was measured: predictions of any method on one scale.

A method predicts how the loss grows as a group shrinks, in its own unit and for that group alone.
At a few sizes the divergence from the original model is measured. The curve keeps its shape and
passes through what was measured: the ratio of measured to predicted loss is interpolated, linear
in the logarithms of both, between the sizes that were measured, and taken to be constant beyond
them. Interpolating the ratio rather than the loss keeps a prediction that is right as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from snapfit.core.curve import NATS, Curve
from snapfit.core.space import Group

LEAST = 1e-7
"""Nats a token: below this, rounding in float32 decides what is measured."""


@dataclass(frozen=True, kw_only=True)
class Loss:
    """A measured divergence.

    Attributes:
        nats: a token, from the original model.
        stderr: of the mean over windows; None of a single window.

    """

    nats: float
    stderr: float | None = None


@dataclass(frozen=True, kw_only=True)
class Point:
    """What was measured of one group at one size."""

    size: int
    loss: Loss


def calibrated(curve: Curve, points: Sequence[Point], *, typical: float = 1.0) -> Curve:
    """The curve in nats, through the measured points where there are any.

    Args:
        curve: predicted, in any unit; zero at its last (the full) size.
        points: measured, at sizes below full; a size 0 that the curve lacks is added.
        typical: ratio of nats to the curve's unit where nothing was measured.

    """
    points = sorted(points, key=lambda point: point.size)
    sizes, losses = curve.sizes, curve.losses
    outside = [point for point in points if point.size < sizes[0]]
    inside = [point for point in points if sizes[0] <= point.size < sizes[-1]]
    positive = losses[losses > 0]
    if not positive.size:
        losses = _straight(sizes)
        positive = losses[:-1]
    floor = float(positive.min()) if positive.size else 1.0
    scale = np.full(len(sizes), typical)
    if inside:
        at = np.array([point.size for point in inside])
        predicted = np.interp(at, sizes, losses)
        floor = min(floor, float(predicted[predicted > 0].min(initial=floor)))
        logs = np.log(np.maximum(predicted, floor))
        ratios = np.log([max(point.loss.nats, LEAST) for point in inside]) - logs
        order = np.argsort(logs, kind="stable")
        everywhere = np.log(np.maximum(losses, floor))
        scale = np.exp(np.interp(everywhere, logs[order], ratios[order]))
    corrected = losses * scale
    if outside:
        sizes = np.append([point.size for point in outside], sizes)
        corrected = np.append([max(point.loss.nats, 0.0) for point in outside], corrected)
    return Curve(sizes=sizes, losses=corrected, unit=NATS)


def _straight(sizes: NDArray[np.int64]) -> NDArray[np.float64]:
    """The loss of a group about which nothing is predicted: by the share that is gone."""
    return np.asarray((sizes[-1] - sizes) / max(1, int(sizes[-1])), dtype=np.float64)


def typical_ratio(curves: Sequence[tuple[Curve, Sequence[Point]]]) -> float:
    """Geometric mean of measured over predicted loss; 1 when nothing was measured."""
    logs = [
        float(np.log(max(point.loss.nats, LEAST)) - np.log(predicted))
        for curve, points in curves
        for point in points
        if point.size >= curve.sizes[0] and (predicted := float(curve.at(point.size))) > 0
    ]
    return float(np.exp(np.mean(logs))) if logs else 1.0


def probe_sizes(group: Group, shares: Sequence[float], *, removed: bool) -> tuple[int, ...]:
    """Sizes to measure, increasing.

    Args:
        group: whose sizes; what is legal does not matter, so that no target asks for new ones.
        shares: of the break-even rank, or of the full width or number of heads.
        removed: whether size 0 is measured.

    """
    most = group.break_even if group.kind == "rank" else group.full
    sizes = {round(share * most) for share in shares}
    between = sorted(size for size in sizes if max(1, group.least) <= size < group.full)
    return (*((0,) if removed else ()), *between)
