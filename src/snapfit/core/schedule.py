"""What a model looks like at every number of layers that a depth method can keep.

A method that removes whole layers gives, for every reachable size, the layers of the smaller model:
each a linear combination of the parameters of layers of the original. (i, 1.0) alone is layer i,
untouched. LaCo (arXiv 2402.11187) collapses layers l .. l+m into one by adding parameter
differences, theta_l + sum_k (theta_{l+k} - theta_l): coefficient 1 - m for l, 1 for the others.
Sizes need not be nested: the block that a method removes at n may not contain the block at n - 1.

A method that removes attention or MLP modules alone keeps every layer and gives, for every size,
the names of the modules that are gone; their output is zero.

A schedule is a file that may come from a stranger, so `from_json` believes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np

from snapfit.core.curve import Curve
from snapfit.core.errors import CorruptFile, SnapfitError
from snapfit.core.plan import check_name

SCHEMA = 1
MAX_LAYERS = 4096
MAX_TEXT = 512

Part = Literal["layer", "attention", "mlp"]

Mix = tuple[tuple[int, float], ...]
"""One output layer: (source layer, coefficient) of every parameter. The first source is the base:
what is no parameter (kind of attention, class of the MLP) is the base's."""


@dataclass(frozen=True, kw_only=True)
class Depth:
    """One size of a schedule.

    Attributes:
        layers: the output layers, first to last.
        removed: qualified names of the sub-layer modules that are gone, of the original model.

    """

    layers: tuple[Mix, ...]
    removed: tuple[str, ...] = ()

    @property
    def sources(self) -> tuple[int, ...]:
        """The base of every output layer, strictly increasing."""
        return tuple(mix[0][0] for mix in self.layers)

    @property
    def merges(self) -> bool:
        """Whether any output layer is more than an untouched layer."""
        return any(not is_untouched(mix) for mix in self.layers)


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
        whole = {mix[0][0] for mix in depth.layers if is_untouched(mix)}
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
                    "layers": [_mix_json(mix) for mix in self.sizes[kept].layers],
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
                f"schedule has schema {table['schema']!r}; this snapfit reads {SCHEMA}"
            )
        if table["part"] not in get_args(Part):
            raise CorruptFile(f"schedule's part is {table['part']!r}")
        full = _integer(table["full"], 1, MAX_LAYERS, "full")
        entries = table["sizes"]
        if not isinstance(entries, dict) or not entries:
            raise CorruptFile("schedule has no sizes")
        sizes, losses, notes = {}, {}, {}
        for key, value in entries.items():
            kept = _integer(int(key) if str(key).isdecimal() else key, 0, full, "size")
            entry = _table(value, {"loss", "note", "layers", "removed"}, f"size {kept}")
            sizes[kept] = _depth(entry, full, kept, table["part"])
            losses[kept] = _number(entry["loss"], f"loss at {kept}")
            if losses[kept] < 0:
                raise CorruptFile(f"schedule has a negative loss at {kept}: {losses[kept]}")
            if note := _text(entry["note"], "note"):
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
            unit=_text(table["unit"], "unit"),
            scores=tuple(_number(score, "score") for score in scores),
            meaning=_text(table["meaning"], "meaning"),
            notes=notes,
        )


def layer_of(name: str) -> int:
    """The layer that a module is in: the first number in its qualified name; -1 without one."""
    return next((int(part) for part in name.split(".") if part.isdecimal()), -1)


def is_untouched(mix: Mix) -> bool:
    """Whether an output layer is one layer of the original as it was."""
    return len(mix) == 1 and mix[0][1] == 1.0


def untouched(sources: Iterable[int]) -> tuple[Mix, ...]:
    """Output layers that are these layers of the original."""
    return tuple(((source, 1.0),) for source in sources)


def collapse(layers: Sequence[Mix], at: int, count: int) -> tuple[Mix, ...]:
    """LaCo's merge of the `count` output layers from `at` on into one.

    theta_at + sum_k (theta_{at+k} - theta_at), k = 1 .. count - 1; layers that are themselves
    merged are expanded, so that the result is again a combination of layers of the original.
    Sources whose coefficient becomes 0 stay listed only if they are the base.

    Raises:
        ValueError: fewer than two layers, or beyond the last (a caller's mistake).

    """
    if count < 2 or not 0 <= at <= len(layers) - count:
        raise ValueError(f"cannot merge {count} of {len(layers)} layers from {at}")
    # Every layer of the original is in one output layer only, so no source comes twice.
    first = [(source, (2 - count) * coefficient) for source, coefficient in layers[at]]
    rest = [pair for mix in layers[at + 1 : at + count] for pair in mix]
    merged = tuple((s, float(c)) for s, c in first + rest if c != 0 or s == first[0][0])
    return (*layers[:at], merged, *layers[at + count :])


def _mix_json(mix: Mix) -> Any:
    return mix[0][0] if is_untouched(mix) else [[source, c] for source, c in mix]


def _depth(entry: Mapping[str, Any], full: int, kept: int, part: str) -> Depth:
    layers, removed = entry["layers"], entry["removed"]
    expected = kept if part == "layer" else full
    if not isinstance(layers, list) or len(layers) != expected:
        raise CorruptFile(f"schedule must list {expected} layers at size {kept}")
    depth = Depth(layers=tuple(_mix(mix, full) for mix in layers), removed=_removed(removed, full))
    if list(depth.sources) != sorted(set(depth.sources)):
        raise CorruptFile(f"schedule's layers at size {kept} are not in the model's order")
    used = [source for mix in depth.layers for source, _ in mix]
    if len(used) != len(set(used)):
        raise CorruptFile(f"schedule uses a layer twice at size {kept}")
    if part == "layer" and depth.removed:
        raise CorruptFile(f"schedule of layers removes modules at size {kept}")
    if part != "layer" and (depth.merges or len(depth.removed) != full - kept):
        raise CorruptFile(f"schedule must remove {full - kept} modules at size {kept}, no layers")
    return depth


def _mix(value: Any, full: int) -> Mix:
    if not isinstance(value, list):
        return ((_integer(value, 0, full - 1, "layer"), 1.0),)
    pairs = [pair for pair in value if isinstance(pair, list) and len(pair) == 2]
    if not value or len(pairs) != len(value):
        raise CorruptFile(f"schedule has a malformed layer: {str(value)[:80]}")
    return tuple(
        (_integer(source, 0, full - 1, "layer"), _number(coefficient, "coefficient"))
        for source, coefficient in pairs
    )


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


def _integer(value: Any, least: int, most: int, what: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise CorruptFile(
            f"schedule's {what} must be a whole number from {least} to {most}, found "
            f"{str(value)[:40]!r}"
        )
    return value


def _number(value: Any, what: str) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise CorruptFile(f"schedule's {what} must be a finite number, found {str(value)[:40]!r}")
    return float(value)


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str) or len(value) > MAX_TEXT:
        raise CorruptFile(f"schedule's {what} must be a short text")
    return value
