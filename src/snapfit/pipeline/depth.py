"""Schedules of depth methods: made once, kept in the work folder, turned into a size."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import nn

from snapfit.core.errors import SnapfitError
from snapfit.core.files import read_json, write_json
from snapfit.core.schedule import Depth, Schedule
from snapfit.core.space import Group, Space
from snapfit.methods._depth import ROLES, DepthBase, DepthView
from snapfit.methods.base import DepthMethod
from snapfit.methods.registry import settings_of
from snapfit.models.describe import Family, decoder_layers, family
from snapfit.models.inspection import linear_layers
from snapfit.pipeline.job import Job
from snapfit.pipeline.stages import StageProgress


@dataclass(frozen=True, kw_only=True)
class DepthChoice:
    """A size of a schedule.

    Attributes:
        group: name of the group of layers.
        size: layers (or sub-layers) kept.
        params: parameters of the group's matrices that are left.
        loss: predicted, in the schedule's unit.
        reason: which layers went, in a few words.

    """

    group: str
    size: int
    params: int
    loss: float
    reason: str


def schedule_of(job: Job) -> Schedule:
    """The schedule of the job's method, from the work folder or made now.

    Raises:
        SnapfitError: the method does not remove layers, or cannot on this model.

    """
    method = _depth_method(job)
    tokens = job.tokens if method.reads_tokens else None
    depends = {
        "revision": job.source.revision,
        "tokens": tokens.digest if tokens else None,
        "seed": job.options.seed,
        "method": job.options.method,
        "settings": settings_of(job.method),
    }
    folder = job.workspace.folder("schedule", depends)
    path = folder / "schedule.json"
    if not path.exists():
        data = family(job.source, job.skeleton)
        view = DepthView(
            stream=job.stream,
            dense=lambda: decoder_layers(job.dense_model(), data),
            ids_BT=torch.empty(0, 0, dtype=torch.int64) if tokens is None else tokens.ids_BT,
            mask_BT=None if tokens is None else tokens.mask_BT,
            modules=part_modules(data, decoder_layers(job.skeleton, data)),
            folder=folder / "state",
            seed=job.options.seed,
            progress=StageProgress(job.progress),
        )
        view.folder.mkdir(parents=True, exist_ok=True)
        with job.clock("order"):
            schedule = cast("DepthMethod", job.method).schedule(view)
        write_json(path, schedule.to_json())
        shutil.rmtree(view.folder, ignore_errors=True)
    return Schedule.from_json(read_json(path))


def part_modules(data: Family, layers: list[nn.Module]) -> dict[str, tuple[str, ...]]:
    """Qualified name of every layer's attention and MLP module.

    A part is missing where some layer has no single module for it (OPT's MLP is two linear layers
    beside the attention).
    """
    modules: dict[str, tuple[str, ...]] = {}
    for part, roles in ROLES.items():
        names = []
        for index, layer in enumerate(layers):
            suffixes = [name for name, _ in linear_layers(layer) if data.role(name) in roles]
            tops = {name.partition(".")[0] for name in suffixes}
            if len(tops) == 1 and tops.isdisjoint(suffixes):
                names.append(f"{data.layers}.{index}.{tops.pop()}")
        if len(names) == len(layers):
            modules[part] = tuple(names)
    return modules


def depth_space(space: Space, schedule: Schedule) -> Space:
    """The space with parameters by size in its group of layers, as the schedule removes them.

    A size that the schedule does not reach has the parameters of the next larger one that it
    does, which is never worth choosing.
    """
    group = _group(space)
    steps, current = [0] * (group.full + 1), group.dense_params
    for size in range(group.full, -1, -1):
        if size in schedule.sizes:
            current = left(group, schedule.sizes[size])
        steps[size] = current
    groups = tuple(replace(g, steps=tuple(steps)) if g is group else g for g in space.groups)
    return replace(space, groups=groups)


def left(group: Group, depth: Depth) -> int:
    """Parameters of the group's matrices in a model of this depth; a merged layer has one layer's.

    Raises:
        SnapfitError: the schedule has more layers than the model.

    """
    gone = set(range(group.full)) - set(depth.sources)
    if depth.sources[-1] >= group.full:
        raise SnapfitError(
            f"the schedule keeps layer {depth.sources[-1]}; {group.name} has {group.full}"
        )
    prefixes = (*(f"{group.name}.{index}." for index in gone), *(f"{n}." for n in depth.removed))
    return sum(
        matrix.rows * matrix.cols
        for matrix in group.matrices
        if not matrix.name.startswith(prefixes)
    )


def depth_choice(space: Space, schedule: Schedule, size: int) -> DepthChoice:
    """What a size of the schedule is.

    Args:
        space: with the group of layers.
        schedule: what the method reaches.
        size: layers (or sub-layers) kept.

    Raises:
        SnapfitError: the method does not reach a model of that size; lists those that it does.

    """
    group = _group(space)
    return DepthChoice(
        group=group.name,
        size=size,
        params=left(group, schedule.at(size)),
        loss=schedule.losses[size],
        reason=_reason(schedule, size),
    )


def _reason(schedule: Schedule, size: int) -> str:
    gone = ", ".join(str(layer) for layer in sorted(schedule.gone(size))) or "none"
    what = "layers gone" if schedule.part == "layer" else f"without {schedule.part}: layers"
    if schedule.sizes[size].merges:
        what = "layers merged"
    note = schedule.notes.get(size)
    return f"{what} {gone}" + (f" ({note})" if note else "")


def _depth_method(job: Job) -> DepthBase:
    if not isinstance(job.method, DepthBase):
        raise SnapfitError(f"{job.options.method} does not remove layers; it has no schedule")
    return job.method


def _group(space: Space) -> Group:
    groups = space.of_kind("depth").groups
    if len(groups) != 1:
        raise SnapfitError(f"{space.model} has no list of layers that can be removed")
    return groups[0]
