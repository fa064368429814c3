"""What a model looks like at every number of layers that a depth method can keep.

A method that removes whole layers gives, for every reachable size, the layers of the smaller model:
each a linear combination of the parameters of layers of the original (`core.combination`). Sizes
need not be nested: the block that a method removes at n may not contain the block at n - 1.

A method that removes attention or MLP modules alone keeps every layer and gives, for every size,
the names of the modules that are gone; their output is zero.

A schedule is a file that may come from a stranger, so `from_json` believes nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np

from snapfit.core.checked import real, shown, text, whole
from snapfit.core.combination import (
    MAX_LAYERS,
    Combination,
    is_untouched,
    layer_json,
    read_layer,
    untouched,
)
from snapfit.core.curve import Curve
from snapfit.core.errors import CorruptFile, SnapfitError
from snapfit.core.plan import check_name

SCHEMA = 1
MAX_NOTE = 512

_SIZE = re.compile("0|[1-9][0-9]{0,5}")

Part = Literal["layer", "attention", "mlp"]


@dataclass(frozen=True, kw_only=True)
class Depth:
    """One size of a schedule.

    Attributes:
        layers: the output layers, first to last.
        removed: qualified names of the sub-layer modules that are gone, of the original model.

    """

    layers: tuple[Combination, ...]
    removed: tuple[str, ...] = ()

    @property
    def sources(self) -> tuple[int, ...]:
        """The base of every output layer, strictly increasing."""
        return tuple(layer[0][0] for layer in self.layers)

    @property
    def merges(self) -> bool:
        """Whether any output layer is more than an untouched layer."""
        return any(not is_untouched(layer) for layer in self.layers)


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Every size that a depth method reaches.

    Attributes:
        part: what a size counts: whole layers, or the layers that keep their attention or MLP.
        full: decoder layers of the original.
        sizes: {kept: what the model looks like}; `full` is always there.
        losses: {kept: predicted loss}, in `unit`; 0 at `full`.
        unit: of losses and scores, e.g. 'block influence'.
        scores: one number a layer, the lowest goes first; () for a method that scores no layers.
        meaning: what a score is, in a few words.
        notes: {kept: a few words}, such as the threshold that LaCo accepted.

    """

    part: Part = "layer"
    full: int
    sizes: Mapping[int, Depth]
    losses: Mapping[int, float]
    unit: str
    scores: tuple[float, ...] = ()
    meaning: str = ""
    notes: Mapping[int, str] = field(default_factory=dict)

    @property
    def reachable(self) -> tuple[int, ...]:
        """Sizes that the method reaches, the largest first."""
        return tuple(sorted(self.sizes, reverse=True))

    @property
    def curve(self) -> Curve:
        """Losses at the reachable sizes, made non-increasing; between them it means nothing."""
        sizes = sorted(self.sizes)
        losses = np.array([self.losses[size] for size in sizes])
        return Curve(sizes=np.array(sizes), losses=losses, unit=self.unit)

    def at(self, kept: int) -> Depth:
        """The model with `kept` layers (or sub-layers).

        Raises:
            SnapfitError: the method does not reach this size; lists those that it does.

        """
        if kept not in self.sizes:
            what = "layers" if self.part == "layer" else f"{self.part} modules"
            reachable = ", ".join(str(self.full - size) for size in self.reachable if size)
            raise SnapfitError(
                f"this method cannot remove {self.full - kept} of {self.full} {what}; "
                f"it can remove: {reachable}"
            )
        return self.sizes[kept]

    def gone(self, kept: int) -> frozenset[int]:
        """Layers that are removed, merged, or without the part, at a reachable size."""
        depth = self.at(kept)
        if self.part != "layer":
            return frozenset(layer_of(name) for name in depth.removed)
        whole = {layer[0][0] for layer in depth.layers if is_untouched(layer)}
        return frozenset(range(self.full)) - whole

    @property
    def turns(self) -> tuple[int | None, ...]:
        """For every layer, with how many layers less it is gone for the first time; None: never."""
        turns: dict[int, int] = {}
        for kept in self.reachable:
            for layer in self.gone(kept):
                turns.setdefault(layer, self.full - kept)
        return tuple(turns.get(layer) for layer in range(self.full))

    def to_json(self) -> dict[str, Any]:
        """A JSON-serialisable dictionary; untouched layers are plain integers."""
        return {
            "schema": SCHEMA,
            "part": self.part,
            "full": self.full,
            "unit": self.unit,
            "meaning": self.meaning,
            "scores": list(self.scores),
            "sizes": {
                str(kept): {
                    "loss": self.losses[kept],
                    "note": self.notes.get(kept, ""),
                    "layers": [layer_json(layer) for layer in self.sizes[kept].layers],
                    "removed": list(self.sizes[kept].removed),
                }
                for kept in self.reachable
            },
        }

    @classmethod
    def from_json(cls, data: Any) -> Schedule:
        """Validate a schedule written by a stranger.

        Raises:
            CorruptFile: anything is missing, unknown, of the wrong type or out of range.

        """
        fields = {"schema", "part", "full", "unit", "meaning", "scores", "sizes"}
        table = _table(data, fields, "schedule")
        if table["schema"] != SCHEMA or isinstance(table["schema"], bool):
            raise CorruptFile(
                f"schedule has schema {shown(table['schema'])}; this snapfit reads {SCHEMA}"
            )
        if table["part"] not in get_args(Part):
            raise CorruptFile(f"schedule's part is {shown(table['part'])}")
        full = whole(table["full"], "schedule's full", 1, MAX_LAYERS)
        entries = table["sizes"]
        if not isinstance(entries, dict) or not entries:
            raise CorruptFile("schedule has no sizes")
        sizes, losses, notes = {}, {}, {}
        for key, value in entries.items():
            kept = _size(key, full)
            entry = _table(value, {"loss", "note", "layers", "removed"}, f"size {kept}")
            sizes[kept] = _depth(entry, full, kept, table["part"])
            losses[kept] = real(entry["loss"], f"schedule's loss at {kept}")
            if losses[kept] < 0:
                raise CorruptFile(f"schedule has a negative loss at {kept}: {losses[kept]}")
            if note := text(entry["note"], "schedule's note", MAX_NOTE):
                notes[kept] = note
        if sizes.get(full) != Depth(layers=untouched(range(full))):
            raise CorruptFile(f"schedule does not leave the model alone at {full} layers")
        scores = table["scores"]
        if not isinstance(scores, list) or len(scores) not in {0, full}:
            raise CorruptFile(f"schedule must have {full} scores, or none")
        return cls(
            part=table["part"],
            full=full,
            sizes=sizes,
            losses=losses,
            unit=text(table["unit"], "schedule's unit", MAX_NOTE),
            scores=tuple(real(score, "schedule's score") for score in scores),
            meaning=text(table["meaning"], "schedule's meaning", MAX_NOTE),
            notes=notes,
        )


