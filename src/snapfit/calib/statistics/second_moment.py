"""C = E[x xᵀ] (N x N): second moments of a layer's input, a calibration token."""

from __future__ import annotations

from typing import TYPE_CHECKING

from snapfit.calib.gram import Gram

if TYPE_CHECKING:
    from torch import Tensor

    from snapfit.calib.statistic import Sample


class Accumulator:
    """Whitening matrix of SVD-LLM (arXiv 2403.07378); the input side of KFAC."""

    gradients = False
    shared = True
    single = False

    def __init__(self, *, outputs: int, inputs: int) -> None:  # noqa: ARG002
        self._gram = Gram(inputs)

    def update(self, sample: Sample) -> None:
        """Add a micro-batch."""
        self._gram.add(sample.x_SN)

    def result(self, *, total: int) -> dict[str, Tensor]:
        """'second_moment' (N, N)."""
        return {"second_moment": self._gram.mean(total)}
