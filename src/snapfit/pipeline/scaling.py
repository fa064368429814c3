"""Ask models the same problems at several thinking budgets, and judge them against one of them."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from snapfit.core.errors import UsageError
from snapfit.core.files import digest_files, read_json, write_json
from snapfit.core.progress import Progress, Silent
from snapfit.evals.asking import ask
from snapfit.evals.dialogue import AGAIN
from snapfit.evals.remote import check_address
from snapfit.evals.summary import summarise
from snapfit.evals.tasks.base import Task
from snapfit.evals.tasks.load import load_task
from snapfit.evals.thinking import Sampling
from snapfit.models.source import EMBEDDED
from snapfit.pipeline.respondent import HF, SERVER, VLLM, LocalModel, model_folder
from snapfit.pipeline.resuming import begin

SUMMARY = "summary.json"


@dataclass(frozen=True, kw_only=True)
class ScalingOptions:
    """What is asked, and how.

    Attributes:
        tasks: see `load_task`.
        sampling: budgets, samples, seeds, temperature, extensions.
        limit: most problems a task.
        problem_key: key of the problem in a file.
        answer_key: key of its answer.
        backend: 'hf', 'vllm' or 'openai:URL'.
        batch: rows at once, for 'hf'.
        dtype: 'auto', 'float32', 'bfloat16' or 'float16'.
        start: delimiter that opens thinking; None to find it.
        end: delimiter that closes it.
        trust_remote_code: allow the models' own Python code to run.

    Raises:
        UsageError: a value is out of range.

    """

    tasks: tuple[str, ...]
    sampling: Sampling
    limit: int | None = None
    problem_key: str | None = None
    answer_key: str | None = None
    backend: str = HF
    batch: int = 16
    dtype: str = "auto"
    start: str | None = None
    end: str | None = None
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        budgets, sampling = self.sampling.budgets, self.sampling
        if not budgets or list(budgets) != sorted(set(budgets)) or budgets[0] < 1:
            raise UsageError(f"budgets must be increasing numbers of tokens, got {list(budgets)}")
        if not self.tasks:
            raise UsageError("no task was given; see snapfit scaling --help for what there is")
        if sampling.samples < 1 or not sampling.seeds:
            raise UsageError("at least one sample and one seed are needed")
        if len(set(sampling.seeds)) < len(sampling.seeds):
            raise UsageError(f"equal seeds draw equal samples, got {list(sampling.seeds)}")
        if not 0 <= sampling.temperature < math.inf:
            raise UsageError(f"the temperature is 0 or more, got {sampling.temperature}")
        if sampling.temperature == 0 and sampling.samples > 1:
            raise UsageError(
                f"at temperature 0 all {sampling.samples} samples are one; give --samples 1"
            )
        if sampling.extend < 0 or sampling.answer_tokens < 1 or self.batch < 1:
            raise UsageError("extend is 0 or more; answer tokens and batch are 1 or more")
        if self.backend not in {HF, VLLM} and not self.backend.startswith(SERVER):
            raise UsageError(f"unknown backend {self.backend!r}; it is hf, vllm or openai:URL")
        if self.backend.startswith(SERVER):
            check_address(self.backend.removeprefix(SERVER))
        if self.dtype not in {"auto", "float32", "bfloat16", "float16"}:
            raise UsageError(f"unknown dtype {self.dtype!r}")


def scaling(
    models: Sequence[str],
    output: Path,
    options: ScalingOptions,
    *,
    against: str | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Ask every model every task, and write records and a summary into `output`.

    What the folder holds already is not generated again, so an interrupted run goes on.

    Args:
        models: folders, hub names, or 'embedded'.
        output: folder of the run.
        options: what is asked, and how.
        against: the model that the others are judged against; asked first.
        progress: told what goes on.

    Returns:
        The summary; see `snapfit.evals.summary.summarise`.

    Raises:
        SnapfitError: a model or task cannot be had, a backend failed, or the folder holds a run
            of something else.

    """
    progress = progress or Silent()
    names = name_models([*([against] if against else []), *models])
    paths = {
        model: model_folder(model, trust_remote_code=options.trust_remote_code) for model in names
    }
    tasks = [
        load_task(
            spec,
            limit=options.limit,
            seed=options.sampling.seeds[0],
            problem_key=options.problem_key,
            answer_key=options.answer_key,
        )
        for spec in options.tasks
    ]
    _check_names(options.tasks, tasks)
    respondents = {model: _respondent(model, paths[model], options) for model in names}
    wanted = _settings(names, against, tasks, respondents, options)
    _check_extension(wanted)
    begin(output, wanted)
    for model, name in names.items():
        respondent = respondents.pop(model)
        for task in tasks:
            path = output / name / f"{task.name}.jsonl"
            ask(
                task,
                respondent,
                path,
                sampling=options.sampling,
                progress=progress,
                label=name,
            )
        del respondent  # one model in memory at a time
    return rescore(output)


