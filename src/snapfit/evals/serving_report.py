"""What `serve-check` found, of one engine and of all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from snapfit.evals.serving import Parity
from snapfit.evals.serving_time import PhaseTime, summary, total_ratios


@dataclass(frozen=True, kw_only=True)
class EngineCheck:
    """What came of one engine.

    Attributes:
        engine: its name and version.
        dtype: of the weights in it.
        parity: its greedy tokens beside transformers' in float32.
        times: one a phase of the workload.
        resident: bytes of its processes after loading; None where unknown.
        dense_resident: the same of the dense model.

    """

    engine: str
    dtype: str
    parity: Parity
    times: tuple[PhaseTime, ...]
    resident: int | None
    dense_resident: int | None

    def to_json(self) -> dict[str, Any]:
        """A JSON-serialisable dictionary."""
        ratios = total_ratios(self.times)
        return {
            "engine": self.engine,
            "dtype": self.dtype,
            "parity": self.parity.to_json(),
            "times": [time.to_json() for time in self.times],
            "ratio": summary(ratios) if ratios else None,
            "resident_bytes": {"compressed": self.resident, "dense": self.dense_resident},
        }


@dataclass(frozen=True, kw_only=True)
class ServeCheck:
    """What `serve-check` found.

    Attributes:
        model: folder of the checkpoint.
        against: folder of the dense model, if there is one.
        workload: what was timed.
        weight_bytes: of the weight files, by 'compressed' and 'dense'.
        engines: one entry an engine.
        predicted: by the plan, or by a target's times: 'share' of the dense model's time,
            'workload', 'device'.

    """

    model: str
    against: str | None
    workload: str
    weight_bytes: Mapping[str, int]
    engines: tuple[EngineCheck, ...]
    predicted: Mapping[str, Any] | None

    @property
    def holds(self) -> bool:
        """Whether every engine gave the reference's tokens, ties aside."""
        return all(check.parity.holds for check in self.engines)

    def to_json(self) -> dict[str, Any]:
        """A JSON-serialisable dictionary."""
        return {
            "model": self.model,
            "against": self.against,
            "workload": self.workload,
            "weight_bytes": dict(self.weight_bytes),
            "holds": self.holds,
            "engines": [check.to_json() for check in self.engines],
            "predicted": None if self.predicted is None else dict(self.predicted),
        }
