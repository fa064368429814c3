"""Usage times router weight: 'routing' (), the mean weight that a calibration token gives.

A token that is not sent to an expert gives it 0. Layers that are no experts have 1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from snapfit.calib.statistic import Sample


class Accumulator:
    """Importance of whole experts."""

    gradients = False
    shared = True
    single = False

    def __init__(self, *, outputs: int, inputs: int) -> None:  # noqa: ARG002
        self._sum = 0.0

    def update(self, sample: Sample) -> None:
        """Add a micro-batch."""
        routed = sample.routing_S
        self._sum += len(sample.x_SN) if routed is None else float(routed.double().sum())

    def result(self, *, total: int) -> dict[str, Tensor]:
        """'routing' ()."""
        return {"routing": torch.tensor(self._sum / max(total, 1), dtype=torch.float64)}
