"""tr F (scalar): Σ over sequences of the squared norm of dL/dW; GAC's `fisher` proxy.

‖gᵀx‖² = Σ_st (g_s · g_t)(x_s · x_t), so with few tokens the gradient itself is never formed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from snapfit.calib.statistic import Sample


class Accumulator:
    """Importance of a matrix by its Fisher information, here with sampled labels."""

    gradients = True
    shared = False
    single = True

    def __init__(self, *, outputs: int, inputs: int) -> None:
        self._break_even = outputs * inputs / (outputs + inputs)
        self._sum = 0.0

    def update(self, sample: Sample) -> None:
        """Add a sequence."""
        assert sample.g_SM is not None
        g_SM, x_SN = sample.g_SM.float(), sample.x_SN.float()
        if len(g_SM) < self._break_even:
            self._sum += float(((g_SM @ g_SM.T) * (x_SN @ x_SN.T)).sum())
        else:
            self._sum += float((g_SM.T @ x_SN).square_().sum())

    def result(self, *, total: int) -> dict[str, Tensor]:  # noqa: ARG002
        """'fisher' ()."""
        return {"fisher": torch.tensor(self._sum, dtype=torch.float64)}
