"""What a target's times say of a checkpoint, by the shapes in its files: no plan is needed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from snapfit.core.errors import SnapfitError
from snapfit.core.footprint import Footprint
from snapfit.core.forward import expert_counts, head_parts, layer_parts
from snapfit.core.operators import Operator, itemsize_of
from snapfit.core.target import Target
from snapfit.core.workload import Phase, Workload
from snapfit.hardware.registry import resolve_target
from snapfit.models.footprint import read_footprint


def foretell(model: Path, against: Path, target: str, workload: Workload) -> dict[str, Any]:
    """Predicted time of a model over another one's.

    Each distinct operator is timed once, however many layers have it, so that a live target is
    asked as little as can be.

    Args:
        model: folder of a checkpoint.
        against: folder of the dense one.
        target: as `--target` takes it.
        workload: what goes through.

    Returns:
        'share' of the dense model's time, 'phases' (the same, a phase at a time), 'workload',
        'device'.

    Raises:
        UsageError: there is no such target.
        SnapfitError: it has no times, or a checkpoint cannot be described.

    """
    found = resolve_target(target)
    if found.timer is None:
        raise SnapfitError(f"{target} has no times; choose another --target, or leave it out")
    timer = found.timer
    known: dict[Operator, float] = {}

    def microseconds(footprint: Footprint, phase: Phase) -> float:
        total = 0.0
        for operator, count in _operators(footprint, found, phase):
            if operator not in known:
                known[operator] = timer.time(operator).microseconds
            total += count * known[operator]
        return total

    ours, theirs = (
        [microseconds(read_footprint(folder), phase) for phase in workload.phases]
        for folder in (model, against)
    )
    weights = [phase.weight for phase in workload.phases]
    return {
        "share": _weighted(ours, weights) / _weighted(theirs, weights),
        "phases": {
            str(phase): one / other
            for phase, one, other in zip(workload.phases, ours, theirs, strict=True)
        },
        "workload": str(workload),
        "device": found.device,
    }


def _operators(
    footprint: Footprint, target: Target, phase: Phase
) -> Iterator[tuple[Operator, float]]:
    """(operator, how often it runs) of one forward pass on one device."""
    itemsize, shards = itemsize_of(target.dtype), target.stack.tp
    for index, layer in footprint.layers.items():
        modules = tuple(found.module for found in layer)
        frame = footprint.frame_of(index)
        experts = expert_counts(modules, frame)
        parts = layer_parts(
            modules, frame, phase, experts=experts, itemsize=itemsize, shards=shards
        )
        for counted in parts.values():
            yield from counted
    for counted in head_parts(footprint.frame, phase, itemsize=itemsize, shards=shards).values():
        yield from counted


def _weighted(times: list[float], weights: list[float]) -> float:
    return sum(time * weight for time, weight in zip(times, weights, strict=True))
