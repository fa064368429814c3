"""The front of a job: what every budget would cost, from ordered bases that exist already."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from snapfit.core.curve import NATS
from snapfit.core.errors import SnapfitError, UsageError
from snapfit.core.options import SCORES
from snapfit.core.pareto import POINTS, Front, solve_front
from snapfit.pipeline.budget import asked, planner_of
from snapfit.pipeline.decide import unaligned_sizes
from snapfit.pipeline.depth_job import DepthJob
from snapfit.pipeline.job import Job
from snapfit.viz.frontier import check_front_path


def check_front(path: Path, job: Job) -> None:
    """Fail before anything that takes long where there will be no front, or no file of it.

    Raises:
        UsageError: the method's choices are no prefixes of single groups, or the name does not
            end in .html, .png or .json.
        SnapfitError: a picture is asked for and matplotlib is missing.

    """
    check_front_path(path)
    _refuse(job)


def front(job: Job, *, points: int = POINTS) -> Front:
    """Solve the front of loss against parameters, and against latency where the target has times.

    The plans that are marked keep what the options ask: the method's own unaligned sizes, these
    rounded, GAC, and the curve objective.

    Args:
        job: with its ordered bases made or found; only those and the curves are read.
        points: of each front.

    Raises:
        UsageError: the method's losses are not in nats, so that they cannot be added, or its
            choices are no prefixes of single groups.
        SnapfitError: whatever stops an earlier stage.

    """
    _refuse(job)
    units = {curve.unit for curve in job.curves.values()}
    if units != {NATS}:
        raise UsageError(
            f"--pareto adds losses, and those of {job.options.method} are in {', '.join(units)}; "
            "use --objective curve or --method kfac, whose losses are in nats"
        )
    planner = planner_of(job)
    shares = asked(job.options)
    notes = []
    proxy, scores = _scores(job)
    if scores is not None and proxy != job.options.score:
        notes.append(f"GAC is scored by {proxy}: no {job.options.score} was collected")
    unaligned = None
    try:
        unaligned = unaligned_sizes(job, job.curves, planner, shares)
    except SnapfitError as error:
        notes.append(str(error))
    with job.clock("pareto"):
        return solve_front(
            planner,
            job.curves,
            shares=shares,
            unaligned=unaligned,
            scores=scores,
            points=points,
            notes=notes,
        )


def _refuse(job: Job) -> None:
    if job.options.mixes or isinstance(job, DepthJob):
        raise UsageError(
            f"--pareto is for methods that choose ranks or widths; {job.options.method} does not"
        )


def _scores(job: Job) -> tuple[str, Mapping[str, float] | None]:
    """The importance proxy that was asked for or, failing that, one that was collected."""
    for proxy in (job.options.score, *reversed(SCORES)):
        name = f"score.{proxy}"
        if all(name in facts for facts in job.summaries.values()):
            return proxy, {group: facts[name] for group, facts in job.summaries.items()}
    return "", None
