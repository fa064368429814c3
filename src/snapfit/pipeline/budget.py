"""What a job's options ask to keep, and a planner that can keep it."""

from __future__ import annotations

from typing import Any

from snapfit.core.budgets import parse_budgets
from snapfit.core.errors import UsageError
from snapfit.core.latency import Stopwatch
from snapfit.core.options import Options
from snapfit.core.planner import Planner
from snapfit.core.target import Target
from snapfit.core.workload import DEFAULT_WORKLOAD, Workload
from snapfit.hardware._live import LiveTimer
from snapfit.hardware.registry import resolve_target
from snapfit.pipeline.job import Job


def asked(options: Options) -> dict[str, float]:
    """Shares of the dense model to keep, by budget: of `--budget`, or of `--ratio`.

    Raises:
        UsageError: `--budget` is malformed.

    """
    if options.budget is not None:
        return parse_budgets(options.budget)
    return {"params": 1 - options.removed}


def target_of(options: Options) -> Target | None:
    """The target of `--target`, or None.

    Raises:
        UsageError: nothing is called that.

    """
    return None if options.target is None else resolve_target(options.target)


def check_asked(job: Job) -> None:
    """Refuse, before anything that takes long, what no plan of the job could keep.

    Raises:
        UsageError: a budget is malformed, or is of time where the target cannot plan by time;
            nothing is called like the target; or names the rules that clash.
        SnapfitError: the model has nothing that the method and the format could make smaller.

    """
    options, target = job.options, target_of(job.options)
    space = job.known_space
    if "latency" in asked(options):
        _check_timed(job, target)
    if target is not None:
        target.check(space)
        target.stack.check_format(options.format)


def _check_timed(job: Job, target: Target | None) -> None:
    if target is None or target.timer is None:
        raise UsageError(
            "a latency budget needs a target that knows times: --target a100_sxm or a "
            "saved profile (see snapfit targets)"
        )
    if isinstance(target.timer, LiveTimer):
        raise UsageError(
            f"a plan by latency needs a profile of {target.name}: run 'snapfit profile --target "
            f"{target.name} --for {job.model} -o FILE', then give --target FILE"
        )


def planner_of(job: Job) -> Planner:
    """A planner for the job's space, rules and target; times are asked when first needed.

    A device that measures when it is asked gives its rules only: a plan asks for the times of
    thousands of shapes, which a profile of a few interpolates.

    Raises:
        UsageError: the target or the workload is malformed.

    """
    options = job.options
    target = target_of(options)
    watch = None
    live = target is not None and isinstance(target.timer, LiveTimer)
    if target is not None and target.timer and not live and job.whole.frame is not None:
        watch = Stopwatch(
            whole=job.whole,
            groups=job.space.groups,
            timer=target.timer,
            workload=Workload.parse(options.workload or DEFAULT_WORKLOAD),
            shards=target.stack.tp,
        )
    return Planner(
        space=job.space,
        rules=(*job.rules, *job.format_rules),
        watch=watch,
        of=options.of,
        itemsize=job.source.dtype.itemsize,
    )


def predicted_latency(planner: Planner, sizes: dict[str, int]) -> dict[str, Any]:
    """What a plan records of its predicted time; empty where the target has no times.

    'latency.us' and 'latency.dense_us' are of the workload, 'latency.spread' is the relative
    half-width, 'latency.measured', '.table' and '.model' the shares of the time by source.
    """
    watch = planner.watch
    if watch is None:
        return {}
    found, dense = watch.latency(sizes), watch.latency({})
    return {
        "latency.device": watch.timer.device,
        "latency.workload": str(watch.workload),
        "latency.us": found.microseconds,
        "latency.dense_us": dense.microseconds,
        "latency.share": found.microseconds / dense.microseconds,
        "latency.spread": found.spread,
        **{f"latency.{source}": share for source, share in found.shares.items()},
    }
