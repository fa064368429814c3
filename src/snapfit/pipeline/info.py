"""What is known of a model, a compressed checkpoint or a plan, without loading weights."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from snapfit.checkpoint.format import read_format
from snapfit.checkpoint.standalone import KEY
from snapfit.core.errors import CorruptFile
from snapfit.core.files import read_json
from snapfit.core.layout import ModuleLayout
from snapfit.core.plan import Plan, alignment
from snapfit.models.describe import describe, open_model

QUANT_METHOD = "snapfit"


def info(path: str | Path, *, trust_remote_code: bool = False) -> dict[str, Any]:
    """Facts about a model folder, hub name, compressed folder or `plan.json`.

    Raises:
        SnapfitError: it is none of these, or it is damaged.
    """
    file = Path(path)
    if file.is_file():
        return _plan_facts(Plan.from_json(read_json(file)))
    if (file / "config.json").is_file():
        config = read_json(file / "config.json")
        ours = _structure(config) if isinstance(config, dict) else None
        if ours is not None:
            return _compressed_facts(file, config, ours)
    source = open_model(path, trust_remote_code=trust_remote_code)
    space = describe(source, name=str(path)).of_kind("rank")
    return {
        "kind": "model",
        "architecture": source.architecture,
        "dtype": str(source.dtype).removeprefix("torch."),
        "revision": source.revision,
        "layers": len({group.layer for group in space.groups}),
        "params": space.total_params,
        "linear_params": space.dense_params,
        "groups": dict(Counter(group.role for group in space.groups)),
        "alignment": {f"mod{n}": alignment(space, {}, n) for n in (8, 16)},
        "kv_elements_per_token": space.kv_elements,
    }


def _plan_facts(plan: Plan) -> dict[str, Any]:
    return {
        "kind": "plan",
        "model": plan.model,
        "revision": plan.revision,
        "architecture": plan.architecture,
        "method": plan.method,
        "objective": plan.objective,
        "budget": dict(plan.budget),
        "predicted": dict(plan.predicted),
        "groups": len(plan.sizes),
        "rules": [f"{rule.axis} % {rule.multiple} ({rule.source})" for rule in plan.rules],
        "seed": plan.seed,
        "version": plan.version,
        "digest": plan.digest,
    }


def _structure(config: dict[str, Any]) -> dict[str, Any] | None:
    """What a 'factored' or 'standalone' checkpoint says of its modules; None for any other."""
    described = config.get("quantization_config", config.get(KEY))
    if isinstance(described, dict) and described.get("quant_method") == QUANT_METHOD:
        return described
    return None


def _compressed_facts(
    folder: Path, config: dict[str, Any], structure: dict[str, Any]
) -> dict[str, Any]:
    modules = read_format(structure).modules
    layouts = {name: part for name, part in modules.items() if part.ranks}
    report = folder / "report.json"
    found = read_json(report) if report.is_file() else {}
    if not isinstance(found, dict):
        raise CorruptFile(f"{report} is no table, so it is no report; copy the folder again")
    facts = {
        "kind": "compressed model",
        "architecture": config.get("model_type"),
        "dtype": config.get("dtype"),
        "factored_modules": len(layouts),
        "ranks": _ranks(layouts),
        **{
            key: found[key]
            for key in ("method", "objective", "params", "ratio", "alignment", "perplexity")
            if key in found
        },
    }
    try:
        json.dumps(facts, allow_nan=False)
    except ValueError as error:
        raise CorruptFile(f"{report} has a figure that is not finite; copy it again") from error
    return facts


def _ranks(layouts: dict[str, ModuleLayout]) -> dict[str, str]:
    """Smallest and largest rank by the last part of the modules' names."""
    ranks: dict[str, list[int]] = {}
    for name, layout in layouts.items():
        ranks.setdefault(name.rpartition(".")[2], []).extend(layout.ranks)
    return {leaf: f"{min(found)}..{max(found)}" for leaf, found in ranks.items()}
