"""What vLLM must be told to start with a checkpoint, and what it said when it did not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from snapfit.core.errors import SnapfitError, UsageError
from snapfit.core.files import read_json


def engine_settings(folder: Path, *, trust_remote_code: bool) -> dict[str, Any]:
    """What vLLM must be told about a checkpoint, by its format; see docs/serving.md.

    Raises:
        UsageError: the checkpoint needs its own code, and it may not run.
        SnapfitError: vLLM's transformers backend cannot hold what the checkpoint says.

    """
    config = read_json(folder / "config.json")
    if not isinstance(config, dict) or "auto_map" not in config:
        return {}
    if not trust_remote_code:
        raise UsageError(
            f"{folder} holds code that vLLM must run; look at it, then pass --trust-remote-code"
        )
    if "snapfit" not in config:
        return {"trust_remote_code": True}
    structure = config["snapfit"]
    if structure.get("heads") or "attention" in structure.get("absent", {}).values():
        raise SnapfitError(
            f"{folder} has layers with fewer heads or without attention, for which vLLM's "
            "transformers backend has no place; save the model as 'factored'"
        )
    # The native classes of vLLM know nothing of a standalone checkpoint's shapes.
    return {"trust_remote_code": True, "model_impl": "transformers"}


def cause(error: Exception) -> str:
    """The last line of the innermost error that says something."""
    while error.__cause__ is not None and isinstance(error.__cause__, Exception):
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if not line.startswith("For further information visit")]
    return telling[-1].partition(" [type=")[0] if telling else type(error).__name__
