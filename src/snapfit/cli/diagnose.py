"""`snapfit diagnose`: why a checkpoint is as slow as it is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from snapfit.cli.console import answer_json, say, working, wrapped
from snapfit.cli.request import AsJson
from snapfit.cli.root import app
from snapfit.core.diagnosis import Diagnosis
from snapfit.core.workload import DEFAULT_WORKLOAD

if TYPE_CHECKING:
    from snapfit.viz.diagnosis import ModuleRow, Row

_MODULE = "{:<30} {:>6} {:>13} {:>15} {:>8}"
_ROW = "{:<30} {:>6} {:>13} {:>4} {:>10} {:>8}"
_UNDER = "  {:<28} {:>6} {:>13} {:>4} {:>10}"


@app.command()
def diagnose(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="Folder of any checkpoint, or 'embedded'.", show_default=False
        ),
    ],
    target: Annotated[
        str,
        typer.Option(
            metavar="NAME[,..]|FILE", help="Where it runs: `snapfit targets`, or a saved profile."
        ),
    ],
    workload: Annotated[
        str,
        typer.Option(metavar="KIND:BxT[*W],..", help="What it does, e.g. decode:8x2048."),
    ] = DEFAULT_WORKLOAD,
    align: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=1, help="Compare with multiples of N, not with the target's own."
        ),
    ] = None,
    rows: Annotated[int, typer.Option(metavar="N", min=1, help="Operators to print.")] = 8,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a page with every operator.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say why any local checkpoint, whatever tool compressed it, is slow on a target."""
    from snapfit.pipeline.diagnose import diagnose as diagnose_model

    with working() as bars:
        found = diagnose_model(model, target, workload, align=align, progress=bars)
    if html is not None:
        from snapfit.viz.diagnosis import write_diagnosis

        write_diagnosis(html, found)
    if as_json:
        answer_json(found.to_json())
        return
    for line in diagnosis_text(found, rows):
        say(line)
    if html is not None:
        say(f"page: {html}")


def diagnosis_text(found: Diagnosis, rows: int) -> Iterator[str]:
    """The lines of the answer, at most 80 columns but for names and sentences that are longer."""
    from snapfit.viz.diagnosis import HELPFUL, by_module, rows_of
    from snapfit.viz.diagnosis_text import (
        WORDS,
        by_layer,
        legend,
        lost_sources,
        lost_text,
        milliseconds,
        total_text,
    )

    made = f", factored by {found.compressor}" if found.compressor else ""
    yield f"{found.model} ({found.architecture}{made})"
    yield f"on {found.target} in {found.dtype}"
    yield ""
    shares = ", ".join(f"{share:.1%} in multiples of {n}" for n, share in found.alignment.items())
    yield f"{found.matrices} matrices: {shares}"
    yield f"breaking a rule of the target: {len(found.misaligned) or 'none'}"
    for phase in dict.fromkeys(line.phase for line in found.lines):
        yield ""
        time = next((time for time in found.phases if time.phase == phase), None)
        if time is None:
            yield f"{phase}: no times"
        else:
            yield f"{phase}: {total_text(time)}"
            told = lost_sources(found, time)
            yield f"lost to misalignment: {lost_text(time)}" + (f" ({told})" if told else "")
            layers = by_layer(line for line in found.lines if line.phase == phase)
            for layer, lost in layers.items():
                yield f"  {layer:<10} {milliseconds(lost)} ms"
        yield ""
        table = rows_of(found, phase)
        modules = by_module(found, phase)
        if len(table) > rows and any(row.shapes > 1 for row in modules):
            yield from _module_lines(modules)
        yield _ROW.format("operator", "runs", "N x K", "tier", "us a run", "lost ms")
        for row in table[:rows]:
            yield from _operator_lines(row)
        if len(table) > rows:
            yield f"... and {len(table) - rows} more: --rows {len(table)}, --json or --html FILE"
    if found.changes:
        yield ""
        yield "what would help most, each on its own:"
        for change in found.changes[:HELPFUL]:
            told = ", ".join(WORDS[source] for source in change.sources)
            told += "; gives up capacity for a wave" if change.reason == "wave" else ""
            yield from wrapped(change.text + (f" ({told})" if told else ""), "  ")
    yield ""
    if marks := legend(found):
        yield f"times: {marks}"
    for note in found.notes:
        yield from wrapped(f"note: {note}")


def _module_lines(modules: list[ModuleRow]) -> Iterator[str]:
    yield _MODULE.format("module", "runs", "misaligned", "ms", "lost ms")
    for row in modules:
        of = f"{row.misfits} of {row.shapes}"
        yield _MODULE.format(row.label[-30:], row.runs, of, row.spent, row.lost).rstrip()
    yield ""


def _operator_lines(row: Row) -> Iterator[str]:
    """The operator, and below it the nearest good shape and the causes."""
    yield _ROW.format(row.label[-30:], row.runs, row.shape, row.tier, row.now, row.lost).rstrip()
    first, *more = row.causes or ("",)
    if row.good or first:
        yield _UNDER.format(first, "", row.good and f"-> {row.good}", "", row.then).rstrip()
    for cause in more:
        yield f"  {cause}"
