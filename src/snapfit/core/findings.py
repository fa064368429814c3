"""All findings of a diagnosis put together: operators, misfits, totals, changes, notes."""

from __future__ import annotations

from snapfit.core.answers import Answers, phase_times
from snapfit.core.diagnosis import Diagnosis
from snapfit.core.examine import Examination
from snapfit.core.footprint import Footprint
from snapfit.core.latency import Stopwatch
from snapfit.core.progress import Progress
from snapfit.core.remedies import changes, misfits
from snapfit.core.space import Space
from snapfit.core.target import Target
from snapfit.core.workload import Workload

MULTIPLES = (8, 16)
"""Of which the share of aligned matrices is told, whatever the target likes."""


def diagnosed(
    footprint: Footprint, target: Target, workload: Workload, progress: Progress
) -> Diagnosis:
    """Everything that is found of a checkpoint on a target.

    Args:
        footprint: what the checkpoint computes.
        target: where it runs.
        workload: what it does.
        progress: told of every distinct operator.

    """
    answers = Answers(watch=_watch(footprint, target, workload))
    examination = Examination(
        footprint=footprint, target=target, workload=workload, answers=answers, progress=progress
    )
    lines, edges = examination.lines()
    return Diagnosis(
        model=footprint.model,
        architecture=footprint.architecture,
        compressor=footprint.compressor,
        target=target.name,
        device=target.device,
        dtype=target.dtype,
        software=target.software,
        workload=str(workload),
        rules=tuple(
            f"{rule.axis} in multiples of {rule.multiple} ({rule.source})" for rule in target.rules
        ),
        matrices=sum(found.matrices for found in footprint.found),
        alignment={multiple: footprint.alignment(multiple) for multiple in MULTIPLES},
        misfits=misfits(examination),
        phases=phase_times(lines, workload),
        lines=tuple(lines),
        changes=changes(examination, edges),
        notes=(*footprint.notes, *target.notes, *_notes(footprint, target, answers)),
        kernels={},
    )


def _watch(footprint: Footprint, target: Target, workload: Workload) -> Stopwatch | None:
    """Asks the target's timer; nothing is decided here, so its space has no groups."""
    if target.timer is None:
        return None
    bare = Space(
        model=footprint.model,
        revision="",
        architecture=footprint.architecture,
        groups=(),
        total_params=0,
        kv_elements=0,
        frame=footprint.frame,
    )
    shards = target.stack.tp
    return Stopwatch(whole=bare, groups=(), timer=target.timer, workload=workload, shards=shards)


def _notes(footprint: Footprint, target: Target, answers: Answers) -> list[str]:
    notes = []
    if target.timer is None:
        notes.append(
            f"{target.name} has rules but no times: tiers only; install snapfit[hardware] for "
            "tables of NVIDIA's, or name a profile that `snapfit profile` made"
        )
    elif footprint.dtype != target.dtype:
        notes.append(f"weights are {footprint.dtype}, times are of {target.dtype}")
    if answers.unknown:
        first = next(iter(answers.unknown.values()))
        notes.append(f"{len(answers.unknown)} operators have no time and are left out: {first}")
    return notes
