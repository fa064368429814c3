"""Generated tokens a second of transformers and vLLM, and what a run's bookkeeping costs.

    OMP_NUM_THREADS=1 VLLM_CPU_KVCACHE_SPACE=1 HF_HUB_OFFLINE=1 python benchmarks/throughput.py

Claims: prompts, JSON lines and scoring cost under 5% of a run, even with the embedded model, whose
tokens are the cheapest there are. Beside it: tokens a second of both backends on the embedded
model (float32) and on SmolLM2-135M (bfloat16), for 1 to 64 requests at once, the two backends in
turn, so that what else the machine does hits both. Medians of --repeats, with the range.

Where vLLM is not installed only transformers is measured. SmolLM2 is fetched on first use, which
needs gguf; GSM8K's answers need math-verify.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from smollm2 import fetch_model
from snapfit.core.files import write_json
from snapfit.core.progress import Silent
from snapfit.evals.asking import ask
from snapfit.evals.choices import Chooser
from snapfit.evals.dialogue import Dialogue
from snapfit.evals.generators.base import Generation, Generator, Request
from snapfit.evals.tasks.base import Task
from snapfit.evals.tasks.load import load_task
from snapfit.evals.thinking import Sampling
from snapfit.models.source import EMBEDDED, open_model
from snapfit.pipeline.respondent import HF, VLLM, LocalModel

CACHE = Path.home() / ".cache/snapfit-benchmarks"
RESULTS = Path(__file__).parent / "results"
BATCHES = (1, 4, 16, 64)
TOKENS = {"embedded": 128, "smollm2": 64}
LIMIT = 0.05


@dataclass
class Watched:
    """A model whose generator is timed; everything else that a run does is bookkeeping."""

    inner: LocalModel
    seconds: float = 0.0
    tokens: int = 0
    backend: str = field(init=False)

    def __post_init__(self) -> None:
        self.backend = self.inner.generator.backend

    @property
    def dialogue(self) -> Dialogue:
        """Of the model."""
        return self.inner.dialogue

    @property
    def generator(self) -> Generator:
        """This object, which hands on to the model's."""
        return self

    @property
    def chooser(self) -> Chooser:
        """Of the model."""
        return self.inner.chooser

    @property
    def chunk(self) -> int:
        """Of the model's generator."""
        return self.inner.generator.chunk

    @property
    def context(self) -> int | None:
        """Of the model's generator."""
        return self.inner.generator.context

    def generate(self, requests: Sequence[Request]) -> Iterator[tuple[int, Generation]]:
        """Generate, on the clock."""
        found = self.inner.generator.generate(requests)
        while True:
            began = time.perf_counter()
            one = next(found, None)
            self.seconds += time.perf_counter() - began
            if one is None:
                return
            self.tokens += len(one[1].ids)
            yield one


def speed(model: LocalModel, task: Task, batch: int, tokens: int, seed: int) -> float:
    """Generated tokens a second of `batch` requests."""
    requests = [
        Request(
            prompt=model.dialogue.open(task.problems[row % len(task.problems)].question),
            max_tokens=tokens,
            temperature=1.0,
            seed=seed + row,
        )
        for row in range(batch)
    ]
    began = time.perf_counter()
    found = list(model.generator.generate(requests))
    return sum(len(one.ids) for _, one in found) / (time.perf_counter() - began)


def bookkeeping(model: LocalModel, task: Task, sampling: Sampling) -> dict[str, Any]:
    """Time of a whole run of one task, and of the generation in it."""
    watched = Watched(inner=model)
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        path = Path(folder) / "records.jsonl"
        ask(task, watched, path, sampling=sampling, progress=Silent(), label="")
        whole = time.perf_counter() - began
    return {
        "backend": watched.backend,
        "task": task.name,
        "tokens": watched.tokens,
        "seconds": whole,
        "generating": watched.seconds,
        "share": 1 - watched.seconds / whole,
    }


