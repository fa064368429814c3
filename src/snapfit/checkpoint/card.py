"""The model card: what was done, to what, with which figures, and how to load the result."""

from __future__ import annotations

import importlib.resources
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jinja2

from snapfit.core.files import read_json
from snapfit.core.plan import Plan

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
_SAFE = re.compile(r"[^\w .,:+/()-]")


def write_card(folder: Path, *, name: str, plan: Plan, report: Mapping[str, Any]) -> None:
    """Write `README.md` into a folder that `save_factored` filled; see `model_card`."""
    config = read_json(folder / "config.json")
    changed = len(config["quantization_config"]["modules"])
    text = model_card(name, plan=plan, report=report, changed=changed)
    (folder / CARD).write_text(text, encoding="utf-8")


def model_card(name: str, *, plan: Plan, report: Mapping[str, Any], changed: int) -> str:
    """Markdown with the front matter that the Hugging Face hub reads.

    Args:
        name: of the compressed model, normally its folder's.
        plan: what was decided.
        report: the content of `report.json`; figures it lacks are left out.
        changed: modules that are factored.

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
        changed=changed,
        base_model=json.dumps(base) if on_hub else None,
        figures=list(_figures(report)),
        method=plan.method,
        objective=plan.objective,
        rules=[
            f"multiples of {rule.multiple} along {rule.axis} ({_plain(rule.source)})"
            for rule in plan.rules
        ],
        title=_plain(name),
        version=_plain(plan.version),
    )


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
