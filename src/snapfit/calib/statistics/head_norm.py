"""Mean over tokens of the L2 norm of each head's output: 'head_norm' (heads).

A head's output is what the output projection reads of it. Of a layer that reads no heads, all
inputs are one head.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from snapfit.calib.statistic import Sample


class Accumulator:
    """Importance of attention heads in Minitron (arXiv 2407.14679)."""

    gradients = False
    shared = True
    single = False

    def __init__(self, *, outputs: int, inputs: int) -> None:  # noqa: ARG002
        self._sum_H = torch.zeros(1, dtype=torch.float64)
        self._tokens = 0

    def update(self, sample: Sample) -> None:
        """Add a micro-batch."""
        norms_SH = sample.x_SN.float().reshape(len(sample.x_SN), -1, sample.head).norm(dim=-1)
        self._sum_H = self._sum_H + norms_SH.sum(0).double().cpu()
        self._tokens += len(norms_SH)

    def result(self, *, total: int) -> dict[str, Tensor]:  # noqa: ARG002
        """'head_norm' (heads), over the tokens that reached the layer."""
        return {"head_norm": (self._sum_H / max(self._tokens, 1)).float()}
