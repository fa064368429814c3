"""Why a checkpoint is as slow as it is on a target: from its headers, whatever tool made it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from snapfit.core.candidates import AlignRule
from snapfit.core.diagnosis import Diagnosis
from snapfit.core.findings import diagnosed
from snapfit.core.progress import Progress, Silent
from snapfit.core.workload import DEFAULT_WORKLOAD, Workload
from snapfit.hardware.registry import resolve_target
from snapfit.models.footprint import read_footprint

LIVE = "cuda"


def diagnose(
    model: str | Path,
    target: str,
    workload: str = DEFAULT_WORKLOAD,
    *,
    align: int | None = None,
    progress: Progress | None = None,
) -> Diagnosis:
    """Examine every operator of a checkpoint on a target.

    Args:
        model: folder of a checkpoint in safetensors, or 'embedded'. No weight is loaded and none
            of its code runs.
        target: as `--target` takes it; 'cuda' also names the kernels that ran.
        workload: as `--workload` takes it.
        align: examine against multiples of this, instead of what the target likes.
        progress: told of every operator, and of every one whose kernels are watched.

    Raises:
        UsageError: no such folder, target or workload.
        SnapfitError: the checkpoint cannot be described, or no CUDA device is there.

    """
    progress = progress or Silent()
    resolved = resolve_target(target)
    parsed = Workload.parse(workload)
    footprint = read_footprint(model)
    if align is not None:
        rule = AlignRule(axis="rank", multiple=align, source=f"--align {align}")
        resolved = replace(resolved, rules=(rule,))
    found = diagnosed(footprint, resolved, parsed, progress)
    if target.partition(",")[0] != LIVE:
        return found
    from snapfit.pipeline.kernels import kernel_names

    operators = dict.fromkeys(line.operator for line in found.lines)
    names = {}
    progress.stage("kernels", len(operators))
    for operator in operators:
        names[str(operator)] = kernel_names(operator, device=LIVE, dtype=resolved.dtype)
        progress.advance()
    return replace(found, kernels=names)
