"""Go on with a run of the same question; more models may be added, nothing else changes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from snapfit.core.errors import SnapfitError
from snapfit.core.files import write_json
from snapfit.evals.run_settings import SETTINGS, read_settings
from snapfit.pipeline.respondent import SERVER

OF_THE_RUN = ("backend", "dtype", "sampling", "tasks", "against")
OF_A_MODEL = ("paths", "layers", "weights", "delimiters")


def begin(output: Path, wanted: Mapping[str, Any]) -> None:
    """Write down what is asked in a new run, or make sure that an old one asked the same.

    Args:
        output: folder of the run.
        wanted: its settings, JSON-able.

    Raises:
        SnapfitError: the folder holds a run of something else, or records that nobody knows the
            question of.

    """
    path = output / SETTINGS
    if not path.exists():
        _check_unclaimed(output, wanted)
    if not any(file.stat().st_size for file in output.glob("*/*.jsonl")) or not path.exists():
        write_json(path, wanted)
        return
    found = read_settings(output)
    # A server may have moved to another address.
    found["backend"] = _moved(found["backend"], wanted["backend"])
    for key in OF_THE_RUN:
        there, asked = _apart(found[key], wanted[key])
        if there != asked:
            raise SnapfitError(
                f"{output} holds a run with another {key}: {there} there, {asked} asked for; "
                "use another folder"
            )
    merged = {**found, "models": list(dict.fromkeys([*found["models"], *wanted["models"]]))}
    for key in OF_A_MODEL:
        known = found.get(key, {})
        clash = [name for name, value in wanted[key].items() if known.get(name, value) != value]
        if clash:
            raise SnapfitError(
                f"{output} holds a run in which {clash[0]} has other {key}; use another folder"
            )
        merged[key] = {**known, **wanted[key]}
    write_json(path, merged)


def _check_unclaimed(output: Path, wanted: Mapping[str, Any]) -> None:
    for model in wanted["models"]:
        for task in wanted["tasks"]:
            if (output / model / f"{task}.jsonl").exists():
                raise SnapfitError(
                    f"{output / model / task}.jsonl is there without {SETTINGS}, so nobody knows "
                    "what was asked; use another folder"
                )


def _moved(found: str, wanted: str) -> str:
    return wanted if found.startswith(SERVER) and wanted.startswith(SERVER) else found


def _apart(found: Any, wanted: Any) -> tuple[Any, Any]:
    """The parts of two settings that differ; where a file of problems lies makes no difference."""
    if not isinstance(found, dict) or not isinstance(wanted, dict):
        return found, wanted
    parts = {
        key: _apart(found.get(key), wanted.get(key)) for key in {**found, **wanted} if key != "file"
    }
    differing = {key: part for key, part in parts.items() if part[0] != part[1]}
    return (
        {key: there for key, (there, _) in differing.items()},
        {key: asked for key, (_, asked) in differing.items()},
    )
