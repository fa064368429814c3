"""What a target is like, as data: how long operators take there, and which sizes suit it.

A profile may come from a sweep on the device, from tables, or from a stranger's file, so
`from_json` believes nothing, and every number keeps where it came from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, get_args

from snapfit.core.candidates import AlignRule, RuleAxis
from snapfit.core.errors import CorruptFile, UsageError
from snapfit.core.interpolate import Interpolator, Timing
from snapfit.core.layout import MAX_DIMENSION
from snapfit.core.operators import Estimate, Operator, OperatorKind, Source, operator_of

__all__ = ["SCHEMA", "Profile", "Source", "Timing"]

SCHEMA = 2
MAX_ENTRIES = 1_000_000
MAX_TEXT = 4096
MAX_NUMBER = 1e30


@dataclass(frozen=True, kw_only=True)
class Profile:
    """One target. A profile is a `Timer`.

    Attributes:
        device: the device's name, e.g. 'h100_sxm'.
        software: versions of what ran or published the numbers; '' if they hold for any.
        dtype: of the weights that the numbers are about, e.g. 'float16'.
        rules: which multiples suit it, each with its source.
        timings: may be empty: then only the rules are known. No operator occurs twice.

    """

    device: str
    software: str
    dtype: str
    rules: tuple[AlignRule, ...]
    timings: tuple[Timing, ...] = ()

    def time(self, operator: Operator) -> Estimate:
        """The time of one operator: as measured, or interpolated between what was measured.

        Raises:
            SnapfitError: nothing of its kind was measured near it.

        """
        return self._interpolator.time(operator)

    @cached_property
    def _interpolator(self) -> Interpolator:
        return Interpolator(device=self.device, rules=self.rules, timings=self.timings)

    def to_json(self) -> dict[str, Any]:
        """A JSON-serialisable dictionary, schema first; `from_json` is its inverse."""
        timings = [asdict(timing) | {"shape": list(timing.shape)} for timing in self.timings]
        return {
            "schema": SCHEMA,
            "device": self.device,
            "software": self.software,
            "dtype": self.dtype,
            "rules": [asdict(rule) for rule in self.rules],
            "timings": timings,
        }

    @classmethod
    def from_json(cls, data: Any) -> Profile:
        """Validate a profile written by a stranger.

        Raises:
            CorruptFile: anything is missing, unknown, of the wrong type, out of range or twice
                there.

        """
        table = _table(data, "profile", {"schema", *cls.__dataclass_fields__})
        if table["schema"] != SCHEMA or isinstance(table["schema"], bool):
            raise CorruptFile(
                f"profile has schema {_show(table['schema'])}, this snapfit reads {SCHEMA}"
            )
        timings = tuple(_timing(entry) for entry in _entries(table["timings"], "timings"))
        seen: set[tuple[str, tuple[int, ...]]] = set()
        for timing in timings:
            if (timing.kind, timing.shape) in seen:
                raise CorruptFile(f"profile times {timing.operator} twice")
            seen.add((timing.kind, timing.shape))
        return cls(
            device=_text(table["device"], "device"),
            software=_text(table["software"], "software"),
            dtype=_text(table["dtype"], "dtype"),
            rules=tuple(_rule(entry) for entry in _entries(table["rules"], "rules")),
            timings=timings,
        )


def _rule(data: Any) -> AlignRule:
    table = _table(data, "rule", set(AlignRule.__dataclass_fields__))
    if table["axis"] not in get_args(RuleAxis):
        axes = ", ".join(get_args(RuleAxis))
        raise CorruptFile(f"rule has axis {_show(table['axis'])}; it is one of {axes}")
    if not isinstance(table["measured"], bool):
        raise CorruptFile(f"rule: measured is true or false, found {_show(table['measured'])}")
    penalty = table["penalty"]
    return AlignRule(
        axis=table["axis"],
        multiple=_size(table["multiple"], "rule: multiple"),
        source=_text(table["source"], "rule: source"),
        measured=table["measured"],
        penalty=None if penalty is None else _number(penalty, "rule: penalty", least=1.0),
    )


def _timing(data: Any) -> Timing:
    table = _table(data, "timing", set(Timing.__dataclass_fields__))
    kind, shape = table["kind"], table["shape"]
    if not isinstance(kind, str) or kind not in get_args(OperatorKind):
        kinds = ", ".join(get_args(OperatorKind))
        raise CorruptFile(f"timing has kind {_show(kind)}; it is one of {kinds}")
    if not isinstance(shape, list) or len(shape) > 16:
        raise CorruptFile(f"timing: shape must be a short list of sizes, found {_show(shape)}")
    try:
        operator = operator_of(kind, tuple(shape))
    except (UsageError, TypeError) as error:
        raise CorruptFile(f"timing: {error}") from error
    if table["source"] not in get_args(Source):
        raise CorruptFile(
            f"timing has source {_show(table['source'])}; it is measured, table or model"
        )
    time = _number(table["microseconds"], "timing: microseconds", least=0.0)
    if time == 0:
        raise CorruptFile("timing: microseconds must be above 0, found 0")
    return Timing(
        kind=operator.kind,
        shape=operator.shape,
        microseconds=time,
        spread=_number(table["spread"], "timing: spread", least=0.0),
        source=table["source"],
        how=_text(table["how"], "timing: how"),
    )


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
    # It will be shown: control characters could rewrite a terminal.
    if not isinstance(value, str) or len(value) > MAX_TEXT or not value.isprintable():
        raise CorruptFile(f"profile's {name} must be a short line of text, found {_show(value)}")
    return value


def _size(value: Any, name: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MAX_DIMENSION:
        raise CorruptFile(f"{name} must be a positive whole number, found {_show(value)}")
    return value


def _number(value: Any, name: str, *, least: float) -> float:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    # Infinities and NaN fail the comparison; huge integers would overflow in float().
    if not number or not least <= value < MAX_NUMBER:
        raise CorruptFile(f"{name} must be a number of at least {least:g}, found {_show(value)}")
    return float(value)


def _show(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 80 else shown[:77] + "..."
