"""`snapfit profile`: time on a target what a model or a plan can need, and keep it in a file."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from snapfit.core.errors import SnapfitError, UsageError
from snapfit.core.files import read_json, write_json
from snapfit.core.operators import Operator
from snapfit.core.options import Options
from snapfit.core.plan import Plan
from snapfit.core.profile import Profile
from snapfit.core.progress import Progress, Silent
from snapfit.core.space import Space
from snapfit.core.target import Target
from snapfit.core.wanted import general_operators, model_operators, plan_operators
from snapfit.core.workload import DEFAULT_WORKLOAD, Workload
from snapfit.hardware._sweep import sweep
from snapfit.hardware.registry import resolve_target
from snapfit.models.describe import describe, open_model
from snapfit.models.shapes import describe_shapes
from snapfit.pipeline.job import Job


def profile(
    output: Path,
    *,
    target: str = "cpu",
    subject: str | None = None,
    workload: str = DEFAULT_WORKLOAD,
    dtype: str | None = None,
    minutes: float | None = None,
    overwrite: bool = False,
    trust_remote_code: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Time operators on a target and write a profile.

    What is timed is kept in `output`.partial as it goes; while that file exists, the same call goes
    on from there.

    Args:
        output: file to write; its name ends in .json.
        target: where; its stack restricts which sizes are legal, and is not part of the profile.
        subject: a plan's file, a model, or None for products of usual sizes.
        workload: passes of the model; see `snapfit.core.workload`.
        dtype: of weights and activations; None for the target's own.
        minutes: stop after these; what is left out is counted, and a rerun goes on.
        overwrite: replace an `output` that exists.
        trust_remote_code: let the model's own Python code run.
        progress: told what goes on.

    Returns:
        What was timed and what was left out.

    Raises:
        UsageError: bad input, or an unknown target.
        SnapfitError: the file exists, or the target has no times; says what to do.

    """
    progress = progress or Silent()
    if output.suffix != ".json" or "," in str(output):
        raise UsageError(
            f"{output}: --target takes a profile by a name that ends in .json and has no comma; "
            "choose such a name"
        )
    partial = output.with_name(f"{output.name}.partial")
    if output.exists() and not (overwrite or partial.exists()):
        raise SnapfitError(f"{output} already exists; choose another file or pass --overwrite")
    if minutes is not None and not minutes > 0:
        raise UsageError(f"--minutes must be above 0, found {minutes:g}")
    whole = resolve_target(target, dtype=dtype)
    bare = resolve_target(target.partition(",")[0], dtype=dtype)
    operators = _operators(
        subject, Workload.parse(workload), whole, trust_remote_code=trust_remote_code
    )
    seconds = None if minutes is None else 60 * minutes
    done = sweep(bare, operators, partial, seconds=seconds, progress=progress)
    if not done.profile.timings:
        raise SnapfitError(
            f"there was no time for any of {len(operators)} shapes; give more --minutes"
            if done.left
            else f"{bare.name} knows nothing near any of {len(operators)} shapes"
        )
    write_json(output, done.profile.to_json())
    if done.left:
        progress.note(
            f"{len(done.left)} of {len(done.left) + len(done.profile.timings)} shapes were left "
            f"out after {minutes:g} minutes ({_kinds(done.left)}), the least valuable ones; the "
            "same command goes on"
        )
    else:
        partial.unlink(missing_ok=True)
    if done.unknown:
        progress.note(
            f"{bare.name} knows nothing near {len(done.unknown)} shapes, such as {done.unknown[0]}"
        )
    return _facts(done.profile, done.left, done.unknown)


def _operators(
    subject: str | None, workload: Workload, target: Target, *, trust_remote_code: bool
) -> tuple[Operator, ...]:
    """What to time for a plan, a model, or in general."""
    shards, dtype = target.stack.tp, target.dtype
    if subject is None:
        return general_operators(workload)
    if Path(subject).is_file() and Path(subject).name != "config.json":
        plan = Plan.from_json(read_json(Path(subject)))
        options = Options(trust_remote_code=trust_remote_code).with_recipe(plan.recipe)
        job = Job(model=plan.model, options=options, progress=Silent())
        plan.check(job.space)
        return plan_operators(
            job.whole, job.space.groups, plan.sizes, workload, dtype=dtype, shards=shards
        )
    space = space_of(subject, trust_remote_code=trust_remote_code)
    target.check(space)
    return model_operators(space, target.rules, workload, dtype=dtype, shards=shards)


def space_of(subject: str, *, trust_remote_code: bool = False) -> Space:
    """A model's space, from its configuration alone where there are no weights."""
    place = Path(subject)
    if place.name == "config.json" or (
        (place / "config.json").is_file() and not any(place.glob("*.safetensors*"))
    ):
        return describe_shapes(place)
    source = open_model(subject, trust_remote_code=trust_remote_code)
    return describe(source, name=subject)


def _facts(
    made: Profile, left: tuple[Operator, ...], unknown: tuple[Operator, ...]
) -> dict[str, Any]:
    return {
        "device": made.device,
        "software": made.software,
        "dtype": made.dtype,
        "timed": dict(Counter(timing.kind for timing in made.timings)),
        "sources": dict(Counter(timing.source for timing in made.timings)),
        "left_out": len(left),
        "unknown": len(unknown),
        "rules": [f"{rule.axis} % {rule.multiple} ({rule.source})" for rule in made.rules],
    }


def _kinds(operators: tuple[Operator, ...]) -> str:
    return ", ".join(f"{n} {kind}" for kind, n in Counter(op.kind for op in operators).items())
