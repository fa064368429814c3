"""The right kind of job for a method."""

from __future__ import annotations

from snapfit.core.errors import UsageError
from snapfit.core.options import Options
from snapfit.core.progress import Progress
from snapfit.methods.registry import load_method
from snapfit.pipeline.depth_job import DepthJob
from snapfit.pipeline.job import Job
from snapfit.pipeline.mixed_job import MixedJob


def job_of(model: str, options: Options, progress: Progress) -> Job:
    """A job for one method, or for several whose choices compete.

    Raises:
        UsageError: no such method, a setting that it does not have, or --layers for one that
            removes none.

    """
    if options.mixes:
        return MixedJob(model=model, options=options, progress=progress)
    if load_method(options.method, options.settings).kind == "depth":
        return DepthJob(model=model, options=options, progress=progress)
    if options.layers is not None:
        raise UsageError(
            f"--layers is for methods that remove layers; {options.method} does not: use --ratio"
        )
    return Job(model=model, options=options, progress=progress)
