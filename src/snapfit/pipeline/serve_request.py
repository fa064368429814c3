"""What `serve-check` is asked about: the models' folders, what the plan says, what to time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from snapfit.checkpoint.format import METHOD
from snapfit.core.checked import is_real, is_whole
from snapfit.core.errors import CorruptFile, SnapfitError, UsageError
from snapfit.core.files import read_json
from snapfit.core.plan import Plan
from snapfit.core.workload import Workload
from snapfit.evals.serving import TIES
from snapfit.evals.serving_time import STEPS
from snapfit.models.source import EMBEDDED
from snapfit.pipeline.respondent import model_folder

PROMPT = 512
"""Tokens of the timed prompt where nobody says: less where the model's context is shorter."""

PLAN = "plan.json"


def folder_of(model: str | Path, *, trust_remote_code: bool) -> Path:
    """The folder of a model, which has a configuration.

    Raises:
        SnapfitError: there is none.

    """
    folder = model_folder(str(model), trust_remote_code=trust_remote_code)
    model_config(folder)
    return folder


def dtype_of(model: Path, asked: str | None) -> str:
    """The dtype of the weights in the engine.

    Raises:
        UsageError: rounding is not known in it, or nothing says which it is.

    """
    config = model_config(model)
    found = asked or config.get("dtype") or config.get("torch_dtype")
    if found is None:
        raise UsageError(f"{model / 'config.json'} names no dtype; give --dtype {', '.join(TIES)}")
    if str(found) not in TIES:
        raise UsageError(f"dtype {str(found)!r} is none of {', '.join(TIES)}; give --dtype")
    return str(found)


def workload_for(folder: Path, asked: str | None, predicted: dict[str, Any] | None) -> Workload:
    """What to time: what was asked, or what the plan predicts, or a prompt and eight answers.

    Raises:
        UsageError: what was asked is no workload.

    """
    text = asked or (predicted or {}).get("workload")
    if text is not None:
        return Workload.parse(text)
    context = model_config(folder).get("max_position_embeddings")
    tokens = PROMPT
    while is_whole(context) and tokens > 4 and tokens + 1 + STEPS > context:
        tokens //= 2
    return Workload.parse(f"prefill:1x{tokens},decode:8x{tokens // 4}")


def refuse_quantised(model: Path) -> None:
    """A quantised model is another function: float32 is no reference for its tokens.

    Raises:
        SnapfitError: it is one.

    """
    found = model_config(model).get("quantization_config") or {}
    method = found.get("quant_method") if isinstance(found, dict) else None
    if method not in {None, METHOD}:
        raise SnapfitError(
            f"{model} is quantised ({method}), so its tokens differ from float32's; check the "
            "checkpoint that it was made of"
        )


def plan_of(model: Path) -> Plan | None:
    """The plan beside a checkpoint.

    Raises:
        CorruptFile: it is malformed.

    """
    return Plan.from_json(read_json(model / PLAN)) if (model / PLAN).is_file() else None


def predicted_by(plan: Plan | None) -> dict[str, Any] | None:
    """What the plan says of the time of a workload; None where it says nothing.

    Raises:
        CorruptFile: it says something else than that.

    """
    known = {} if plan is None else plan.predicted
    if "latency.share" not in known:
        return None
    keys = ("share", "spread", "workload", "device")
    found = {key: known.get(f"latency.{key}") for key in keys}
    spread = found["spread"] is None or is_real(found["spread"])
    if not (is_real(found["share"]) and spread and isinstance(found["workload"], str)):
        raise CorruptFile(f"{PLAN} predicts a time that is malformed: {found}; make the plan again")
    return found


def dense_of(plan: Plan | None) -> str | None:
    """The plan's model, where it is at hand: nothing is fetched that was not asked for."""
    if plan is None:
        return None
    there = (Path(plan.model).expanduser() / "config.json").is_file()
    return plan.model if there or plan.model == EMBEDDED else None


def model_config(folder: Path) -> dict[str, Any]:
    """The content of config.json.

    Raises:
        SnapfitError: there is none.

    """
    file = folder / "config.json"
    if not file.is_file():
        raise SnapfitError(f"{folder} has no config.json, so it is no model folder")
    config = read_json(file)
    return config if isinstance(config, dict) else {}
