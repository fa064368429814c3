"""A job of several methods: their ordered bases, and all losses on one scale."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

from snapfit.core.curve import Curve
from snapfit.core.errors import UsageError
from snapfit.core.files import digest_json
from snapfit.core.measured import calibrated, typical_ratio
from snapfit.core.mixed import MixedSpace, parts_of
from snapfit.core.mixed_planner import Losses
from snapfit.core.renaming import EXPERT
from snapfit.core.space import Group, Space
from snapfit.methods.base import MethodKind
from snapfit.pipeline.depth import schedule_of
from snapfit.pipeline.job import Job
from snapfit.pipeline.mixed_parts import MixedStore, PartJob, parts_of_job
from snapfit.pipeline.mixed_probes import Probed, probe

DROPPABLE = 0.5
"""Share of the layers, the first that the depth method would remove, that a plan may drop."""


@dataclass(frozen=True, kw_only=True)
class MixedJob(Job):
    """A job of several methods, whose choices compete for the same weights."""

    @cached_property
    def parts(self) -> dict[MethodKind, PartJob]:
        """The jobs of the single methods, by what they decide."""
        return parts_of_job(self)

    @cached_property
    def needs(self) -> frozenset[str]:
        """Statistics that any of the methods needs, so that one pass collects them all."""
        return frozenset().union(*(self.parts[kind].needs for kind in ("rank", "width")))

    @property
    def calibrated(self) -> bool:
        """Always: losses are measured on calibration tokens."""
        return True

    @cached_property
    def space(self) -> MixedSpace:
        """Rank groups, widths and key-value heads; 0 where a part may be removed."""
        ranks, widths = self.parts["rank"].space.groups, self.parts["width"].space.groups
        whole = {group.name for group in self.whole.groups}
        if split := next((group.name for group in ranks if group.name not in whole), None):
            raise UsageError(
                f"{self.parts['rank'].options.method} splits matrices ({split}), which a mixed "
                "plan cannot; use kfac"
            )
        groups = (*ranks, *map(self._removable, widths))
        fields = {name: getattr(self.whole, name) for name in Space.__dataclass_fields__}
        return MixedSpace(**{**fields, "groups": groups, "ties": ()})

    def _removable(self, group: Group) -> Group:
        return (
            group
            if EXPERT.match(group.name) or "depth" not in self.parts
            else replace(group, least=0)
        )

    @cached_property
    def alone(self) -> frozenset[str]:
        """Groups that may be removed while the rest of their layer stays."""
        return frozenset(
            group.name
            for group in self.space.groups
            if group.least == 0
            and all(matrix.name.startswith(f"{group.name}.") for matrix in group.matrices)
        )

    @cached_property
    def droppable(self) -> frozenset[int]:
        """Layers that may be dropped: the first of the depth method's that have nothing else."""
        if "depth" not in self.parts:
            return frozenset()
        schedule = schedule_of(self.parts["depth"])
        if any(depth.merges for depth in schedule.sizes.values()):
            raise UsageError(
                f"{self.parts['depth'].options.method} merges layers, which a mixed plan cannot; "
                "use shortgpt"
            )
        least = schedule.full - int(DROPPABLE * schedule.full)
        first = schedule.gone(min(size for size in schedule.reachable if size >= least))
        return frozenset(
            layer
            for layer, groups in self.layers.items()
            if layer in first
            and all(any(group.least == 0 for group in part) for part in parts_of(groups))
        )

    @cached_property
    def store(self) -> MixedStore:
        """The ordered bases of all methods; statistics that several lack are collected at once."""
        ordered = [self.parts["rank"], self.parts["width"]]
        if sum(not part.has_statistics for part in ordered) > 1:
            _ = self.statistics
        return MixedStore(
            {group.name: part.store for part in ordered for group in part.space.groups}
        )

    @property
    def basis(self) -> str:
        """Name of the ordered bases together."""
        return digest_json(sorted(folder.name for folder in self.store.folders))

    @cached_property
    def notes(self) -> tuple[str, ...]:
        """What was noticed about the calibration, by any of the methods."""
        found = [part.notes for kind, part in self.parts.items() if kind != "depth"]
        return tuple(dict.fromkeys(note for notes in found for note in notes))

    @cached_property
    def probed(self) -> Probed:
        """The measurements that put all losses on one scale."""
        return probe(self, alone=self.alone, droppable=self.droppable)

    @cached_property
    def predicted(self) -> dict[str, Curve]:
        """Loss of every group as its own method predicts it."""
        return {name: c for layer in self.ordered.values() for name, c in layer.curves.items()}

    @cached_property
    def curves(self) -> dict[str, Curve]:
        """Loss of every group in nats, through what was measured."""
        raw = self.predicted
        roles: dict[tuple[str, str], list[Group]] = {}
        for group in self.space.groups:
            roles.setdefault((group.kind, group.role), []).append(group)
        points = self.probed.points
        found = {}
        for groups in roles.values():
            ratio = typical_ratio([(raw[g.name], points.get(g.name, ())) for g in groups])
            for group in groups:
                measured = points.get(group.name, ())
                found[group.name] = calibrated(raw[group.name], measured, typical=ratio)
        return found

    @cached_property
    def losses(self) -> Losses:
        """Of every choice, measured one at a time."""
        drops = {layer: max(loss.nats, 0.0) for layer, loss in self.probed.drops.items()}
        return Losses(curves=self.curves, drops=drops)
