"""The sub-commands, and what becomes of an error.

Exit codes: 0 done, 1 failed, 2 bad use, 130 interrupted.
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

import snapfit
from snapfit.cli import diagnose as _diagnose  # noqa: F401 adds its command
from snapfit.cli import hardware as _hardware  # noqa: F401 adds its commands
from snapfit.cli import layers as _layers  # noqa: F401 adds its command
from snapfit.cli import scaling as _scaling  # noqa: F401 adds its commands
from snapfit.cli import serve_check as _serve_check  # noqa: F401 adds its command
from snapfit.cli.catalogue import method_names, method_summary
from snapfit.cli.console import (
    answer_json,
    complain,
    facts_table,
    names_table,
    report_table,
    say,
    show,
    working,
)
from snapfit.cli.request import (
    Align,
    AsJson,
    EvalContext,
    EvalText,
    EvalWindows,
    Overwrite,
    Target,
    TrustRemoteCode,
    Work,
    takes_request,
)
from snapfit.cli.root import app
from snapfit.core.errors import SnapfitError, UsageError
from snapfit.core.options import DEFAULT_ALIGN, REQUIREMENTS, Options

INTERRUPTED = 130

# typer brings click under another name from version to version; what it raises for bad use is
# always the base of its own BadParameter.
_BadUse: Any = typer.BadParameter.__base__

Model = Annotated[
    str,
    typer.Argument(metavar="MODEL", help="Folder, hub name, or 'embedded'.", show_default=False),
]


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


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit."""
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: list[str]) -> int:
    """Run one command; every error that its user can cause becomes one line and a code."""
    # Bars of other libraries would be drawn across ours.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    try:
        code = app(arguments or ["--help"], prog_name="snapfit", standalone_mode=False)
    except SnapfitError as error:
        return _failed(arguments, str(error), error.exit_code)
    except _BadUse as error:
        return _failed(arguments, f"{error.format_message()} (see snapfit --help)", 2)
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _failed(arguments, f"{where}{error.strerror or error}", 1)
    if code == INTERRUPTED:  # some versions of typer raise, others return this
        return _failed(arguments, "interrupted; rerun the same command to resume", INTERRUPTED)
    return code if isinstance(code, int) else 0


def _failed(arguments: list[str], message: str, code: int) -> int:
    complain(message)
    if "--json" in arguments:
        answer_json({"error": message, "exit_code": code})
    return code


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        say(snapfit.__version__)
        raise typer.Exit


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
        if file is not None and file.exists() and not options.overwrite:
            raise _exists(file)
    with working() as bars:
        decided = pipeline.plan(model, output, options, bars, pareto=pareto)
    facts = {name: getattr(decided, name) for name in ("model", "method", "objective", "digest")}
    facts |= {"budget": dict(decided.budget), "predicted": dict(decided.predicted)}
    facts |= {"groups": len(decided.sizes), "output": str(output)}
    if pareto is not None:
        facts["pareto"] = str(pareto)
    _show_facts(facts, "plan", as_json=as_json)


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

    if output.exists() and not overwrite:
        raise _exists(output)
    multiple = _multiple(align, target)
    aligned = align_dims(read_json(dims), align=multiple, keep=keep, version=snapfit.__version__)
    write_json(output, aligned)
    facts = {name: value for name, value in aligned.items() if name != "groups"}
    facts |= {"groups": len(aligned["groups"]), "output": str(output)}
    _show_facts(facts, "align", as_json=as_json)


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
    _show_facts(facts, model, as_json=as_json)


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
    _show_facts(facts, path, as_json=as_json)


@app.command()
def methods(as_json: AsJson = False) -> None:
    """List the methods that `--method` knows."""
    rows = [(name, method_summary(name)) for name in method_names()]
    if as_json:
        answer_json({"methods": dict(rows)})
        return
    show(names_table(("method", "what it does"), rows))


def _exists(output: Path) -> SnapfitError:
    return SnapfitError(f"{output} already exists; choose another file or pass --overwrite")


def _multiple(align: int | None, target: str | None) -> int:
    if align is not None and target is not None:
        raise UsageError("give either --align or --target, not both")
    if target is None:
        return DEFAULT_ALIGN if align is None else align
    from snapfit.hardware import resolve_target

    return resolve_target(target).rank_multiple


def _show_report(report: dict[str, Any], output: Path, *, as_json: bool) -> None:
    if as_json:
        answer_json({**report, "output": str(output)})
        return
    show(report_table(report))
    say(f"report: {output / 'report.html'}")


def _show_facts(facts: dict[str, Any], title: str, *, as_json: bool) -> None:
    if as_json:
        answer_json(facts)
    else:
        show(facts_table(facts, title))
