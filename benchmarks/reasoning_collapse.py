"""Layers removed: facts stay and long reasoning collapses. Low rank and width beside it.

    python benchmarks/reasoning_collapse.py

The finding of arXiv 2510.22228, on the embedded model (8 layers, 1.6 million parameters), which
knows 384 facts and reasons in chains of up to 24 steps. `shortgpt`, `reverse-order` and `laco`
remove 0 to 3 layers; `minitron` (width, sizes in 16) and `kfac` (low rank, ranks in 16 and in 8)
remove as many parameters. Asked of all: facts, chains of 1 to 3 steps, chains of 8 to 24.

The finding holds if at some removal facts keep at least 90% of the base model's accuracy while
long chains keep at most 50%. Whether it does is reported either way, with the first wrong step,
what was wrong with it, and the drift from the base along the base's own traces.

It takes about 5 minutes on two idle cores, 9 of CPU time, and is meant to end under 20. Everything
is kept in --work, so a rerun only does what is missing.

Budgets were 16, 32, 64, 128 with 34 problems in a first run. There no compressed model could be
said to keep reasoning: the base itself is at chance at 16 and 32, and the rule of three was wide.
Budgets and problems were changed after that was seen; accuracy at 128 tokens is not affected.
"""

from __future__ import annotations

import argparse
import os
import platform
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from collapse_anatomy import dissect, drift_of, solved_traces
from collapse_report import draw, report
from snapfit.checkpoint.load import load
from snapfit.core.files import read_json, write_json
from snapfit.core.options import Options
from snapfit.evals.records import read_records
from snapfit.evals.tasks.load import load_task
from snapfit.evals.thinking import Sampling
from snapfit.models.source import EMBEDDED, open_model
from snapfit.pipeline import compress
from snapfit.pipeline.respondent import LocalModel
from snapfit.pipeline.scaling import ScalingOptions, scaling

RESULTS = Path(__file__).parent / "results"
LAYERS = 8
REMOVED = (1, 2, 3)
DEPTH = ("shortgpt", "reverse-order", "laco")
BUDGETS = (32, 64, 96, 128)
TASKS = ("facts", "short", "long")
KEPT, LOST = 0.9, 0.5


@dataclass(frozen=True, kw_only=True)
class Case:
    """One compressed model: `removed` layers, or as many parameters."""

    method: str
    removed: int
    align: int | None = None
    settings: Mapping[str, str] = field(default_factory=dict)

    @property
    def series(self) -> str:
        """What it is compared within."""
        return f"{self.method}, align {self.align}" if self.align else self.method

    @property
    def name(self) -> str:
        """Of its folder."""
        align = f"-align{self.align}" if self.align else ""
        return f"{self.method}{align}-{self.removed}"

    def options(self, args: argparse.Namespace) -> Options:
        """How it is made."""
        size: dict[str, Any] = {"layers": self.removed}
        if self.align:
            size = {"ratio": self.removed / LAYERS, "align": self.align}
        return Options(
            method=self.method,
            settings=self.settings,
            calib_tokens=args.calib_tokens,
            context=256,
            work=args.work / "work",
            **size,
        )


class Stopwatch:
    """Wall and CPU seconds of every stage, added up over all starts of a run that was cut off."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.spent: dict[str, dict[str, float]] = read_json(path) if path.exists() else {}
        self.mark = (time.perf_counter(), time.process_time())

    def __call__(self, stage: str) -> None:
        """The time since the last call belonged to `stage`."""
        now = (time.perf_counter(), time.process_time())
        had = self.spent.get(stage, {"wall": 0.0, "cpu": 0.0})
        self.spent[stage] = {
            kind: round(had[kind] + now[n] - self.mark[n], 1)
            for n, kind in enumerate(("wall", "cpu"))
        }
        self.mark = now
        write_json(self.path, self.spent)


def cases() -> list[Case]:
    """All of them. LaCo merges C layers into one: one merge of C = n + 1 removes n."""
    found = []
    for removed in REMOVED:
        for method in DEPTH:
            settings = {"merge": str(removed + 1)} if method == "laco" else {}
            found.append(Case(method=method, removed=removed, settings=settings))
        found.append(Case(method="minitron", removed=removed, align=16))
        found += [Case(method="kfac", removed=removed, align=align) for align in (16, 8)]
    return found


def make(case: Case, args: argparse.Namespace) -> dict[str, Any]:
    """The report of a compressed model, made on first use."""
    folder = args.work / "models" / case.name
    if not (folder / "report.json").exists():
        compress(EMBEDDED, folder, case.options(args))
    found: dict[str, Any] = read_json(folder / "report.json")
    return found


def asked(args: argparse.Namespace) -> ScalingOptions:
    """What every model is asked."""
    return ScalingOptions(
        tasks=tuple(f"embedded:{name}" for name in TASKS),
        sampling=Sampling(budgets=BUDGETS, samples=args.samples, answer_tokens=4),
        limit=args.limit,
        batch=32,
    )


def run_folder(args: argparse.Namespace) -> Path:
    """Where everything generated is kept: another number of problems is another run."""
    folder: Path = args.work / f"run-{args.limit}x{args.samples}"
    return folder


def explain(name: str, args: argparse.Namespace, traces: Any, base: Any) -> dict[str, Any]:
    """Why one model's chains break."""
    place = open_model(EMBEDDED).path if name == EMBEDDED else args.work / "models" / name
    dialogue = LocalModel(path=place).dialogue
    found: dict[str, Any] = {}
    for task in ("short", "long"):
        problems = load_task(f"embedded:{task}", limit=args.limit, seed=7)
        records = list(read_records(run_folder(args) / name / f"embedded-{task}.jsonl"))
        found[task] = dissect(problems, dialogue, records)
    if name != EMBEDDED:
        found["drift"] = drift_of(base, load(place), traces)
    return found


