"""Finding methods by file name, without importing the others."""

from __future__ import annotations

import dataclasses
import importlib
import math
from collections.abc import Callable, Mapping
from typing import Any, cast

import snapfit.methods
from snapfit.core.errors import UsageError
from snapfit.core.names import plugin_files, unknown_name
from snapfit.methods.base import Method


def method_names() -> tuple[str, ...]:
    """Every file in this folder that is a method, by its name on the command line."""
    return tuple(name.replace("_", "-") for name in plugin_files(snapfit.methods.__path__))


def load_method(name: str, settings: Mapping[str, str] | None = None) -> Method:
    """The method called `name`, configured.

    Raises:
        UsageError: no such method or setting, or a value that is not of the setting's type.
    """
    if name not in method_names():
        raise unknown_name("method", name, method_names())
    module = importlib.import_module(f"snapfit.methods.{name.replace('-', '_')}")
    kind = module.Compressor
    fields = {field.name: field for field in dataclasses.fields(kind)}
    values: dict[str, Any] = {}
    for key, text in (settings or {}).items():
        if key not in fields:
            known = ", ".join(fields) or "none"
            raise UsageError(f"{name} has no setting {key!r}; it has: {known}")
        convert: Callable[[str], Any] = type(fields[key].default)
        try:
            values[key] = convert(text)
        except ValueError as error:
            raise UsageError(f"{name}: {key} cannot be {text!r}") from error
        if isinstance(values[key], float) and not math.isfinite(values[key]):
            raise UsageError(f"{name}: {key} must be finite, found {text!r}")
    return cast("Method", kind(**values))


def settings_of(method: Method) -> dict[str, Any]:
    """The method's settings with their values, for digests, plans and reports."""
    return dataclasses.asdict(cast("Any", method))
