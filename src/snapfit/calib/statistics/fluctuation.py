"""Mean and variance of each input channel, over the tokens that reached the layer.

'input_mean' (N), 'input_variance' (N, unbiased), and 'input_share' (): the tokens that reached the
layer, of all calibration tokens. Batches are merged as Chan, Golub and LeVeque do, in float64, so
that a large mean does not drown a small variance.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from snapfit.calib.statistic import Sample


class Accumulator:
    """What FLAP measures of a channel (arXiv 2312.11983)."""

    gradients = False
    shared = True
    single = False

    def __init__(self, *, outputs: int, inputs: int) -> None:  # noqa: ARG002
        self._mean_N = torch.zeros(inputs, dtype=torch.float64)
        self._squares_N = torch.zeros(inputs, dtype=torch.float64)
        self._tokens = 0

    def update(self, sample: Sample) -> None:
        """Add a micro-batch."""
        x_SN = sample.x_SN.double()
        count, before = len(x_SN), self._tokens
        mean_N = x_SN.mean(0)
        self._squares_N += (x_SN - mean_N).square().sum(0).cpu()
        apart_N = mean_N.cpu() - self._mean_N
        self._tokens += count
        self._squares_N += apart_N.square() * (before * count / self._tokens)
        self._mean_N += apart_N * (count / self._tokens)

    def result(self, *, total: int) -> dict[str, Tensor]:
        """'input_mean' (N), 'input_variance' (N) and 'input_share' ()."""
        return {
            "input_mean": self._mean_N.float(),
            "input_variance": (self._squares_N / max(self._tokens - 1, 1)).float(),
            "input_share": torch.tensor(self._tokens / max(total, 1), dtype=torch.float64),
        }
