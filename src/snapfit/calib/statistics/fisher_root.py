"""Mean over each output's weights of the root of their Fisher information: 'fisher_root' (M).

The importance by which PaLU (arXiv 2407.21118) shares out ranks, as in its release: the square
root of the mean over sequences of (dL/dW)², averaged over the weights of a head group.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from snapfit.calib.statistic import Sample


class Accumulator:
    """Sums squared gradients of single sequences, entry by entry."""

    gradients = True
    shared = False
    single = True

    def __init__(self, *, outputs: int, inputs: int) -> None:
        self._squares_MN = torch.zeros(outputs, inputs)
        self._sequences = 0

    def update(self, sample: Sample) -> None:
        """Add a sequence."""
        assert sample.g_SM is not None
        gradient_MN = sample.g_SM.float().T @ sample.x_SN.float()
        self._squares_MN += gradient_MN.square_().cpu()
        self._sequences += 1

    def result(self, *, total: int) -> dict[str, Tensor]:  # noqa: ARG002
        """'fisher_root' (M)."""
        return {"fisher_root": (self._squares_MN / max(self._sequences, 1)).sqrt().mean(1)}
