"""The options that `compress` and `plan` share, written once and turned into `Options`."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import typer

from snapfit.cli.catalogue import method_names
from snapfit.core.errors import SnapfitError, UsageError
from snapfit.core.files import check_writable
from snapfit.core.names import unknown_name
from snapfit.core.options import DEFAULT_RATIO, FORMATS, MIXED, SCORES, TEMPLATES, Options
from snapfit.hardware import resolve_target

_SIZES, _CALIBRATION, _EVALUATION, _RUN = "Sizes", "Calibration", "Evaluation", "Running"

AsJson: TypeAlias = Annotated[
    bool,
    typer.Option("--json", help="Print one JSON object on stdout.", rich_help_panel=_RUN),
]
Overwrite: TypeAlias = Annotated[
    bool,
    typer.Option("--overwrite", help="Replace an output that exists.", rich_help_panel=_RUN),
]
TrustRemoteCode: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--trust-remote-code", help="Let the model's own Python code run.", rich_help_panel=_RUN
    ),
]
Work: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="Folder for what a rerun can reuse; default $SNAPFIT_WORK or the user's cache.",
        rich_help_panel=_RUN,
    ),
]
EvalText: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Measure perplexity before and after on this text.",
        rich_help_panel=_EVALUATION,
    ),
]
EvalContext: TypeAlias = Annotated[
    int, typer.Option(help="Tokens of an evaluation window.", rich_help_panel=_EVALUATION)
]
EvalWindows: TypeAlias = Annotated[
    int, typer.Option(help="Windows, spread evenly over the text.", rich_help_panel=_EVALUATION)
]
Model: TypeAlias = Annotated[
    str,
    typer.Argument(metavar="MODEL", help="Folder, hub name, or 'embedded'.", show_default=False),
]
Align: TypeAlias = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="Sizes are multiples of N; 16 without --target, 1 for any size.",
        rich_help_panel=_SIZES,
    ),
]
Target: TypeAlias = Annotated[
    str | None,
    typer.Option(
        metavar="NAME|FILE",
        help="Sizes suit this device (`snapfit targets`) or saved profile.",
        rich_help_panel=_SIZES,
    ),
]


def request(
    method: Annotated[
        str,
        typer.Option(
            metavar="NAME[+NAME...]",
            help="How to compress; see `snapfit methods`. Several compete for every part of the "
            f"model; 'mixed' is {MIXED}.",
            rich_help_panel=_SIZES,
        ),
    ] = "kfac",
    ratio: Annotated[
        float | None,
        typer.Option(
            help=f"Share of parameters to remove, 0 to below 1; default {DEFAULT_RATIO}.",
            rich_help_panel=_SIZES,
        ),
    ] = None,
    layers: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Layers to remove, for methods that remove layers; in place of --ratio.",
            rich_help_panel=_SIZES,
        ),
    ] = None,
    budget: Annotated[
        list[str] | None,
        typer.Option(
            metavar="WHAT=SHARE",
            help="What to keep of the dense model, in place of --ratio: latency=0.8, params=, "
            "bytes= or kv=; twice for two at once.",
            rich_help_panel=_SIZES,
        ),
    ] = None,
    workload: Annotated[
        str | None,
        typer.Option(
            metavar="PHASES",
            help="What latency is the latency of, e.g. prefill:1x1024,decode:8x2048*0.5.",
            rich_help_panel=_SIZES,
        ),
    ] = None,
    checkpoint: Annotated[
        str,
        typer.Option(
            "--format",
            metavar="NAME",
            help=f"What to write: {', '.join(FORMATS)}. Sizes it cannot hold are not chosen.",
            rich_help_panel=_SIZES,
        ),
    ] = "factored",
    of: Annotated[
        str,
        typer.Option(
            metavar="linear|model",
            help="Of the linear layers, or of the whole model.",
            rich_help_panel=_SIZES,
        ),
    ] = "linear",
    align: Align = None,
    target: Target = None,
    objective: Annotated[
        str,
        typer.Option(
            metavar="curve|gac|round|none",
            help="Least predicted loss; the GAC paper's steps; nearest multiples; unaligned.",
            rich_help_panel=_SIZES,
        ),
    ] = "curve",
    score: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help=f"Importance proxy of gac and round: {', '.join(SCORES)}.",
            rich_help_panel=_SIZES,
        ),
    ] = "fisher",
    probe: Annotated[
        bool,
        typer.Option(
            "--probe",
            help="Measure what truncating each role really costs, correct the curves and plan "
            "again: better where much is removed, but holds the dense model in memory.",
            rich_help_panel=_SIZES,
        ),
    ] = False,
    refit: Annotated[
        bool,
        typer.Option(
            "--refit",
            help="Fit the factors to the compressed model's own inputs: better where much is "
            "removed, but another pass over the calibration tokens for every plan.",
            rich_help_panel=_SIZES,
        ),
    ] = False,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="A setting of the method's own; may be repeated.",
            rich_help_panel=_SIZES,
        ),
    ] = None,
    calib: Annotated[
        str,
        typer.Option(
            metavar="FILE|NAME|self",
            help="Text or JSONL file, data set name, or the model's own generations; several "
            "with weights as wiki.txt*0.5+self*0.5.",
            rich_help_panel=_CALIBRATION,
        ),
    ] = "self",
    calib_template: Annotated[
        str,
        typer.Option(
            metavar="|".join(TEMPLATES),
            help="With --calib self: let the model think and answer by its chat template; only "
            "what it generates counts.",
            rich_help_panel=_CALIBRATION,
        ),
    ] = "none",
    calib_tokens: Annotated[
        int, typer.Option(metavar="N", help="Calibration tokens.", rich_help_panel=_CALIBRATION)
    ] = 24_576,
    context: Annotated[
        int,
        typer.Option(
            metavar="N", help="Tokens of a calibration window.", rich_help_panel=_CALIBRATION
        ),
    ] = 512,
    eval_text: EvalText = None,
    eval_context: EvalContext = 512,
    eval_windows: EvalWindows = 32,
    work: Work = None,
    seed: Annotated[
        int, typer.Option(help="Of sampled labels and generations.", rich_help_panel=_RUN)
    ] = 0,
    overwrite: Overwrite = False,
    trust_remote_code: TrustRemoteCode = False,
) -> Options:
    """What the command line asked for.

    Raises:
        UsageError: an unknown name, or a value out of range.

    """
    for name in method.split("+"):
        if name not in {*method_names(), "mixed"}:
            raise unknown_name("method", name, method_names())
    if target is not None:
        resolve_target(target)  # a wrong name is said now, not after an hour of calibration
    return Options(
        method=method,
        ratio=ratio,
        layers=layers,
        budget=",".join(budget) if budget else None,
        workload=workload,
        format=checkpoint,
        of=of,
        align=align,
        target=target,
        objective=objective,
        score=score,
        probe=probe,
        refit=refit,
        settings=dict(_setting(text) for text in settings or ()),
        calib=calib,
        calib_template=calib_template,
        calib_tokens=calib_tokens,
        context=context,
        eval_text=eval_text,
        eval_context=eval_context,
        eval_windows=eval_windows,
        work=work,
        seed=seed,
        overwrite=overwrite,
        trust_remote_code=trust_remote_code,
    )


def takes_request(command: Callable[..., None]) -> Callable[..., None]:
    """Give `command` the options of `request` in place of its parameter `options`."""
    shared = inspect.signature(request, eval_str=True).parameters
    own = inspect.signature(command, eval_str=True).parameters

    @functools.wraps(command)
    def wrapper(**given: Any) -> None:
        asked = {name: given.pop(name) for name in shared}
        command(**given, options=request(**asked))

    merged = [
        parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        for name, parameter in own.items()
        for parameter in (shared.values() if name == "options" else (parameter,))
    ]
    wrapper.__signature__ = inspect.Signature(merged)  # type: ignore[attr-defined]
    wrapper.__annotations__ = {parameter.name: parameter.annotation for parameter in merged}
    return wrapper


def _setting(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise UsageError(f"--set takes KEY=VALUE, got {text!r}")
    return key, value


def check_new(output: Path, *, overwrite: bool) -> None:
    """Refuse, before any work, to write over a file, or where nothing can be written.

    Raises:
        SnapfitError: it exists, and `overwrite` is false; or it is a folder, or in none.

    """
    if output.is_dir():
        raise SnapfitError(f"{output} is a folder; give a file")
    if output.exists() and not overwrite:
        raise SnapfitError(f"{output} already exists; choose another file or pass --overwrite")
    check_writable(output)
