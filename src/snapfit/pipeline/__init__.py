"""From a model and a ratio to a smaller, aligned model. Only this package sees every stage.

    open -> tokens -> statistics -> ordered bases -> plan -> slice -> evaluate -> report
    `------------------- job.py -----------------'  `decide.py'  `---- realise.py ----'

Each arrow leaves files in the work folder, named by digests of everything they depend on: a rerun
starts where the last one stopped, and another ratio or objective starts at `plan`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from snapfit.core.files import check_new_directory, read_json, write_json
from snapfit.core.mixed import check_one_way
from snapfit.core.options import Options
from snapfit.core.plan import Plan
from snapfit.core.progress import Progress, Silent
from snapfit.pipeline.decide import decide
from snapfit.pipeline.info import info
from snapfit.pipeline.jobs import job_of
from snapfit.pipeline.mixed_job import MixedJob
from snapfit.pipeline.pareto import check_front, front
from snapfit.pipeline.realise import check_end, realise
from snapfit.pipeline.record import check_recorded, note_other_tokens
from snapfit.viz.frontier import write_front

__all__ = ["Options", "apply", "compress", "info", "plan"]


def compress(
    model: str, output: Path, options: Options | None = None, progress: Progress | None = None
) -> dict[str, Any]:
    """Compress `model` and write a checkpoint with its plan and report.

    Args:
        model: folder, hub name, or 'embedded'.
        output: folder to create.
        options: what is asked; see `Options`.
        progress: told what goes on.

    Returns:
        The content of `report.json`.

    Raises:
        SnapfitError: bad input, an impossible request, a full disk; says what to do.
    """
    options = options or Options()
    check_new_directory(output, overwrite=options.overwrite)
    job = job_of(model, options, progress or Silent())
    check_end(job)
    return realise(job, decide(job), output)


def plan(
    model: str,
    output: Path,
    options: Options | None = None,
    progress: Progress | None = None,
    *,
    pareto: Path | None = None,
) -> Plan:
    """Decide only: write `plan.json`.

    Args:
        model: folder, hub name, or 'embedded'.
        output: file to write.
        options: what is asked; see `Options`.
        progress: told what goes on.
        pareto: .html, .png or .json file for what every other budget would cost.

    Returns:
        The plan.

    Raises:
        SnapfitError: as `compress`.
    """
    job = job_of(model, options or Options(), progress or Silent())
    if pareto is not None:
        check_front(pareto, job)
    decided = decide(job)
    if pareto is not None:
        write_front(pareto, front(job))
    write_json(output, decided.to_json())
    return decided


def apply(
    plan_file: Path,
    output: Path,
    options: Options | None = None,
    progress: Progress | None = None,
    *,
    model: str | None = None,
) -> dict[str, Any]:
    """Slice only: cut the ordered bases of a plan's model to the plan's sizes.

    Args:
        plan_file: written by `plan` or `compress`, or by a stranger: it is validated.
        output: folder to create.
        options: where to work and what to evaluate; what decides sizes comes from the plan.
        progress: told what goes on.
        model: the model, where it is no longer at the place that the plan names.

    Returns:
        The content of `report.json`.

    Raises:
        SnapfitError: as `compress`; the plan is damaged or was made for other weights.
    """
    options = options or Options()
    check_new_directory(output, overwrite=options.overwrite)
    given = Plan.from_json(read_json(plan_file))
    asked = options.with_recipe(given.recipe)
    check_recorded(given)
    job = job_of(model or given.model, asked, progress or Silent())
    check_end(job)
    given.check(job.space)
    if isinstance(job, MixedJob):
        check_one_way(job.space, given.sizes)
    note_other_tokens(job, given)
    return realise(job, given, output)
