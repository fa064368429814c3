"""What is known of a model, a compressed checkpoint or a plan, without loading weights."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from snapfit.checkpoint.format import read_format
from snapfit.core.errors import SnapfitError
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
        quantization = config.get("quantization_config") if isinstance(config, dict) else None
        if isinstance(quantization, dict) and quantization.get("quant_method") == QUANT_METHOD:
            return _compressed_facts(file, config)
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


def _compressed_facts(folder: Path, config: dict[str, Any]) -> dict[str, Any]:
    structure = read_format(config["quantization_config"])
    layouts = {name: part for name, part in structure.modules.items() if part.ranks}
    if not structure.changed and not structure.layers:
        raise SnapfitError(f"{folder} says that snapfit made it but lists no changed module")
    report = folder / "report.json"
    found = read_json(report) if report.is_file() else {}
    return {
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


def _ranks(layouts: dict[str, ModuleLayout]) -> dict[str, str]:
    """Smallest and largest rank by the last part of the modules' names."""
    ranks: dict[str, list[int]] = {}
    for name, layout in layouts.items():
        ranks.setdefault(name.rpartition(".")[2], []).extend(layout.ranks)
    return {leaf: f"{min(found)}..{max(found)}" for leaf, found in ranks.items()}
