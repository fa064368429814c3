"""What methods that remove layers share: what they see of a model, and schedules from scores.

Most score every layer once and remove the lowest first ("one-shot", as published): the layers
that go at n are among those that go at n + 1.

Shape suffixes: B windows, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import TYPE_CHECKING, ClassVar, cast, get_args

from torch import Tensor

from snapfit.core.combination import untouched
from snapfit.core.errors import SnapfitError, UsageError
from snapfit.core.names import unknown_name
from snapfit.core.schedule import Depth, Part, Schedule
from snapfit.core.space import Space
from snapfit.nn.stream import LayerStream
from snapfit.nn.sweep import Progress

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

    from snapfit.methods.base import MethodKind, Segments

ROLES: Mapping[str, frozenset[str]] = {
    "attention": frozenset({"q", "k", "v", "o", "qkv"}),
    "mlp": frozenset({"gate", "up", "gate_up", "down"}),
}
"""Roles of the linear layers of a part."""


@dataclass(frozen=True, kw_only=True)
class DepthView:
    """What a depth method may look at.

    Attributes:
        stream: the model, a layer at a time.
        dense: loads the decoder layers of the model, all in memory.
        ids_BT: calibration windows; (0, 0) for a method that reads none.
        mask_BT: tokens that count; all when None.
        modules: qualified name of every layer's 'attention' and 'mlp'; a part is missing where a
            layer has no module for it.
        folder: for files from which a killed schedule resumes; belongs to this schedule alone.
        seed: of everything random.
        progress: told (stage, done, total).

    """

    stream: LayerStream
    dense: Callable[[], Sequence[nn.Module]]
    ids_BT: Tensor
    mask_BT: Tensor | None = None
    modules: Mapping[str, tuple[str, ...]]
    folder: Path
    seed: int
    progress: Progress

    def names(self, part: Part) -> tuple[str, ...]:
        """Qualified name of what goes with every layer.

        Raises:
            SnapfitError: the layers of this architecture have no module for the part.

        """
        if part == "layer":
            return tuple(self.stream.prefix(index) for index in range(len(self.stream)))
        if part not in self.modules:
            raise SnapfitError(
                f"the layers of {type(self.stream.model).__name__} have no module of their own "
                f"for the {part}, so it cannot be removed alone; use part=layer"
            )
        return self.modules[part]

    def inner(self, index: int, layer: nn.Module, part: Part) -> nn.Module:
        """The part of a layer, or the layer itself."""
        name = self.names(part)[index].removeprefix(self.stream.prefix(index)).removeprefix(".")
        return layer.get_submodule(name)


@dataclass(frozen=True, kw_only=True)
class DepthBase:
    """What every depth method has; `reads_tokens` says whether it needs calibration."""

    kind: ClassVar[MethodKind] = "depth"
    needs: ClassVar[frozenset[str]] = frozenset()
    reads_tokens: ClassVar[bool] = False
    unit: ClassVar[str]

    def restrict(self, space: Space, segments: Segments) -> Space:  # noqa: ARG002
        """The group of layers; for a part, of the weights of that part only.

        Raises:
            SnapfitError: the model's layers cannot be removed.

        """
        depths = space.of_kind("depth")
        if not depths.groups:
            raise SnapfitError(f"{space.model} has no list of decoder layers to remove from")
        part = part_of(self)
        if part == "layer":
            return depths
        (group,) = depths.groups
        roles = {g.matrices[0].name: g.role for g in space.groups if g.kind == "rank"}
        matrices = tuple(m for m in group.matrices if roles.get(m.name) in ROLES[part])
        if not matrices:
            raise SnapfitError(f"{space.model} has no {part} that can be removed alone")
        return replace(depths, groups=(replace(group, matrices=matrices, steps=(), role=part),))


@dataclass(frozen=True, kw_only=True)
class PartBase(DepthBase):
    """A depth method that can also remove attention or MLP modules alone."""

    part: str = "layer"

    def __post_init__(self) -> None:
        if self.part not in get_args(Part):
            raise unknown_name("part", self.part, get_args(Part))


@dataclass(frozen=True, kw_only=True)
class GuardedBase(PartBase):
    """A depth method that can leave the first and the last layers alone."""

    keep_first: int = 0
    keep_last: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.keep_first, self.keep_last) < 0:
            raise UsageError("keep_first and keep_last count layers, 0 or more")


def part_of(method: object) -> Part:
    """What the method's sizes count."""
    return cast("Part", getattr(method, "part", "layer"))


def positive(**settings: int) -> None:
    """Refuse settings below 1.

    Raises:
        UsageError: names the first.

    """
    for name, value in settings.items():
        if value < 1:
            raise UsageError(f"{name} must be at least 1; got {value}")


def one_shot(
    view: DepthView,
    scores: Sequence[float],
    *,
    part: Part,
    unit: str,
    meaning: str,
    keep_first: int = 0,
    keep_last: int = 0,
) -> Schedule:
    """Remove the layers with the lowest scores first; of equals, the deeper one.

    The loss of a size is the sum of the scores that went, negative ones counted as none. The
    first `keep_first` and the last `keep_last` layers never go.
    """
    candidates = range(keep_first, len(scores) - keep_last)
    order = sorted(candidates, key=lambda index: (scores[index], -index))
    losses = list(accumulate((max(scores[index], 0.0) for index in order), initial=0.0))
    return removals(
        view,
        order,
        losses=losses,
        part=part,
        unit=unit,
        meaning=meaning,
        scores=scores,
    )


def removals(
    view: DepthView,
    order: Sequence[int],
    *,
    losses: Sequence[float],
    part: Part,
    unit: str,
    meaning: str,
    scores: Sequence[float] = (),
) -> Schedule:
    """The schedule that removes layers in `order`, down to one.

    Args:
        view: the model.
        order: layers, the first to go first; the others never go.
        losses: predicted loss of removing the first 0, 1, 2, ... of them.
        part: what goes with a layer.
        unit: of losses and scores.
        meaning: of a score.
        scores: of all layers, if there are any.

    """
    names, full = view.names(part), len(view.stream)
    sizes: dict[int, Depth] = {}
    for count in range(min(len(order), full - 1) + 1):
        gone = sorted(order[:count])
        if part == "layer":
            sizes[full - count] = Depth(layers=untouched(sorted(set(range(full)) - set(gone))))
        else:
            removed = tuple(names[index] for index in gone)
            sizes[full - count] = Depth(layers=untouched(range(full)), removed=removed)
    return Schedule(
        part=part,
        full=full,
        sizes=sizes,
        losses={size: float(losses[full - size]) for size in sizes},
        unit=unit,
        scores=tuple(float(score) for score in scores),
        meaning=meaning,
    )
