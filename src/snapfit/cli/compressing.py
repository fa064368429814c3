"""`snapfit compress`, `snapfit plan` and `snapfit apply`: the main job, whole and in its halves."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from snapfit.cli.console import answer_json, report_table, say, show, show_facts, working
from snapfit.cli.request import (
    AsJson,
    EvalContext,
    EvalText,
    EvalWindows,
    Model,
    Overwrite,
    TrustRemoteCode,
    Work,
    check_new,
    takes_request,
)
from snapfit.cli.root import app
from snapfit.core.errors import UsageError
from snapfit.core.options import REQUIREMENTS, Options

Check = Annotated[
    bool,
    typer.Option("--check", help="Ask both models to reason at the end; report the verdict."),
]
Require = Annotated[
    str | None,
    typer.Option(
        metavar="|".join(REQUIREMENTS),
        help="Fail, and keep the model aside, if this does not hold. Implies --check.",
    ),
]


@app.command()
@takes_request
def compress(
    model: Model,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="Folder to make.")],
    options: Options,
    check: Check = False,
    require: Require = None,
    as_json: AsJson = False,
) -> None:
    """Make a smaller, aligned model: weights, plan and report in DIR."""
    asked = replace(options, check=check, require=require)
    from snapfit import pipeline

    with working() as bars:
        report = pipeline.compress(model, output, asked, bars)
    _show_report(report, output, as_json=as_json)


@app.command()
@takes_request
def plan(
    model: Model,
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="plan.json", help="File to write.")
    ],
    options: Options,
    pareto: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Also solve every other budget from the same bases: .html, .png or .json.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Decide sizes only: one integer for every group of weights, in plan.json."""
    from snapfit import pipeline

    for file in (output, pareto):
        if file is not None:
            check_new(file, overwrite=options.overwrite)
    if pareto is not None and pareto.resolve() == output.resolve():
        raise UsageError(f"-o and --pareto both name {output}; give two files")
    with working() as bars:
        decided = pipeline.plan(model, output, options, bars, pareto=pareto)
    facts = {name: getattr(decided, name) for name in ("model", "method", "objective", "digest")}
    facts |= {"budget": dict(decided.budget), "predicted": dict(decided.predicted)}
    facts |= {"groups": len(decided.sizes), "output": str(output)}
    if pareto is not None:
        facts["pareto"] = str(pareto)
    show_facts(facts, "plan", as_json=as_json)


@app.command()
def apply(
    plan_file: Annotated[Path, typer.Argument(metavar="plan.json", show_default=False)],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="Folder to make.")],
    model: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="The plan's model, if it is at another place now."),
    ] = None,
    eval_text: EvalText = None,
    eval_context: EvalContext = 512,
    eval_windows: EvalWindows = 32,
    check: Check = False,
    require: Require = None,
    work: Work = None,
    overwrite: Overwrite = False,
    trust_remote_code: TrustRemoteCode = False,
    as_json: AsJson = False,
) -> None:
    """Slice only: make the model that a plan describes."""
    options = Options(
        eval_text=eval_text,
        eval_context=eval_context,
        eval_windows=eval_windows,
        check=check,
        require=require,
        work=work,
        overwrite=overwrite,
        trust_remote_code=trust_remote_code,
    )
    from snapfit import pipeline

    with working() as bars:
        report = pipeline.apply(plan_file, output, options, bars, model=model)
    _show_report(report, output, as_json=as_json)


def _show_report(report: dict[str, Any], output: Path, *, as_json: bool) -> None:
    if as_json:
        answer_json({**report, "output": str(output)})
        return
    show(report_table(report))
    say(f"report: {output / 'report.html'}")