def rescore(folder: Path) -> dict[str, Any]:
    """Compute the summary again from the records, and write it.

    Raises:
        SnapfitError: the folder holds no run.

    """
    summary = summarise(folder)
    write_json(folder / SUMMARY, summary)
    return summary


def name_models(models: Sequence[str]) -> dict[str, str]:
    """A folder name for every model, each once, in order; equal names are numbered."""
    names: dict[str, str] = {}
    for model in models:
        if model in names:
            continue
        plain = re.sub(r"[^A-Za-z0-9_.-]", "-", Path(model).name).strip(".-") or "model"
        name, number = plain, 1
        while name in names.values():
            number += 1
            name = f"{plain}-{number}"
        names[model] = name
    return names


def _lasting(model: str) -> str:
    """What names the model from any folder."""
    folder = Path(model)
    return str(folder.resolve()) if model != EMBEDDED and folder.is_dir() else model


def _check_names(specs: Sequence[str], tasks: Sequence[Task]) -> None:
    """Refuse two tasks of one name, whose answers would be kept as one's."""
    taken: dict[str, str] = {}
    for spec, task in zip(specs, tasks, strict=True):
        if task.name in taken:
            raise UsageError(
                f"{taken[task.name]} and {spec} are both named {task.name!r}; rename a file, or "
                "ask one of them in another run"
            )
        taken[task.name] = spec


def _respondent(model: str, path: Path, options: ScalingOptions) -> LocalModel:
    return LocalModel(
        path=path,
        served=None if Path(model).is_dir() else model,
        backend=options.backend,
        batch=options.batch,
        dtype=None if options.dtype == "auto" else getattr(torch, options.dtype),
        start=options.start,
        end=options.end,
        trust_remote_code=options.trust_remote_code,
    )


def _settings(
    names: dict[str, str],
    against: str | None,
    tasks: Sequence[Task],
    respondents: dict[str, LocalModel],
    options: ScalingOptions,
) -> dict[str, Any]:
    sampling = options.sampling
    wanted = {
        "models": list(names.values()),
        "paths": {name: _lasting(model) for model, name in names.items()},
        "against": names[against] if against else None,
        "backend": options.backend,
        "dtype": options.dtype,
        "trust_remote_code": options.trust_remote_code,
        "sampling": asdict(sampling),
        "layers": {names[model]: _layers(found.path) for model, found in respondents.items()},
        "weights": {names[model]: _weights(found.path) for model, found in respondents.items()},
        "delimiters": {
            names[model]: found.dialogue.delimiters.to_json()
            for model, found in respondents.items()
        },
        "tasks": {
            task.name: {
                "family": task.family,
                "kind": task.kind,
                "equivalence": task.equivalence,
                "budgets": sampling.budgets,
                "samples": sampling.samples,
                **task.settings,
                "problems": len(task.problems),
                "digest": _digest(task),
            }
            for task in tasks
        },
    }
    plain: dict[str, Any] = json.loads(json.dumps(wanted))  # as a resumed run reads it
    return plain


def _layers(folder: Path) -> int | None:
    """Decoder layers, where the configuration says how many."""
    config = read_json(folder / "config.json")
    text = config.get("text_config", config)
    count = text.get("num_hidden_layers", text.get("n_layer"))
    return count if isinstance(count, int) else None


def _weights(folder: Path) -> str:
    """Tells apart models at one place: what another one said there is not this one's."""
    return digest_files([folder / "config.json", *sorted(folder.glob("*.safetensors"))])


def _digest(task: Task) -> str:
    """Tells apart problems of one name: a file that was changed asks something else."""
    content = [[p.id, p.question, p.answer, p.choices] for p in task.problems]
    return hashlib.blake2b(json.dumps(content).encode(), digest_size=8).hexdigest()


def _check_extension(wanted: Mapping[str, Any]) -> None:
    """Refuse to make a model think on whose tokenizer has no word for it."""
    silent = [name for name, marks in wanted["delimiters"].items() if not marks["again"]]
    if wanted["sampling"]["extend"] and silent:
        raise UsageError(
            f"the tokenizer of {silent[0]} has no word for {AGAIN!r}; --extend cannot be used"
        )
