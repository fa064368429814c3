"""Does an engine serve a checkpoint as it was saved, and how fast beside the dense model?"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from snapfit.checkpoint.load import load, load_tokenizer
from snapfit.core.errors import UsageError
from snapfit.core.names import unknown_name
from snapfit.core.progress import Progress, Silent
from snapfit.core.workload import Workload
from snapfit.evals.serving import TIES, TOKENS, Ids, compare, encode_prompts
from snapfit.evals.serving_engines import Engine, TransformersEngine, VllmEngine
from snapfit.evals.serving_report import EngineCheck, ServeCheck
from snapfit.evals.serving_time import PAIRS, STEPS, PhaseTime, measure
from snapfit.pipeline.foretell import foretell
from snapfit.pipeline.respondent import device
from snapfit.pipeline.serve_request import (
    dense_of,
    dtype_of,
    folder_of,
    plan_of,
    predicted_by,
    refuse_quantised,
    workload_for,
)

ENGINES = ("vllm", "transformers")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What to check, and how.

    Attributes:
        engine: 'vllm', 'transformers' or 'all'.
        against: the dense model, named like the other; None for the plan's, if it is there.
        dtype: of the weights in the engine; None for the checkpoint's own.
        workload: what to time; None for the workload that the plan predicts, or a short one.
        target: predict the times of both models there; None for what the plan predicts.
        pairs: timed runs of each model; 0 times nothing.
        compiled: let vLLM compile the model.
        tensor_parallel: workers of vLLM.
        trust_remote_code: allow code in the folders to run.

    """

    engine: str = "vllm"
    against: str | Path | None = None
    dtype: str | None = None
    workload: str | None = None
    target: str | None = None
    pairs: int = PAIRS
    compiled: bool = False
    tensor_parallel: int = 1
    trust_remote_code: bool = False


def serve_check(
    model: str | Path, settings: Settings | None = None, progress: Progress | None = None
) -> ServeCheck:
    """Load a checkpoint in engines, compare its greedy tokens, and time it beside the dense model.

    Args:
        model: folder of a checkpoint, compressed or not, a hub name, or 'embedded'.
        settings: see `Settings`.
        progress: told what goes on.

    Raises:
        UsageError: no such engine, workload, dtype or model, or a target without a dense model.
        SnapfitError: an engine is not installed, or cannot serve the checkpoint.

    """
    settings, progress = settings or Settings(), progress or Silent()
    if settings.engine not in {*ENGINES, "all"}:
        raise unknown_name("engine", settings.engine, (*ENGINES, "all"))
    trust = settings.trust_remote_code
    folder = folder_of(model, trust_remote_code=trust)
    refuse_quantised(folder)
    plan = plan_of(folder)
    predicted = predicted_by(plan)
    workload = workload_for(folder, settings.workload, predicted)
    against = settings.against or dense_of(plan)
    dense = None if against is None else folder_of(against, trust_remote_code=trust)
    names = ENGINES if settings.engine == "all" else (settings.engine,)
    settings = replace(settings, against=dense, dtype=dtype_of(folder, settings.dtype))
    if settings.target is not None:
        if dense is None:
            raise UsageError("--target predicts a share of the dense model's time: give --against")
        predicted = foretell(folder, dense, settings.target, workload)
    asked = _asked(folder, settings, progress)
    checks = tuple(_check(name, folder, settings, workload, asked, progress) for name in names)
    folders = {"compressed": folder} | ({"dense": dense} if dense else {})
    return ServeCheck(
        model=str(model),
        against=None if against is None else str(against),
        workload=str(workload),
        weight_bytes={name: _weight_bytes(place) for name, place in folders.items()},
        engines=checks,
        predicted=predicted,
    )


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
    with _opened(name, model, settings, workload, asked, progress) as engine:
        found = engine.answers(asked.prompts, TOKENS)
        parity = compare(asked.logits, asked.prompts, found, TIES[str(settings.dtype)])
        times: tuple[PhaseTime, ...] = ()
        dense_resident = None
        if settings.pairs and settings.against is not None:
            base = Path(settings.against)
            with _opened(name, base, settings, workload, asked, progress) as dense:
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
    name: str,
    folder: Path,
    settings: Settings,
    workload: Workload,
    asked: _Asked,
    progress: Progress,
) -> Iterator[Engine]:
    progress.stage(f"start {name}", 1)
    phases = workload.phases if settings.pairs else ()
    lengths = [len(prompt) + TOKENS for prompt in asked.prompts]
    lengths += [phase.tokens + STEPS + 1 for phase in phases]
    engine: Engine
    if name == "vllm":
        engine = VllmEngine(
            folder,
            dtype=str(settings.dtype),
            max_model_len=max(lengths),
            max_tokens=max((phase.batch * phase.tokens for phase in phases), default=0),
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


def _weight_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))
