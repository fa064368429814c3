"""From ordered bases to a plan: one integer a group, within the budget."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import snapfit
from snapfit.core.curve import NATS, Curve
from snapfit.core.errors import Infeasible, UsageError
from snapfit.core.files import digest_json
from snapfit.core.objectives import Choice
from snapfit.core.plan import Plan
from snapfit.core.planner import Planner
from snapfit.core.space import Space
from snapfit.evals.sensitivity import SensitivityProbe
from snapfit.methods.base import Allocation, RankMethod, WidthMethod
from snapfit.pipeline.budget import asked, planner_of, predicted_latency
from snapfit.pipeline.job import Job
from snapfit.pipeline.probe import role_corrections

PROBE_TOKENS = 2_048
"""Calibration tokens that a sensitivity search by perplexity reads at every probe."""


def decide(job: Job) -> Plan:
    """Choose sizes under the options' budget, objective and rules.

    Raises:
        Infeasible: the ratio cannot be reached; says the largest that can.
        SnapfitError: whatever stops an earlier stage.
    """
    for note in job.notes:
        job.progress.note(note)
    return _decide(job)


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
    return Plan(
        model=job.model,
        revision=space.revision,
        architecture=space.architecture,
        method=options.method,
        objective=options.objective,
        sizes=choice.sizes,
        budget=_recorded(job, planner, shares),
        predicted={
            **predicted(space, curves, choice.sizes),
            **predicted_latency(planner, choice.sizes),
            **{f"correction.{role}": factor for role, factor in corrections.items()},
        },
        recipe=options.recipe(),
        reasons=choice.reasons,
        rules=() if options.objective == "none" else job.rules,
        digests={"space": digest_json(space.to_json()), "ordered": job.store.folder.name},
        seed=options.seed,
        version=snapfit.__version__,
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
    )
    return job.method.allocate(request)


def _recorded(job: Job, planner: Planner, shares: Mapping[str, float]) -> dict[str, Any]:
    """What the plan says was asked: parameters at most, and the shares to keep."""
    options, dense = job.options, job.space.dense_params
    params = planner.column("params").limit(shares["params"]) if "params" in shares else dense
    if options.budget is None:
        return {"of": options.of, "ratio": options.removed, "params": params}
    return {"of": options.of, "params": params, **{f"keep.{k}": v for k, v in shares.items()}}


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
            windows = max(1, PROBE_TOKENS // job.options.context)
            job.progress.stage("sensitivity", len(groups))
            probes.append(
                SensitivityProbe(
                    model=job.dense_model(),
                    ids_BT=job.tokens.ids_BT[:windows],
                    factors=lambda group, r: job.store.factors(group.layer, group.name, r),
                    groups=groups,
                    memo=job.store.folder / f"sensitivity-{job.tokens.digest}.json",
                )
            )
        if name not in seen:
            seen.add(name)
            job.progress.advance()
        return probes[0](name, rank)

    return probe
