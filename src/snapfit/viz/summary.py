"""What a report shows, as rows: figures with how they are known, and totals by role."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from snapfit.core.curve import Curve
from snapfit.core.plan import Plan
from snapfit.core.space import Space

_NOT_FIGURES = frozenset({"schema", "details", "environment", "stages", "reasoning"})
_LABELS = {
    "perplexity.dense": "Perplexity before",
    "perplexity.compressed": "Perplexity after",
    "loss.predicted": "Loss added",
    "params.dense": "Parameters before",
    "params.compressed": "Parameters after",
    "params.budget": "Parameters allowed",
    "ratio.linear": "Removed of the linear layers",
    "ratio.model": "Removed of the whole model",
    "alignment.mod8": "Matrices in multiples of 8",
    "alignment.mod16": "Matrices in multiples of 16",
    "bytes.dense": "Bytes of weights before",
    "bytes.compressed": "Bytes of weights after",
    "flops_per_token.dense": "Operations a token before",
    "flops_per_token.compressed": "Operations a token after",
    "kv_bytes_per_token.dense": "KV cache bytes a token before",
    "kv_bytes_per_token.compressed": "KV cache bytes a token after",
    "latency.dense": "Time of the workload before",
    "latency.compressed": "Time of the workload after",
    "calibration.tokens": "Calibration tokens",
    "calibration.truncated": "Calibration tokens left out",
}
"""Known figures in the order of a report; others follow under their own names."""

_SHARES = ("ratio.", "alignment.")
_SAID = frozenset({"method", "objective", "ratio", "of", "seed"})
_TOTALS = ("n", "dense", "kept", "whole", "loss")


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One row of the table of figures; all texts are ready to be shown."""

    name: str
    label: str
    value: str
    unit: str
    kind: str
    stderr: str
    n: str
    settings: str


@dataclass(frozen=True, kw_only=True)
class RoleTotal:
    """All groups of one role together.

    Attributes:
        role: q, k, v, o, gate, up, down, ...
        groups: how many.
        dense: parameters before.
        kept: parameters after.
        untouched: groups left dense.
        loss: predicted loss of all, in the unit of the curves; None without curves.
        share: of the largest role's loss, 0..1, for a bar.

    """

    role: str
    groups: int
    dense: int
    kept: int
    untouched: int
    loss: float | None
    share: float


def figures(report: Mapping[str, Any]) -> list[Figure]:
    """Every number of a report with its unit, how it is known, its error and its settings."""
    details = report.get("details", {})
    found = {
        name: _figure(name, value, details.get(name, {}))
        for name, value in _leaves(report)
        if name in details or (isinstance(value, int | float) and not isinstance(value, bool))
    }
    order = [name for name in _LABELS if name in found]
    return [found[name] for name in dict.fromkeys([*order, *found])]


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Seconds and peak memory of one stage of the job."""

    name: str
    seconds: str
    peak: str


def stages(report: Mapping[str, Any]) -> list[Stage]:
    """What the job spent, stage by stage, where the report says so."""
    return [
        Stage(
            name=name,
            seconds=f"{spent['seconds']:,.1f}" if "seconds" in spent else "",
            peak=f"{spent['peak_bytes'] / 2**20:,.0f}" if "peak_bytes" in spent else "",
        )
        for name, spent in report.get("stages", {}).items()
    ]


@dataclass(frozen=True, kw_only=True)
class Family:
    """One family of tasks of the check: heights of both curves, and what is retained."""

    name: str
    problems: int
    dense: str
    compressed: str
    retained: str
    verdict: str


def families(report: Mapping[str, Any]) -> list[Family]:
    """The families that the check asked, where the report has one."""
    return [
        Family(
            name=name,
            problems=report["details"][f"reasoning.{name}.retained"]["n"],
            dense=_interval(report, f"reasoning.{name}.dense", found["dense"]),
            compressed=_interval(report, f"reasoning.{name}.compressed", found["compressed"]),
            retained=_interval(report, f"reasoning.{name}.retained", found["retained"]),
            verdict=str(found["verdict"]),
        )
        for name, found in report.get("reasoning", {}).items()
        if isinstance(found, Mapping)
    ]


def _interval(report: Mapping[str, Any], name: str, value: float | None) -> str:
    if value is None:
        return "not known"
    ends = report["details"][name].get("settings", {})
    shown = f"{value:.1%}"
    if ends.get("low") is None or ends.get("high") is None:
        return shown
    return f"{shown} [{100 * ends['low']:.1f}, {100 * ends['high']:.1f}]"


def facts(report: Mapping[str, Any], plan: Plan) -> list[tuple[str, str]]:
    """What was done, in words: the plan's recipe and the report's plain texts."""
    budget = ", ".join(f"{key} {value}" for key, value in plan.budget.items())
    rules = [f"{rule.axis} in multiples of {rule.multiple} ({rule.source})" for rule in plan.rules]
    more = {key: value for key, value in plan.recipe.items() if key not in _SAID}
    rows = [
        ("Model", plan.model),
        ("Architecture", plan.architecture),
        ("Revision", plan.revision),
        ("Method", plan.method),
        ("Objective", plan.objective),
        ("Budget", budget),
        ("Alignment", "; ".join(rules) or "none asked"),
        *((key.replace("_", " ").capitalize(), str(value)) for key, value in more.items()),
        ("Seed", str(plan.seed)),
        ("Plan", plan.digest),
        ("snapfit", plan.version),
    ]
    known = {label.lower() for label, _ in rows}
    rows += [
        (name, str(value))
        for name, value in _leaves(report)
        if isinstance(value, str | bool) and name not in known
    ]
    return rows


def by_role(space: Space, plan: Plan, curves: Mapping[str, Curve] | None) -> list[RoleTotal]:
    """Parameters and predicted loss of each role, in order of first appearance."""
    totals: dict[str, dict[str, float]] = {}
    for group in space.groups:
        size = plan.sizes.get(group.name, group.full)
        row = totals.setdefault(
            group.role, dict.fromkeys(("n", "dense", "kept", "whole", "loss"), 0)
        )
        row["n"] += 1
        row["dense"] += group.dense_params
        row["kept"] += group.params(size)
        row["whole"] += size == group.full
        if curves is not None:
            row["loss"] += float(curves[group.name].at(size))
    most = max((row["loss"] for row in totals.values()), default=0.0)
    return [
        RoleTotal(
            role=role,
            groups=int(row["n"]),
            dense=int(row["dense"]),
            kept=int(row["kept"]),
            untouched=int(row["whole"]),
            loss=None if curves is None else row["loss"],
            share=row["loss"] / most if most > 0 else 0.0,
        )
        for role, row in totals.items()
    ]


def _leaves(report: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in report.items():
        if not prefix and key in _NOT_FIGURES:
            continue
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _figure(name: str, value: float | None, detail: Mapping[str, Any]) -> Figure:
    stderr, n = detail.get("stderr"), detail.get("n")
    not_finite = str(detail.get("not_finite", "not finite"))
    settings = detail.get("settings") or {}
    return Figure(
        name=name,
        label=_LABELS.get(name, name),
        value=not_finite if value is None else _number(name, value),
        unit=str(detail.get("unit") or ""),
        kind=str(detail.get("kind", "counted")),
        stderr="" if stderr is None else f"± {stderr:.2g}",
        n="" if n is None else f"{n:,}",
        settings=", ".join(f"{k} {_plain(v)}" for k, v in settings.items()),
    )


def _number(name: str, value: float) -> str:
    if name.startswith(_SHARES):
        return f"{value:.2%}"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"


def _plain(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
