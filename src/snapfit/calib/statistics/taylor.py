"""Σ |w * dL/dw| over each row ('taylor_rows', M) and each column ('taylor_columns', N).

dL/dw is accumulated over all of the calibration text, with the text's own next tokens as labels,
and divided by the calibration tokens; only then are absolute values taken. With sampled labels its
mean would be zero.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from snapfit.calib.statistic import Sample


class Accumulator:
    """LLM-Pruner's first-order importance of single weights (arXiv 2305.11627, 'param_first')."""

    gradients = True
    shared = False
    single = False
    labels = "text"

    def __init__(self, *, outputs: int, inputs: int) -> None:
        self._gradient_MN = torch.zeros(outputs, inputs)
        self._weight_MN: Tensor | None = None

    def update(self, sample: Sample) -> None:
        """Add a micro-batch."""
        assert sample.g_SM is not None
        self._weight_MN = sample.weight_MN
        if self._gradient_MN.device != sample.x_SN.device:
            self._gradient_MN = self._gradient_MN.to(sample.x_SN.device)
        self._gradient_MN.addmm_(sample.g_SM.float().T, sample.x_SN.float())

    def result(self, *, total: int) -> dict[str, Tensor]:
        """'taylor_rows' (M) and 'taylor_columns' (N)."""
        worth_MN = self._gradient_MN
        if self._weight_MN is not None:
            worth_MN = worth_MN.mul_(self._weight_MN.float()).abs_().div_(max(total, 1))
        return {
            "taylor_rows": worth_MN.sum(1, dtype=torch.float64).cpu(),
            "taylor_columns": worth_MN.sum(0, dtype=torch.float64).cpu(),
        }
