"""`snapfit align`, `perplexity`, `info` and `methods`: what is useful beside the main job."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import snapfit
from snapfit.cli.catalogue import method_names, method_summary
from snapfit.cli.console import answer_json, names_table, show, show_facts, working
from snapfit.cli.request import (
    Align,
    AsJson,
    Model,
    Overwrite,
    Target,
    TrustRemoteCode,
    check_new,
)
from snapfit.cli.root import app
from snapfit.core.errors import UsageError
from snapfit.core.options import DEFAULT_ALIGN


@app.command()
def align(
    dims: Annotated[Path, typer.Argument(metavar="dims.json", show_default=False)],
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="out.json", help="File to write.")
    ],
    keep: Annotated[
        float | None, typer.Option(help="Budget: share of the uncompressed parameters to keep.")
    ] = None,
    align: Align = None,
    target: Target = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Align sizes that any other tool chose. Needs neither torch nor a model."""
    from snapfit.core.align import align_dims
    from snapfit.core.files import read_json, write_json

    check_new(output, overwrite=overwrite)
    multiple = _multiple(align, target)
    aligned = align_dims(read_json(dims), align=multiple, keep=keep, version=snapfit.__version__)
    write_json(output, aligned)
    facts = {name: value for name, value in aligned.items() if name != "groups"}
    facts |= {"groups": len(aligned["groups"]), "output": str(output)}
    show_facts(facts, "align", as_json=as_json)


@app.command()
def perplexity(
    model: Model,
    text: Annotated[Path, typer.Option(metavar="FILE", help="UTF-8 text.")],
    context: Annotated[int, typer.Option(help="Tokens of a window.")] = 512,
    windows: Annotated[int, typer.Option(help="Windows, spread evenly over the text.")] = 32,
    trust_remote_code: TrustRemoteCode = False,
    as_json: AsJson = False,
) -> None:
    """Measure the perplexity of a model, compressed or not, on a text."""
    from snapfit.pipeline.measure import measure_perplexity

    with working() as bars:
        metric = measure_perplexity(
            model,
            text,
            context=context,
            windows=windows,
            trust_remote_code=trust_remote_code,
            progress=bars,
        )
    facts = {
        "perplexity": metric.value,
        "stderr": metric.stderr,
        "n": metric.n,
        "settings": dict(metric.settings),
    }
    show_facts(facts, model, as_json=as_json)


@app.command()
def info(
    path: Annotated[str, typer.Argument(metavar="MODEL|DIR|plan.json", help="What to describe.")],
    trust_remote_code: TrustRemoteCode = False,
    as_json: AsJson = False,
) -> None:
    """Describe a model, a compressed model or a plan."""
    from snapfit.pipeline.info import info as info_of

    with working():
        facts = info_of(path, trust_remote_code=trust_remote_code)
    show_facts(facts, path, as_json=as_json)


@app.command()
def methods(as_json: AsJson = False) -> None:
    """List the methods that `--method` knows."""
    rows = [(name, method_summary(name)) for name in method_names()]
    if as_json:
        answer_json({"methods": dict(rows)})
        return
    show(names_table(("method", "what it does"), rows))


def _multiple(align: int | None, target: str | None) -> int:
    if align is not None and target is not None:
        raise UsageError("give either --align or --target, not both")
    if target is None:
        return DEFAULT_ALIGN if align is None else align
    from snapfit.hardware import resolve_target

    return resolve_target(target).rank_multiple
