"""What came out: figures with their error, their settings and where they were taken.

`report.json` serves two readers. A script reads `report["perplexity"]["compressed"]`, a plain
number; a person who doubts the number reads `report["details"]["perplexity.compressed"]`, which
says whether it was measured or predicted, over how many samples, how sure it is, and how.
"""

from __future__ import annotations

import importlib.metadata
import math
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

SCHEMA = 1
_PACKAGES = ("snapfit", "numpy", "torch", "transformers", "safetensors")
_RESERVED = ("schema", "details", "environment")

Plain = str | int | float | bool | None


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One figure.

    Attributes:
        value: the figure.
        unit: what it counts, '' for a bare ratio.
        kind: whether it was measured or predicted.
        stderr: standard error of `value`, if it was sampled.
        n: how many samples it is an average of.
        settings: what one needs to know to take it again.

    """

    value: float
    unit: str
    kind: Literal["measured", "predicted"]
    stderr: float | None = None
    n: int | None = None
    settings: Mapping[str, Plain] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.kind not in ("measured", "predicted"):
            raise ValueError(f"a metric is measured or predicted, not {self.kind!r}")
        if self.stderr is not None and self.stderr < 0:
            raise ValueError(f"a standard error is >= 0, found {self.stderr}")
        if self.n is not None and self.n < 1:
            raise ValueError(f"a metric averages at least one sample, found {self.n}")


@dataclass(frozen=True, kw_only=True)
class Report:
    """Figures by dotted name, and the environment they were taken in.

    Attributes:
        entries: {'params.dense': Metric or plain value}.
        environment: as `environment()` gives it.

    """

    entries: Mapping[str, Metric | Plain]
    environment: Mapping[str, Plain]

    def to_json(self) -> dict[str, Any]:
        """Nested tables of plain values, with 'details' by dotted name beside them.

        JSON has no infinity: a figure that is not finite becomes null, and its details say what
        it was.

        Raises:
            ValueError: a name is malformed, reserved, or both a value and a table of values.

        """
        tables: dict[str, Any] = {}
        details: dict[str, Any] = {}
        for name, entry in self.entries.items():
            value = entry.value if isinstance(entry, Metric) else entry
            finite = not isinstance(value, float) or math.isfinite(value)
            _insert(tables, name, value if finite else None)
            if isinstance(entry, Metric):
                details[name] = {
                    "unit": entry.unit,
                    "kind": entry.kind,
                    "stderr": _finite(entry.stderr),
                    "n": entry.n,
                    "settings": dict(entry.settings),
                }
            if not finite:
                details.setdefault(name, {})["not_finite"] = str(value)
        return {
            "schema": SCHEMA,
            **tables,
            "details": details,
            "environment": dict(self.environment),
        }


def environment() -> dict[str, Plain]:
    """Versions and machine; a package that is not installed is None. Imports none of them."""
    return {
        **{package: _version(package) for package in _PACKAGES},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _insert(tables: dict[str, Any], name: str, value: Plain) -> None:
    *path, leaf = name.split(".")
    if not all((*path, leaf)) or (path or [leaf])[0] in _RESERVED:
        raise ValueError(f"{name!r} cannot name a figure of a report")
    for part in path:
        tables = tables.setdefault(part, {})
        if not isinstance(tables, dict):
            raise ValueError(f"{name!r}: a shorter name already holds a value")
    if leaf in tables:
        raise ValueError(f"{name!r} is reported twice, or names a table")
    tables[leaf] = value
