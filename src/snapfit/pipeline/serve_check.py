"""Does an engine serve a checkpoint as it was saved, and how fast beside the dense model?"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from snapfit.checkpoint.format import METHOD
from snapfit.checkpoint.load import load, load_tokenizer
from snapfit.core.errors import SnapfitError, UsageError
from snapfit.core.files import read_json
from snapfit.core.names import unknown_name
from snapfit.core.plan import Plan
from snapfit.core.progress import Progress, Silent
from snapfit.core.workload import Workload
from snapfit.evals.serving import TIES, TOKENS, Ids, compare, encode_prompts
from snapfit.evals.serving_engines import Engine, TransformersEngine, VllmEngine
from snapfit.evals.serving_report import EngineCheck, ServeCheck
from snapfit.evals.serving_time import PAIRS, STEPS, PhaseTime, measure
from snapfit.pipeline.foretell import foretell
from snapfit.pipeline.respondent import device

ENGINES = ("vllm", "transformers")
DEFAULT_WORKLOAD = "prefill:1x512,decode:8x128"
"""Where the plan predicts nothing."""

PLAN = "plan.json"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What to check, and how.

    Attributes:
        engine: 'vllm', 'transformers' or 'all'.
        against: folder of the dense model; None for the plan's, if it is there.
        dtype: of the weights in the engine; None for the checkpoint's own.
        workload: what to time; None for the workload that the plan predicts.
        target: predict the times of both models there; None for what the plan predicts.
        pairs: timed runs of each model; 0 times nothing.
        compiled: let vLLM compile the model.
        tensor_parallel: workers of vLLM.
        trust_remote_code: allow code in the folders to run.

    """

    engine: str = "vllm"
    against: Path | None = None
    dtype: str | None = None
    workload: str | None = None
    target: str | None = None
    pairs: int = PAIRS
    compiled: bool = False
    tensor_parallel: int = 1
    trust_remote_code: bool = False


def serve_check(
    model: Path, settings: Settings | None = None, progress: Progress | None = None
) -> ServeCheck:
    """Load a checkpoint in engines, compare its greedy tokens, and time it beside the dense model.

    Args:
        model: folder of a checkpoint, compressed or not.
        settings: see `Settings`.
        progress: told what goes on.

    Raises:
        UsageError: no such engine, workload or folder.
        SnapfitError: an engine is not installed, or cannot serve the checkpoint.

    """
    settings, progress = settings or Settings(), progress or Silent()
    if settings.engine not in {*ENGINES, "all"}:
        raise unknown_name("engine", settings.engine, (*ENGINES, "all"))
    _refuse_quantised(model)
    plan = _plan(model)
    predicted = _predicted(plan)
    text = settings.workload or (predicted or {}).get("workload") or DEFAULT_WORKLOAD
    workload = Workload.parse(text)
    against = settings.against or _dense(plan)
    names = ENGINES if settings.engine == "all" else (settings.engine,)
    own = str(load_config(model).get("dtype") or load_config(model).get("torch_dtype"))
    settings = replace(settings, against=against, dtype=settings.dtype or own)
    if settings.dtype not in TIES:
        raise UsageError(f"dtype {settings.dtype!r} is none of {', '.join(TIES)}")
    if settings.target is not None and against is not None:
        predicted = foretell(model, against, settings.target, workload)
    asked = _asked(model, settings, progress)
    checks = tuple(_check(name, model, settings, workload, asked, progress) for name in names)
    folders = {"compressed": model} | ({"dense": against} if against else {})
    return ServeCheck(
        model=str(model),
        against=None if against is None else str(against),
        workload=str(workload),
        weight_bytes={name: _weight_bytes(folder) for name, folder in folders.items()},
        engines=checks,
        predicted=predicted,
    )


def _refuse_quantised(model: Path) -> None:
    """A quantised model is another function: float32 is no reference for its tokens.

    Raises:
        SnapfitError: it is one.

    """
    found = load_config(model).get("quantization_config") or {}
    method = found.get("quant_method") if isinstance(found, dict) else None
    if method not in {None, METHOD}:
        raise SnapfitError(
            f"{model} is quantised ({method}), so its tokens differ from float32's; check the "
            "checkpoint that it was made of"
        )


