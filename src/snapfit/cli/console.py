"""What the command line shows: bars and notes on stderr, one answer on stdout."""

from __future__ import annotations

import contextlib
import json
import sys
import textwrap
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

WIDTH = 80
"""Columns of a table where the output is no terminal."""


class Bars:
    """A `snapfit.core.progress.Progress` that draws bars, or writes lines where it cannot.

    On a terminal every stage is a bar with the time left. Elsewhere (a log file, a pipe) a
    stage is one line when it is over, with the time that it took.
    """

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False, soft_wrap=True)
        self._bars = Progress(
            TextColumn("{task.description:<12}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self._console,
        )
        self._task: TaskID | None = None
        self._name = ""
        self._total = self._done = 0
        self._began = 0.0

    @contextlib.contextmanager
    def drawn(self) -> Iterator[None]:
        """Draw while the block runs."""
        if self._console.is_terminal:
            self._bars.start()
        try:
            yield
        finally:
            self._finish()
            if self._console.is_terminal:  # elsewhere it would leave an empty line
                self._bars.stop()

    def stage(self, name: str, total: int) -> None:
        """A stage of `total` steps begins."""
        self._finish()
        self._name, self._total, self._done, self._began = name, total, 0, time.monotonic()
        if self._console.is_terminal:
            self._task = self._bars.add_task(name, total=total)

    def advance(self, done: int = 1) -> None:
        """`done` more steps are finished."""
        self._done += done
        if self._task is not None:
            self._bars.advance(self._task, done)

    def note(self, text: str) -> None:
        """A note, above the bars."""
        self._console.print(f"note: {_one_line(text)}", markup=False)

    def _finish(self) -> None:
        if self._name and not self._console.is_terminal:
            took = time.monotonic() - self._began
            self._console.print(
                f"{self._name}: {self._done}/{self._total} in {took:.1f} s", markup=False
            )
        self._name, self._task = "", None


@contextlib.contextmanager
def working() -> Iterator[Bars]:
    """Show progress; keep stdout for the answer, whatever libraries print meanwhile."""
    bars = Bars()
    with contextlib.redirect_stdout(sys.stderr), bars.drawn():
        yield bars


def answer_json(value: Mapping[str, Any]) -> None:
    """Print one JSON object."""
    sys.stdout.write(json.dumps(value, indent=2, allow_nan=False) + "\n")


def complain(text: str) -> None:
    """Print one line on stderr."""
    sys.stderr.write(f"error: {_one_line(text)}\n")


def show(table: Table) -> None:
    """Print a table on stdout."""
    _stdout().print(table)


def say(text: str) -> None:
    """Print a line on stdout, unwrapped, so that a path can be copied."""
    sys.stdout.write(text + "\n")


def wrapped(text: str, indent: str = "") -> list[str]:
    """Lines of at most 80 columns; names stay whole."""
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=indent,
        subsequent_indent=f"{indent}  ",
        break_long_words=False,
        break_on_hyphens=False,
    )


def report_table(report: Mapping[str, Any]) -> Table:
    """The main figures of a report: before, after, and how each is known."""
    table = Table(title=_title(report), title_justify="left", min_width=60)
    for heading in ("", "dense", "compressed"):
        table.add_column(heading, justify="right" if heading else "left")
    table.add_column("how")
    params = report["params"]
    table.add_row("parameters", f"{params['dense']:,}", f"{params['compressed']:,}", "counted")
    for name in ("linear", "model"):
        table.add_row(f"removed of {name}", "", f"{report['ratio'][name]:.2%}", "counted")
    for name, share in report["alignment"].items():
        multiple = name.removeprefix("mod")
        table.add_row(f"multiples of {multiple}", "", f"{share:.1%}", "counted")
    if (loss := report.get("loss", {}).get("predicted")) is not None:
        unit = _detail(report, "loss.predicted").get("unit") or "nats"
        table.add_row(f"loss added ({unit})", "", f"{loss:.4f}", "predicted")
    if (times := report.get("latency")) is not None:
        shown = [f"{times[name] / 1000:.3f} ms" for name in ("dense", "compressed")]
        table.add_row("time of the workload", *shown, "predicted")
    if report.get("perplexity"):
        figures = [_with_error(report, "perplexity", name) for name in ("dense", "compressed")]
        n = _detail(report, "perplexity.compressed").get("n")
        how = f"measured, {n:,} tokens" if n else "measured"
        table.add_row("perplexity", *figures, how)
    if (reasoning := report.get("reasoning")) is not None:
        table.add_row("reasoning", "", reasoning["verdict"], "measured")
    return table


def facts_table(facts: Mapping[str, Any], title: str) -> Table:
    """Names and values, nested tables by dotted name."""
    table = Table(title=title, title_justify="left", show_header=False, min_width=60)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in _flat(facts):
        table.add_row(name, value)
    return table


def show_facts(facts: dict[str, Any], title: str, *, as_json: bool) -> None:
    """One answer: a JSON object, or a table."""
    if as_json:
        answer_json(facts)
    else:
        show(facts_table(facts, title))


def names_table(headings: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> Table:
    """A list of named things."""
    table = Table(*headings)
    table.columns[0].no_wrap = True
    for row in rows:
        table.add_row(*row)
    return table


def _flat(facts: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in facts.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        elif isinstance(value, list):
            yield prefix + name, "; ".join(map(str, value)) or "-"
        elif isinstance(value, bool) or not isinstance(value, int | float):
            yield prefix + name, "-" if value is None else str(value)
        else:
            yield prefix + name, f"{value:,}" if isinstance(value, int) else f"{value:.6g}"


def _title(report: Mapping[str, Any]) -> str:
    parts = [str(report[name]) for name in ("method", "objective") if report.get(name)]
    return ", ".join([str(report.get("model", "snapfit")), *parts])


def _detail(report: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    detail: Mapping[str, Any] = report.get("details", {}).get(name, {})
    return detail


def _with_error(report: Mapping[str, Any], table: str, name: str) -> str:
    value = report[table].get(name)
    if value is None:
        return "not finite"
    stderr = _detail(report, f"{table}.{name}").get("stderr")
    return f"{value:.2f}" if stderr is None else f"{value:.2f} ± {stderr:.2f}"


def _stdout() -> Console:
    # Names and texts of strangers are shown as they are: brackets in them are no markup.
    console = Console(highlight=False, markup=False)
    return console if console.is_terminal else Console(highlight=False, markup=False, width=WIDTH)


def _one_line(text: str) -> str:
    return "; ".join(line.strip() for line in text.splitlines() if line.strip())
