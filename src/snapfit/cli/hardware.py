"""`snapfit targets`, `snapfit profile` and `snapfit time`: what is fast where."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, TypeAlias

import typer

from snapfit.cli.console import answer_json, facts_table, say, show, working, wrapped
from snapfit.cli.request import AsJson, Overwrite, TrustRemoteCode
from snapfit.cli.root import app
from snapfit.cli.timing import Asked, answer, swept, timing_notes, timing_table, write_csv
from snapfit.core.operators import Attention, Linear, Operator
from snapfit.core.workload import DEFAULT_WORKLOAD

On: TypeAlias = Annotated[
    str,
    typer.Option("--target", metavar="NAME[,tp=N,...]|FILE", help="Where; see `snapfit targets`."),
]
Dtype: TypeAlias = Annotated[
    str | None,
    typer.Option(metavar="fp16|bf16|fp32", help="Of weights; default: the target's own."),
]
Sweep: TypeAlias = Annotated[
    str | None,
    typer.Option(metavar="k=4000:4100:1", help="One size from : to (included) : step."),
]
Csv: TypeAlias = Annotated[bool, typer.Option("--csv", help="Print comma-separated values.")]

NOTES = """\
ranks: a rank should be a multiple of this; else: how much longer a product takes whose sizes are \
multiples of half of it only.
The rest of the stack is appended, as in h100_sxm,tp=2,quant=marlin,group=64,engine=vllm:"""
"""Below the list of targets."""

timing = typer.Typer(
    help="How long one operator takes on a target, and where the number comes from.",
    no_args_is_help=True,
)
app.add_typer(timing, name="time")


@app.command()
def targets(
    name: Annotated[
        str | None,
        typer.Argument(metavar="[NAME[,tp=N,...]]", help="Show the rules of this one in full."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the devices that `--target` knows: their rules, and how their times are known."""
    from snapfit.cli.target_list import target_fact, target_facts, target_table, targets_table
    from snapfit.core.stack import QUANTS

    if name is not None:
        fact = target_fact(name)
        if as_json:
            answer_json(fact)
        else:
            show(target_table(fact))
        return
    facts = target_facts()
    stack = {f"quant={quant}": data.source for quant, data in QUANTS.items()}
    if as_json:
        answer_json({"targets": facts, "stack": stack})
        return
    show(targets_table(facts))
    for note in NOTES.splitlines():
        _say(note)
    show(facts_table(stack, ""))


@app.command()
def profile(
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="FILE", help="Profile to write: .json.")
    ],
    subject: Annotated[
        str | None,
        typer.Option(
            "--for", metavar="plan.json|MODEL", help="Time only the shapes that it can choose."
        ),
    ] = None,
    target: On = "cpu",
    workload: Annotated[
        str, typer.Option(metavar="prefill:BxT,...", help="Passes of the model that are timed.")
    ] = DEFAULT_WORKLOAD,
    dtype: Dtype = None,
    minutes: Annotated[
        float | None, typer.Option(help="Stop after these; the same command then goes on.")
    ] = None,
    overwrite: Overwrite = False,
    trust_remote_code: TrustRemoteCode = False,
    as_json: AsJson = False,
) -> None:
    """Time a target's operators into a file that `--target` takes. Resumes when interrupted."""
    from snapfit.pipeline.profile import profile as run

    with working() as bars:
        facts = run(
            output,
            target=target,
            subject=subject,
            workload=workload,
            dtype=dtype,
            minutes=minutes,
            overwrite=overwrite,
            trust_remote_code=trust_remote_code,
            progress=bars,
        )
    facts |= {"output": str(output)}
    if as_json:
        answer_json(facts)
    else:
        show(facts_table(facts, "profile"))


@timing.command()
def linear(
    m: Annotated[int, typer.Argument(metavar="M", help="Tokens.", show_default=False)],
    n: Annotated[int, typer.Argument(metavar="N", help="Output features.", show_default=False)],
    k: Annotated[int, typer.Argument(metavar="K", help="Input features.", show_default=False)],
    target: On = "cpu",
    dtype: Dtype = None,
    sweep: Sweep = None,
    csv: Csv = False,
    as_json: AsJson = False,
) -> None:
    """Time a product of M tokens with a weight matrix of N outputs and K inputs."""
    shape = {"m": m, "n": n, "k": k}
    _time("linear", shape, target, dtype, sweep, csv=csv, as_json=as_json)


