"""Time and peak memory of a whole compression of SmolLM2-135M, by stage; then a second ratio.

    python benchmarks/whole_job.py --data ../shared/data/text --out benchmarks/results

Every job is a fresh process in an empty work folder. The second ratio reuses the first one's
folder: what is left is reading the curves, planning and slicing. Times are of one run on the
machine at hand, whose load average is recorded with them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from smollm2 import fetch_model

CALIB_TOKENS = 24_576


def job(
    model: Path, output: Path, work: Path, args: argparse.Namespace, *more: str
) -> dict[str, Any]:
    """Run the command line; the report with the process's own peak memory and wall time."""
    command = [sys.executable, "-m", "snapfit", "compress", str(model), "-o", str(output)]
    command += ["--work", str(work), "--calib", str(args.data / "wikitext2_valid_tokenised.txt")]
    command += ["--calib-tokens", str(args.calib_tokens), "--json", *more]
    timed = [sys.executable, "-c", _TIMED, *command]
    done = subprocess.run(timed, check=True, capture_output=True, text=True)
    outer = json.loads(done.stderr.splitlines()[-1])
    report = json.loads(done.stdout)
    return {
        "arguments": list(more),
        "wall_seconds": outer["seconds"],
        "peak_bytes": outer["peak_bytes"],
        "stages": report["stages"],
        "load_average": os.getloadavg()[0],
    }


_TIMED = """
import json, resource, subprocess, sys, time
start = time.monotonic()
code = subprocess.run(sys.argv[1:], stderr=subprocess.DEVNULL).returncode
peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
print(json.dumps({"seconds": time.monotonic() - start, "peak_bytes": peak}), file=sys.stderr)
sys.exit(code)
"""


def table(rows: list[dict[str, Any]], checkpoint: int) -> str:
    """The results as Markdown."""
    stages = ("tokens", "statistics", "order", "plan", "slice")
    lines = [
        f"| job | {' | '.join(f'{s} s' for s in stages)} | wall s | peak MB | of checkpoint |",
        "|---|" + "---|" * (len(stages) + 3),
    ]
    for row in rows:
        seconds = [
            f"{row['stages'][s]['seconds']:.2f}" if s in row["stages"] else "" for s in stages
        ]
        lines.append(
            f"| {' '.join(row['arguments'])} | {' | '.join(seconds)} | {row['wall_seconds']:.1f} "
            f"| {row['peak_bytes'] / 1e6:.0f} | {row['peak_bytes'] / checkpoint:.2f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure and write `whole_job.json` and `whole_job.md`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the WikiText-2 files")
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache/snapfit-benchmarks")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--calib-tokens", type=int, default=CALIB_TOKENS)
    parser.add_argument("--methods", default="svd-llm,kfac")
    args = parser.parse_args()
    model = fetch_model(args.cache)
    checkpoint = (model / "model.safetensors").stat().st_size
    rows = []
    for method in args.methods.split(","):
        # svd-llm as published needs no gradients, so no curve that could be added in nats.
        objective = "none" if method == "svd-llm" else "curve"
        with tempfile.TemporaryDirectory(dir=args.cache) as folder:
            for ratio in ("0.2", "0.3"):
                options = ("--method", method, "--objective", objective, "--ratio", ratio)
                rows.append(job(model, Path(folder) / ratio, Path(folder) / "work", args, *options))
                print(table(rows[-1:], checkpoint).splitlines()[-1], flush=True)
    facts = {"machine": platform.processor() or platform.machine(), "cpus": os.cpu_count()}
    args.out.mkdir(parents=True, exist_ok=True)
    result = {**facts, "checkpoint_bytes": checkpoint, "jobs": rows}
    (args.out / "whole_job.json").write_text(json.dumps(result, indent=1) + "\n")
    (args.out / "whole_job.md").write_text(
        f"SmolLM2-135M in float32 ({checkpoint / 1e6:.0f} MB), {args.calib_tokens} calibration "
        f"tokens, {facts['cpus']} CPUs\n\n{table(rows, checkpoint)}\n"
    )


if __name__ == "__main__":
    main()
