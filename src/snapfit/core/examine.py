"""From what a checkpoint computes and what a target likes to why the model is slow there.

Every operator of a forward pass is compared with the same operator at the nearest suited sizes
(`core.suited`); the difference is what misalignment costs. Where times are modelled, products
whose size a compressor chose are also compared with somewhat smaller ones, because waves of tiles
are cliffs that no rule about multiples sees.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

from snapfit.core.answers import Answers, difference
from snapfit.core.causes import Cause, gpu_causes, measured_cause, wave_cause
from snapfit.core.diagnosis import Line
from snapfit.core.footprint import Footprint, Found
from snapfit.core.forward import HEAD, Module, Parts, expert_counts, head_parts, layer_parts
from snapfit.core.operators import (
    Attention,
    Elementwise,
    Estimate,
    Linear,
    Operator,
    itemsize_of,
)
from snapfit.core.progress import Progress, Silent
from snapfit.core.space import Frame
from snapfit.core.suited import Suited
from snapfit.core.target import Target
from snapfit.core.workload import Phase, Workload

SMALLER = 0.85
"""Down to this share of a size a cheaper wave is looked for."""

CLIFF = 0.03
"""A wave is one if it saves this share of the time beyond what the smaller size saves anyway."""

_FREE_ROWS = frozenset({"gate", "up", "gate_up"})


@dataclass(frozen=True, kw_only=True)
class LayerView:
    """One decoder layer in one phase, as it is and as it would suit the target."""

    index: int
    found: tuple[Found, ...]
    suited: tuple[Module, ...]
    frame: Frame
    suited_frame: Frame
    experts: Mapping[str, tuple[int, int]]
    now: Parts
    good: Parts


@dataclass(frozen=True, kw_only=True)
class Edge:
    """A smaller size of a module that is out of proportion faster: `size` of `full`."""

    full: int
    size: int
    cause: Cause


_Key = tuple[str, str, Operator, Operator]
"""Phase, label, operator, suited operator."""


@dataclass
class _Row:
    """Runs of one distinct operator that are still being counted."""

    count: float = 0.0
    layers: dict[int, None] = field(default_factory=dict)
    module: Module | None = None


@dataclass(frozen=True, kw_only=True)
class Examination:
    """A model on a target.

    Attributes:
        footprint: the model.
        target: where it runs.
        workload: what it does.
        answers: times of the target's timer.
        progress: told of every distinct operator.

    """

    footprint: Footprint
    target: Target
    workload: Workload
    answers: Answers
    progress: Progress = field(default_factory=Silent)

    @cached_property
    def gpu(self) -> bool:
        """Whether the target is one: tiers, templates and waves are theirs."""
        return self.target.capability is not None or not self.target.device.startswith("cpu")

    @cached_property
    def itemsize(self) -> int:
        """Bytes of a weight in the target's type."""
        return itemsize_of(self.target.dtype)

    @cached_property
    def suited(self) -> Suited:
        """What the target likes."""
        return Suited(rules=self.target.rules, gpu=self.gpu)

    def layers(self, phase: Phase) -> Iterator[LayerView]:
        """Every decoder layer in one phase."""
        for index, found in self.footprint.layers.items():
            frame = self.footprint.frame_of(index)
            modules = tuple(one.module for one in found)
            good, good_frame = self.suited.modules(modules, frame)
            experts = expert_counts(modules, frame)
            yield LayerView(
                index=index,
                found=found,
                suited=good,
                frame=frame,
                suited_frame=good_frame,
                experts=experts,
                now=self.parts(modules, frame, phase, experts),
                good=self.parts(good, good_frame, phase, experts),
            )

    def parts(
        self,
        modules: Iterable[Module],
        frame: Frame,
        phase: Phase,
        experts: Mapping[str, tuple[int, int]],
    ) -> Parts:
        """Operators of modules of one layer, all of them or some; `experts` are of all."""
        return layer_parts(
            modules,
            frame,
            phase,
            experts=experts,
            itemsize=self.itemsize,
            shards=self.target.stack.tp,
        )

    def head(self, frame: Frame, phase: Phase) -> Parts:
        """Operators after the last layer."""
        return head_parts(frame, phase, itemsize=self.itemsize, shards=self.target.stack.tp)

    def lines(self) -> tuple[list[Line], dict[Module, Edge]]:
        """Every distinct operator of every phase; waves by the shape of the suited module."""
        rows: dict[_Key, _Row] = {}
        for phase in self.workload.phases:
            self._collect(phase, rows)
        self.progress.stage("operators", len(rows))
        edges: dict[Module, Edge] = {}
        lines = []
        for (phase_text, label, operator, good), row in rows.items():
            lines.append(self._line(phase_text, label, operator, good, row, edges))
            self.progress.advance()
        return sorted(lines, key=lambda line: -line.microseconds), edges

    def _collect(self, phase: Phase, rows: dict[_Key, _Row]) -> None:
        """Count the operators of one phase."""

        def row(label: str, operator: Operator, other: Operator, times: float) -> _Row:
            # Element-wise operators have no suited form: they differ only by the work.
            good = operator if isinstance(operator, Elementwise) else other
            counted = rows.setdefault((str(phase), label, operator, good), _Row())
            counted.count += times
            return counted

        for view in self.layers(phase):
            found = {one.module.name: one for one in view.found}
            suited = {module.name: module for module in view.suited}
            for name, counted in view.now.items():
                pairs = zip(counted, view.good[name], strict=True)
                for index, ((operator, times), (other, _)) in enumerate(pairs):
                    label = _label(found.get(name), name, index, operator)
                    own = row(label, operator, other, times)
                    own.layers[view.index] = None
                    if index == 0 and name in suited and _may_shrink(suited[name]):
                        own.module = suited[name]
        frame = self.footprint.frame
        after, good_after = (
            self.head(one, phase)[HEAD] for one in (frame, self.suited.frame(frame, frame.head_dim))
        )
        for (operator, times), (other, _) in zip(after, good_after, strict=True):
            row("lm_head" if isinstance(operator, Linear) else "final norm", operator, other, times)

    def _line(
        self,
        phase: str,
        label: str,
        operator: Operator,
        good: Operator,
        row: _Row,
        edges: dict[Module, Edge],
    ) -> Line:
        now, then = self.answers.time(operator), self.answers.time(good)
        suited = self._suits(operator, good)
        lost = 0.0
        if now and then and not suited:
            lost = row.count * max(0.0, difference(now, then))
        causes: tuple[Cause, ...] = ()
        if self.gpu:
            causes = gpu_causes(operator, itemsize=self.itemsize, suited=suited)
        elif lost and now and then:
            causes = (measured_cause(operator, now, then),)
        if row.module is not None and then is not None and then.source != "measured":
            edge = self._edge(row.module, good, then)
            if edge is not None:
                edges.setdefault(shape_of(row.module), edge)
                causes = (*causes, edge.cause)
        return Line(
            phase=phase,
            label=label,
            layers=tuple(row.layers),
            count=row.count,
            operator=operator,
            good=good,
            now=now,
            then=then,
            lost=lost,
            suited=suited,
            causes=causes,
        )

    def _suits(self, operator: Operator, good: Operator) -> bool:
        """Whether an operator needs no other sizes for its own sake.

        One whose sizes follow from misfits elsewhere, as a projection's do from those of a head,
        may be changed with them and be well as it is.
        """
        if operator == good:
            return True
        return isinstance(operator, Linear) and self.suited.fits(operator.n, operator.k)

    def _edge(self, module: Module, operator: Operator, base: Estimate) -> Edge | None:
        """The smaller size that saves most beyond proportion, if any saves enough."""
        if not self.gpu or not isinstance(operator, Linear):
            return None
        full = free_size(module)
        best: tuple[float, int, float] | None = None
        for size in self.suited.smaller(module, SMALLER):
            found = self.answers.time(replace(operator, n=max(1, operator.n * size // full)))
            if found is None:
                continue
            saved = 1 - found.microseconds / base.microseconds
            beyond = saved - (1 - size / full)
            if beyond > CLIFF and (best is None or beyond > best[0]):
                best = (beyond, size, saved)
        if best is None:
            return None
        what = "rank" if module.blocks else "width"
        return Edge(full=full, size=best[1], cause=wave_cause(what, full, best[1], best[2]))


def shape_of(module: Module) -> Module:
    """The module without its name and layer: equal for all of one shape and role."""
    return replace(module, name="", layer=0)


def free_size(module: Module) -> int:
    """The size of a module that a compressor chose: its rank, or its width."""
    if module.blocks:
        return module.blocks[0].rank
    return module.rows // (2 if module.role == "gate_up" else 1)


def _may_shrink(module: Module) -> bool:
    """Whether the first product's N is one size that a compressor chose."""
    return len(module.blocks) == 1 or (not module.blocks and module.role in _FREE_ROWS)


def _label(found: Found | None, name: str, index: int, operator: Operator) -> str:
    if found is None:
        if isinstance(operator, Attention):
            return "attention"
        holder = re.sub(r"^.*?\.\d+(?:\.|$)", "", name)
        holder = re.sub(r"(?<=\.)\d+(?=\.|$)", "*", holder)
        return f"{holder} {'router' if isinstance(operator, Linear) else 'element-wise'}"
    part = found.parts[index] if index < len(found.parts) else "put together"
    return f"{found.suffix}.{part}" if part else found.suffix