@timing.command()
def attention(
    b: Annotated[int, typer.Argument(metavar="B", help="Sequences.", show_default=False)],
    s: Annotated[int, typer.Argument(metavar="S", help="Tokens of each.", show_default=False)],
    h: Annotated[int, typer.Argument(metavar="H", help="Query heads.", show_default=False)],
    kv: Annotated[int, typer.Argument(metavar="KV", help="KV heads.", show_default=False)],
    d: Annotated[int, typer.Argument(metavar="D", help="Head dimension.", show_default=False)],
    decode: Annotated[
        bool, typer.Option("--decode", help="One new token over a context of S.")
    ] = False,
    target: On = "cpu",
    dtype: Dtype = None,
    sweep: Sweep = None,
    csv: Csv = False,
    as_json: AsJson = False,
) -> None:
    """Time attention of B sequences of S tokens with H query and KV key-value heads of D."""
    shape = {"b": b, "s": s, "h": h, "kv": kv, "d": d}
    kind = "decode" if decode else "prefill"
    _time(kind, shape, target, dtype, sweep, csv=csv, as_json=as_json)


def _say(text: str) -> None:
    for line in wrapped(text):
        say(line)


@timing.command()
def group(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Folder, hub name, or a config.json.")
    ],
    name: Annotated[
        str,
        typer.Argument(
            metavar="GROUP",
            help="A matrix, an MLP or an attention, as model.layers.0.mlp.down_proj.",
        ),
    ],
    target: On = "cpu",
    workload: Annotated[
        str, typer.Option(metavar="prefill:BxT,...", help="Passes of the model that are timed.")
    ] = DEFAULT_WORKLOAD,
    dtype: Dtype = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw the staircase: .png or .svg.")
    ] = None,
    csv: Csv = False,
    trust_remote_code: TrustRemoteCode = False,
    as_json: AsJson = False,
) -> None:
    """Time a part of a model at every legal size: a staircase, of which plans use the edges."""
    from snapfit.cli.timing import MOST_ROWS, staircase_table, write_staircase_csv
    from snapfit.pipeline.staircase import group_times
    from snapfit.viz.frontier import check_staircase_path, write_staircase

    if plot is not None:
        check_staircase_path(plot)
    with working():
        stairs = group_times(
            model,
            name,
            target=target,
            workload=workload,
            dtype=dtype,
            trust_remote_code=trust_remote_code,
        )
    if plot is not None:
        write_staircase(plot, stairs)
    if as_json:
        answer_json(stairs.to_json() | ({} if plot is None else {"plot": str(plot)}))
    elif csv:
        write_staircase_csv(stairs)
    else:
        show(staircase_table(stairs))
        thinned = len(stairs.edges) > MOST_ROWS
        shown = f", those before the {MOST_ROWS} largest steps shown" if thinned else ""
        say(f"candidates: {len(stairs.edges)} of {len(stairs.sizes)} legal sizes{shown}")


def _operator(kind: str, shape: dict[str, int]) -> Operator:
    if kind == "linear":
        return Linear(m=shape["m"], n=shape["n"], k=shape["k"])
    return Attention(
        batch=shape["b"],
        query=1 if kind == "decode" else shape["s"],
        context=shape["s"],
        heads=shape["h"],
        kv_heads=shape["kv"],
        head_dim=shape["d"],
    )


def _time(
    kind: str,
    shape: dict[str, int],
    target: str,
    dtype: str | None,
    sweep: str | None,
    *,
    csv: bool,
    as_json: bool,
) -> None:
    from snapfit.hardware import resolve_target

    shapes = swept(shape, sweep)
    asked = [Asked(shape=each, operator=_operator(kind, each)) for each in shapes]
    place = resolve_target(target, dtype=dtype)
    with working() as bars:
        found: dict[str, Any] = answer(kind, asked, place, bars)
    if as_json:
        answer_json(found)
    elif csv:
        write_csv(found)
    else:
        show(timing_table(found))
        for note in timing_notes(found):
            _say(note)
