"""`snapfit layers`: which layers depth methods would remove, side by side."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.table import Table

from snapfit.cli.console import answer_json, say, show, working
from snapfit.cli.request import AsJson, Overwrite, TrustRemoteCode, Work, check_new
from snapfit.cli.root import app
from snapfit.core.errors import UsageError
from snapfit.core.names import unknown_name
from snapfit.core.options import Options
from snapfit.viz.canvas import check_drawable

PARTS = ("layer", "attention", "mlp")


@app.command()
def layers(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Folder, hub name, or 'embedded'.")],
    methods: Annotated[
        str | None,
        typer.Option(
            metavar="NAME[,NAME...]", help="Depth methods; default: all that look at the model."
        ),
    ] = None,
    part: Annotated[
        str, typer.Option(metavar="|".join(PARTS), help="What of a layer would go.")
    ] = "layer",
    calib: Annotated[
        str,
        typer.Option(metavar="FILE|NAME|self", help="Calibration text, as for `compress`."),
    ] = "self",
    calib_tokens: Annotated[int, typer.Option(metavar="N", help="Calibration tokens.")] = 24_576,
    context: Annotated[
        int, typer.Option(metavar="N", help="Tokens of a calibration window.")
    ] = 512,
    png: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw the heat map as a picture.")
    ] = None,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write heat map and scores as a page.")
    ] = None,
    work: Work = None,
    seed: Annotated[int, typer.Option(help="Of generations and random order.")] = 0,
    overwrite: Overwrite = False,
    trust_remote_code: TrustRemoteCode = False,
    as_json: AsJson = False,
) -> None:
    """Show which layers every depth method would remove first: a table and a heat map.

    The methods perplexity and laco hold the whole model in memory; the others a layer of it.
    """
    if part not in PARTS:
        raise unknown_name("part", part, PARTS)
    _check_files(png, html, overwrite=overwrite)
    options = Options(
        calib=calib,
        calib_tokens=calib_tokens,
        context=context,
        work=work,
        seed=seed,
        trust_remote_code=trust_remote_code,
    )
    from snapfit.pipeline.layers import layer_scores, layers_report

    names = () if methods is None else tuple(dict.fromkeys(methods.split(",")))
    with working() as bars:
        report = layers_report(model, layer_scores(model, options, names, bars, part=part))
        pictures = [file for file in (png, html) if file is not None]
        if pictures:
            from snapfit.viz.layers import write_layers

            for file in pictures:
                write_layers(file, report)
    if as_json:
        answer_json({**report, "pictures": [str(file) for file in pictures]})
        return
    show(turns_table(report))
    for file in pictures:
        say(f"heat map: {file}")


def turns_table(report: Mapping[str, Any]) -> Table:
    """Methods side by side; in each row the turns of a layer."""
    what = "layers" if report["part"] == "layer" else f"{report['part']} modules"
    table = Table(
        title=f"{report['model']}: with how many {what} less each layer is gone; 1 goes first",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    table.add_column("layer", justify="right", no_wrap=True)
    for name in report["methods"]:
        table.add_column(name.replace("-", "\n"), justify="right")
    for layer in range(report["layers"]):
        turns = (entry["turns"][layer] for entry in report["methods"].values())
        table.add_row(str(layer), *("-" if turn is None else str(turn) for turn in turns))
    return table


def _check_files(png: Path | None, html: Path | None, *, overwrite: bool) -> None:
    for file, ending in ((png, ".png"), (html, ".html")):
        if file is None:
            continue
        if file.suffix.lower() != ending:
            raise UsageError(f"{file} must end in {ending}")
        check_new(file, overwrite=overwrite)
        check_drawable()
