"""A job whose method removes layers, and its plan: one size, looked up in a schedule."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from snapfit.core.budgets import Column
from snapfit.core.curve import Curve
from snapfit.core.errors import Infeasible
from snapfit.core.options import Options
from snapfit.core.plan import Plan
from snapfit.core.schedule import Schedule
from snapfit.core.space import Space
from snapfit.methods._depth import DepthBase
from snapfit.pipeline.budget import asked, planner_of, predicted_latency
from snapfit.pipeline.depth import DepthChoice, depth_choice, depth_space, schedule_of
from snapfit.pipeline.job import Job
from snapfit.pipeline.record import recorded


@dataclass(frozen=True, kw_only=True)
class DepthJob(Job):
    """A job whose method is a schedule of removals or merges, instead of ordered bases."""

    @property
    def needs(self) -> frozenset[str]:
        """Schedules look at the model themselves."""
        return frozenset()

    @property
    def calibrated(self) -> bool:
        """Whether the schedule depends on calibration tokens."""
        return isinstance(self.method, DepthBase) and self.method.reads_tokens

    @cached_property
    def schedule(self) -> Schedule:
        """What every number of kept layers looks like."""
        return schedule_of(self)

    @cached_property
    def space(self) -> Space:
        """The group of layers, with the parameters of every size as the schedule removes them."""
        return depth_space(super().space, self.schedule)

    @property
    def known_space(self) -> Space:
        """The whole: which weights the group of layers has is known by the schedule."""
        return self.whole

    @property
    def basis(self) -> str:
        """Name of the method: its schedule is found by the plan's recipe."""
        return self.options.method

    @cached_property
    def notes(self) -> tuple[str, ...]:
        """What was noticed about the calibration tokens."""
        return self.tokens.notes if self.calibrated else ()

    @cached_property
    def curves(self) -> dict[str, Curve]:
        """The loss of the sizes that the schedule reaches."""
        return {group.name: self.schedule.curve for group in self.space.groups}


def decide_depth(job: DepthJob) -> Plan:
    """The largest size within the budgets, or the one without as many layers as were asked.

    Raises:
        Infeasible: the smallest reachable size is above a budget.
        SnapfitError: the method does not reach a model with that many layers less.

    """
    options = job.options
    planner, shares = planner_of(job), asked(options)
    with job.clock("plan"):
        choice = _choose(job, {name: planner.column(name) for name in shares}, shares)
    sizes = {choice.group: choice.size}
    return recorded(
        job,
        sizes=sizes,
        reasons={choice.group: choice.reason},
        predicted={
            "loss": choice.loss,
            "unit": job.schedule.unit,
            "params": choice.params,
            **predicted_latency(planner, sizes),
        },
        planner=planner,
        shares={} if options.layers is not None or _listed(options) else shares,
    )


def _listed(options: Options) -> bool:
    """Whether the user named the layers, and so said how many."""
    return options.method == "selection" and options.ratio is None and options.budget is None


def _choose(
    job: DepthJob, columns: Mapping[str, Column], shares: Mapping[str, float]
) -> DepthChoice:
    options, schedule, space = job.options, job.schedule, job.space
    if options.layers is not None:
        return depth_choice(space, schedule, schedule.full - options.layers)
    if _listed(options):
        return depth_choice(space, schedule, min(schedule.sizes))
    group = space.groups[0]
    reachable = np.array(schedule.reachable, dtype=np.int64)
    fits = np.ones(len(reachable), dtype=np.bool_)
    for name, found in columns.items():
        fits &= found.table(group, reachable) <= found.limit(shares[name])
    if not fits.any():
        raise _unmet(schedule, columns, shares, space)
    return depth_choice(space, schedule, int(reachable[fits][0]))


def _unmet(
    schedule: Schedule, columns: Mapping[str, Column], shares: Mapping[str, float], space: Space
) -> Infeasible:
    smallest = np.array([schedule.reachable[-1]], dtype=np.int64)
    nearest = {
        name: found.share(int(found.table(space.groups[0], smallest)[0]))
        for name, found in columns.items()
    }
    wanted = ", ".join(f"{name}={share:g}" for name, share in shares.items())
    told = ", ".join(f"{name}={share:.4f}" for name, share in nearest.items())
    return Infeasible(
        f"this method removes at most {schedule.full - int(smallest[0])} of {schedule.full}, which "
        f"leaves {told} of the dense model; asked was {wanted}: ask for less",
        nearest=nearest,
    )
