"""Why a model is as slow as it is, as data: what `snapfit diagnose` found.

Times keep where they come from. Nothing here adds a predicted time to a measured one without
saying so: totals list their shares by source.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from snapfit.core.causes import Cause, tier
from snapfit.core.operators import Estimate, Operator, Source

SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class Line:
    """One distinct operator of one phase.

    Attributes:
        phase: of the workload, e.g. 'prefill:1x1024'.
        label: what it belongs to, e.g. 'mlp.down_proj.a'.
        layers: decoder layers that have it; () for the output layer.
        count: how often it runs in one pass; a fraction for experts that are hit now and then.
        operator: as it is.
        good: the same at the nearest suited sizes.
        now: time of `operator`; None if nobody knows.
        then: time of `good`; None if nobody knows.
        lost: microseconds that misalignment costs in one pass, all runs together; 0 where the
            sizes are suited, or the difference is within the noise of what was measured.
        suited: whether the sizes satisfy the target's rules.
        causes: why it is slow.

    """

    phase: str
    label: str
    layers: tuple[int, ...]
    count: float
    operator: Operator
    good: Operator
    now: Estimate | None
    then: Estimate | None
    lost: float
    suited: bool
    causes: tuple[Cause, ...]

    @property
    def microseconds(self) -> float:
        """Of all runs in one pass; 0 if nobody knows."""
        return self.count * self.now.microseconds if self.now else 0.0

    def to_json(self) -> dict[str, Any]:
        """A JSON-serialisable dictionary."""
        return {
            "phase": self.phase,
            "label": self.label,
            "kind": self.operator.kind,
            "layers": list(self.layers),
            "count": self.count,
            "shape": _shape(self.operator),
            "tier": tier(self.operator),
            "suited": self.suited,
            "time": _estimate(self.now),
            "good_shape": _shape(self.good),
            "good_time": _estimate(self.then),
            "lost_microseconds": self.lost if self.now and self.then else None,
            "causes": [asdict(cause) for cause in self.causes],
        }


@dataclass(frozen=True, kw_only=True)
class Misfit:
    """One matrix whose size breaks a rule of the target.

    Attributes:
        name: of its module.
        what: what the size counts: 'rank', 'rows' or 'columns'.
        size: as it is.
        good: the nearest suited size.

    """

    name: str
    what: str
    size: int
    good: int


@dataclass(frozen=True, kw_only=True)
class Change:
    """A change of sizes and what it would save.

    Attributes:
        label: of what, e.g. 'mlp.down_proj'.
        what: what the size counts: 'rank', 'width', 'head size' or 'vocabulary'.
        steps: {(size now, size then): layers}.
        reason: 'alignment', or 'wave' for a cliff that no rule sees.
        saved: microseconds of the workload; None without a timer.
        sources: where the times come from.

    """

    label: str
    what: str
    steps: Mapping[tuple[str, str], int]
    reason: str
    saved: float | None
    sources: tuple[Source, ...]

    @property
    def text(self) -> str:
        """In a line, e.g. 'mlp.down_proj rank 1107 -> 1104 in 32 layers: -0.42 ms'."""
        shown = [f"{old} -> {new}" for old, new in self.steps]
        sizes = ", ".join(shown[:2]) + (", ..." if len(shown) > 2 else "")
        layers = sum(self.steps.values())
        where = f" in {layers} layer{'s' if layers > 1 else ''}" if layers else ""
        gain = "" if self.saved is None else f": {_signed(-self.saved / 1000)} ms"
        return f"{self.label} {self.what} {sizes}{where}{gain}"

    def to_json(self) -> dict[str, Any]:
        """A JSON-serialisable dictionary."""
        steps = [{"from": a, "to": b, "layers": n} for (a, b), n in self.steps.items()]
        return {
            "label": self.label,
            "what": self.what,
            "steps": steps,
            "reason": self.reason,
            "saved_microseconds": self.saved,
            "sources": list(self.sources),
            "text": self.text,
        }


@dataclass(frozen=True, kw_only=True)
class PhaseTime:
    """The time of one forward pass.

    Attributes:
        phase: of the workload.
        weight: how many such passes the workload has.
        microseconds: of all operators whose time is known.
        lost: of them, what misalignment costs.
        shares: of the time, by source; they add up to 1.
        unknown: operators whose time nobody knows.

    """

    phase: str
    weight: float
    microseconds: float
    lost: float
    shares: Mapping[Source, float]
    unknown: int


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """All that was found.

    Attributes:
        model: as the user named it.
        architecture: `model_type` of its configuration.
        compressor: whose format its factors are in; '' if nothing is factored.
        target: as the user wrote it.
        device: the target's own name.
        dtype: that the times are about.
        software: versions that they were found with.
        workload: as text.
        rules: of the target, each in words.
        matrices: linear layers of the decoder, factored blocks counted one by one.
        alignment: {multiple: share of the matrices}, GAC's definition.
        misfits: every matrix that breaks a rule.
        phases: time of each.
        lines: every distinct operator, the costliest first.
        changes: what would help, the most helpful first.
        notes: what the reader should know.
        kernels: {operator in words: names of the kernels that ran}; empty without a CUDA device.

    """

    model: str
    architecture: str
    compressor: str
    target: str
    device: str
    dtype: str
    software: str
    workload: str
    rules: tuple[str, ...]
    matrices: int
    alignment: Mapping[int, float]
    misfits: tuple[Misfit, ...]
    phases: tuple[PhaseTime, ...]
    lines: tuple[Line, ...]
    changes: tuple[Change, ...]
    notes: tuple[str, ...]
    kernels: Mapping[str, tuple[str, ...]]

    @property
    def misaligned(self) -> tuple[str, ...]:
        """Names of the modules that have a misfit, in order, once each."""
        return tuple(dict.fromkeys(misfit.name for misfit in self.misfits))

    @property
    def microseconds(self) -> float:
        """Of the workload."""
        return sum(phase.weight * phase.microseconds for phase in self.phases)

    @property
    def lost(self) -> float:
        """Of them, what misalignment costs."""
        return sum(phase.weight * phase.lost for phase in self.phases)

    def to_json(self) -> dict[str, Any]:
        """A JSON-serialisable dictionary, schema first. Times that nobody knows are null."""
        timed = bool(self.phases)
        total = self.microseconds
        return {
            "schema": SCHEMA,
            "model": self.model,
            "architecture": self.architecture,
            "compressor": self.compressor or None,
            "target": self.target,
            "device": self.device,
            "dtype": self.dtype,
            "software": self.software,
            "workload": self.workload,
            "rules": list(self.rules),
            "matrices": self.matrices,
            "alignment": {f"mod{n}": share for n, share in self.alignment.items()},
            "misaligned": [asdict(misfit) for misfit in self.misfits],
            "microseconds": total if timed else None,
            "lost_microseconds": self.lost if timed else None,
            "lost_share": self.lost / total if timed and total else None,
            "phases": [asdict(phase) | {"shares": dict(phase.shares)} for phase in self.phases],
            "changes": [change.to_json() for change in self.changes],
            "operators": [line.to_json() for line in self.lines],
            "kernels": {text: list(names) for text, names in self.kernels.items()},
            "notes": list(self.notes),
        }


def _signed(milliseconds: float) -> str:
    return f"{milliseconds:+.3g}" if abs(milliseconds) >= 1e-3 else f"{milliseconds:+.1g}"


def _shape(operator: Operator) -> dict[str, Any]:
    return asdict(operator)


def _estimate(estimate: Estimate | None) -> dict[str, Any] | None:
    return None if estimate is None else asdict(estimate)