def measure(name: str, path: Path, task: Task, args: argparse.Namespace) -> dict[str, Any]:
    """Both figures of one model."""
    import torch

    dtype = torch.float32 if name == "embedded" else torch.bfloat16
    backends = [HF, *([VLLM] if importlib.util.find_spec("vllm") else [])]
    models = {
        b: LocalModel(path=path, backend=b, batch=max(BATCHES), dtype=dtype) for b in backends
    }
    rates: dict[str, dict[int, list[float]]] = {b: {n: [] for n in BATCHES} for b in backends}
    for backend, model in models.items():
        speed(model, task, 2, 8, 0)  # loads the model
        print(f"{name}: {backend} is ready", flush=True)
    for repeat in range(args.repeats):
        for batch in BATCHES:
            for backend, model in models.items():
                rate = speed(model, task, batch, TOKENS[name], 1000 * repeat)
                rates[backend][batch].append(rate)
    sampling = Sampling(budgets=(32, TOKENS[name]), samples=2, answer_tokens=16)
    costs = [bookkeeping(model, task, sampling) for model in models.values()]
    return {"tokens_per_second": rates, "bookkeeping": costs, "dtype": str(dtype)}


def report(result: Mapping[str, Any]) -> str:
    """The results as Markdown."""
    lines = [
        (
            f"Generated tokens a second: median of {result['repeats']} [range], sampled at "
            f"temperature 1. {result['machine']}."
        ),
        "",
        "| model | requests at once | transformers | vLLM | vLLM / transformers |",
        "|---|---|---|---|---|",
    ]
    for name, found in result["models"].items():
        rates = found["tokens_per_second"]
        for batch in BATCHES:
            mine, theirs = rates[HF][batch], rates.get(VLLM, {}).get(batch)
            lines.append(
                f"| {name} | {batch} | {_shown(mine)} | {_shown(theirs) if theirs else '-'} "
                f"| {_ratio(theirs, mine) if theirs else '-'} |"
            )
    lines += [
        "",
        (
            "Bookkeeping: prompts, decoding, JSON lines, scoring. Share of a run's wall time that "
            "is not spent in the backend."
        ),
        "",
        "| model | task | backend | tokens | seconds | bookkeeping |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {name} | {cost['task']} | {cost['backend']} | {cost['tokens']} "
        f"| {cost['seconds']:.1f} | {cost['share']:.2%} |"
        for name, found in result["models"].items()
        for cost in found["bookkeeping"]
    ]
    return "\n".join(lines) + "\n"


def _shown(rates: Sequence[float]) -> str:
    return f"{statistics.median(rates):,.0f} [{min(rates):,.0f}, {max(rates):,.0f}]"


def _ratio(top: Sequence[float], bottom: Sequence[float]) -> str:
    ratios = [a / b for a, b in zip(top, bottom, strict=True)]
    return f"{statistics.median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}]"


def main() -> None:
    """Measure, write the tables, check the claim."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--smollm2", type=Path, help="folder of SmolLM2; fetched if not given")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    gsm8k = load_task(str(args.data / "tasks/gsm8k_test.jsonl"), limit=32)
    cases = {
        "embedded": (open_model(EMBEDDED).path, load_task("embedded:long", limit=68)),
        "smollm2": (args.smollm2 or fetch_model(CACHE), gsm8k),
    }
    result = {
        "command": "python benchmarks/throughput.py",
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs, load average "
        f"{os.getloadavg()[0]:.1f}, OMP_NUM_THREADS="
        f"{os.environ.get('OMP_NUM_THREADS', 'unset')}",
        "repeats": args.repeats,
        "models": {name: measure(name, *case, args) for name, case in cases.items()},
    }
    write_json(args.out / "throughput.json", result)
    (args.out / "throughput.md").write_text(report(result), encoding="utf-8")
    print(report(result))
    costs = [cost for found in result["models"].values() for cost in found["bookkeeping"]]
    dear = [cost for cost in costs if cost["share"] > LIMIT]
    assert not dear, f"bookkeeping costs more than {LIMIT:.0%}: {dear}"


if __name__ == "__main__":
    main()
