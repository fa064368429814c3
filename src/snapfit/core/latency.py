"""How long a model takes at given sizes: operators times what a timer says of each.

Times add up: on one stream one kernel runs after another, and none takes less than a launch.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from snapfit.core.errors import SnapfitError
from snapfit.core.forward import (
    HEAD,
    Block,
    Counted,
    Module,
    Parts,
    dense_modules,
    expert_counts,
    frame_of,
    head_parts,
    layer_parts,
    resized,
)
from snapfit.core.operators import Estimate, Launch, Operator, Source, Timer, itemsize_of
from snapfit.core.space import Group, Space
from snapfit.core.workload import Phase, Workload


@dataclass(frozen=True, kw_only=True)
class Latency:
    """The time of a workload.

    Attributes:
        microseconds: weighted sum over the phases.
        spread: relative half-width. Errors of one timer are alike from operator to operator, so
            they are averaged by time, and do not cancel out.
        shares: of the time, by where the numbers come from; they add up to 1.
        parts: microseconds by kind of operator: 'linear', 'attention', 'elementwise', and 'head'
            for everything after the last layer.
        phases: microseconds of each phase, once and unweighted, by its text.

    """

    microseconds: float
    spread: float
    shares: Mapping[Source, float]
    parts: Mapping[str, float]
    phases: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Stopwatch:
    """Times whole models and single groups; every operator is asked about once.

    Attributes:
        whole: the unrestricted space: which modules there are.
        groups: what is decided; their sizes are looked up in the `sizes` of a plan.
        timer: of the target.
        workload: what is timed.
        shards: devices that share every layer (tensor parallel).

    """

    whole: Space
    groups: tuple[Group, ...]
    timer: Timer
    workload: Workload
    shards: int = 1
    _modules: tuple[Module, ...] = field(init=False, repr=False)
    _held: dict[str, list[Module]] = field(default_factory=dict, init=False, repr=False)
    _blocks: dict[str, int] = field(default_factory=dict, init=False, repr=False)
    _experts: dict[str, tuple[int, int]] = field(init=False, repr=False)
    _known: dict[Operator, Estimate] = field(default_factory=dict, init=False, repr=False)
    _keys: dict[str, Hashable] = field(default_factory=dict, init=False, repr=False)
    _tables: dict[Hashable, tuple[NDArray[np.int64], NDArray[np.float64]]] = field(
        default_factory=dict, init=False, repr=False
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "_modules", dense_modules(self.whole))
        object.__setattr__(self, "_experts", expert_counts(self._modules, frame_of(self.whole)))
        for module in self._modules:
            self._held.setdefault(module.holder, []).append(module)
        for group in self.groups:
            if group.kind == "rank":
                name = group.matrices[0].name
                self._blocks[name] = self._blocks.get(name, 0) + 1

    def estimate(self, operator: Operator) -> Estimate:
        """The timer's answer, but never less than a launch."""
        found = self._known.get(operator)
        if found is None:
            found = self.timer.time(operator)
            least = self._launch
            kernels = getattr(operator, "ops", 1)
            if least is not None and found.microseconds < kernels * least.microseconds:
                found = Estimate(
                    microseconds=kernels * least.microseconds,
                    spread=least.spread,
                    source=least.source,
                    how=f"bound by the launch: {least.how}",
                )
            self._known[operator] = found
        return found

    @property
    def _launch(self) -> Estimate | None:
        """Of one kernel; None where the timer does not know."""
        if Launch() not in self._known:
            try:
                self._known[Launch()] = self.timer.time(Launch())
            except SnapfitError:
                self._known[Launch()] = Estimate(
                    microseconds=0.0, spread=0.0, source="model", how="no launch is known"
                )
        return self._known[Launch()]

    def operators(self, sizes: Mapping[str, int], phase: Phase) -> Parts:
        """Operators of the whole model by part; a fraction of each where layers are removed."""
        parts = self._parts(self._modules, self.groups, sizes, phase)
        for group in self.groups:
            if group.kind == "depth":
                kept = sizes.get(group.name, group.full) / group.full
                for name in self._parts_of(group) & parts.keys():
                    parts[name] = [(op, times * kept) for op, times in parts[name]]
        frame = frame_of(self.whole)
        return parts | head_parts(frame, phase, itemsize=self._itemsize, shards=self.shards)

    def latency(self, sizes: Mapping[str, int]) -> Latency:
        """The time of the workload with groups at `sizes`; groups not named are as they were.

        Where 'depth' is decided, each layer that goes saves the time of the mean layer.

        Raises:
            SnapfitError: the timer knows nothing near one of the operators.

        """
        total, error = 0.0, 0.0
        shares: dict[Source, float] = {}
        parts: dict[str, float] = {}
        phases: dict[str, float] = {}
        for phase in self.workload.phases:
            before = total
            for name, counted in self.operators(sizes, phase).items():
                for operator, times in counted:
                    found = self.estimate(operator)
                    spent = phase.weight * times * found.microseconds
                    total += spent
                    error += spent * found.spread
                    shares[found.source] = shares.get(found.source, 0.0) + spent
                    kind = HEAD if name == HEAD else operator.kind
                    parts[kind] = parts.get(kind, 0.0) + spent
            phases[str(phase)] = (total - before) / phase.weight
        return Latency(
            microseconds=total,
            spread=error / total,
            shares={source: spent / total for source, spent in shares.items()},
            parts=parts,
            phases=phases,
        )

    def table(self, group: Group, sizes: NDArray[np.int64]) -> NDArray[np.int64]:
        """Whole nanoseconds of what the group decides, at each of `sizes`: (k,).

        Rounded up, but down at the full size: a plan that the sum of tables puts within a share
        of the dense time is within it. Sums are exact for groups that share no operator. Row
        blocks of one module share their first product, whose time is then split evenly; in
        `latency` of a whole plan it is not.
        """
        return self._timed(group, sizes)[0]

    def noise(self, group: Group, sizes: NDArray[np.int64]) -> NDArray[np.float64]:
        """(k,) relative half-width of the measured part of `table`.

        Only what was measured is noisy from size to size; the errors of a table or a model are in
        its level, and shared by neighbours.
        """
        return self._timed(group, sizes)[1]

    def sources(self, group: Group, size: int) -> tuple[Source, ...]:
        """Where the numbers of `table` come from at one size, the largest share first."""
        spent: dict[Source, float] = {}
        for phase in self.workload.phases:
            for operator, times in self._touched(group, size, phase):
                found = self.estimate(operator)
                share = phase.weight * times * found.microseconds
                spent[found.source] = spent.get(found.source, 0.0) + share
        return tuple(sorted(spent, key=lambda source: -spent[source]))

    def _timed(
        self, group: Group, sizes: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        key = (self._alike(group), sizes.tobytes())
        if key not in self._tables:
            timings = [self._time(group, size) for size in sizes.tolist()]
            nanoseconds = np.array([1000 * spent for spent, _ in timings])
            whole = np.where(sizes == group.full, np.floor(nanoseconds), np.ceil(nanoseconds))
            self._tables[key] = (
                whole.astype(np.int64),
                np.array([noisy / spent if spent else 0.0 for spent, noisy in timings]),
            )
        return self._tables[key]

    def _time(self, group: Group, size: int) -> tuple[float, float]:
        """(microseconds, half-width of what was measured of them) of what the group decides."""
        spent, noisy = 0.0, 0.0
        for phase in self.workload.phases:
            for operator, times in self._touched(group, size, phase):
                found = self.estimate(operator)
                spent += phase.weight * times * found.microseconds
                if found.source == "measured":
                    noisy += phase.weight * times * found.microseconds * found.spread
        return spent, noisy

    def _touched(self, group: Group, size: int, phase: Phase) -> list[Counted]:
        """The operators that depend on the group's size."""
        if group.kind == "depth":
            share = size / group.full
            gone = self._parts_of(group)
            parts = self._parts(self._modules, (), {}, phase)
            parts = {name: counted for name, counted in parts.items() if name in gone}
        elif group.kind == "rank":
            name, count = group.matrices[0].name, self._blocks.get(group.matrices[0].name, 1)
            share = 1 / count
            block = Block(rows=group.matrices[0].rows, rank=size)
            modules = [
                replace(
                    module,
                    rows=block.rows * count,
                    blocks=(block,) * count if size < group.full else (),
                )
                for module in self._near(group)
                if module.name == name
            ]
            parts = {name: self._parts(modules, (), {}, phase).get(name, [])}
        else:
            share = 1.0
            parts = self._parts(self._near(group), (group,), {group.name: size}, phase)
        return [(op, share * times) for counted in parts.values() for op, times in counted]

    def _parts(
        self,
        modules: Iterable[Module],
        groups: Iterable[Group],
        sizes: Mapping[str, int],
        phase: Phase,
    ) -> Parts:
        experts = dict(self._experts)
        for group in groups:
            if group.kind == "experts" and group.name in experts:
                left = sizes.get(group.name, group.full)
                experts[group.name] = (left, experts[group.name][1])
        return layer_parts(
            resized(modules, groups, sizes),
            frame_of(self.whole),
            phase,
            experts=experts,
            itemsize=self._itemsize,
            shards=self.shards,
        )

    def _parts_of(self, group: Group) -> set[str]:
        """Names of the parts that a group of layers, or of one part of each, is made of."""
        names = {matrix.name for matrix in group.matrices}
        held = [module for module in self._modules if module.name in names]
        containers = {module.experts for module in held if module.experts is not None}
        return names | {module.holder for module in held} | containers

    def _near(self, group: Group) -> list[Module]:
        """All modules of the attention, MLP or experts that the group is part of."""
        holders = dict.fromkeys(matrix.name.rpartition(".")[0] for matrix in group.matrices)
        return [module for holder in holders for module in self._held.get(holder, ())]

    def _alike(self, group: Group) -> Hashable:
        """Groups with equal keys have equal tables."""
        if group.name not in self._keys:
            near = tuple(
                (m.role, m.rows, m.cols, self._experts.get(m.experts or ""))
                for m in self._near(group)
            )
            matrices = tuple(
                (m.name.rpartition(".")[2], m.axis, m.start, m.rows, m.cols) for m in group.matrices
            )
            blocks = self._blocks.get(group.matrices[0].name, 1) if group.matrices else 1
            depth = group.name if group.kind == "depth" else ""
            self._keys[group.name] = (group.kind, group.full, depth, near, matrices, blocks)
        return self._keys[group.name]

    @property
    def _itemsize(self) -> int:
        return itemsize_of(self.timer.dtype)
