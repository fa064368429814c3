"""The plan of a job: what was decided, and everything that it was decided from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import snapfit
from snapfit.core.checked import real, text
from snapfit.core.errors import CorruptFile
from snapfit.core.files import digest_json
from snapfit.core.plan import Plan
from snapfit.core.planner import Planner
from snapfit.pipeline.job import Job
from snapfit.pipeline.structure import blueprint_of


def recorded(
    job: Job,
    *,
    sizes: Mapping[str, int],
    reasons: Mapping[str, str],
    predicted: Mapping[str, Any],
    planner: Planner,
    shares: Mapping[str, float],
) -> Plan:
    """Write down a decision, and check that the format can hold it.

    Args:
        job: what was asked.
        sizes: of every group.
        reasons: of every group.
        predicted: loss, parameters, times.
        planner: that the decision was made with.
        shares: the budgets, as shares of the dense model; empty where layers were counted or named.

    Raises:
        UsageError: the format cannot hold the sizes; says why.

    """
    options, dense = job.options, job.space.dense_params
    params = planner.column("params").limit(shares["params"]) if "params" in shares else dense
    budget: dict[str, Any] = {"of": options.of, "params": params}
    if options.layers is not None:
        budget["layers"] = options.layers
    elif options.budget is not None:
        budget |= {f"keep.{name}": share for name, share in shares.items()}
    elif shares:
        budget["ratio"] = options.removed
    plan = Plan(
        model=job.model,
        revision=job.space.revision,
        architecture=job.space.architecture,
        method=options.method,
        objective=options.objective,
        sizes=sizes,
        budget=budget,
        predicted=predicted,
        recipe=options.recipe(),
        reasons=reasons,
        rules=() if options.objective == "none" else job.rules,
        digests=_digests(job),
        seed=options.seed,
        version=snapfit.__version__,
    )
    share = predicted.get("latency.share")
    if share is not None and share >= 1:
        job.progress.note(
            f"on {predicted['latency.device']} this plan is predicted to take {share:.3f} of the "
            "dense model's time: smaller, not faster; --budget latency=... asks for time"
        )
    blueprint_of(job, plan)  # refuses what the format cannot hold, before anything is written
    return plan


def _digests(job: Job) -> dict[str, str]:
    found = {"space": digest_json(job.space.to_json()), "ordered": job.basis}
    if job.calibrated or job.options.refit:
        found["tokens"] = job.tokens.digest
    return found


def note_other_tokens(job: Job, plan: Plan) -> None:
    """Say so where the bases that a plan cuts are not those that it was made from."""
    before = plan.digests.get("tokens")
    if before is not None and before != job.tokens.digest:
        job.progress.note(
            "the plan was made with other calibration tokens: its text has changed, or another "
            "machine generated them; sizes and predictions are the plan's, the bases are new"
        )


def check_recorded(plan: Plan) -> None:
    """Refuse a stranger's plan that contradicts its recipe, or lacks a figure that is reported.

    Args:
        plan: whose recipe is complete.

    Raises:
        CorruptFile: says which entry, and what it is.

    """
    for name in ("method", "objective", "seed"):
        if plan.recipe[name] != getattr(plan, name):
            raise CorruptFile(
                f"the plan's {name} is {getattr(plan, name)!r}, that of its recipe "
                f"{plan.recipe[name]!r}"
            )
    real(plan.budget.get("params"), "the plan's budget[params]")
    known = plan.predicted
    if known.get("loss") is not None:
        real(known["loss"], "the plan's predicted[loss]")
    if "latency.us" in known:
        for key in ("latency.us", "latency.dense_us", "latency.spread"):
            real(known.get(key), f"the plan's predicted[{key}]")
        for key in ("latency.device", "latency.workload"):
            text(known.get(key), f"the plan's predicted[{key}]")
