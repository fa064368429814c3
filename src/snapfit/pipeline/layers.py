"""The scores that depth methods give every layer, side by side."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from snapfit.core.errors import SnapfitError, UsageError
from snapfit.core.options import Options
from snapfit.core.progress import Progress, Silent
from snapfit.core.schedule import Schedule
from snapfit.methods._depth import DepthBase
from snapfit.methods.registry import load_method, method_names
from snapfit.pipeline.depth import schedule_of
from snapfit.pipeline.job import Job
from snapfit.pipeline.mixed_parts import PartJob

UNINFORMED = frozenset({"random", "selection"})
"""Methods that know nothing of the model: shown only where they are asked for."""


def layer_scores(
    model: str,
    options: Options,
    methods: Sequence[str] = (),
    progress: Progress | None = None,
    *,
    part: str = "layer",
) -> dict[str, Schedule]:
    """Schedules of several depth methods on the same calibration tokens, by method.

    Args:
        model: folder, hub name, or 'embedded'.
        options: calibration, work folder and seed; `method` is ignored.
        methods: by name; () for all that know something of the model and can remove the part.
            Of these, one whose settings do not suit the model is left out, with a note.
        progress: told of everything that takes long.
        part: 'layer', 'attention' or 'mlp'.

    Raises:
        SnapfitError: a method that was asked for cannot score this model.
        UsageError: no such model or method, or a method that does not remove layers or the part.

    """
    progress = progress or Silent()
    settings = {} if part == "layer" else {"part": part}
    owner = Job(model=model, options=options, progress=progress)
    _ = owner.source  # a model that cannot be opened is no matter of one method
    schedules: dict[str, Schedule] = {}
    for name in methods or informed(part):
        asked = replace(options, method=name, settings={**options.settings, **settings})
        job = PartJob(model=model, options=asked, progress=progress, owner=owner)
        if not isinstance(job.method, DepthBase):
            known = ", ".join(depth_methods())
            raise UsageError(f"{name} does not remove layers; these do: {known}")
        try:
            schedules[name] = schedule_of(job)
        except UsageError as error:
            if methods:
                raise
            progress.note(f"{name} is left out: {error}")
    if not schedules:
        raise SnapfitError(f"no method can score the layers of {model}")
    return schedules


def layers_report(model: str, schedules: Mapping[str, Schedule]) -> dict[str, Any]:
    """What `snapfit layers --json` prints: scores and turns of every layer, by method.

    A turn is the number of removed layers at which the layer is gone, or merged, for the first
    time; None for one that never goes.
    """
    first = next(iter(schedules.values()))
    return {
        "model": model,
        "layers": first.full,
        "part": first.part,
        "methods": {
            name: {
                "unit": schedule.unit,
                "meaning": schedule.meaning,
                "scores": list(schedule.scores),
                "turns": list(schedule.turns),
                "removable": [schedule.full - size for size in schedule.reachable],
                "losses": [schedule.losses[size] for size in schedule.reachable],
                "notes": {str(schedule.full - size): text for size, text in schedule.notes.items()},
            }
            for name, schedule in schedules.items()
        },
    }


def depth_methods() -> tuple[str, ...]:
    """Methods that remove layers."""
    return tuple(name for name in method_names() if isinstance(load_method(name), DepthBase))


def informed(part: str = "layer") -> tuple[str, ...]:
    """Depth methods that look at the model, and can remove the part alone."""
    return tuple(
        name
        for name in depth_methods()
        if name not in UNINFORMED and (part == "layer" or _has_parts(name))
    )


def _has_parts(name: str) -> bool:
    fields: Any = load_method(name)
    return "part" in {field.name for field in dataclasses.fields(fields)}
