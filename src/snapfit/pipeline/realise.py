"""From a plan to a checkpoint: slice, measure, report. The output exists whole or not at all."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from snapfit.checkpoint.card import write_card
from snapfit.checkpoint.formats import save
from snapfit.checkpoint.load import load, load_tokenizer
from snapfit.core.cost import CostModel
from snapfit.core.files import atomic_directory, digest_files, read_json, write_json
from snapfit.core.plan import Plan, alignment
from snapfit.core.report import Metric, Plain, Report, environment
from snapfit.evals.perplexity import perplexity, read_text
from snapfit.models.describe import empty_model
from snapfit.pipeline.job import Job
from snapfit.pipeline.refit import refit
from snapfit.pipeline.structure import blueprint_of, factors_of, format_of
from snapfit.viz.html import write_report


def realise(job: Job, plan: Plan, output: Path) -> dict[str, Any]:
    """Write the compressed checkpoint with its plan, report and model card.

    Raises:
        SnapfitError: the disk is full, a file of the work folder is damaged, or what was asked to
            be measured cannot be.
    """
    blueprint, format_name = blueprint_of(job, plan), format_of(plan)
    pairs = refit(job, plan) if plan.recipe.get("refit") else job.store.factors
    with atomic_directory(output, overwrite=job.options.overwrite) as folder:
        job.progress.stage("slice", len(blueprint.structure.modules))
        with job.clock("slice"):
            save(
                folder,
                source=job.source,
                # A fresh one: streaming has taken the tied weights of `job.skeleton` apart.
                model=empty_model(job.source),
                reader=job.reader,
                blueprint=blueprint,
                factors=factors_of(job, plan, blueprint, pairs),
                format_name=format_name,
            )
        entries = {**_counted(job, plan), **_perplexities(job, folder)}
        report = Report(entries={**entries, **_spent(job)}, environment=environment()).to_json()
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
        write_card(
            folder,
            name=output.name,
            plan=plan,
            report=report,
            structure=blueprint.structure,
            format_name=format_name,
        )
    return {**report, "output": str(output)}


def _counted(job: Job, plan: Plan) -> dict[str, Metric | Plain]:
    """Figures that need no running model."""
    space, sizes = job.space, dict(plan.sizes)
    cost = CostModel(space=space, dtype_bytes=job.source.dtype.itemsize)
    kept = space.params(sizes)
    unit = str(plan.predicted.get("unit") or "")
    calibrated = bool(job.needs or plan.recipe.get("refit"))
    loss = plan.predicted.get("loss")
    entries: dict[str, Metric | Plain] = {
        "model": plan.model,
        "method": plan.method,
        "objective": plan.objective,
        "calibration.source": job.options.calib if calibrated else None,
        "calibration.tokens": job.tokens.used if calibrated else 0,
        "calibration.truncated": job.tokens.truncated if calibrated else 0,
        "params.dense": space.total_params,
        "params.compressed": cost.params(sizes),
        "params.budget": int(plan.budget["params"]) + space.total_params - space.dense_params,
        "ratio.linear": (space.dense_params - kept) / space.dense_params,
        "ratio.model": (space.dense_params - kept) / space.total_params,
        "alignment.mod8": alignment(space, sizes, 8),
        "alignment.mod16": alignment(space, sizes, 16),
        "bytes.dense": cost.weight_bytes({}),
        "bytes.compressed": cost.weight_bytes(sizes),
        "flops_per_token.dense": cost.flops_per_token({}),
        "flops_per_token.compressed": cost.flops_per_token(sizes),
        "kv_bytes_per_token": cost.kv_bytes_per_token(),
        "loss.predicted": None
        if loss is None
        else Metric(value=float(loss), unit=unit, kind="predicted"),
    }
    return entries


def _perplexities(job: Job, folder: Path) -> dict[str, Metric | Plain]:
    """Of both models on the same windows; the dense model's is measured once and kept."""
    options = job.options
    if options.eval_text is None:
        return {}
    text = read_text(options.eval_text)
    tokenizer = load_tokenizer(job.source.path)

    def measure(path: Path) -> Metric:
        with job.clock("evaluate"):
            return perplexity(
                load(path, dtype=torch.float32),
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
        "perplexity.dense": Metric(**read_json(kept)),
        "perplexity.compressed": measure(folder),
    }


def _spent(job: Job) -> dict[str, Metric | Plain]:
    """Seconds of every stage that ran, and the process's peak memory at its end."""
    spent: dict[str, Metric | Plain] = {}
    for stage, seconds in job.clock.seconds.items():
        spent[f"stages.{stage}.seconds"] = Metric(value=seconds, unit="s", kind="measured")
        if stage in job.clock.peak_bytes:
            spent[f"stages.{stage}.peak_bytes"] = job.clock.peak_bytes[stage]
    return spent
