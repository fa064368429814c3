"""SmolLM2-135M-Instruct: perplexity of every method of width and of depth, and of mixed plans.

    python benchmarks/width_depth.py --data ../shared/data/text

Widths at 10, 20 and 30 per cent of the linear weights, unaligned as published and aligned to 16
(objective curve); depth at 1 to 8 layers; `kfac` and `mixed` beside them, also at equal predicted
time on an H100. Perplexity is that of benchmarks/smollm2.py on half of its windows: 16 of 512
tokens, spread over the test text. Calibration: 8,192 tokens of the WikiText-2 validation text,
24,576 for `kfac`, `mixed` and equal time. Every checkpoint is written, loaded back and measured.
About two hours on one core; a run goes on where the last one stopped.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from smollm2 import RATIOS, fetch_model
from snapfit.core.errors import Infeasible
from snapfit.core.options import Options
from snapfit.core.progress import Silent

WIDTH = {
    "llm-pruner": {},
    "llm-pruner l1": {"importance": "l1"},
    "llm-pruner l2": {"importance": "l2"},
    "llm-pruner random": {"importance": "random"},
    "minitron": {},
    "flap": {},
}
"""Settings by the name of a row."""

LATENCIES = (0.9, 0.8, 0.7)
"""Of the dense model's predicted time on an H100, of a prefill of 1,024 tokens."""
LAYERS = range(1, 9)
DEPTH: dict[str, tuple[dict[str, str], tuple[int, ...]]] = {
    "shortgpt": ({}, tuple(LAYERS)),
    "reverse-order": ({}, tuple(LAYERS)),
    "laco": ({}, (3, 6)),
    "laco C=3": ({"merge": "3"}, (2, 4, 6, 8)),
    "laco C=2": ({"merge": "2"}, tuple(LAYERS)),
    "gromov": ({}, tuple(LAYERS)),
    "magnitude": ({}, tuple(LAYERS)),
    "taylor": ({}, tuple(LAYERS)),
    "perplexity": ({}, tuple(LAYERS)),
    "random": ({}, tuple(LAYERS)),
}
"""Settings and numbers of layers by the name of a row. A merge of C layers removes C - 1."""


def cases() -> list[dict[str, Any]]:
    """What is measured: widths, layers, then low rank and mixed plans."""
    depth = [
        {"name": name, "layers": layers, "settings": settings}
        for layers in (1, 2, 4, 8, 3, 6, 5, 7)  # so that an interrupted run shows every method
        for name, (settings, counts) in DEPTH.items()
        if layers in counts
    ]
    width = [
        {"name": name, "ratio": ratio, "objective": objective, "align": align, "settings": settings}
        for name, settings in WIDTH.items()
        for ratio in RATIOS
        for objective, align in (("none", None), ("curve", 16))
    ]
    rest = [
        {
            "name": name,
            "ratio": ratio,
            "objective": "curve",
            "align": 16,
            "calib_tokens": 24_576,
        }
        for ratio in RATIOS
        for name in ("kfac", "mixed")
    ]
    timed = [
        {
            "name": name,
            "budget": f"latency={share}",
            "target": "h100_sxm",
            "objective": "curve",
            "calib_tokens": 24_576,
        }
        for share in LATENCIES
        for name in ("mixed", "kfac", "minitron", "shortgpt")
    ]
    return [{"calib_tokens": 8_192, **case} for case in (*width, *depth, *rest, *timed)]


def collect_once(model: Path, args: argparse.Namespace) -> None:
    """Collect what every width method needs in one pass, so that the cases share it."""
    from snapfit.methods._lowrank import COMPARABLE_NEEDS
    from snapfit.methods.registry import load_method
    from snapfit.pipeline.job import Job

    needs = COMPARABLE_NEEDS
    for name in WIDTH:
        needs |= load_method(name.split()[0]).needs
    options = Options(
        method="minitron",
        calib=str(args.data / "wikitext2_valid_tokenised.txt"),
        calib_tokens=8_192,
        work=args.work or args.cache / "work",
    )
    job = Job(model=str(model), options=options, progress=Silent())
    job.__dict__["needs"] = needs  # fills the cached property
    assert job.statistics is not None


