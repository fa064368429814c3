"""Mixed plans: what becomes of every layer, decided between several methods under one budget.

ordered bases of each method -> a few sizes of every group measured -> curves in nats
-> one knapsack -> the whole plan measured -> once more, corrected -> the best that was measured
"""

from __future__ import annotations

from snapfit.core.curve import NATS
from snapfit.core.errors import UsageError
from snapfit.core.mixed_planner import MixedPlanner
from snapfit.core.options import Options
from snapfit.core.plan import Plan
from snapfit.pipeline.budget import asked, planner_of, predicted_latency
from snapfit.pipeline.mixed_job import MixedJob
from snapfit.pipeline.mixed_search import Search
from snapfit.pipeline.record import recorded

CHECKS = 16
"""Steps of the progress bar while whole plans are measured; about as many as there are."""


def decide_mixed(job: MixedJob) -> Plan:
    """Choose what becomes of every layer; of the plans that were measured, the best.

    Raises:
        Infeasible: the budget cannot be met; says the nearest that can.
        UsageError: an option that means nothing here, or a format that holds none of the choices.

    """
    refuse(job.options)
    planner, shares = _planner(job), asked(job.options)
    probed = job.probed
    job.progress.stage("plan", CHECKS)
    search = Search(job=job, planner=planner, shares=shares)
    best = search.best()
    return recorded(
        job,
        sizes=best.choice.sizes,
        reasons=best.choice.reasons,
        predicted={
            "loss": best.predicted,
            "unit": NATS,
            "params": best.choice.params,
            **search.figures(),
            "probes": probed.count,
            "probes.tokens": probed.tokens,
            **predicted_latency(planner, best.choice.sizes),
        },
        planner=planner,
        shares=shares,
    )


def _planner(job: MixedJob) -> MixedPlanner:
    given = planner_of(job)
    return MixedPlanner(
        space=given.space,
        rules=given.rules,
        watch=given.watch,
        of=given.of,
        itemsize=given.itemsize,
    )


def refuse(options: Options) -> None:
    """Options of single methods.

    Raises:
        UsageError: says which, and why.

    """
    if options.objective != "curve":
        raise UsageError(
            f"--objective {options.objective} starts from the sizes that one method would choose; "
            f"--method {options.method} has several methods compete: use --objective curve"
        )
    if options.refit:
        raise UsageError(
            "--refit corrects the factors of a model whose matrices are all factored or dense; "
            f"--method {options.method} narrows and drops too: leave it out"
        )
    if options.probe:
        raise UsageError(f"--method {options.method} always measures; leave out --probe")
    if options.layers is not None:
        raise UsageError(
            f"--layers counts layers; --method {options.method} decides what becomes of each: use "
            "--ratio or --budget"
        )
