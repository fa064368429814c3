"""The search for a mixed plan: solve, measure the whole, correct once, and take the best."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from snapfit.core.curve import NATS
from snapfit.core.errors import Infeasible
from snapfit.core.measured import LEAST, Loss
from snapfit.core.mixed_planner import Allowed, Losses, MixedPlanner, allowed_by, one_kind
from snapfit.core.objectives import Choice
from snapfit.pipeline.mixed_check import PlanMeter, corrected, predicted_by_kind
from snapfit.pipeline.mixed_job import MixedJob

FACTOR = 1.25
"""Measured and predicted loss of a plan that are further apart are reconciled."""


@dataclass(frozen=True, kw_only=True)
class Made:
    """A plan that was measured.

    Attributes:
        name: 'first', 'corrected', or of the one kind of choice that it makes.
        choice: its sizes.
        predicted: nats.
        measured: nats, on the same scale.

    """

    name: str
    choice: Choice
    predicted: float
    measured: Loss

    @property
    def apart(self) -> float:
        """Measured over predicted, or the inverse: the larger of both."""
        pair = [max(self.predicted, LEAST), max(self.measured.nats, LEAST)]
        return max(pair) / min(pair)


@dataclass(kw_only=True)
class Search:
    """The plans of one job under one budget.

    Attributes:
        job: with its losses.
        planner: of its space.
        shares: what is to be kept.
        made: every plan that was measured, in order.
        factors: by what the losses of each kind of choice were multiplied; {} when they were not.

    """

    job: MixedJob
    planner: MixedPlanner
    shares: Mapping[str, float]
    made: list[Made] = field(default_factory=list, init=False)
    factors: dict[str, float] = field(default_factory=dict, init=False)

    def best(self) -> Made:
        """The plan with the least measured loss; of equals, the one found first.

        What only factors, only narrows or only drops layers is a mixed plan too, also as its
        method alone would choose it, and is measured beside the others: a prediction that is wrong
        about one kind then costs nothing.

        Raises:
            Infeasible: the budget cannot be met.

        """
        job, meter = self.job, PlanMeter(job=self.job)
        allowed = allowed_by(job.options.format, job.space, alone=job.alone)
        losses = job.losses
        first = self._make("first", losses, allowed, meter)
        if first.apart > FACTOR:
            self.factors = meter.factors(losses, first.choice.sizes)
            losses = corrected(losses, self.factors, job.space)
            self._make("corrected", losses, allowed, meter)
        undropped, alone = Losses(curves=losses.curves, drops={}), self._alone()
        factored, narrowed = one_kind(allowed, "rank"), one_kind(allowed, "width", "kv_heads")
        for name, given, few in (
            ("factored", undropped, factored),
            ("factored.alone", alone, factored),
            ("narrowed", undropped, narrowed),
            ("narrowed.alone", alone, narrowed),
            ("dropped", losses, one_kind(allowed)),
        ):
            # One kind alone may not reach the budget.
            with contextlib.suppress(Infeasible):
                self._make(name, given, few, meter)
        return min(self.made, key=lambda made: made.measured.nats)

    def _alone(self) -> Losses:
        """What each method predicts, where that is in nats, as a job of its own would use it."""
        job = self.job
        curves = {
            name: curve if curve.unit == NATS else job.curves[name]
            for name, curve in job.predicted.items()
        }
        return Losses(curves=curves, drops={})

    def figures(self) -> dict[str, float]:
        """What a plan records of the search."""
        best = min(self.made, key=lambda made: made.measured.nats)
        stderr = best.measured.stderr
        return {
            "loss.measured": best.measured.nats,
            **({} if stderr is None else {"loss.stderr": stderr}),
            **{f"loss.predicted.{made.name}": made.predicted for made in self.made},
            **{f"loss.measured.{made.name}": made.measured.nats for made in self.made},
            **{f"correction.{kind}": factor for kind, factor in self.factors.items()},
        }

    def _make(self, name: str, losses: Losses, allowed: Allowed, meter: PlanMeter) -> Made:
        with self.job.clock("plan"):
            choice = self.planner.choose_mixed(self.shares, losses, allowed)
        predicted = math.fsum(predicted_by_kind(self.job.space, losses, choice.sizes).values())
        measured = meter(choice.sizes)
        self.job.progress.advance()
        made = Made(name=name, choice=choice, predicted=predicted, measured=measured)
        self.made.append(made)
        return made
