"""Names of tensors before and after compression: layers and experts are numbered anew."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from snapfit.core.combination import Combination, untouched
from snapfit.core.space import Space
from snapfit.core.structure import SubLayer

Index = NDArray[np.int64]
"""Kept rows, columns, entries or experts, ascending."""

EXPERT = re.compile(r"^(.*\.experts)\.(\d+)(\..*)?$")
"""An expert or a part of it: container, index, the rest."""


@dataclass(frozen=True, kw_only=True)
class Names:
    """Names of the source in the compressed model: layers and experts are numbered anew.

    Attributes:
        path: qualified name of the list of decoder layers.
        layers: the output layers; () means those of the source.
        experts: kept experts by container, of the source.
        absent: sub-layers of the source that are gone.

    """

    path: str
    layers: Sequence[Combination]
    experts: Mapping[str, Index] = field(default_factory=dict)
    absent: Mapping[str, SubLayer] = field(default_factory=dict)

    def output(self, name: str, *, gone: bool = False) -> str | None:
        """The name after compression; None for a part of something that is gone.

        Args:
            name: in the source.
            gone: whether names of absent sub-layers have one too.

        """
        if not gone and any(f"{name}.".startswith(f"{part}.") for part in self.absent):
            return None
        if found := EXPERT.match(name):
            kept = self.experts.get(found[1])
            if kept is not None:
                where = np.flatnonzero(kept == int(found[2]))
                if not len(where):
                    return None
                name = f"{found[1]}.{int(where[0])}{found[3] or ''}"
        if not name.startswith(f"{self.path}."):
            return name
        index, dot, rest = name.removeprefix(f"{self.path}.").partition(".")
        if not self.layers:
            return name
        for new, layer in enumerate(self.layers):
            if layer[0][0] == int(index):
                return f"{self.path}.{new}{dot}{rest}"
        return None

    def sources(self, name: str) -> list[tuple[str, float]]:
        """(name in the source, coefficient) of what a tensor of the compressed model is made of."""
        if not name.startswith(f"{self.path}."):
            return [(name, 1.0)]
        index, _, rest = name.removeprefix(f"{self.path}.").partition(".")
        number = int(index)
        found = []
        for source, coefficient in self.layers[number] if self.layers else ((number, 1.0),):
            old = f"{self.path}.{source}.{rest}"
            if expert := EXPERT.match(old):
                kept = self.experts.get(f"{expert[1]}")
                if kept is not None:
                    old = f"{expert[1]}.{int(kept[int(expert[2])])}{expert[3] or ''}"
            found.append((old, coefficient))
        return found


def layers_path(space: Space) -> str:
    """Qualified name of the list of decoder layers."""
    first = next((group for group in space.groups if group.kind == "depth"), space.groups[0])
    if first.kind == "depth":
        return first.name
    return first.matrices[0].name.partition(f".{first.layer}.")[0]


def untouched_layers(space: Space) -> tuple[Combination, ...]:
    """The output layers of a model that keeps all of its layers."""
    if space.frame is not None:
        count = space.frame.layers
    else:
        count = 1 + max(group.layer for group in space.groups)
    return untouched(range(count))
