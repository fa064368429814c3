"""Answers of `snapfit time`: one shape or a sweep, every number with its source."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from rich.table import Table

from snapfit.core.errors import SnapfitError, UsageError
from snapfit.core.findings import quant_notes
from snapfit.core.good import nearest_good
from snapfit.core.operators import Estimate, Operator
from snapfit.core.plateaus import Staircase
from snapfit.core.progress import Progress
from snapfit.core.target import Target

MOST_SHAPES = 100_000


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One shape as it was asked about.

    Attributes:
        shape: sizes by the letters of the command line.
        operator: the same as an operator.

    """

    shape: Mapping[str, int]
    operator: Operator


def swept(shape: Mapping[str, int], sweep: str | None) -> list[dict[str, int]]:
    """The shape, or one for every value of a size: 'k=4000:4100:1', the step being optional.

    Raises:
        UsageError: it is no such text, the size is none of the shape's, or there are too many.

    """
    if sweep is None:
        return [dict(shape)]
    name, equals, values = sweep.partition("=")
    parts = values.split(":")
    if not equals or len(parts) not in {2, 3} or not all(part.isdecimal() for part in parts):
        raise UsageError(f"--sweep takes SIZE=FROM:TO:STEP such as k=4000:4100:1, got {sweep!r}")
    if name.lower() not in shape:
        raise UsageError(f"--sweep: {name!r} is none of the sizes {', '.join(shape)}")
    first, last, step = (*map(int, parts), 1)[:3]
    if not 1 <= first <= last or step < 1 or (last - first) // step >= MOST_SHAPES:
        raise UsageError(
            f"--sweep {sweep}: needs 1 <= FROM <= TO, a step of 1 or more, and at most "
            f"{MOST_SHAPES} shapes"
        )
    return [dict(shape) | {name.lower(): size} for size in range(first, last + 1, step)]


def answer(kind: str, asked: Sequence[Asked], target: Target, progress: Progress) -> dict[str, Any]:
    """Times of all shapes, and for a single one the nearest shape that the target likes.

    Raises:
        SnapfitError: the target has rules but no times, or knows nothing near a shape.

    """
    timer = target.timer
    if timer is None:
        raise SnapfitError(
            f"{target.name} has rules but no times; `snapfit targets` says how to get them"
        )
    if len(asked) > 1:
        progress.stage("time", len(asked))
    rows = []
    for each in asked:
        rows.append(_row(each, timer.time(each.operator)))
        if len(asked) > 1:
            progress.advance()
    found: dict[str, Any] = {
        "kind": kind,
        "target": target.name,
        "device": target.device,
        "dtype": target.dtype,
        "times": rows,
        "notes": quant_notes(target),
    }
    if len(asked) == 1:
        good = nearest_good(asked[0].operator, target.rules)
        if good is not None:
            found["nearest_good"] = _compared(asked[0].operator, good, rows[0], timer.time(good))
    return found


def timing_table(found: Mapping[str, Any]) -> Table:
    """One row a shape."""
    title = f"{found['kind']} on {found['target']}, {found['dtype']}"
    table = Table(title=title, title_justify="left", min_width=60)
    rows = found["times"]
    for name in (*(name.upper() for name in rows[0]["shape"]), "us", "+-", "TFLOPS"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("source", no_wrap=True)
    for row in rows:
        table.add_row(
            *(str(size) for size in row["shape"].values()),
            f"{row['microseconds']:.4g}",
            f"{row['spread']:.0%}",
            f"{row['tflops']:.3g}",
            row["source"],
        )
    return table


def timing_notes(found: Mapping[str, Any]) -> Iterator[str]:
    """Of one shape, how its time was found and what the nearest good one takes; and notes."""
    if len(found["times"]) == 1:
        yield f"how: {found['times'][0]['how']}"
    if (good := found.get("nearest_good")) is not None:
        yield from good["text"].splitlines()
    yield from (f"note: {note}" for note in found["notes"])


def write_csv(found: Mapping[str, Any]) -> None:
    """The same on stdout, one line a shape, after a line of names."""
    writer = csv.writer(sys.stdout, lineterminator="\n")
    rows = found["times"]
    rest = ("microseconds", "spread", "tflops", "source", "how")
    writer.writerow([*rows[0]["shape"], *rest])
    for row in rows:
        writer.writerow([*row["shape"].values(), *(row[name] for name in rest)])


MOST_ROWS = 40


def staircase_table(stairs: Staircase) -> Table:
    """The candidates of a group; a long list is thinned to those before the largest steps."""
    found = stairs.to_json()
    rows = [row for row in found["times"] if row["candidate"]]
    steps = [after["microseconds"] - row["microseconds"] for row, after in pairwise(rows)]
    largest = sorted(range(len(steps)), key=lambda i: -steps[i])[: MOST_ROWS - 1]
    shown = sorted({*largest, len(rows) - 1})
    title = f"{stairs.group} on {stairs.device}, {stairs.workload}"
    table = Table(title=title, title_justify="left", min_width=60)
    for name in ("size", "us", "of full", "next step"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("source", no_wrap=True)
    full = rows[-1]["microseconds"]
    for index in shown:
        row = rows[index]
        table.add_row(
            f"{row['size']}{' (dense)' if index == len(rows) - 1 else ''}",
            f"{row['microseconds']:.4g}",
            f"{row['microseconds'] / full:.1%}",
            f"{steps[index] / row['microseconds']:+.1%}" if index < len(steps) else "",
            ", ".join(row["sources"]),
        )
    return table


def write_staircase_csv(stairs: Staircase) -> None:
    """Every legal size on stdout, one line each, after a line of names."""
    rows = stairs.to_json()["times"]
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(rows[0])
    for row in rows:
        writer.writerow([*list(row.values())[:-1], "+".join(row["sources"])])


def _row(asked: Asked, time: Estimate) -> dict[str, Any]:
    return {
        "shape": dict(asked.shape),
        "microseconds": time.microseconds,
        "spread": time.spread,
        "tflops": asked.operator.flops / time.microseconds / 1e6,
        "source": time.source,
        "how": time.how,
    }


def _compared(
    operator: Operator, good: Operator, row: Mapping[str, Any], time: Estimate
) -> dict[str, Any]:
    """The nearest good shape, its time, and how much longer the one asked about takes."""
    if good == operator:
        return {"shape": list(good.shape), "ratio": None, "text": "every size suits the target"}
    ratio = row["microseconds"] / time.microseconds
    text = (
        f"nearest good shape: {good}: {time.microseconds:.4g} us ({time.source})\n"
        f"the one asked about takes x{ratio:.2f}"
    )
    return {
        "shape": list(good.shape),
        "microseconds": time.microseconds,
        "source": time.source,
        "ratio": ratio,
        "text": text,
    }