def layer_of(name: str) -> int:
    """The layer that a module is in: the first number in its qualified name; -1 without one."""
    return next((int(part) for part in name.split(".") if part.isdecimal()), -1)


def _size(key: Any, full: int) -> int:
    """The size that an entry is about, written without leading zeros: none comes twice."""
    plain = isinstance(key, str) and _SIZE.fullmatch(key)
    return whole(int(key) if plain else key, "schedule's size", 0, full)


def _depth(entry: Mapping[str, Any], full: int, kept: int, part: str) -> Depth:
    layers, removed = entry["layers"], entry["removed"]
    expected = kept if part == "layer" else full
    if not isinstance(layers, list) or len(layers) != expected:
        raise CorruptFile(f"schedule must list {expected} layers at size {kept}")
    what = f"schedule's layers at size {kept}"
    depth = Depth(
        layers=tuple(read_layer(layer, what, full) for layer in layers),
        removed=_removed(removed, full),
    )
    if list(depth.sources) != sorted(set(depth.sources)):
        raise CorruptFile(f"schedule's layers at size {kept} are not in the model's order")
    used = [source for layer in depth.layers for source, _ in layer]
    if len(used) != len(set(used)):
        raise CorruptFile(f"schedule uses a layer twice at size {kept}")
    if part == "layer" and depth.removed:
        raise CorruptFile(f"schedule of layers removes modules at size {kept}")
    if part != "layer" and (depth.merges or len(depth.removed) != full - kept):
        raise CorruptFile(f"schedule must remove {full - kept} modules at size {kept}, no layers")
    return depth


def _removed(value: Any, full: int) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise CorruptFile("schedule's removed modules must be a list of names")
    for name in value:
        check_name(name)
        if not 0 <= layer_of(name) < full:
            raise CorruptFile(f"schedule removes {name[:80]!r}, which is in no layer of the model")
    if len({layer_of(name) for name in value}) != len(value):
        raise CorruptFile("schedule removes two modules of one layer")
    return tuple(value)


def _table(value: Any, fields: set[str], what: str) -> dict[str, Any]:
    if not isinstance(value, dict) or value.keys() != fields:
        raise CorruptFile(f"not a {what} of a schedule: needs {', '.join(sorted(fields))}")
    return value
