"""G = E[g gᵀ] (M x M): second moments of the loss gradient at a layer's output."""

from __future__ import annotations

from typing import TYPE_CHECKING

from snapfit.calib.gram import Gram

if TYPE_CHECKING:
    from torch import Tensor

    from snapfit.calib.statistic import Sample


class Accumulator:
    """The output side of KFAC (arXiv 1503.05671): a mean over tokens that reached the layer."""

    gradients = True
    shared = False
    single = False

    def __init__(self, *, outputs: int, inputs: int) -> None:  # noqa: ARG002
        self._gram = Gram(outputs)

    def update(self, sample: Sample) -> None:
        """Add a micro-batch."""
        assert sample.g_SM is not None
        self._gram.add(sample.g_SM)

    def result(self, *, total: int) -> dict[str, Tensor]:  # noqa: ARG002
        """'grad_second_moment' (M, M)."""
        return {"grad_second_moment": self._gram.mean(self._gram.tokens)}
