"""All findings of a diagnosis put together: operators, misfits, totals, changes, notes."""

from __future__ import annotations

from dataclasses import replace

from snapfit.core.answers import Answers, phase_times
from snapfit.core.diagnosis import Diagnosis
from snapfit.core.examine import Examination
from snapfit.core.footprint import Footprint
from snapfit.core.latency import Stopwatch
from snapfit.core.progress import Progress
from snapfit.core.remedies import changes, misfits
from snapfit.core.shares import ShareRule
from snapfit.core.space import Frame, Space
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

    Raises:
        UsageError: the target cannot serve the model's heads, whatever is changed.

    """
    for frame in _frames(footprint):
        target.check(_bare(footprint, frame))
    answers = Answers(watch=_watch(footprint, target, workload))
    examination = Examination(
        footprint=footprint, target=target, workload=workload, answers=answers, progress=progress
    )
    lines, edges = examination.lines()
    broken = misfits(examination)
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
        misfits=broken,
        phases=phase_times(lines, workload),
        lines=tuple(lines),
        changes=changes(examination, edges),
        notes=(
            *footprint.notes,
            *target.notes,
            *_stack_notes(target, broken=bool(broken)),
            *_notes(footprint, target, answers),
        ),
        kernels={},
    )


def _watch(footprint: Footprint, target: Target, workload: Workload) -> Stopwatch | None:
    """Asks the target's timer; nothing is decided here, so its space has no groups."""
    if target.timer is None:
        return None
    return Stopwatch(
        whole=_bare(footprint, footprint.frame),
        groups=(),
        timer=target.timer,
        workload=workload,
        shards=target.stack.tp,
    )


def _bare(footprint: Footprint, frame: Frame) -> Space:
    """A space of the model in which nothing is decided."""
    return Space(
        model=footprint.model,
        revision="",
        architecture=footprint.architecture,
        groups=(),
        total_params=0,
        kv_elements=0,
        frame=frame,
    )


def _frames(footprint: Footprint) -> set[Frame]:
    """The frames of the layers, with the heads that each has left; the model's own without any."""
    frames = set()
    for layer, found in footprint.layers.items():
        rows = {one.module.role: one.module.rows for one in found}
        frame = footprint.frame_of(layer)
        if layer in footprint.head_dims and rows.keys() >= {"q", "k"}:
            heads, kv_heads = (rows[role] // frame.head_dim for role in ("q", "k"))
            frames.add(replace(frame, heads=heads, kv_heads=kv_heads))
    return frames or {footprint.frame}


def quant_notes(target: Target) -> list[str]:
    """That times are not those of quantised kernels, where the target has such."""
    if target.timer is None or target.stack.quant is None:
        return []
    told = (
        f"times are of {target.dtype} products, not of the kernels of quant="
        f"{target.stack.quant}: its rules are examined, its times are not known"
    )
    return [told]


def _stack_notes(target: Target, *, broken: bool) -> list[str]:
    notes = quant_notes(target)
    if target.timer is not None and target.stack.tp > 1:
        notes.append(f"times are of one of {target.stack.tp} devices, without their exchange")
    if broken:
        notes += [
            f"a matrix that breaks this rule is refused: {rule.source}"
            for rule in target.rules
            if isinstance(rule, ShareRule) and rule.refused and rule.axis != "heads"
        ]
    return notes


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
