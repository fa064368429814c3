"""What `snapfit diagnose` found, as text for a terminal and as a page.

Rows are made once, for both. A time shows where it comes from wherever it is printed: measured
ones stand as they are, '=' is read from a table, '~' is modelled.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from snapfit.core.causes import StackLayer, tier
from snapfit.core.diagnosis import Diagnosis, Line, PhaseTime
from snapfit.core.files import atomic_path
from snapfit.core.operators import Attention, Elementwise, Estimate, Linear, Operator, Source

MARKS: Mapping[Source, str] = {"measured": "", "table": "=", "model": "~"}
WORDS: Mapping[Source, str] = {"measured": "measured", "table": "from a table", "model": "modelled"}
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
        share: of the costliest product's time, 0..1, for a bar.
        lost_share: the same of what is lost.
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
    share: float
    lost_share: float
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
    total = max((line.microseconds for line in products), default=0.0)
    rows = [_row(line, total, diagnosis.kernels.get(line.label, ())) for line in products]
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
        spent: milliseconds; '' without times.
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
            runs=_count(sum(line.count for line in groups[label])),
            shapes=len(groups[label]),
            misfits=sum(not line.suited for line in groups[label]),
            spent=f"{_worst(groups[label])}{_milliseconds(spent[label])}" if most else "",
            lost=_milliseconds(lost[label]) if lost[label] else "",
            share=spent[label] / most if most else 0.0,
            lost_share=lost[label] / most if most else 0.0,
        )
        for label in sorted(groups, key=lambda label: (-lost[label], -spent[label]))
    ]


def by_layer(lines: Iterable[Line]) -> dict[StackLayer, float]:
    """Microseconds lost by the layer of the stack that the first cause of each line names."""
    lost: dict[StackLayer, float] = {}
    for line in lines:
        if line.lost and line.causes:
            layer = line.causes[0].layer
            lost[layer] = lost.get(layer, 0.0) + line.lost
    return lost


def total_text(phase: PhaseTime) -> str:
    """The time of a phase with its sources: '12.3 ms (98% modelled, 2% from a table)'."""
    parts = [f"{share:.0%} {WORDS[source]}" for source, share in phase.shares.items()]
    whole = len(parts) == 1
    shown = WORDS[next(iter(phase.shares))] if whole else ", ".join(parts)
    left = f", without {phase.unknown} operators" if phase.unknown else ""
    return f"{phase.microseconds / 1000:.4g} ms ({shown}{left})"


def lost_text(diagnosis: Diagnosis, phase: PhaseTime) -> str:
    """What misalignment costs in a phase: '1.2 ms, 9.8% (modelled)'."""
    share = phase.lost / phase.microseconds if phase.microseconds else 0.0
    lines = [line for line in diagnosis.lines if line.phase == phase.phase and line.lost]
    told = f" ({', '.join(WORDS[source] for source in _sources(lines))})" if lines else ""
    return f"{phase.lost / 1000:.3g} ms, {share:.1%}{told}"


def legend(diagnosis: Diagnosis) -> str:
    """What the marks that occur mean."""
    found = _sources(diagnosis.lines)
    return ", ".join(f"{MARKS[source] or 'no mark'}: {WORDS[source]}" for source in found)


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
        total_text=total_text,
        lost_text=lost_text,
        words=WORDS,
    )


def write_diagnosis(path: Path, diagnosis: Diagnosis) -> None:
    """Write the page.

    Raises:
        SnapfitError: the file cannot be written.

    """
    with atomic_path(path) as temporary:
        temporary.write_text(render_diagnosis(diagnosis), encoding="utf-8")


def shape_text(operator: Operator) -> str:
    """A product's N x K, or an attention's heads and their features."""
    if isinstance(operator, Linear):
        return f"{operator.n}x{operator.k}"
    if isinstance(operator, Attention):
        return f"{operator.heads}/{operator.kv_heads} d{operator.head_dim}"
    return ""


def _row(line: Line, total: float, kernels: tuple[str, ...]) -> Row:
    step = tier(line.operator)
    return Row(
        label=line.label,
        runs=_count(line.count),
        shape=shape_text(line.operator),
        tier="" if step is None else str(step),
        now=_time(line.now),
        good="" if line.suited else shape_text(line.good),
        then="" if line.suited else _time(line.then),
        lost=_milliseconds(line.lost) if line.lost else "",
        causes=tuple(f"{cause.layer}: {cause.short}" for cause in line.causes),
        details=tuple(f"{c.layer}: {c.text} ({c.source})" for c in line.causes),
        how="; ".join(dict.fromkeys(_how(e) for e in (line.now, line.then) if e)),
        kernels=kernels,
        share=line.microseconds / total if total else 0.0,
        lost_share=line.lost / total if total else 0.0,
        suited=line.suited,
    )


def _together(lines: list[Line]) -> Row:
    spent = sum(line.microseconds for line in lines)
    return Row(
        label="element-wise, all together",
        runs=_count(sum(line.count * getattr(line.operator, "ops", 1) for line in lines)),
        shape="",
        tier="",
        now=f"{_worst(lines)}{spent:.1f}" if spent else "",
        good="",
        then="",
        lost="",
        causes=(),
        details=(),
        how="; ".join(dict.fromkeys(_how(line.now) for line in lines if line.now)),
        kernels=(),
        share=0.0,
        lost_share=0.0,
        suited=True,
    )


def _sources(lines: Iterable[Line]) -> list[Source]:
    """Where the times of lines come from, the surest first."""
    found = {e.source for line in lines for e in (line.now, line.then) if e}
    return [source for source in MARKS if source in found]


def _worst(lines: Iterable[Line]) -> str:
    """The mark of a sum: it is known as well as the least sure of its parts."""
    found = _sources(lines)
    return MARKS[found[-1]] if found else ""


def _milliseconds(microseconds: float) -> str:
    return "<0.01" if microseconds < 10 else f"{microseconds / 1000:.3g}"


def _count(count: float) -> str:
    return f"{count:.0f}" if abs(count - round(count)) < 0.005 else f"{count:.2f}"


def _time(estimate: Estimate | None) -> str:
    return "" if estimate is None else f"{MARKS[estimate.source]}{estimate.microseconds:.1f}"


def _how(estimate: Estimate) -> str:
    return f"{WORDS[estimate.source]} ±{estimate.spread:.0%}: {estimate.how}"
