"""What `snapfit diagnose` found, as rows for the terminal and the page alike, and the page."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from snapfit.core.causes import tier
from snapfit.core.diagnosis import Diagnosis, Line
from snapfit.core.files import atomic_path
from snapfit.core.operators import Elementwise
from snapfit.viz.diagnosis_text import (
    WORDS,
    by_layer,
    count_text,
    how_text,
    legend,
    lost_sources,
    lost_text,
    milliseconds,
    shape_text,
    sources_text,
    time_text,
    worst,
)

HELPFUL = 3
"""Changes that are told."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table, ready to be shown.

    Attributes:
        label: what the operator belongs to.
        runs: how often it runs.
        shape: as it is; '' for element-wise operators, which are told together.
        tier: 1, 2, 8 or 16.
        now: microseconds of one run with its mark.
        good: the nearest suited shape, where it is another.
        then: microseconds of that with its mark.
        lost: milliseconds of all runs.
        causes: 'library: align-1 kernel'.
        details: the causes in sentences, with their sources.
        how: how the times were found.
        kernels: names of the kernels that ran.
        suited: whether the sizes suit the target.

    """

    label: str
    runs: str
    shape: str
    tier: str
    now: str
    good: str
    then: str
    lost: str
    causes: tuple[str, ...]
    details: tuple[str, ...]
    how: str
    kernels: tuple[str, ...]
    suited: bool


def rows_of(diagnosis: Diagnosis, phase: str) -> list[Row]:
    """Rows of one phase: what lost most first, then what takes most; element-wise ones as one."""
    own = [line for line in diagnosis.lines if line.phase == phase]
    products = [line for line in own if not isinstance(line.operator, Elementwise)]
    # Without times: what breaks a rule first, the lowest tier first, then by work.
    products.sort(
        key=lambda x: (
            -x.lost,
            -x.microseconds,
            x.suited,
            tier(x.operator) or 0,
            -x.count * x.operator.flops,
        )
    )
    rows = [_row(line, diagnosis.kernels.get(str(line.operator), ())) for line in products]
    rest = [line for line in own if isinstance(line.operator, Elementwise)]
    if rest:
        rows.append(_together(rest))
    return rows


@dataclass(frozen=True, kw_only=True)
class ModuleRow:
    """All operators of one label together, ready to be shown.

    Attributes:
        label: e.g. 'mlp.down_proj.a'.
        runs: of all.
        shapes: how many distinct ones.
        misfits: how many of these break a rule.
        spent: milliseconds; '' where nobody knows.
        lost: milliseconds of it.
        share: of the costliest label's time, 0..1, for a bar.
        lost_share: the same of what is lost.

    """

    label: str
    runs: str
    shapes: int
    misfits: int
    spent: str
    lost: str
    share: float
    lost_share: float


def by_module(diagnosis: Diagnosis, phase: str) -> list[ModuleRow]:
    """Products and attention of one phase by label: what lost most first, then what takes most."""
    groups: dict[str, list[Line]] = {}
    for line in diagnosis.lines:
        if line.phase == phase and not isinstance(line.operator, Elementwise):
            groups.setdefault(line.label, []).append(line)
    spent = {label: sum(line.microseconds for line in own) for label, own in groups.items()}
    lost = {label: sum(line.lost for line in own) for label, own in groups.items()}
    most = max(spent.values(), default=0.0)
    return [
        ModuleRow(
            label=label,
            runs=count_text(sum(line.count for line in groups[label])),
            shapes=len(groups[label]),
            misfits=sum(not line.suited for line in groups[label]),
            spent=f"{worst(groups[label])}{milliseconds(spent[label])}" if spent[label] else "",
            lost=milliseconds(lost[label]) if lost[label] else "",
            share=spent[label] / most if most else 0.0,
            lost_share=lost[label] / most if most else 0.0,
        )
        for label in sorted(groups, key=lambda label: (-lost[label], -spent[label]))
    ]


def render_diagnosis(diagnosis: Diagnosis) -> str:
    """A page: one file, no scripts, nothing fetched, light or dark as the reader prefers."""
    environment = Environment(
        loader=PackageLoader("snapfit", "viz"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    phases = [
        {
            "name": phase,
            "modules": by_module(diagnosis, phase),
            "rows": rows_of(diagnosis, phase),
            "time": next((t for t in diagnosis.phases if t.phase == phase), None),
            "layers": by_layer(line for line in diagnosis.lines if line.phase == phase),
        }
        for phase in dict.fromkeys(line.phase for line in diagnosis.lines)
    ]
    return environment.get_template("diagnosis.html").render(
        diagnosis=diagnosis,
        phases=phases,
        helpful=diagnosis.changes[:HELPFUL],
        legend=legend(diagnosis),
        sources_text=sources_text,
        lost_text=lost_text,
        lost_sources=lost_sources,
        milliseconds=milliseconds,
        words=WORDS,
    )


def write_diagnosis(path: Path, diagnosis: Diagnosis) -> None:
    """Write the page.

    Raises:
        SnapfitError: the file cannot be written.

    """
    with atomic_path(path) as temporary:
        temporary.write_text(render_diagnosis(diagnosis), encoding="utf-8")


def _row(line: Line, kernels: tuple[str, ...]) -> Row:
    step = tier(line.operator)
    return Row(
        label=line.label,
        runs=count_text(line.count),
        shape=shape_text(line.operator),
        tier="" if step is None else str(step),
        now=time_text(line.now),
        good="" if line.suited else shape_text(line.good),
        then="" if line.suited else time_text(line.then),
        lost=milliseconds(line.lost) if line.lost else "",
        causes=tuple(f"{cause.layer}: {cause.short}" for cause in line.causes),
        details=tuple(f"{c.layer}: {c.text} ({c.source})" for c in line.causes),
        how="; ".join(dict.fromkeys(how_text(e) for e in (line.now, line.then) if e)),
        kernels=kernels,
        suited=line.suited,
    )


def _together(lines: list[Line]) -> Row:
    spent = sum(line.microseconds for line in lines)
    return Row(
        label="element-wise, all together",
        runs=count_text(sum(line.count * getattr(line.operator, "ops", 1) for line in lines)),
        shape="",
        tier="",
        now=f"{worst(lines)}{spent:.1f}" if spent else "",
        good="",
        then="",
        lost="",
        causes=(),
        details=(),
        how="; ".join(dict.fromkeys(how_text(line.now) for line in lines if line.now)),
        kernels=(),
        suited=True,
    )
