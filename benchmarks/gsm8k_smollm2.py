"""SmolLM2-135M on 100 GSM8K problems: a model that cannot be judged by them, and is told so.

    python benchmarks/gsm8k_smollm2.py --backend hf    --compressed FOLDER
    python benchmarks/gsm8k_smollm2.py --backend vllm  --compressed FOLDER

Claims: thinking budgets 64 to 512, a base and a compressed model, end within an hour on two cores
by either backend; and the verdict is "not enough samples to say", because the base model itself
solves next to nothing, however well the compressed one compares.

The model is fetched on first use, which needs gguf; the compressed one is made from it by

    snapfit compress MODEL -o FOLDER --method kfac --ratio 0.2 [--format folded] \
        --calib ../shared/data/text/wikitext2_valid_tokenised.txt

For vLLM in an environment of its own, set VLLM_CPU_KVCACHE_SPACE=1, HF_HUB_OFFLINE=1 and
OMP_NUM_THREADS=1, and give the folded format, which holds the same weights multiplied back. A run
that was cut off goes on where it stopped; its time is added up.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from pathlib import Path
from typing import Any

from smollm2 import fetch_model
from snapfit.core.files import read_json, write_json
from snapfit.core.verdict import UNKNOWN
from snapfit.evals.thinking import Sampling
from snapfit.pipeline.scaling import ScalingOptions, scaling

CACHE = Path.home() / ".cache/snapfit-benchmarks"
RESULTS = Path(__file__).parent / "results"
BUDGETS = (64, 128, 256, 512)
SAMPLES = 1
PROBLEMS = 100
HOUR = 3600


def options(args: argparse.Namespace) -> ScalingOptions:
    """What is asked: the same of both backends."""
    return ScalingOptions(
        tasks=(str(args.data / "tasks/gsm8k_test.jsonl"),),
        sampling=Sampling(budgets=BUDGETS, samples=SAMPLES, answer_tokens=24),
        limit=PROBLEMS,
        backend=args.backend,
        batch=16,
        dtype="bfloat16",
    )


def timed(args: argparse.Namespace) -> tuple[dict[str, Any], float]:
    """The summary of the run, and the seconds that it took over all its starts."""
    folder = args.work / f"gsm8k-{args.backend}"
    clock = folder / "seconds.json"
    before = read_json(clock) if clock.exists() else 0.0
    began = time.perf_counter()
    try:
        summary = scaling(args.compressed, folder, options(args), against=str(args.model))
    finally:
        spent = before + time.perf_counter() - began
        folder.mkdir(parents=True, exist_ok=True)
        write_json(clock, spent)
    return summary, spent


def row_of(summary: dict[str, Any], seconds: float) -> dict[str, Any]:
    """What is kept of a run."""
    models = {}
    for model, entry in summary["models"].items():
        found = entry["tasks"]["gsm8k_test"]
        verdict = entry.get("verdict")
        keep = ("accuracy", "thinking_tokens", "truncated", "no_answer", "repeated_ngrams")
        models[model] = {
            **{key: found[key] for key in (*keep, "tokens")},
            "verdict": verdict["label"] if verdict else None,
            "reasons": list(verdict["reasons"]) if verdict else [],
        }
    return {
        "seconds": round(seconds, 1),
        "delimiters": summary["settings"]["delimiters"],
        "dtype": summary["settings"]["dtype"],
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} CPUs, "
        f"load average {os.getloadavg()[0]:.1f}, "
        f"OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS', 'unset')}",
        "models": models,
    }


def report(rows: dict[str, Any]) -> str:
    """The results as Markdown."""
    lines = [
        (
            f"SmolLM2-135M-Instruct, the first {PROBLEMS} GSM8K problems, {SAMPLES} sample each at "
            "temperature 1, bfloat16. 95% intervals over problems."
        ),
        "",
        "| backend | model | " + " | ".join(f"budget {budget}" for budget in BUDGETS) + " | cut at "
        f"{BUDGETS[-1]} | no answer at {BUDGETS[-1]} | verdict |",
        "|---|---|" + "---|" * (len(BUDGETS) + 3),
    ]
    for backend, row in rows.items():
        for model, found in row["models"].items():
            cells = [
                f"{a['value']:.1%} [{a['low']:.1%}, {a['high']:.1%}]" for a in found["accuracy"]
            ]
            lines.append(
                f"| {backend} | {model} | {' | '.join(cells)} | {found['truncated'][-1]:.0%} "
                f"| {found['no_answer'][-1]:.0%} | {found['verdict'] or 'is the base'} |"
            )
    for backend, row in rows.items():
        tokens = sum(found["tokens"] for found in row["models"].values())
        lines += [
            "",
            (
                f"{backend}: {row['seconds'] / 60:.1f} minutes for {tokens} generated tokens, "
                f"start of the backend included; {row['machine']}."
            ),
        ]
        lines += [
            f"- {model}: {reason}"
            for model, found in row["models"].items()
            for reason in found["reasons"]
        ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run, or go on with, one backend; write the tables of all that were run; check the claims."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--backend", choices=("hf", "vllm"), required=True)
    parser.add_argument("--model", type=Path, help="folder of SmolLM2; fetched if not given")
    parser.add_argument("--compressed", action="append", default=[], help="a compressed model")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--work", type=Path, default=CACHE, help="where the generations are kept")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    args.model = args.model or fetch_model(CACHE)
    summary, seconds = timed(args)
    if not args.compressed:
        print("the base model is done; a verdict needs --compressed")
        return
    file = args.out / "gsm8k_smollm2.json"
    rows = json.loads(file.read_text()) if file.exists() else {}
    rows[args.backend] = row_of(summary, seconds)
    write_json(file, rows)
    (args.out / "gsm8k_smollm2.md").write_text(report(rows))
    print(report({args.backend: rows[args.backend]}))
    labels = {found["verdict"] for found in rows[args.backend]["models"].values()} - {None}
    assert labels == {UNKNOWN}, f"a model this small was judged after all: {labels}"
    assert seconds < HOUR, f"it took {seconds:.0f} s"


if __name__ == "__main__":
    main()
