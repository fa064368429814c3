"""`snapfit serve-check`: does an engine serve a checkpoint as it was saved, and how fast?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from snapfit.cli.console import answer_json, say, working, wrapped
from snapfit.cli.request import AsJson, Model, TrustRemoteCode
from snapfit.cli.root import app

if TYPE_CHECKING:
    from snapfit.evals.serving import Parity
    from snapfit.evals.serving_report import EngineCheck, ServeCheck
    from snapfit.evals.serving_time import PhaseTime

_ROW = "{:<24} {:>12} {:>12} {:>27}"
SHOWN = 4
"""Divergences that are printed."""


@app.command(name="serve-check")
def serve_check(
    model: Model,
    engine: Annotated[
        str, typer.Option(metavar="vllm|transformers|all", help="What serves it.")
    ] = "vllm",
    against: Annotated[
        str | None,
        typer.Option(metavar="BASE", help="The dense model; default: the plan's, if it is there."),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="float32, float16, bfloat16; default: the weights'."),
    ] = None,
    workload: Annotated[
        str | None,
        typer.Option(
            metavar="KIND:BxT[*W],..", help="What to time; default: what the plan predicts."
        ),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Predict both models' times there, e.g. cpu."),
    ] = None,
    pairs: Annotated[
        int, typer.Option(metavar="N", min=0, help="Timed runs of each model; 0 times nothing.")
    ] = 5,
    compiled: Annotated[
        bool, typer.Option("--compile", help="Let vLLM compile the models: minutes on a CPU.")
    ] = False,
    tensor_parallel: Annotated[int, typer.Option(metavar="N", min=1, help="Workers of vLLM.")] = 1,
    trust_remote_code: TrustRemoteCode = False,
    as_json: AsJson = False,
) -> None:
    """Compare an engine's greedy tokens with transformers', and its speed with the dense model's.

    Fails (exit code 1) where a token differs that rounding does not explain.
    """
    from snapfit.pipeline.serve_check import Settings
    from snapfit.pipeline.serve_check import serve_check as check

    settings = Settings(
        engine=engine,
        against=against,
        dtype=dtype,
        workload=workload,
        target=target,
        pairs=pairs,
        compiled=compiled,
        tensor_parallel=tensor_parallel,
        trust_remote_code=trust_remote_code,
    )
    with working() as bars:
        found = check(model, settings, bars)
    if as_json:
        answer_json(found.to_json())
    else:
        for line in serve_check_text(found):
            say(line)
    if not found.holds:
        raise typer.Exit(1)


def serve_check_text(found: ServeCheck) -> Iterator[str]:
    """The lines of the answer, at most 80 columns but for names."""
    yield found.model
    if found.against is not None:
        yield f"beside {found.against}"
    for check in found.engines:
        yield ""
        yield f"{check.engine}, {check.dtype}"
        yield from _parity_lines(check.parity)
        yield from _table(found, check)
    yield ""
    yield from wrapped(
        "tokens: beside transformers in float32. times: measured, medians; ratio: median of "
        "paired runs (lowest to highest), below 1 is faster than dense."
    )


def _parity_lines(parity: Parity) -> Iterator[str]:
    ties = len(parity.divergences) - len(parity.wrong)
    text = f"tokens: {parity.equal} of {parity.prompts} prompts equal over {parity.tokens} tokens"
    yield text + (f", {ties} differ after a tie" if ties else "")
    if parity.wrong:
        yield f"NOT THE SAME MODEL: {len(parity.wrong)} differ by more than {parity.tie:g}"
    for found in parity.divergences[:SHOWN]:
        yield (
            f"  prompt {found.prompt}, token {found.position}: {found.found} for "
            f"{found.expected}, gap {found.gap:.2g}"
        )
    if len(parity.divergences) > SHOWN:
        yield f"  ... and {len(parity.divergences) - SHOWN} more: --json"


def _table(found: ServeCheck, check: EngineCheck) -> Iterator[str]:
    yield _ROW.format("", "compressed", "dense", "ratio")
    for time in check.times:
        yield from _time_lines(time)
    if len(check.times) > 1 and check.times[0].dense:
        from snapfit.evals.serving_time import total_ratios

        yield _ROW.format("workload", "", "", _spread(total_ratios(check.times)))
    sizes = [found.weight_bytes.get(name) for name in ("compressed", "dense")]
    yield _sizes("weight files", *sizes)
    if check.resident is not None:
        yield _sizes("resident memory", check.resident, check.dense_resident)
    if found.predicted is not None:
        share, spread = found.predicted["share"], found.predicted.get("spread")
        about = f" +- {float(spread):.0%}" if spread else ""
        yield _ROW.format("predicted", "", "", f"{float(share):.3f}{about}")
        yield f"  for {found.predicted['workload']} on {found.predicted['device']}"


def _time_lines(time: PhaseTime) -> Iterator[str]:
    dense = time.dense_median
    yield _ROW.format(
        str(time.phase)[:24],
        _milliseconds(time.median),
        "-" if dense is None else _milliseconds(dense),
        _spread(time.ratios) if time.dense else "-",
    )
    rate = f"{time.tokens_per_second:.0f} tok/s"
    other = "-" if dense is None else f"{time.phase.rows / dense:.0f} tok/s"
    yield _ROW.format("", rate, other, "").rstrip()


def _milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:.1f} ms"


def _spread(ratios: tuple[float, ...]) -> str:
    from statistics import median

    return f"{median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})"


def _sizes(name: str, ours: int | None, theirs: int | None) -> str:
    shown = ["-" if size is None else f"{size / 1e6:.0f} MB" for size in (ours, theirs)]
    ratio = f"{ours / theirs:.3f}" if ours and theirs else "-"
    return _ROW.format(name, *shown, ratio)
