"""SmolLM2-135M unaligned and aligned: does `diagnose` find every misaligned matrix, and no other?

    python benchmarks/diagnose_smollm2.py --model SMOLLM2 --work WORK

Compresses the model twice with kfac at ratio 0.2, without alignment and with the default, and
compares what `diagnose` names with ranks that are read from the weights' header here, by code that
shares nothing with it. Calibration: the WikiText-2 validation text. Times are predicted by the
targets' silicon tables; the alignment is counted.
"""

from __future__ import annotations

import argparse
import json
import struct
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from smollm2 import fetch_model
from snapfit import pipeline
from snapfit.core.options import Options
from snapfit.pipeline.diagnose import diagnose

ROOT = Path(__file__).resolve().parent
CALIBRATION = ROOT.parent.parent / "shared/data/text/wikitext2_valid_tokenised.txt"
PLANS = {"none": "unaligned", "curve": "aligned (the default)"}
TARGETS = {"a100_sxm": 16, "h100_sxm": 8}
"""Targets, and the multiple that each of them wants."""


def misaligned(folder: Path, multiple: int) -> tuple[set[str], int]:
    """(names that break the multiple, matrices) by the header of the weights alone."""
    with (folder / "model.safetensors").open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        header = json.loads(stream.read(length))
    sizes = {}
    for key, entry in header.items():
        name, _, leaf = key.rpartition(".")
        if leaf == "weight" and ".layers." in name and len(entry["shape"]) == 2:
            if name.endswith(".a"):
                sizes[name.removesuffix(".a")] = entry["shape"][:1]
            elif not name.endswith(".b"):
                sizes[name] = entry["shape"]
    broken = {name for name, shape in sizes.items() if any(size % multiple for size in shape)}
    return broken, len(sizes)


def rows(folder: Path, plan: str) -> list[dict[str, Any]]:
    """What `diagnose` says of a checkpoint on every target, beside the count."""
    found = []
    for target, multiple in TARGETS.items():
        counted, matrices = misaligned(folder, multiple)
        said = diagnose(folder, target)
        found.append(
            {
                "plan": plan,
                "target": target,
                "multiple": multiple,
                "matrices": matrices,
                "matrices_diagnosed": said.matrices,
                "misaligned": len(counted),
                "found": len(set(said.misaligned) & counted),
                "wrongly_named": len(set(said.misaligned) - counted),
                "predicted_ms": said.microseconds / 1e3,
                "lost_ms": said.lost / 1e3,
                "lost_share": said.lost / said.microseconds,
                "helps_most": [change.text for change in said.changes[:3]],
            }
        )
    return found


def table(found: Sequence[dict[str, Any]]) -> str:
    """The file, as Markdown."""
    lines = [
        "# SmolLM2-135M-Instruct: what `diagnose` finds",
        "",
        (
            "By `python benchmarks/diagnose_smollm2.py`: kfac at ratio 0.2, prefill of 1,024 "
            "tokens. Misaligned: counted from the header of the weights. Lost: predicted by the "
            "target's silicon table and alignment tiers, not measured."
        ),
        "",
        "| plan | target | multiples of | matrices | misaligned | found | wrongly named | lost |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in found:
        lost = f"{row['lost_ms']:.2f} of {row['predicted_ms']:.2f} ms, {row['lost_share']:.1%}"
        lines.append(
            f"| {PLANS[row['plan']]} | {row['target']} | {row['multiple']} | {row['matrices']} "
            f"| {row['misaligned']} | {row['found']} | {row['wrongly_named']} | {lost} |"
        )
    for row in found:
        if row["helps_most"]:
            lines += ["", f"What would help most, {PLANS[row['plan']]} on {row['target']}:", ""]
            lines += [f"- {text}" for text in row["helps_most"]]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Compress, diagnose, write; fails where `diagnose` and the count differ."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, help="folder of SmolLM2; fetched if not given")
    parser.add_argument("--calib", default=str(CALIBRATION))
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache/snapfit-benchmarks")
    parser.add_argument("--work", type=Path, help="folder of statistics that can be reused")
    parser.add_argument("--out", type=Path, default=ROOT / "results")
    args = parser.parse_args()
    model = args.model or fetch_model(args.cache)
    found: list[dict[str, Any]] = []
    with TemporaryDirectory() as folder:
        for plan in PLANS:
            options = Options(
                method="kfac", objective=plan, ratio=0.2, calib=args.calib,
                work=args.work or args.cache / "work",
            )  # fmt: skip
            pipeline.compress(str(model), Path(folder) / plan, options)
            found += rows(Path(folder) / plan, plan)
    text = table(found)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "diagnose_smollm2.md").write_text(text, encoding="utf-8")
    (args.out / "diagnose_smollm2.json").write_text(json.dumps(found, indent=1) + "\n")
    print(text)
    for row in found:
        assert row["matrices"] == row["matrices_diagnosed"], row
        assert row["found"] == row["misaligned"], row
        assert row["wrongly_named"] == 0, row


if __name__ == "__main__":
    main()