def original_traces(args: argparse.Namespace) -> Any:
    """Traces of the base model along which the others are followed."""
    dialogue = LocalModel(path=open_model(EMBEDDED).path).dialogue
    task = load_task("embedded:long", limit=args.limit, seed=7)
    records = list(read_records(run_folder(args) / EMBEDDED / "embedded-long.jsonl"))
    return solved_traces(task, dialogue, records)


def row_of(entry: Mapping[str, Any]) -> dict[str, Any]:
    """What is kept of one model's summary."""
    keep = ("accuracy", "pass_at_k", "maj_at_k", "k", "thinking_tokens", "truncated", "no_answer")
    tasks = {
        name.removeprefix("embedded-"): {key: found[key] for key in keep if key in found}
        for name, found in entry["tasks"].items()
    }
    verdict = entry.get("verdict")
    row: dict[str, Any] = {"tasks": tasks}
    if verdict:
        row["verdict"] = verdict["label"]
        row["retained"] = {
            family: found["retained"] for family, found in verdict["families"].items()
        }
    return row


def holds(rows: Mapping[str, Any]) -> list[str]:
    """The models that lost layers, kept facts and lost long chains."""
    base = rows[EMBEDDED]["tasks"]

    def kept(row: Mapping[str, Any], task: str) -> float:
        now, then = (tasks[task]["accuracy"][-1]["value"] for tasks in (row["tasks"], base))
        return float(now / then)

    return [
        name
        for name, row in rows.items()
        if row.get("method") in DEPTH and kept(row, "facts") >= KEPT and kept(row, "long") <= LOST
    ]


def main() -> None:
    """Compress, ask, explain, draw."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    cache = Path.home() / ".cache/snapfit-benchmarks/collapse"
    parser.add_argument("--work", type=Path, default=cache)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--calib-tokens", type=int, default=8192)
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--limit", type=int, default=68, help="problems a task")
    args = parser.parse_args()
    lap = Stopwatch(args.work / "seconds.json")
    reports = [(case, make(case, args)) for case in cases()]
    lap("compress")
    models = [str(args.work / "models" / case.name) for case in cases()]
    summary = scaling(models, run_folder(args), asked(args), against=EMBEDDED)
    lap("ask")
    rows = {name: row_of(entry) for name, entry in summary["models"].items()}
    for case, made in reports:
        rows[case.name] |= {
            "method": case.method,
            "series": case.series,
            "removed": case.removed,
            "params": made["params"]["compressed"],
        }
    rows[EMBEDDED] |= {"removed": 0, "params": reports[0][1]["params"]["dense"]}
    traces, base = original_traces(args), load(open_model(EMBEDDED).path)
    for name, row in rows.items():
        row.update(explain(name, args, traces, base))
    lap("explain")
    result = {
        "command": "python benchmarks/reasoning_collapse.py",
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs, load average "
        f"{os.getloadavg()[0]:.1f}, OMP_NUM_THREADS="
        f"{os.environ.get('OMP_NUM_THREADS', 'unset')}",
        "seconds": lap.spent,
        "budgets": list(BUDGETS),
        "samples": args.samples,
        "problems": {name: task["problems"] for name, task in summary["settings"]["tasks"].items()},
        "holds": holds(rows),
        "models": rows,
    }
    write_json(args.out / "reasoning_collapse.json", result)
    draw(args.out, result)
    (args.out / "reasoning_collapse.md").write_text(report(result), encoding="utf-8")
    print(report(result))


if __name__ == "__main__":
    main()
