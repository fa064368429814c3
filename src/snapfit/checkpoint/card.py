"""The model card: what was done, to what, with which figures, and how to load the result."""

from __future__ import annotations

import importlib.resources
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jinja2

from snapfit.core.plan import Plan
from snapfit.core.structure import Structure

CARD = "README.md"
TEMPLATE = "card.md"
ROWS = (
    ("params.dense", "parameters before"),
    ("params.compressed", "parameters after"),
    ("ratio.linear", "share of compressible parameters removed"),
    ("ratio.model", "share of all parameters removed"),
    ("alignment.mod8", "changed sizes that are multiples of 8"),
    ("alignment.mod16", "changed sizes that are multiples of 16"),
    ("loss.predicted", "increase of the loss"),
    ("perplexity.dense", "perplexity before"),
    ("perplexity.compressed", "perplexity after"),
)
SHARES = ("ratio.", "alignment.")
_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w.-]*[\w-]")
_SAFE = re.compile(r"[^\w .,:+%/()-]")


FORMATS = {
    "factored": "It loads in transformers and vLLM where snapfit is installed",
    "standalone": "It carries the code that loads it",
    "stock": "It is a plain transformers checkpoint",
    "folded": "The factors are multiplied back, so they make it neither smaller nor faster: a "
    "plain transformers checkpoint to measure quality with",
    "decilm": "It is in the format of NVIDIA's DeciLM models, which vLLM reads natively",
}
"""What each format means to whoever loads it, without the full stop."""


def write_card(
    folder: Path,
    *,
    name: str,
    plan: Plan,
    report: Mapping[str, Any],
    structure: Structure,
    format_name: str = "factored",
) -> None:
    """Write `README.md` into a folder that holds a checkpoint; see `model_card`."""
    text = model_card(name, plan=plan, report=report, structure=structure, format_name=format_name)
    (folder / CARD).write_text(text, encoding="utf-8")


def model_card(
    name: str,
    *,
    plan: Plan,
    report: Mapping[str, Any],
    structure: Structure,
    format_name: str = "factored",
) -> str:
    """Markdown with the front matter that the Hugging Face hub reads.

    Args:
        name: of the compressed model, normally its folder's.
        plan: what was decided.
        report: the content of `report.json`; figures it lacks are left out.
        structure: of the compressed model.
        format_name: one of `core.formats.Format`.

    """
    on_hub = _HUB_NAME.fullmatch(plan.model) is not None and not Path(plan.model).exists()
    # A local path says nothing to a reader, and tells them about its author's disk.
    base = plan.model if on_hub else Path(plan.model).name
    template = importlib.resources.files("snapfit.checkpoint").joinpath(TEMPLATE)
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # noqa: S701 - markdown; what strangers wrote goes through _plain
    )
    return environment.from_string(template.read_text(encoding="utf-8")).render(
        base=_plain(base),
        changes=_changes(structure),
        format=format_name,
        format_text=FORMATS[format_name],
        low_rank=structure.ranks,
        base_model=json.dumps(base) if on_hub else None,
        figures=list(_figures(report)),
        reasoning=_reasoning(report),
        method=plan.method,
        objective=plan.objective,
        rules=[
            f"multiples of {rule.multiple} along {rule.axis} ({_plain(rule.source)})"
            for rule in plan.rules
        ],
        title=_plain(name),
        version=_plain(plan.version),
    )


def _reasoning(report: Mapping[str, Any]) -> str | None:
    """The verdict of the check and its reasons; None where there was no check."""
    found = report.get("reasoning")
    if not isinstance(found, Mapping):
        return None
    text = f"{found['verdict']}. {found['reasons']}".replace("[", "(").replace("]", ")")
    return _plain(text)


def _changes(structure: Structure) -> str:
    """What was done to the model, as the end of a sentence."""
    factored = sum(1 for layout in structure.modules.values() if layout.ranks)
    narrowed = len(structure.modules) - factored
    parts = {
        "linear layers are replaced by pairs of low-rank factors": factored,
        "linear layers are narrowed": narrowed,
        "layers have lost their attention or MLP": len(structure.absent),
        "layers are left": len(structure.layers),
        "mixtures are left with fewer experts": len(structure.experts),
    }
    return "; ".join(f"{count} {what}" for what, count in parts.items() if count) or "nothing"


def _figures(report: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """(figure, value, how it came about) of every known figure that the report has."""
    details = report.get("details", {})
    for path, label in ROWS:
        value: Any = report
        for part in path.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        if value is None:
            continue
        detail = details.get(path, {})
        text = _number(path, value)
        if detail.get("stderr") is not None:
            text += f" ± {detail['stderr']:.2g}"
        unit = detail.get("unit", "")
        shown = unit and not path.startswith(("params.", "perplexity.", *SHARES))
        figure = f"{label} ({_plain(unit)})" if shown else label
        kind = detail.get("kind", "predicted" if path == "loss.predicted" else "counted")
        samples = f", n = {detail['n']:,}" if detail.get("n") is not None else ""
        yield figure, text, f"{kind}{samples}"


def _number(path: str, value: Any) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    if path.startswith(SHARES):
        return f"{value:.1%}"
    return f"{value:.4g}"


def _plain(text: str) -> str:
    """Text without markup: a name must not be able to write the card."""
    return _SAFE.sub("", text)
