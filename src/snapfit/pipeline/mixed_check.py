"""Whole mixed plans measured, and what their losses are predicted to be, by kind of choice.

Choices that were measured one at a time cost more together than the sum, and not equally so. So
the divergence of a whole plan is compared with the prediction, and where they are apart, that of
all choices of one kind and role together says by what the kind's losses are to be multiplied.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch

from snapfit.core.curve import NATS, Curve
from snapfit.core.files import digest_json, read_kept, write_json
from snapfit.core.measured import Loss
from snapfit.core.mixed import DROPPED, FACTORED, NARROWED, REMOVED, by_layer, is_dropped, ways
from snapfit.core.mixed_planner import Losses
from snapfit.core.space import Group, Space
from snapfit.evals.layer_divergence import LayerDivergence
from snapfit.models.describe import family
from snapfit.pipeline.job import Job
from snapfit.pipeline.mixed_variants import variant
from snapfit.pipeline.windows import windows_of

WINDOWS = 4
"""Whole calibration windows that a plan is measured on."""

LEAST_LOSS = 1e-4
"""Nats; a kind that is predicted to cost less is not measured: rounding would decide."""


def kinds_of(space: Space, sizes: Mapping[str, int]) -> dict[str, list[Group]]:
    """Groups that become smaller, by what becomes of them and their role: 'factored.q', ..."""
    groups = {group.name: group for group in space.groups}
    found: dict[str, list[Group]] = {}
    for name, way in ways(space, sizes).items():
        kind = DROPPED if way == DROPPED else f"{way}.{groups[name].role}"
        found.setdefault(kind, []).append(groups[name])
    return found


def predicted_by_kind(space: Space, losses: Losses, sizes: Mapping[str, int]) -> dict[str, float]:
    """Predicted nats of all choices of each kind; their sum is the plan's."""
    dropped = {layer for layer, groups in by_layer(space).items() if is_dropped(groups, sizes)}
    found: dict[str, float] = {}
    for kind, groups in kinds_of(space, sizes).items():
        if kind == DROPPED:
            found[kind] = sum(losses.drops[layer] for layer in dropped)
        else:
            found[kind] = sum(float(losses.curves[g.name].at(sizes[g.name])) for g in groups)
    return found


def corrected(losses: Losses, factors: Mapping[str, float], space: Space) -> Losses:
    """Losses multiplied by the factor of their kind; kinds that have none, by the typical one."""
    typical = math.exp(sum(map(math.log, factors.values())) / len(factors)) if factors else 1.0
    curves = {}
    for group in space.groups:
        curve = losses.curves[group.name]
        way = FACTORED if group.kind == "rank" else NARROWED
        scale = np.full(len(curve.sizes), factors.get(f"{way}.{group.role}", typical))
        scale[curve.sizes == 0] = factors.get(f"{REMOVED}.{group.role}", typical)
        curves[group.name] = Curve(sizes=curve.sizes, losses=curve.losses * scale, unit=NATS)
    each = factors.get(DROPPED, typical)
    return Losses(curves=curves, drops={layer: each * nats for layer, nats in losses.drops.items()})


@dataclass(kw_only=True)
class PlanMeter:
    """Measures whole plans; each measurement is kept in the work folder.

    Attributes:
        job: a mixed job.

    """

    job: Job
    _measure: LayerDivergence | None = field(default=None, init=False, repr=False)
    _model: torch.nn.Module | None = field(default=None, init=False, repr=False)

    def __call__(self, sizes: Mapping[str, int]) -> Loss:
        """Divergence of the model at `sizes` from the original, in nats a token.

        Raises:
            SnapfitError: the dense model cannot be loaded, or the variant's prediction is not
                finite.

        """
        job = self.job
        smaller = {g.name: sizes[g.name] for g in job.space.groups if sizes[g.name] < g.full}
        if not smaller:
            return Loss(nats=0.0, stderr=0.0)
        depends = {"bases": job.basis, "tokens": job.tokens.digest, "windows": WINDOWS}
        path = job.workspace.folder("mixed-plans", depends) / f"{digest_json(smaller)}.json"
        if not path.exists():
            with job.clock("check"):
                found = self._diverge(smaller)
            write_json(path, {"nats": found.nats, "stderr": found.stderr})
        return read_kept(path, lambda found: Loss(**found))

    def factors(self, losses: Losses, sizes: Mapping[str, int]) -> dict[str, float]:
        """Measured over predicted loss of every kind of choice at `sizes`."""
        predicted = predicted_by_kind(self.job.space, losses, sizes)
        found = {}
        for kind, groups in kinds_of(self.job.space, sizes).items():
            self.job.progress.advance()
            if predicted[kind] > LEAST_LOSS:
                own = {group.name: group.full for group in self.job.space.groups}
                own |= {group.name: sizes[group.name] for group in groups}
                found[kind] = max(self(own).nats, LEAST_LOSS) / predicted[kind]
        return found

    def _diverge(self, sizes: Mapping[str, int]) -> Loss:
        job = self.job
        if self._measure is None or self._model is None:
            self._model = job.dense_model()
            ids_BT, mask_BT = windows_of(job, WINDOWS, job.options.context)
            path = family(job.source, job.skeleton).layers
            self._measure = LayerDivergence(self._model, path, ids_BT, mask_BT)
        changed = variant(self._model, job.store, job.space.groups, sizes)
        first = min(group.layer for group in job.space.groups if group.name in sizes)
        return self._measure(changed, first)
