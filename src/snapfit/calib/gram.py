"""Accumulating x xᵀ.

Products are float32 and are added up in float32 (a Gram matrix in float64 would not fit where it
matters, at 14336 inputs); a few dozen micro-batches cost about two more decimal places than one
product does, far below the sampling error of any calibration set.

Shape suffixes: S tokens, N features.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

BLOCK = 384


class Gram:
    """Sum of x xᵀ over tokens; only blocks on and above the diagonal are ever multiplied."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._sum_NN: Tensor | None = None
        self.tokens = 0

    def add(self, x_SN: Tensor) -> None:
        """Add the rows of `x_SN`."""
        x_SN = x_SN.float()
        if self._sum_NN is None:
            self._sum_NN = x_SN.new_zeros(self._size, self._size)
        for start in range(0, self._size, BLOCK):
            block = slice(start, start + BLOCK)
            self._sum_NN[block, start:].addmm_(x_SN[:, block].T, x_SN[:, start:])
        self.tokens += x_SN.shape[0]

    def mean(self, tokens: int) -> Tensor:
        """The symmetric sum divided by `tokens`, on the CPU."""
        if self._sum_NN is None:
            return torch.zeros(self._size, self._size)
        upper_NN = self._sum_NN.cpu().triu()
        whole_NN = upper_NN + upper_NN.triu(1).T
        return whole_NN.div_(max(tokens, 1))
