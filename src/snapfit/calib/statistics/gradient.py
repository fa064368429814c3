"""Σ |g · y| over tokens (scalar): first-order change of the loss when the output is removed.

GAC's `gradient` proxy abs(dL/dh · h), with h the output of the layer (bias included).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from snapfit.calib.statistic import Sample


class Accumulator:
    """Importance of a matrix by a Taylor term of its output."""

    gradients = True
    shared = False
    single = False

    def __init__(self, *, outputs: int, inputs: int) -> None:  # noqa: ARG002
        self._sum = 0.0

    def update(self, sample: Sample) -> None:
        """Add a micro-batch."""
        assert sample.g_SM is not None
        self._sum += float((sample.g_SM.float() * sample.y_SM.float()).sum(1).abs().sum())

    def result(self, *, total: int) -> dict[str, Tensor]:  # noqa: ARG002
        """'gradient' ()."""
        return {"gradient": torch.tensor(self._sum, dtype=torch.float64)}
