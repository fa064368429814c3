"""From a plan to a checkpoint: slice, measure, report. The output exists whole or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from snapfit.checkpoint.card import write_card
from snapfit.checkpoint.formats import save
from snapfit.checkpoint.load import load, load_tokenizer
from snapfit.checkpoint.save import check_saveable
from snapfit.checkpoint.writer import Written
from snapfit.core.cost import CostModel
from snapfit.core.errors import SnapfitError, UsageError
from snapfit.core.files import (
    atomic_directory,
    digest_files,
    put_in_place,
    read_kept,
    write_json,
)
from snapfit.core.plan import Plan, alignment
from snapfit.core.report import Metric, Plain, Report, environment
from snapfit.evals.perplexity import cut_windows, encode, perplexity, read_text
from snapfit.models.describe import empty_model
from snapfit.pipeline.check import PAGE, require, run_check
from snapfit.pipeline.job import Job
from snapfit.pipeline.refit import refit
from snapfit.pipeline.stages import StageProgress
from snapfit.pipeline.structure import blueprint_of, factors_of, format_of
from snapfit.viz.html import write_report

UNCHECKED, FAILED = ".unchecked", ".failed"
"""What the name of an output ends in before it is judged, and after it is found wanting."""


def check_end(job: Job) -> None:
    """Fail before anything that takes long where the model could not be saved or judged.

    Raises:
        SnapfitError: the model is made by code that a checkpoint would have to carry; or the text
            cannot be read, or is too short for the windows that were asked.
        UsageError: a check would have to run code that is not trusted.

    """
    options = job.options
    check_saveable(job.skeleton)
    if options.checks and options.format == "decilm" and not options.trust_remote_code:
        raise UsageError(
            "to check a model in --format decilm, the code beside its weights has to run: pass "
            "--trust-remote-code too"
        )
    if options.eval_text is not None:
        prefix, ids = encode(_tokenizer(job), read_text(options.eval_text))
        cut_windows(
            prefix,
            ids,
            context=options.eval_context,
            windows=options.eval_windows,
            source=str(options.eval_text),
        )


def realise(job: Job, plan: Plan, output: Path) -> dict[str, Any]:
    """Write the compressed checkpoint with its plan, report and model card.

    Returns:
        The content of `report.json`.

    Raises:
        SnapfitError: the disk is full, a file of the work folder is damaged, what was asked to
            be measured cannot be, or what was required does not hold: then the checkpoint is kept
            beside `output`, and its name and a file in it say so.
    """
    if not job.options.checks:
        with atomic_directory(output, overwrite=job.options.overwrite) as folder:
            entries = {**_written(job, plan, folder), **_spent(job)}
            return _documented(job, plan, folder, entries, name=output.name)
    unchecked = output.with_name(output.name + UNCHECKED)
    with atomic_directory(unchecked, overwrite=True) as folder:
        entries = _written(job, plan, folder)
        _documented(job, plan, folder, entries, name=output.name)
    entries |= _reasoning(job, plan, unchecked)
    missed = require(job.options.require, entries) if job.options.require else None
    report = _documented(job, plan, unchecked, {**entries, **_spent(job)}, name=output.name)
    if missed is None:
        put_in_place(unchecked, output)
        return report
    failed = output.with_name(output.name + FAILED)
    (unchecked / "FAILED.txt").write_text(missed + "\n", encoding="utf-8")
    put_in_place(unchecked, failed)
    raise SnapfitError(f"{missed}; the model is kept in {failed}")


def _written(job: Job, plan: Plan, folder: Path) -> dict[str, Metric | Plain]:
    """Write the checkpoint; everything about it that can be counted, predicted or measured."""
    blueprint = blueprint_of(job, plan)
    pairs = refit(job, plan) if plan.recipe.get("refit") else job.factors
    with job.clock("slice"):
        written = save(
            folder,
            source=job.source,
            # A fresh one: streaming has taken the tied weights of `job.skeleton` apart.
            model=empty_model(job.source),
            reader=job.reader,
            blueprint=blueprint,
            factors=factors_of(job, plan, blueprint, pairs),
            format_name=format_of(plan),
            step=partial(StageProgress(job.progress), "slice"),
        )
    return {**_counted(job, plan, written), **_perplexities(job, folder)}


def _documented(
    job: Job, plan: Plan, folder: Path, entries: Mapping[str, Metric | Plain], *, name: str
) -> dict[str, Any]:
    """Write plan, report, page and card; the report."""
    report = Report(entries=entries, environment=environment()).to_json()
    write_json(folder / "plan.json", plan.to_json())
    write_json(folder / "report.json", report)
    write_report(
        folder / "report.html",
        report=report,
        plan=plan,
        space=job.space,
        curves=job.curves,
        warnings=job.notes,
    )
    structure = blueprint_of(job, plan).structure
    write_card(
        folder,
        name=name,
        plan=plan,
        report=report,
        structure=structure,
        format_name=format_of(plan),
    )
    return report


def _reasoning(job: Job, plan: Plan, folder: Path) -> dict[str, Metric | Plain]:
    """Ask both models to reason; what was generated stays in the work folder."""
    depends = {
        "plan": plan.digest,
        "format": format_of(plan),
        "weights": digest_files(sorted(folder.glob("*.safetensors"))),
        "at": str(folder.resolve()),
    }
    kept = job.workspace.folder("check", depends)
    with job.clock("check"):
        entries = run_check(
            folder,
            job.source.path,
            kept,
            seed=job.options.seed,
            trust_remote_code=job.options.trust_remote_code,
            progress=job.progress,
        )
    if (kept / PAGE).exists():
        shutil.copyfile(kept / PAGE, folder / PAGE)
    return entries


def _counted(job: Job, plan: Plan, written: Written) -> dict[str, Metric | Plain]:
    """Figures that need no running model."""
    space, sizes = job.space, dict(plan.sizes)
    if format_of(plan) == "folded":
        # The factors are multiplied back: the checkpoint is as large as if they had stayed dense.
        sizes |= {group.name: group.full for group in space.groups if group.kind == "rank"}
    cost = CostModel(space=space, dtype_bytes=job.source.dtype.itemsize, whole=job.whole)
    removed = space.dense_params - space.params(sizes)
    calibrated = job.calibrated or bool(plan.recipe.get("refit"))
    entries: dict[str, Metric | Plain] = {
        "model": plan.model,
        "method": plan.method,
        "objective": plan.objective,
        "format": format_of(plan),
        "calibration.source": job.options.calib if calibrated else None,
        "calibration.tokens": job.tokens.used if calibrated else 0,
        "calibration.truncated": job.tokens.truncated if calibrated else 0,
        "params.dense": space.total_params,
        "params.compressed": written.params,
        "params.budget": int(plan.budget["params"]) + space.total_params - space.dense_params,
        "ratio.linear": removed / space.dense_params,
        "ratio.model": (space.total_params - written.params) / space.total_params,
        "alignment.mod8": alignment(space, sizes, 8),
        "alignment.mod16": alignment(space, sizes, 16),
        "bytes.dense": cost.weight_bytes({}),
        "bytes.compressed": written.bytes,
        "flops_per_token.dense": cost.flops_per_token({}),
        "flops_per_token.compressed": cost.flops_per_token(sizes),
        "kv_bytes_per_token.dense": cost.kv_bytes_per_token(),
        "kv_bytes_per_token.compressed": cost.kv_bytes_per_token(sizes),
    }
    return entries | _foretold(plan)


def _foretold(plan: Plan) -> dict[str, Metric | Plain]:
    """What the plan predicts, said to be predicted."""
    known: Mapping[str, Any] = plan.predicted
    entries: dict[str, Metric | Plain] = {}
    if (loss := known.get("loss")) is not None:
        unit = str(known.get("unit") or "")
        entries["loss.predicted"] = Metric(value=float(loss), unit=unit, kind="predicted")
    if "latency.us" in known:
        about = {key: known[f"latency.{key}"] for key in ("device", "workload", "spread")}
        for name, key in (("dense", "dense_us"), ("compressed", "us")):
            entries[f"latency.{name}"] = Metric(
                value=float(known[f"latency.{key}"]), unit="us", kind="predicted", settings=about
            )
    return entries


def _perplexities(job: Job, folder: Path) -> dict[str, Metric | Plain]:
    """Of both models on the same windows; the dense model's is measured once and kept."""
    options = job.options
    if options.eval_text is None:
        return {}
    text, tokenizer = read_text(options.eval_text), _tokenizer(job)

    def measure(path: Path, *, trust: bool = options.trust_remote_code) -> Metric:
        with job.clock("evaluate"):
            return perplexity(
                load(path, dtype=torch.float32, trust_remote_code=trust),
                tokenizer,
                text,
                context=options.eval_context,
                windows=options.eval_windows,
                source=str(options.eval_text),
                progress=job.progress,
            )

    depends = {
        "revision": job.source.revision,
        "text": digest_files([options.eval_text]),
        "context": options.eval_context,
        "windows": options.eval_windows,
    }
    kept = job.workspace.folder("evaluate", depends) / "dense.json"
    if not kept.exists():
        write_json(kept, asdict(measure(job.source.path)))
    return {
        "perplexity.dense": read_kept(kept, lambda found: Metric(**found)),
        # Any code that lies there was written by snapfit a moment ago.
        "perplexity.compressed": measure(folder, trust=True),
    }


def _tokenizer(job: Job) -> Any:
    return load_tokenizer(job.source.path, trust_remote_code=job.options.trust_remote_code)


def _spent(job: Job) -> dict[str, Metric | Plain]:
    """Seconds of every stage that ran, and the process's peak memory at its end."""
    spent: dict[str, Metric | Plain] = {}
    for stage, seconds in job.clock.seconds.items():
        spent[f"stages.{stage}.seconds"] = Metric(value=seconds, unit="s", kind="measured")
        if stage in job.clock.peak_bytes:
            spent[f"stages.{stage}.peak_bytes"] = job.clock.peak_bytes[stage]
    return spent
