"""‖X‖_F (scalar): norm of all inputs of a layer together; GAC's `activation` proxy."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from snapfit.calib.statistic import Sample


class Accumulator:
    """Importance of a matrix by how much goes into it."""

    gradients = False
    shared = True
    single = False

    def __init__(self, *, outputs: int, inputs: int) -> None:  # noqa: ARG002
        self._sum = 0.0

    def update(self, sample: Sample) -> None:
        """Add a micro-batch."""
        self._sum += float(sample.x_SN.float().square().sum())

    def result(self, *, total: int) -> dict[str, Tensor]:  # noqa: ARG002
        """'activation' ()."""
        return {"activation": torch.tensor(self._sum, dtype=torch.float64).sqrt()}
