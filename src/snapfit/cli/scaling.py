"""`snapfit scaling` and `snapfit traces`: does it still reason, and if not, why."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from snapfit.cli.console import WIDTH, answer_json, say, show, working
from snapfit.cli.request import AsJson, TrustRemoteCode
from snapfit.cli.root import app
from snapfit.core.errors import UsageError

PAGE = "scaling.html"
_ASK, _MODEL = "What is asked", "Who answers"

Folder = Annotated[
    Path | None,
    typer.Option("-o", "--output", metavar="DIR", help="Folder of the run; goes on with it."),
]


@app.command()
def scaling(
    models: Annotated[
        list[str] | None,
        typer.Argument(metavar="MODEL...", help="Folders, hub names, or 'embedded'."),
    ] = None,
    output: Folder = None,
    against: Annotated[
        str | None,
        typer.Option(metavar="BASE", help="The original that the models are judged against."),
    ] = None,
    tasks: Annotated[
        str | None,
        typer.Option(
            metavar="TASK,...",
            help="embedded:facts, embedded:short, embedded:long; FILE.jsonl; "
            "reasoning-gym:NAME[:DIFFICULTY]; or a task of lm-evaluation-harness. FAMILY= before "
            "one (knowledge, shallow, long, other) says what it measures.",
            rich_help_panel=_ASK,
        ),
    ] = None,
    budgets: Annotated[
        str,
        typer.Option(metavar="N,...", help="Thinking tokens.", rich_help_panel=_ASK),
    ] = "512,1024,2048,4096,8192",
    samples: Annotated[
        int, typer.Option(help="Samples a problem, for pass@k and maj@k.", rich_help_panel=_ASK)
    ] = 16,
    seeds: Annotated[
        str, typer.Option(metavar="N,...", help="Of the samples, in turn.", rich_help_panel=_ASK)
    ] = "7,11,42",
    temperature: Annotated[float, typer.Option(help="0 is greedy.", rich_help_panel=_ASK)] = 1.0,
    extend: Annotated[
        int,
        typer.Option(help="How often an end of thinking becomes 'Wait'.", rich_help_panel=_ASK),
    ] = 0,
    answer_tokens: Annotated[
        int, typer.Option(help="Most tokens of an answer.", rich_help_panel=_ASK)
    ] = 256,
    limit: Annotated[
        int | None, typer.Option(help="Most problems a task.", rich_help_panel=_ASK)
    ] = None,
    problem_key: Annotated[
        str | None, typer.Option(help="Key of the problem in a file.", rich_help_panel=_ASK)
    ] = None,
    answer_key: Annotated[
        str | None, typer.Option(help="Key of its answer.", rich_help_panel=_ASK)
    ] = None,
    backend: Annotated[
        str,
        typer.Option(
            metavar="hf|vllm|openai:URL",
            help="What runs the models; $OPENAI_API_KEY is sent to a server.",
            rich_help_panel=_MODEL,
        ),
    ] = "hf",
    batch: Annotated[int, typer.Option(help="Rows at once, with hf.", rich_help_panel=_MODEL)] = 16,
    dtype: Annotated[
        str,
        typer.Option(metavar="auto|float32|bfloat16|float16", rich_help_panel=_MODEL),
    ] = "auto",
    think_start: Annotated[
        str | None,
        typer.Option(help="Opens thinking; default as the model has it.", rich_help_panel=_MODEL),
    ] = None,
    think_end: Annotated[
        str | None, typer.Option(help="Closes thinking.", rich_help_panel=_MODEL)
    ] = None,
    rescore: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Only compute a run's summary again; asks nothing."),
    ] = None,
    trust_remote_code: TrustRemoteCode = False,
    as_json: AsJson = False,
) -> None:
    """Measure accuracy against thinking budgets and samples, and judge against the original."""
    from snapfit.evals.thinking import Sampling
    from snapfit.pipeline.scaling import ScalingOptions
    from snapfit.pipeline.scaling import rescore as rescored
    from snapfit.pipeline.scaling import scaling as run
    from snapfit.viz.pages import write_scaling_page

    if rescore is not None:
        if models or output or against or tasks:
            raise UsageError("--rescore takes a folder and nothing else")
        folder, summary = rescore, rescored(rescore)
    else:
        if not models and not against:
            raise UsageError("name at least one model, or a finished run with --rescore DIR")
        if output is None or tasks is None:
            raise UsageError("--tasks and -o DIR are needed")
        options = ScalingOptions(
            tasks=tuple(part.strip() for part in tasks.split(",") if part.strip()),
            sampling=Sampling(
                budgets=_numbers("budgets", budgets),
                samples=samples,
                seeds=_numbers("seeds", seeds),
                temperature=temperature,
                extend=extend,
                answer_tokens=answer_tokens,
            ),
            limit=limit,
            problem_key=problem_key,
            answer_key=answer_key,
            backend=backend,
            batch=batch,
            dtype=dtype,
            start=think_start,
            end=think_end,
            trust_remote_code=trust_remote_code,
        )
        folder = output
        with working() as bars:
            summary = run(models or [], output, options, against=against, progress=bars)
    write_scaling_page(folder / PAGE, summary)
    if as_json:
        answer_json({**summary, "output": str(folder)})
        return
    show(scaling_table(summary))
    for model, entry in summary["models"].items():
        if "verdict" in entry:
            show(verdict_table(model, entry["verdict"]))
    say(f"report: {folder / PAGE}")


@app.command()
def traces(
    path: Annotated[
        Path, typer.Argument(metavar="DIR|FILE", help="A run of scaling, or a JSONL of traces.")
    ],
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a page with pictures.")
    ] = None,
    judge: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Let an OpenAI-compatible chat model count habits too."),
    ] = None,
    judge_model: Annotated[str, typer.Option(help="The judge's name there.")] = "judge",
    trust_remote_code: TrustRemoteCode = False,
    as_json: AsJson = False,
) -> None:
    """Say how traces go wrong: repetition, habits, errors by step, drift from the original."""
    from snapfit.pipeline.traces import Judge, analyse

    asked = None
    if judge is not None:
        asked = Judge(url=judge, model=judge_model, key=os.environ.get("OPENAI_API_KEY"))
    with working() as bars:
        found = analyse(
            path, judge=asked, page=html, trust_remote_code=trust_remote_code, progress=bars
        )
    if as_json:
        answer_json(found)
        return
    show(_habits_table(found))
    if found["anatomies"]:
        show(_anatomy_table(found))
    if html is not None:
        say(f"report: {html}")


def scaling_table(summary: Mapping[str, Any]) -> Table:
    """Accuracy, a row for every task, model and budget, as wide as a small terminal."""
    table = Table(title="accuracy by thinking budget", title_justify="left", width=WIDTH)
    table.add_column("task", overflow="fold")
    table.add_column("model", overflow="fold")
    for heading in ("budget", "accuracy", "95% interval", "cut"):
        table.add_column(heading, justify="right", no_wrap=True)
    for task in summary["settings"]["tasks"]:
        for model, entry in summary["models"].items():
            found = entry["tasks"].get(task)
            if found is None:
                continue
            cut = found.get("truncated", [None] * len(found["budgets"]))
            for row, budget in enumerate(found["budgets"]):
                table.add_row(
                    "" if row else task,
                    "" if row else model,
                    str(budget) if budget else "none",
                    *_interval(found["accuracy"][row]),
                    f"{cut[row]:.0%}" if budget else "",
                    end_section=row == len(found["budgets"]) - 1,
                )
    return table


def verdict_table(model: str, verdict: Mapping[str, Any]) -> Table:
    """What became of a model: a row for every family, with the reason."""
    title = f"{model}: {verdict['label']}"
    table = Table(title=title, title_justify="left", width=WIDTH, show_lines=True)
    table.add_column("family", no_wrap=True)
    table.add_column("verdict, and why")
    for family, found in verdict["families"].items():
        table.add_row(family, found["reason"].removeprefix(f"{family}: "))
    if not verdict["families"]:
        table.add_row("none", *verdict["reasons"])
    return table


def _habits_table(found: Mapping[str, Any]) -> Table:
    table = Table(title="traces, means of each", title_justify="left", width=WIDTH)
    _columns(table, "n", "Self-BLEU", "repeat", "verify", "back", "goals")
    for row in found["rows"]:
        habits = [f"{count:.1f}" for count in row["behaviours"].values()]
        table.add_row(
            row["model"],
            row["task"],
            str(row["traces"]),
            f"{row['self_bleu']:.3f}",
            f"{row['repeated']:.1%}",
            *habits,
        )
    return table


def _anatomy_table(found: Mapping[str, Any]) -> Table:
    title = "chains: how many are right, and what went wrong first in the others"
    table = Table(title=title, title_justify="left", width=WIDTH)
    _columns(table, "right", "expected", "a step", "ran on", "fixed")
    for row in found["anatomies"]:
        table.add_row(
            row["model"],
            row["task"],
            f"{row['right']} of {row['chains']}",
            f"{row['expected']:.1f}",
            f"{row['rate']:.2%}",
            str(row["overrun"]),
            f"{row['corrected']} of {row['wrong']}",
        )
    table.caption = (
        "expected: right if every step failed at the rate 'a step'; ran on: all steps right, but "
        "it did not stop"
    )
    table.caption_justify = "left"
    return table


def _columns(table: Table, *figures: str) -> None:
    for heading in ("model", "task"):
        table.add_column(heading, overflow="fold")
    for heading in figures:
        table.add_column(heading, justify="right", no_wrap=True)


def _interval(entry: Mapping[str, float | None]) -> tuple[str, str]:
    value, low, high = entry["value"], entry["low"], entry["high"]
    shown = "" if value is None else f"{value:.1%}"
    if low is None or high is None:
        return shown, "too few"
    return shown, f"{100 * low:.1f} to {100 * high:.1f}"


def _numbers(name: str, text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise UsageError(
            f"--{name} takes whole numbers with commas between, got {text!r}"
        ) from error
