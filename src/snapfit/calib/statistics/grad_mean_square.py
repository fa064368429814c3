"""E[g²] (M): mean squared loss gradient at each output; the diagonal of G at no cost."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from snapfit.calib.statistic import Sample


class Accumulator:
    """Turns an output error into nats when the whole G is not wanted."""

    gradients = True
    shared = False
    single = False

    def __init__(self, *, outputs: int, inputs: int) -> None:  # noqa: ARG002
        self._sum_M = torch.zeros(outputs, dtype=torch.float64)
        self._tokens = 0

    def update(self, sample: Sample) -> None:
        """Add a micro-batch."""
        assert sample.g_SM is not None
        self._sum_M += sample.g_SM.float().square().sum(0).double().cpu()
        self._tokens += sample.g_SM.shape[0]

    def result(self, *, total: int) -> dict[str, Tensor]:  # noqa: ARG002
        """'grad_mean_square' (M)."""
        return {"grad_mean_square": (self._sum_M / max(self._tokens, 1)).float()}
