"""The divergence of the model from itself with one group smaller, for a few sizes of every group.

A layer's measurements are one file of the work folder, so that a run that was killed goes on where
it stopped. They depend on the ordered bases and the tokens only: every budget, target and format
reuses them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from snapfit.core.files import read_kept, write_json
from snapfit.core.measured import Loss, Point, probe_sizes
from snapfit.core.mixed import parts_of
from snapfit.core.space import Group
from snapfit.evals.layer_divergence import LayerDivergence
from snapfit.models.describe import family
from snapfit.pipeline.job import Job
from snapfit.pipeline.mixed_variants import variant
from snapfit.pipeline.windows import windows_of

WINDOWS, WINDOW = 4, 128
"""Calibration windows that every probe reads, spread over all of them, and tokens of each."""

MOST = 1_000
"""Probes of one model: of more groups than that, some of each role are measured."""

SHARES: Mapping[str, tuple[float, ...]] = {
    "rank": (0.6,),
    "width": (0.5, 0.85),
    "kv_heads": (1 / 3, 2 / 3),
}
"""Sizes to measure: of a rank group's break-even rank, of a width, of the key-value heads."""


@dataclass(frozen=True, kw_only=True)
class Probed:
    """What was measured.

    Attributes:
        points: by group; () of one that was not measured.
        drops: without a layer, by its index.
        tokens: that every probe read.

    """

    points: Mapping[str, tuple[Point, ...]]
    drops: Mapping[int, Loss]
    tokens: int

    @property
    def count(self) -> int:
        """Measurements."""
        return sum(map(len, self.points.values())) + len(self.drops)


@dataclass(frozen=True, kw_only=True)
class _Layer:
    """What is to be measured of one layer."""

    layer: int
    groups: tuple[Group, ...]
    sizes: Mapping[str, tuple[int, ...]]
    dropped: tuple[str, ...]

    @property
    def count(self) -> int:
        return sum(map(len, self.sizes.values())) + bool(self.dropped)


def probe(job: Job, *, alone: frozenset[str], droppable: frozenset[int]) -> Probed:
    """Measure, or find, the divergence at a few sizes of every group and without layers.

    Args:
        job: a mixed job.
        alone: groups that may be removed while the rest of their layer stays.
        droppable: layers that may be dropped.

    Raises:
        SnapfitError: the dense model cannot be loaded, which has to be in memory in float32; a
            prediction is not finite.

    """
    todo = _plan(job, alone, droppable)
    depends = {
        "bases": job.basis,
        "tokens": job.tokens.digest,
        "windows": [WINDOWS, WINDOW],
        "sizes": {str(one.layer): [one.sizes, one.dropped] for one in todo},
    }
    folder = job.workspace.folder("mixed", depends)
    path = {one.layer: folder / f"layer_{one.layer:03d}.json" for one in todo}
    missing = [one for one in todo if not path[one.layer].exists()]
    ids_BT, mask_BT = windows_of(job, WINDOWS, WINDOW)
    if missing:
        job.progress.stage("probe", sum(one.count for one in todo))
        job.progress.advance(sum(one.count for one in todo if one not in missing))
        with job.clock("probe"):
            model = job.dense_model()
            layers = family(job.source, job.skeleton).layers
            measure = LayerDivergence(model, layers, ids_BT, mask_BT)
            for one in missing:
                write_json(path[one.layer], _measured(job, model, measure, one))
    points: dict[str, tuple[Point, ...]] = {}
    drops: dict[int, Loss] = {}
    for one in todo:
        found, drop = read_kept(path[one.layer], _read)
        points |= found
        if drop is not None:
            drops[one.layer] = drop
    return Probed(points=points, drops=drops, tokens=int(mask_BT.sum()))


def _plan(job: Job, alone: frozenset[str], droppable: frozenset[int]) -> list[_Layer]:
    """Of every group a few sizes; of too many groups, evenly spread ones of each role."""
    chosen = _spread(job.space.groups)
    found = []
    for layer, groups in sorted(job.layers.items()):
        sizes = {
            group.name: probe_sizes(group, SHARES[group.kind], removed=group.name in alone)
            for group in groups
            if group.name in chosen
        }
        dropped: tuple[str, ...] = ()
        if layer in droppable:
            dropped = tuple(
                next(group.name for group in part if group.least == 0) for part in parts_of(groups)
            )
        found.append(_Layer(layer=layer, groups=tuple(groups), sizes=sizes, dropped=dropped))
    return found


def _spread(groups: Sequence[Group]) -> set[str]:
    roles: dict[tuple[str, str], list[str]] = {}
    for group in groups:
        roles.setdefault((group.kind, group.role), []).append(group.name)
    costs = {kind: len(shares) + (kind != "rank") for kind, shares in SHARES.items()}
    total = sum(costs[kind] * len(names) for (kind, _), names in roles.items())
    step = max(1, -(-total // MOST))
    return {name for names in roles.values() for name in names[::step]}


def _measured(
    job: Job, model: torch.nn.Module, measure: LayerDivergence, one: _Layer
) -> dict[str, object]:
    def loss(sizes: Mapping[str, int]) -> list[float | None]:
        found = measure(variant(model, job.store, one.groups, sizes), one.layer)
        job.progress.advance()
        return [found.nats, found.stderr]

    points = {
        name: [[size, *loss({name: size})] for size in sizes] for name, sizes in one.sizes.items()
    }
    drop = loss(dict.fromkeys(one.dropped, 0)) if one.dropped else None
    return {"points": points, "drop": drop}


def _read(found: Mapping[str, Any]) -> tuple[dict[str, tuple[Point, ...]], Loss | None]:
    """What was measured of one layer's groups, and without the layer."""
    points = {
        name: tuple(
            Point(size=int(size), loss=Loss(nats=nats, stderr=stderr))
            for size, nats, stderr in measured
        )
        for name, measured in found["points"].items()
    }
    if found["drop"] is None:
        return points, None
    nats, stderr = found["drop"]
    return points, Loss(nats=nats, stderr=stderr)
