"""What a target is like, as data: how long shapes take there, and which sizes suit it.

A profile may come from a sweep on the device, from tables, or from a stranger's file, so
`from_json` believes nothing, and every number keeps where it came from.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from snapfit.core.candidates import AlignRule
from snapfit.core.errors import CorruptFile
from snapfit.core.layout import MAX_DIMENSION
from snapfit.core.space import Axis

SCHEMA = 1
MAX_ENTRIES = 1_000_000
MAX_TEXT = 4096

Source = Literal["measured", "table", "model"]
"""Measured on the device, read from a vendor's table, or predicted by a model of it."""


@dataclass(frozen=True, kw_only=True)
class Timing:
    """How long one product of shape (m, k) x (k, n) takes.

    Attributes:
        m: tokens.
        n: output features.
        k: input features.
        microseconds: the median.
        source: where the number comes from.

    """

    m: int
    n: int
    k: int
    microseconds: float
    source: Source


@dataclass(frozen=True, kw_only=True)
class Profile:
    """One target.

    Attributes:
        device: the device's name, e.g. 'h100_sxm'.
        software: versions of what ran or published the numbers; '' if they hold for any.
        dtype: of the weights that the numbers are about, e.g. 'float16'.
        rules: which multiples suit it, each with its source.
        timings: may be empty: then only the rules are known.

    """

    device: str
    software: str
    dtype: str
    rules: tuple[AlignRule, ...]
    timings: tuple[Timing, ...] = ()

    @property
    def rank_multiple(self) -> int:
        """The multiple that a rank must be of, all rules together: a rank lies on every axis."""
        return math.lcm(*(rule.multiple for rule in self.rules))

    def to_json(self) -> dict[str, Any]:
        """A JSON-serialisable dictionary, schema first; `from_json` is its inverse."""
        data = asdict(self)
        for name in ("rules", "timings"):
            data[name] = list(data[name])
        return {"schema": SCHEMA, **data}

    @classmethod
    def from_json(cls, data: Any) -> Profile:
        """Validate a profile written by a stranger.

        Raises:
            CorruptFile: anything is missing, unknown, of the wrong type or out of range.

        """
        table = _table(data, "profile", {"schema", *cls.__dataclass_fields__})
        if table["schema"] != SCHEMA or isinstance(table["schema"], bool):
            raise CorruptFile(
                f"profile has schema {_show(table['schema'])}, this snapfit reads {SCHEMA}"
            )
        return cls(
            device=_text(table["device"], "device"),
            software=_text(table["software"], "software"),
            dtype=_text(table["dtype"], "dtype"),
            rules=tuple(_rule(entry) for entry in _entries(table["rules"], "rules")),
            timings=tuple(_timing(entry) for entry in _entries(table["timings"], "timings")),
        )


def _rule(data: Any) -> AlignRule:
    table = _table(data, "rule", set(AlignRule.__dataclass_fields__))
    if table["axis"] not in get_args(Axis):
        raise CorruptFile(f"rule has axis {_show(table['axis'])}; it is in, out or rank")
    if not isinstance(table["measured"], bool):
        raise CorruptFile(f"rule: measured is true or false, found {_show(table['measured'])}")
    return AlignRule(
        axis=table["axis"],
        multiple=_size(table["multiple"], "rule: multiple"),
        source=_text(table["source"], "rule: source"),
        measured=table["measured"],
    )


def _timing(data: Any) -> Timing:
    table = _table(data, "timing", set(Timing.__dataclass_fields__))
    time = table["microseconds"]
    if isinstance(time, bool) or not isinstance(time, int | float) or not 0 < time < math.inf:
        raise CorruptFile(f"timing: microseconds must be above 0, found {_show(time)}")
    if table["source"] not in get_args(Source):
        raise CorruptFile(
            f"timing has source {_show(table['source'])}; it is measured, table or model"
        )
    sizes = {axis: _size(table[axis], f"timing: {axis}") for axis in ("m", "n", "k")}
    return Timing(**sizes, microseconds=float(time), source=table["source"])


def _table(value: Any, name: str, fields: set[str]) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise CorruptFile(f"{name} must be a table, found {_show(value)}")
    if missing := sorted(fields - value.keys()):
        raise CorruptFile(f"{name} lacks: {', '.join(missing)}")
    if unknown := sorted(map(str, value.keys() - fields)):
        raise CorruptFile(f"{name} has unknown fields: {_show(', '.join(unknown))}")
    return value


def _entries(value: Any, name: str) -> list[Any]:
    if not isinstance(value, list) or len(value) > MAX_ENTRIES:
        raise CorruptFile(f"profile's {name} must be a list, found {_show(value)}")
    return value


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str) or len(value) > MAX_TEXT:
        raise CorruptFile(f"profile's {name} must be a short text, found {_show(value)}")
    return value


def _size(value: Any, name: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MAX_DIMENSION:
        raise CorruptFile(f"{name} must be a positive whole number, found {_show(value)}")
    return value


def _show(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 80 else shown[:77] + "..."
