"""Times between the points that a profile holds, with how far to trust them.

Letters: P timings of one kind, D sizes of a shape.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from snapfit.core.candidates import AlignRule
from snapfit.core.errors import SnapfitError
from snapfit.core.operators import (
    Attention,
    Estimate,
    Linear,
    Operator,
    OperatorKind,
    Source,
    operator_of,
)

NEAR = 4.0
"""A size may differ from a measured one by this factor; beyond it we answer only between two."""

NEIGHBOURS = 4
ITEMSIZE = 2
"""Only ratios of work are used, so the bytes of an element cancel."""


@dataclass(frozen=True, kw_only=True)
class Timing:
    """How long one operator takes.

    Attributes:
        kind: of the operator: 'linear', 'attention', 'elementwise' or 'launch'.
        shape: its sizes, as the operator's own `shape` gives them.
        microseconds: the median.
        spread: relative half-width of the repeats, e.g. 0.02.
        source: where the number comes from.
        how: in a few words, e.g. '3 x 200 runs, CUDA events'.

    """

    kind: OperatorKind
    shape: tuple[int, ...]
    microseconds: float
    spread: float
    source: Source
    how: str = ""

    @property
    def operator(self) -> Operator:
        """The operator that was timed."""
        return operator_of(self.kind, self.shape)

    @classmethod
    def of(cls, operator: Operator, estimate: Estimate) -> Timing:
        """The timing that records an estimate of an operator."""
        return cls(
            kind=operator.kind,
            shape=operator.shape,
            microseconds=estimate.microseconds,
            spread=estimate.spread,
            source=estimate.source,
            how=estimate.how,
        )


@dataclass(frozen=True, kw_only=True)
class Interpolator:
    """Answers from timings: exactly, between two along one size, or scaled by work.

    Between two points that differ in one size the time is linear in that size. Elsewhere the
    nearest points are scaled by the ratio of work, launch plus the larger of arithmetic and
    traffic at the best rates that the timings show. Where none is near, two far points will do if
    the size lies between them: a sweep has the ends of a range, and few points in it. In any case
    the answer is a model, and its spread covers what the neighbours disagree about. A size that
    breaks a rule which its neighbour keeps pays the rule's penalty on its arithmetic.
    """

    device: str
    rules: tuple[AlignRule, ...]
    timings: tuple[Timing, ...]

    def time(self, operator: Operator) -> Estimate:
        """The time of one operator.

        Raises:
            SnapfitError: nothing of its kind was measured near it, or on both sides of it.

        """
        timing = self._exact.get((operator.kind, operator.shape))
        if timing is not None:
            return Estimate(
                microseconds=timing.microseconds,
                spread=timing.spread,
                source=timing.source,
                how=timing.how,
            )
        close, nearest, line = self._near(operator)
        found = self._between(operator, close)
        if found is None:
            found = self._scaled(operator, nearest) if nearest else self._between(operator, line)
        if found is None:
            raise SnapfitError(
                f"the profile of {self.device} times nothing near {operator}; "
                "sweep it on the device with 'snapfit profile'"
            )
        return found

    @cached_property
    def _exact(self) -> dict[tuple[OperatorKind, tuple[int, ...]], Timing]:
        return {(timing.kind, timing.shape): timing for timing in self.timings}

    @cached_property
    def _by_kind(self) -> dict[OperatorKind, tuple[tuple[Timing, ...], NDArray[np.float64]]]:
        kinds: dict[OperatorKind, list[Timing]] = {}
        for timing in self.timings:
            kinds.setdefault(timing.kind, []).append(timing)
        return {
            kind: (tuple(found), np.array([t.shape for t in found], dtype=np.float64))
            for kind, found in kinds.items()
        }

    def _near(
        self, operator: Operator
    ) -> tuple[list[Timing], list[tuple[float, Timing]], list[Timing]]:
        """Timings of the same kind, nearest first.

        Those within `NEAR` that differ in one size alone; the nearest within `NEAR` of all, with
        their distance in log; and all that differ in one size alone, however far.
        """
        timings, shapes_PD = self._by_kind.get(operator.kind, ((), np.zeros((0, 0))))
        if not timings or not operator.shape:
            return [], [], []
        # A flag (causal) or a phase (one new token) that differs is never near.
        shape_D = np.array(operator.shape, dtype=np.float64)
        gaps_PD = np.abs(np.log(shapes_PD + 1e-9) - np.log(shape_D + 1e-9))
        distances_P = gaps_PD.sum(axis=1)
        order = np.argsort(distances_P, kind="stable")
        if isinstance(operator, Attention):
            order = order[(shapes_PD[order, 1] == 1) == (operator.query == 1)]
        line = order[(shapes_PD[order] != shape_D).sum(axis=1) == 1]
        near_P = gaps_PD.max(axis=1) <= math.log(NEAR) * (1 + 1e-9)
        return (
            [timings[i] for i in line[near_P[line]]],
            [(float(distances_P[i]), timings[i]) for i in order[near_P[order]][:NEIGHBOURS]],
            [timings[i] for i in line],
        )

    def _between(self, operator: Operator, line: list[Timing]) -> Estimate | None:
        """Linear in the one size in which two nearest timings, one on each side, differ."""
        sides: dict[tuple[int, bool], Timing] = {}
        for timing in line:
            axis = next(a for a, size in enumerate(operator.shape) if size != timing.shape[a])
            sides.setdefault((axis, timing.shape[axis] > operator.shape[axis]), timing)
        pairs = [
            (sides[axis, False], sides[axis, True], axis)
            for axis, above in sides
            if above and (axis, False) in sides
        ]
        if not pairs:
            return None
        low, high, axis = min(pairs, key=lambda p: p[1].shape[p[2]] / p[0].shape[p[2]])
        first, last = (t.microseconds * self._penalty(operator, t) for t in (low, high))
        share = (operator.shape[axis] - low.shape[axis]) / (high.shape[axis] - low.shape[axis])
        time = first + share * (last - first)
        # A staircase between the two may be anywhere between their times.
        spread = max(abs(first - time), abs(last - time)) / time
        return Estimate(
            microseconds=time,
            spread=spread + max(low.spread, high.spread),
            source="model",
            how=f"between {low.operator} and {high.operator}",
        )

    def _scaled(self, operator: Operator, used: list[tuple[float, Timing]]) -> Estimate:
        """The nearest timings, each scaled by the ratio of work, averaged in log."""
        times = [
            t.microseconds
            * self._work(operator)
            / self._work(t.operator)
            * self._penalty(operator, t)
            for _, t in used
        ]
        weights = [1 / distance**2 for distance, _ in used]
        logs = sum(w * math.log(t) for w, t in zip(weights, times, strict=True)) / sum(weights)
        time = math.exp(logs)
        distance, nearest = used[0]
        disagreement = max(abs(t / time - 1) for t in times)
        return Estimate(
            microseconds=time,
            # One neighbour cannot disagree with itself: the distance speaks for it.
            spread=max(disagreement, 0.1 * distance) + nearest.spread,
            source="model",
            how=f"scaled by work from {nearest.operator}",
        )

    @cached_property
    def _rates(self) -> tuple[float, float, float]:
        """Microseconds of a launch, and the best operations and bytes a microsecond."""
        launch = self._exact.get(("launch", ()))
        floor = launch.microseconds if launch else 0.0
        flops = traffic = 1e-9
        for timing in self.timings:
            operator = timing.operator
            # A time at the launch floor says nothing about rates.
            busy = max(timing.microseconds - floor, timing.microseconds / 2)
            traffic = max(traffic, operator.bytes(ITEMSIZE) / busy)
            if isinstance(operator, Linear | Attention):
                flops = max(flops, operator.flops / busy)
        return floor, flops, traffic

    def _work(self, operator: Operator, penalty: float = 1.0) -> float:
        floor, flops, traffic = self._rates
        arithmetic = penalty * operator.flops / flops
        return max(floor + max(arithmetic, operator.bytes(ITEMSIZE) / traffic), 1e-9)

    def _penalty(self, operator: Operator, timing: Timing) -> float:
        """What the operator pays for rules that it breaks, relative to what the timing paid."""
        if not isinstance(operator, Linear):
            return 1.0
        paid = self._work(timing.operator, self._broken(timing.operator))
        return (self._work(operator, self._broken(operator)) / self._work(operator)) / (
            paid / self._work(timing.operator)
        )

    def _broken(self, operator: Operator) -> float:
        assert isinstance(operator, Linear)
        sizes = {"in": operator.k, "out": operator.n}
        return max(
            (
                rule.penalty
                for rule in self.rules
                if rule.penalty and rule.axis in sizes and sizes[rule.axis] % rule.multiple
            ),
            default=1.0,
        )