def measure(case: dict[str, Any], model: Path, args: argparse.Namespace) -> dict[str, Any]:
    """One compression, from whatever the work folder already has to a measured perplexity."""
    from snapfit.pipeline import compress

    given = {key: value for key, value in case.items() if key != "name"}
    options = Options(
        method=case["name"].split()[0],
        calib=str(args.data / "wikitext2_valid_tokenised.txt"),
        eval_text=args.data / "wikitext2_test.txt",
        eval_windows=16,
        work=args.work or args.cache / "work",
        **given,
    )
    with tempfile.TemporaryDirectory(dir=args.cache) as temporary:
        try:
            report = compress(str(model), Path(temporary) / "out", options, Silent())
        except Infeasible as error:
            return {**case, "infeasible": str(error)}
    times = report.get("latency")
    return {
        **case,
        **({"latency.share": times["compressed"] / times["dense"]} if times else {}),
        "ratio.linear": report["ratio"]["linear"],
        "mod16": report["alignment"]["mod16"],
        "within_budget": report["params"]["compressed"] <= report["params"]["budget"],
        "perplexity.dense": report["perplexity"]["dense"],
        "perplexity": report["perplexity"]["compressed"],
        "stderr": report["details"]["perplexity.compressed"]["stderr"],
    }


def table(rows: list[dict[str, Any]]) -> str:
    """The results as Markdown."""
    lines = [
        "| method | objective | budget | linear weights removed | mod16 | perplexity |",
        "|---|---|---|---|---|---|",
    ]
    for row in sorted(rows, key=_place):
        head = f"| {row['name']} | {row.get('objective', '-')} | {budget(row)} "
        if "infeasible" in row:
            lines.append(f"{head}| - | - | cannot be met |")
            continue
        lines.append(
            f"{head}| {row['ratio.linear']:.2%} | {row['mod16']:.2f} "
            f"| {row['perplexity']:.2f} ± {row['stderr']:.2f} |"
        )
    return "\n".join(lines)


def _place(row: dict[str, Any]) -> tuple[object, ...]:
    """Shares first, then layers, then times; each method's rows together."""
    kind = ("layers" in row) + 2 * ("budget" in row)
    asked = row.get("layers", row.get("ratio", row.get("budget")))
    return kind, row["name"], row.get("objective", "-"), asked


def budget(row: dict[str, Any]) -> str:
    """What was asked for; of a budget of time, what is predicted of the plan."""
    if "layers" in row:
        return f"{row['layers']} layers"
    if "budget" in row:
        share = f", predicted {row['latency.share']:.3f}" if "latency.share" in row else ""
        return f"{row['budget']} on {row['target']}{share}"
    return f"ratio {row['ratio']}"


def picture(rows: list[dict[str, Any]], path: Path) -> None:
    """Perplexity against the share removed: widths and mixed on the left, depth on the right."""
    from matplotlib.figure import Figure

    from snapfit.viz.canvas import STYLES

    figure = Figure(figsize=(11, 4.6), layout="constrained")
    panels = figure.subplots(1, 2)
    lines: dict[tuple[int, str], list[dict[str, Any]]] = {}
    for row in rows:
        if row.get("objective", "curve") == "curve" and "budget" not in row:
            lines.setdefault((int("layers" in row), row["name"]), []).append(row)
    for panel, axes in enumerate(panels):
        named = [(name, found) for (where, name), found in lines.items() if where == panel]
        for index, (name, found) in enumerate(named):
            colour, dash, marker = STYLES[index % len(STYLES)]
            points = sorted((row["ratio.linear"], row["perplexity"]) for row in found)
            axes.plot(
                *zip(*points, strict=True),
                dash,
                marker=marker,
                color=colour,
                markerfacecolor=colour if index < len(STYLES) else "white",
                label=name,
            )
        axes.axhline(rows[0]["perplexity.dense"], color="#888888", linewidth=0.8)
        axes.set_yscale("log")
        axes.set_xlabel("share of the linear weights removed")
        axes.set_title(("widths, low rank and mixed, aligned to 16", "layers removed")[panel])
        axes.legend(frameon=False, fontsize=8)
    panels[0].set_ylabel("perplexity, WikiText-2 test")
    figure.savefig(path, dpi=120)


def main() -> None:
    """Measure every case that the results file does not have yet; write table and picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the WikiText-2 files")
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache/snapfit-benchmarks")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--work", type=Path, help="work folder; default: in the cache")
    parser.add_argument("--only", help="rows to measure now, separated by commas")
    args = parser.parse_args()
    model = fetch_model(args.cache)
    file = args.out / "width_depth.json"
    rows = json.loads(file.read_text()) if file.exists() else []
    left = [
        case
        for case in cases()
        if not any(all(row.get(key) == case[key] for key in case) for row in rows)
        and (not args.only or case["name"] in args.only.split(","))
    ]
    if any(case["name"] in WIDTH for case in left):
        collect_once(model, args)
    for case in left:
        rows.append(measure(case, model, args))
        file.write_text(json.dumps(rows, indent=1) + "\n")
        print(table(rows[-1:]).splitlines()[-1], flush=True)
    (args.out / "width_depth.md").write_text(
        f"SmolLM2-135M-Instruct, dense perplexity {rows[0]['perplexity.dense']:.2f}\n\n"
        f"{table(rows)}\n"
    )
    picture(rows, args.out / "width_depth.png")


if __name__ == "__main__":
    main()
