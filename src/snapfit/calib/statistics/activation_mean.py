"""Mean of |x| (N): how large each input channel is, over the tokens that reached the layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from snapfit.calib.statistic import Sample


class Accumulator:
    """Column scale of ASVD (arXiv 2312.05821)."""

    gradients = False
    shared = True
    single = False

    def __init__(self, *, outputs: int, inputs: int) -> None:  # noqa: ARG002
        self._sum_N = torch.zeros(inputs, dtype=torch.float64)
        self._tokens = 0

    def update(self, sample: Sample) -> None:
        """Add a micro-batch."""
        self._sum_N += sample.x_SN.float().abs().sum(0).double().cpu()
        self._tokens += sample.x_SN.shape[0]

    def result(self, *, total: int) -> dict[str, Tensor]:  # noqa: ARG002
        """'activation_mean' (N)."""
        return {"activation_mean": (self._sum_N / max(self._tokens, 1)).float()}
