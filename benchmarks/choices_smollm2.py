"""SmolLM2-135M and compressed models on PIQA and MMLU-STEM, by log-likelihood.

    python benchmarks/choices_smollm2.py FOLDER ...

Claims: 200 problems of each, zero-shot, with lm-evaluation-harness's prompts, tokenisation and
both of its accuracies; 95% intervals over problems, and paired differences from the dense model.
On PIQA all are above chance and lose more the more was removed; 200 problems are too few to be sure
of any one difference. On MMLU-STEM all are at chance (25%), the dense model too, so that nothing
can be said there.

The dense model is fetched on first use, which needs gguf; the compressed ones are made from it,
for instance by

    snapfit compress MODEL -o FOLDER --method kfac --ratio 0.1 \
        --calib ../shared/data/text/wikitext2_valid_tokenised.txt

Every answer is kept in --work: more models may be named later, and only those are asked.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from smollm2 import fetch_model
from snapfit.core.files import read_json, write_json
from snapfit.evals.thinking import Sampling
from snapfit.pipeline.scaling import ScalingOptions, scaling

CACHE = Path.home() / ".cache/snapfit-benchmarks"
RESULTS = Path(__file__).parent / "results"
TASKS = {"piqa_valid": "PIQA", "mmlu_stem": "MMLU-STEM"}
PROBLEMS = 200
CHANCE = {"piqa_valid": 0.5, "mmlu_stem": 0.25}


def ask(args: argparse.Namespace) -> dict[str, Any]:
    """Complete the run and give its summary."""
    options = ScalingOptions(
        tasks=tuple(str(args.data / f"tasks/{name}.jsonl") for name in TASKS),
        sampling=Sampling(budgets=(1,), samples=1),  # nothing is generated
        limit=PROBLEMS,
        batch=args.batch,
        dtype=args.dtype,
    )
    return scaling(
        args.models, args.work / "choices", options, against=str(args.dense or fetch_model(CACHE))
    )


def params(path: str) -> int | None:
    """Parameters of a compressed model, from its own report."""
    file = Path(path) / "report.json"
    return int(read_json(file)["params"]["compressed"]) if file.exists() else None


def rows(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row a model and task."""
    found = []
    for model, entry in summary["models"].items():
        for task in TASKS:
            told = entry["tasks"][task]
            found.append(
                {
                    "model": model,
                    "params": params(summary["settings"]["paths"][model]),
                    "task": task,
                    "problems": told["problems"],
                    "acc": told["accuracy"][0],
                    "acc_norm": told["accuracy_by_length"],
                    "difference": (entry.get("difference") or {}).get(task, [None])[0],
                    "seconds": told["seconds"],
                }
            )
    return found


def broken_claims(found: list[dict[str, Any]]) -> list[str]:
    """What these rows do not bear out."""
    largest_first = sorted(found, key=lambda row: -(row["params"] or math.inf))
    piqa, stem = ([row for row in largest_first if row["task"] == task] for task in TASKS)
    differ = [row for row in found if row["difference"] and not _holds(0.0, row["difference"])]
    gained = [b for a, b in pairwise(piqa) if b["acc"]["value"] > a["acc"]["value"]]
    return [
        *(
            f"{r['model']} is at chance on PIQA"
            for r in piqa
            if r["acc"]["low"] <= CHANCE[r["task"]]
        ),
        *(f"{row['model']} gains on PIQA over a larger model" for row in gained),
        *(
            f"{r['model']} is not at chance on MMLU-STEM"
            for r in stem
            if not _holds(CHANCE[r["task"]], r["acc"])
        ),
        *(f"{row['model']} surely differs from dense on {row['task']}" for row in differ),
    ]


def _holds(value: float, interval: Mapping[str, float]) -> bool:
    return interval["low"] <= value <= interval["high"]


def report(result: Mapping[str, Any]) -> str:
    """The results as Markdown."""
    lines = [
        (
            f"SmolLM2-135M-Instruct, zero-shot, the first {PROBLEMS} problems of each, by "
            f"log-likelihood in {result['dtype']}. 95% intervals over problems; differences are "
            "paired. `acc_norm` divides by the length of a choice; for MMLU's letters it is `acc`."
        ),
        "",
        "| task | model | parameters | acc | acc_norm | acc minus dense | seconds |",
        "|---|---|---|---|---|---|---|",
    ]
    for task, title in TASKS.items():
        for row in result["rows"]:
            if row["task"] == task:
                size = f"{row['params']:,}" if row["params"] else "dense"
                gap = _signed(row["difference"]) if row["difference"] else ""
                lines.append(
                    f"| {title} | {row['model']} | {size} | {_share(row['acc'])} "
                    f"| {_share(row['acc_norm'])} | {gap} | {row['seconds']:.0f} |"
                )
    lines += [""]
    for task, title in TASKS.items():
        above = [
            row["model"]
            for row in result["rows"]
            if row["task"] == task and row["acc"]["low"] > CHANCE[task]
        ]
        shown = ", ".join(above) or "none"
        lines.append(f"- {title}: chance is {CHANCE[task]:.0%}; surely above it: {shown}.")
    return "\n".join(lines) + "\n"


def _share(interval: Mapping[str, float]) -> str:
    return f"{interval['value']:.1%} [{interval['low']:.1%}, {interval['high']:.1%}]"


def _signed(interval: Mapping[str, float]) -> str:
    return f"{interval['value']:+.1%} [{interval['low']:+.1%}, {interval['high']:+.1%}]"


def main() -> None:
    """Ask what was not asked yet, write the table, check the claims."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("models", nargs="+", help="folders of compressed models")
    parser.add_argument("--dense", type=Path, help="folder of SmolLM2; fetched if not given")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--work", type=Path, default=CACHE, help="where the answers are kept")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--batch", type=int, default=16)
    args = parser.parse_args()
    summary = ask(args)
    result = {
        "command": "python benchmarks/choices_smollm2.py FOLDER ...",
        "dtype": args.dtype,
        "rows": rows(summary),
    }
    write_json(args.out / "choices_smollm2.json", result)
    (args.out / "choices_smollm2.md").write_text(report(result), encoding="utf-8")
    print(report(result))
    broken = broken_claims(result["rows"])
    assert not broken, "; ".join(broken)


if __name__ == "__main__":
    main()
