"""From ordered bases to a plan: one integer a group, within the budget."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from snapfit.core.curve import NATS, Curve
from snapfit.core.errors import Infeasible, UsageError
from snapfit.core.objectives import Choice
from snapfit.core.plan import Plan
from snapfit.core.planner import Planner
from snapfit.core.space import Space
from snapfit.evals.sensitivity import SensitivityProbe
from snapfit.methods._width_stage import importance
from snapfit.methods.base import Allocation, RankMethod, WidthMethod
from snapfit.pipeline import mixed
from snapfit.pipeline.budget import asked, check_asked, planner_of, predicted_latency
from snapfit.pipeline.depth_job import DepthJob, decide_depth
from snapfit.pipeline.job import Job
from snapfit.pipeline.mixed_job import MixedJob
from snapfit.pipeline.probe import role_corrections
from snapfit.pipeline.record import recorded
from snapfit.pipeline.windows import first_windows

PROBE_TOKENS = 2_048
"""Calibration tokens that a sensitivity search by perplexity reads at every probe."""


def decide(job: Job) -> Plan:
    """Choose sizes under the options' budget, objective and rules.

    Raises:
        Infeasible: the budget cannot be reached; says the nearest that can.
        UsageError: an option that means nothing for the method, or a target that does not suit.
        SnapfitError: whatever stops an earlier stage.
    """
    _refuse(job)  # now, not after an hour of calibration
    for note in job.notes:
        job.progress.note(note)
    if isinstance(job, MixedJob):
        return mixed.decide_mixed(job)
    if isinstance(job, DepthJob):
        return decide_depth(job)
    return _decide(job)


def _refuse(job: Job) -> None:
    """Refuse options that mean nothing for the method, and what no plan could keep."""
    options = job.options
    if isinstance(job, MixedJob):
        mixed.refuse(options)
    elif job.method.kind != "rank" and (options.probe or options.refit):
        option = "--probe" if options.probe else "--refit"
        raise UsageError(f"{option} corrects factors; --method {options.method} makes none")
    elif isinstance(job, DepthJob) and options.objective in {"gac", "round"}:
        raise UsageError(
            f"--objective {options.objective} aligns sizes; a number of layers has no alignment"
        )
    check_asked(job)


def _decide(job: Job) -> Plan:
    options, space = job.options, job.space
    planner, shares = planner_of(job), asked(options)
    with job.clock("plan"):
        curves: Mapping[str, Curve] = job.curves
        choice = _choose(job, curves, planner, shares)
    corrections: dict[str, float] = {}
    if options.probe:
        corrections = role_corrections(job, choice.sizes)
        curves = {
            group.name: job.curves[group.name].scaled(corrections[group.role], NATS)
            for group in space.groups
        }
        with job.clock("plan"):
            choice = _choose(job, curves, planner, shares)
    return recorded(
        job,
        sizes=choice.sizes,
        reasons=choice.reasons,
        predicted={
            **predicted(space, curves, choice.sizes),
            **predicted_latency(planner, choice.sizes),
            **{f"correction.{role}": factor for role, factor in corrections.items()},
        },
        planner=planner,
        shares=shares,
    )


def _choose(
    job: Job, curves: Mapping[str, Curve], planner: Planner, shares: Mapping[str, float]
) -> Choice:
    options = job.options
    unaligned = None
    if options.objective != "curve":
        unaligned = unaligned_sizes(job, curves, planner, shares)
    scores = None
    if job.score is not None:
        scores = {name: facts[f"score.{job.score}"] for name, facts in job.summaries.items()}
    try:
        return planner.choose(
            options.objective, shares, curves=curves, unaligned=unaligned, scores=scores
        )
    except Infeasible as error:
        if options.budget is not None:
            raise
        raise _unreachable(error, options.removed, options.of) from error


def unaligned_sizes(
    job: Job, curves: Mapping[str, Curve], planner: Planner, shares: Mapping[str, float]
) -> Mapping[str, float]:
    """The method's own allocation, which knows parameters only: of another budget, the same share.

    Raises:
        SnapfitError: the method's allocation cannot be had.
    """
    if not isinstance(job.method, RankMethod | WidthMethod):
        raise UsageError(
            f"--method {job.options.method} has no sizes of its own to align; use --objective curve"
        )
    first = shares.get("params", next(iter(shares.values())))
    request = Allocation(
        space=job.space,
        curves=curves,
        summaries=job.summaries,
        budget=max(planner.column("params").limit(first), 0),
        perplexity=_perplexity_probe(job),
        importance=importance(job.store, job.space.groups),
    )
    return job.method.allocate(request)


def predicted(
    space: Space, curves: Mapping[str, Curve], sizes: Mapping[str, int]
) -> dict[str, Any]:
    """Total predicted loss where the curves can be added, and parameters."""
    units = {curve.unit for curve in curves.values()}
    loss = sum(float(curves[group.name].at(sizes[group.name])) for group in space.groups)
    return {
        "loss": loss if len(units) == 1 else None,
        "unit": units.pop() if len(units) == 1 else None,
        "params": space.params(dict(sizes)),
    }


def _unreachable(error: Infeasible, ratio: float, of: str) -> Infeasible:
    largest = 1 - error.nearest["params"]
    return Infeasible(
        f"ratio {ratio} of {of} weights cannot be reached: with every group at its smallest legal "
        f"size the ratio is {largest:.4f}; ask for less, or align to a smaller multiple",
        nearest={"ratio": largest},
    )


def _perplexity_probe(job: Job) -> Callable[[str, int], float]:
    """Loads the dense model only if the method's allocation asks for a perplexity."""
    groups = {group.name: group for group in job.space.groups}
    probes: list[SensitivityProbe] = []
    seen: set[str] = set()

    def probe(name: str, rank: int) -> float:
        if not probes:
            ids_BT, mask_BT = first_windows(job, max(1, PROBE_TOKENS // job.options.context))
            job.progress.stage("sensitivity", len(groups))
            probes.append(
                SensitivityProbe(
                    model=job.dense_model(),
                    ids_BT=ids_BT,
                    factors=lambda group, r: job.store.factors(group.layer, group.name, r),
                    groups=groups,
                    memo=job.store.folder / f"sensitivity-{job.tokens.digest}.json",
                    mask_BT=mask_BT,
                )
            )
        if name not in seen:
            seen.add(name)
            job.progress.advance()
        return probes[0](name, rank)

    return probe