def load_config(folder: Path) -> dict[str, Any]:
    """The content of config.json.

    Raises:
        SnapfitError: there is none.

    """
    file = folder / "config.json"
    if not file.is_file():
        raise SnapfitError(f"{folder} has no config.json, so it is no model folder")
    config = read_json(file)
    return config if isinstance(config, dict) else {}


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """What every engine is asked, and what judges its answers."""

    prompts: list[Ids]
    logits: Callable[[Tensor], Tensor]


def _asked(model: Path, settings: Settings, progress: Progress) -> _Asked:
    trust = settings.trust_remote_code
    progress.stage("reference", 1)
    tokenizer = load_tokenizer(model, trust_remote_code=trust)
    loaded = load(model, dtype=torch.float32, trust_remote_code=trust)
    progress.advance()
    return _Asked(prompts=encode_prompts(tokenizer), logits=TransformersEngine(loaded).logits)


def _check(
    name: str,
    model: Path,
    settings: Settings,
    workload: Workload,
    asked: _Asked,
    progress: Progress,
) -> EngineCheck:
    with _opened(name, model, settings, workload, progress) as engine:
        found = engine.answers(asked.prompts, TOKENS)
        parity = compare(asked.logits, asked.prompts, found, TIES[str(settings.dtype)])
        times: tuple[PhaseTime, ...] = ()
        dense_resident = None
        if settings.pairs and settings.against is not None:
            with _opened(name, settings.against, settings, workload, progress) as dense:
                dense_resident = dense.resident
                times = _timed(name, workload, engine, dense, settings, progress)
        elif settings.pairs:
            times = _timed(name, workload, engine, None, settings, progress)
        return EngineCheck(
            engine=engine.name,
            dtype=str(settings.dtype),
            parity=parity,
            times=times,
            resident=engine.resident,
            dense_resident=dense_resident,
        )


def _timed(
    name: str,
    workload: Workload,
    engine: Engine,
    dense: Engine | None,
    settings: Settings,
    progress: Progress,
) -> tuple[PhaseTime, ...]:
    runs = (settings.pairs + 1) * len(workload.phases) * (1 if dense is None else 2)
    progress.stage(f"time {name}", runs)
    return measure(workload, engine, dense, pairs=settings.pairs, told=progress.advance)


@contextlib.contextmanager
def _opened(
    name: str, folder: Path, settings: Settings, workload: Workload, progress: Progress
) -> Iterator[Engine]:
    progress.stage(f"start {name}", 1)
    longest = max(phase.tokens for phase in workload.phases) + STEPS + 1
    engine: Engine
    if name == "vllm":
        engine = VllmEngine(
            folder,
            dtype=str(settings.dtype),
            max_model_len=max(longest, 4 * TOKENS),
            max_tokens=max(phase.batch * phase.tokens for phase in workload.phases),
            compiled=settings.compiled,
            trust_remote_code=settings.trust_remote_code,
            tensor_parallel=settings.tensor_parallel,
        )
    else:
        engine = TransformersEngine(
            load(
                folder,
                dtype=getattr(torch, str(settings.dtype)),
                device=device(),
                trust_remote_code=settings.trust_remote_code,
            )
        )
    progress.advance()
    try:
        yield engine
    finally:
        engine.close()


def _plan(model: Path) -> Plan | None:
    return Plan.from_json(read_json(model / PLAN)) if (model / PLAN).is_file() else None


def _predicted(plan: Plan | None) -> dict[str, Any] | None:
    """What the plan says of the time of a workload; None where it says nothing."""
    known = {} if plan is None else plan.predicted
    if "latency.share" not in known:
        return None
    return {key: known.get(f"latency.{key}") for key in ("share", "spread", "workload", "device")}


def _dense(plan: Plan | None) -> Path | None:
    """The plan's model, where it is a folder that is there."""
    if plan is None:
        return None
    folder = Path(plan.model).expanduser()
    return folder if (folder / "config.json").is_file() else None


def _weight_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))
