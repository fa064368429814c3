"""The plan of a job: what was decided, and everything that it was decided from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import snapfit
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
        shares: the budgets, as shares of the dense model; empty where layers were counted.

    Raises:
        UsageError: the format cannot hold the sizes; says why.

    """
    options, dense = job.options, job.space.dense_params
    params = planner.column("params").limit(shares["params"]) if "params" in shares else dense
    budget: dict[str, Any] = {"of": options.of, "params": params}
    if options.layers is not None:
        budget["layers"] = options.layers
    elif options.budget is None:
        budget["ratio"] = options.removed
    else:
        budget |= {f"keep.{name}": share for name, share in shares.items()}
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
        digests={"space": digest_json(job.space.to_json()), "ordered": job.basis},
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
