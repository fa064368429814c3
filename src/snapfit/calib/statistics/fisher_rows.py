"""Fisher information of the weights, a sequence at a time, reduced over each axis.

Σ over sequences of (dL/dW)², summed over the inputs of each output ('fisher_rows', M) and over
the outputs of each input ('fisher_columns', N). dL/dW = gᵀ x of one sequence's summed loss.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from snapfit.calib.statistic import Sample


class Accumulator:
    """Weights of FWSVD (arXiv 2207.00112), here with sampled labels."""

    gradients = True
    shared = False
    single = True

    def __init__(self, *, outputs: int, inputs: int) -> None:
        self._rows_M = torch.zeros(outputs, dtype=torch.float64)
        self._columns_N = torch.zeros(inputs, dtype=torch.float64)

    def update(self, sample: Sample) -> None:
        """Add a sequence."""
        assert sample.g_SM is not None
        squares_MN = (sample.g_SM.float().T @ sample.x_SN.float()).square_()
        self._rows_M += squares_MN.sum(1).double().cpu()
        self._columns_N += squares_MN.sum(0).double().cpu()

    def result(self, *, total: int) -> dict[str, Tensor]:  # noqa: ARG002
        """'fisher_rows' (M) and 'fisher_columns' (N)."""
        return {"fisher_rows": self._rows_M.float(), "fisher_columns": self._columns_N.float()}
