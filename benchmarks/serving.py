"""What vLLM makes of compressed checkpoints: the same tokens, and how fast beside the dense model.

    python benchmarks/serving.py BASE DIR [DIR ...] [--parity DIR ...] [--output results/serving]

Every DIR is compared with transformers token for token and timed in pairs with BASE, whose engine
starts once; those after --parity are compared only. Run it where vLLM is installed. Writes a
Markdown table and a JSON file.
"""

from __future__ import annotations

import argparse
import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from snapfit.checkpoint.load import load, load_tokenizer
from snapfit.core.errors import SnapfitError
from snapfit.core.files import write_json
from snapfit.core.workload import Workload
from snapfit.evals.serving import TIES, TOKENS, Parity, compare, encode_prompts
from snapfit.evals.serving_engines import TransformersEngine, VllmEngine
from snapfit.evals.serving_time import PhaseTime, measure, summary
from snapfit.pipeline.foretell import foretell

WORKLOAD = "prefill:1x256,decode:8x64"
OUTPUT = Path(__file__).parent / "results" / "serving"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One checkpoint."""

    name: str
    parity: Parity | None
    times: tuple[PhaseTime, ...]
    resident: int | None
    files: int
    predicted: dict[str, Any] | None
    refused: str | None = None

    def to_json(self) -> dict[str, Any]:
        """A JSON-serialisable dictionary."""
        return {
            "name": self.name,
            "parity": None if self.parity is None else self.parity.to_json(),
            "refused": self.refused,
            "times": [time.to_json() for time in self.times],
            "resident_bytes": self.resident,
            "weight_bytes": self.files,
            "predicted": self.predicted,
        }


def engine(folder: Path, workload: Workload, dtype: str) -> VllmEngine:
    """A vLLM engine with room for the workload and the prompts."""
    return VllmEngine(
        folder,
        dtype=dtype,
        max_model_len=max(256, *(phase.tokens + 64 for phase in workload.phases)),
        max_tokens=max(phase.batch * phase.tokens for phase in workload.phases),
        trust_remote_code=True,
    )


def examine(
    folder: Path,
    dense: VllmEngine | None,
    workload: Workload,
    dtype: str,
    pairs: int,
    predicted: dict[str, Any] | None,
) -> Row:
    """Compare and, beside a dense engine, time one checkpoint."""
    prompts = encode_prompts(load_tokenizer(folder))
    reference = TransformersEngine(load(folder, dtype=torch.float32, trust_remote_code=True))
    files = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    try:
        served = engine(folder, workload, dtype)
    except SnapfitError as error:
        return Row(
            name=folder.name,
            parity=None,
            times=(),
            resident=None,
            files=files,
            predicted=predicted,
            refused=str(error).removeprefix(str(folder)).strip(),
        )
    try:
        found = served.answers(prompts, TOKENS)
        parity = compare(reference.logits, prompts, found, TIES[dtype])
        reference.close()
        times = () if dense is None else measure(workload, served, dense, pairs=pairs)
        return Row(
            name=folder.name,
            parity=parity,
            times=times,
            resident=served.resident,
            files=files,
            predicted=predicted,
        )
    finally:
        served.close()


def spread(ratios: tuple[float, ...]) -> str:
    """Median, lowest and highest."""
    found = summary(ratios)
    return f"{found['median']:.3f} ({found['lowest']:.3f}-{found['highest']:.3f})"


def table(rows: list[Row]) -> list[str]:
    """Lines of Markdown."""
    phases = next((row.times for row in rows if row.times), ())
    names = [f"{time.phase}, time / dense" for time in phases]
    head = ["checkpoint", "equal prompts", *names, "prefill ms", "decode tok/s", "predicted"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for row in rows:
        if row.parity is None:
            cells = [row.name, f"refused: {row.refused}", *["-"] * (len(head) - 2)]
            lines.append(f"| {' | '.join(cells)} |")
            continue
        ties = len(row.parity.divergences) - len(row.parity.wrong)
        wrong = f", {len(row.parity.wrong)} WRONG" if row.parity.wrong else ""
        same = f"{row.parity.equal} of {row.parity.prompts}" + (f", {ties} ties" if ties else "")
        cells = [row.name, same + wrong]
        cells += [spread(time.ratios) for time in row.times] or ["-"] * len(names)
        speeds = {time.phase.kind: time for time in row.times}
        prefill, decode = speeds.get("prefill"), speeds.get("decode")
        cells.append("-" if prefill is None else f"{1000 * prefill.median:.0f}")
        cells.append("-" if decode is None else f"{decode.tokens_per_second:.0f}")
        shares = row.predicted["phases"].values() if row.predicted else ()
        cells.append(", ".join(f"{share:.3f}" for share in shares) or "-")
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def main() -> None:
    """Examine every checkpoint that the command names; write what is known after each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("base", type=Path)
    parser.add_argument("folders", type=Path, nargs="*")
    parser.add_argument("--parity", type=Path, nargs="*", default=[])
    parser.add_argument("--workload", default=WORKLOAD)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--target", help="predict the times there, e.g. cpu")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    asked = parser.parse_args()
    workload = Workload.parse(asked.workload)
    rows: list[Row] = []
    about = {
        "base": asked.base.name,
        "workload": asked.workload,
        "dtype": asked.dtype,
        "pairs": asked.pairs,
        "target": asked.target,
        "cpu": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": os.environ.get("OMP_NUM_THREADS"),
    }

    def note(row: Row) -> None:
        rows.append(row)
        print(*table([row])[2:], sep="\n", flush=True)
        data = {"settings": about, "rows": [row.to_json() for row in rows]}
        write_json(asked.output.with_suffix(".json"), data)
        text = "\n".join([heading(about), *table(rows), ""])
        asked.output.with_suffix(".md").write_text(text, encoding="utf-8")

    if asked.folders:
        known = {}
        if asked.target:  # before an engine takes memory and a core
            for folder in asked.folders:
                known[folder] = foretell(folder, asked.base, asked.target, workload)
        dense = engine(asked.base, workload, asked.dtype)
        try:
            for folder in asked.folders:
                found = known.get(folder)
                note(examine(folder, dense, workload, asked.dtype, asked.pairs, found))
        finally:
            dense.close()
    for folder in asked.parity:
        note(examine(folder, None, workload, asked.dtype, asked.pairs, None))


def heading(about: dict[str, Any]) -> str:
    """What the table below it shows."""
    text = (
        f"# {about['base']}, compressed, in vLLM\n\n"
        "Greedy tokens beside transformers in float32 on 16 prompts of 64 tokens. Times are "
        f"measured, medians of {about['pairs']} paired, interleaved runs (lowest-highest) of "
        f"`{about['workload']}` in {about['dtype']}; below 1 is faster than the dense model. "
        f"{about['cores']} cores, OMP_NUM_THREADS {about['threads'] or 'not set'}."
    )
    if about["target"] is not None:
        text += (
            " Predicted: the same ratios, a phase at a time, by the operators' own times on "
            f"{about['target']}."
        )
    return f"{text}\n"


if __name__ == "__main__":
    main()
