"""The settings of a run of `snapfit scaling`, as its folder holds them: maybe a stranger's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

from snapfit.core.errors import CorruptFile, SnapfitError
from snapfit.core.files import read_json

SETTINGS = "settings.json"

Fields: TypeAlias = Mapping[str, type | tuple[type, ...]]
"""Types of the values that an object must have, by key."""

_RUN: Fields = {
    "models": list,
    "paths": dict,
    "against": (str, type(None)),
    "backend": str,
    "dtype": str,
    "sampling": dict,
    "delimiters": dict,
    "tasks": dict,
}
_SAMPLING: Fields = {"temperature": (int, float), "seeds": list}
_MARKS: Fields = dict.fromkeys(("start", "end", "final", "again", "source"), str)
_TASK: Fields = {
    "family": str,
    "kind": str,
    "equivalence": str,
    "budgets": list,
    "samples": int,
}


def read_settings(folder: Path) -> dict[str, Any]:
    """What was asked in a run.

    Raises:
        SnapfitError: the folder holds no run.
        CorruptFile: the file is none that this version of snapfit wrote.

    """
    path = folder / SETTINGS
    if not path.is_file():
        raise SnapfitError(f"{folder} holds no run of snapfit scaling: {SETTINGS} is missing")
    found = read_json(path)
    _check(path, "the file", found, _RUN)
    _check(path, "the sampling", found["sampling"], _SAMPLING)
    for name, task in found["tasks"].items():
        _check(path, f"task {name!r}", task, _TASK)
        if not task["budgets"] or not all(isinstance(budget, int) for budget in task["budgets"]):
            raise CorruptFile(f"{path}: the budgets of task {name!r} are no numbers of tokens")
    for model in found["models"]:
        for key in ("paths", "delimiters"):
            if not isinstance(model, str) or model not in found[key]:
                raise CorruptFile(f"{path} names model {model!r} without its {key}")
        _check(path, f"{model!r}, by its delimiters,", found["delimiters"][model], _MARKS)
    if found["against"] not in [None, *found["models"]]:
        raise CorruptFile(f"{path} judges against {found['against']!r}, none of its models")
    settings: dict[str, Any] = found
    return settings


def _check(path: Path, what: str, value: Any, wanted: Fields) -> None:
    if not isinstance(value, dict):
        raise CorruptFile(f"{path}: {what} is no JSON object")
    for key, kind in wanted.items():
        if not isinstance(value.get(key, ...), kind):
            raise CorruptFile(
                f"{path}: {what} has no {key!r} as this version of snapfit writes it; run again "
                "in another folder"
            )
