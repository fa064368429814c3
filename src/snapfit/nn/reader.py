"""What a streamed model needs from its checkpoint: tensors by module name, one part at a time.

`models.weights` implements it for transformers checkpoints; `nn.stream` and `checkpoint` use it.
They share only this protocol, so that neither knows how a checkpoint is laid out on disk.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn


class WeightReader(Protocol):
    """Read-only access to the weights of one model, by the names of the (unfused) module tree."""

    @property
    def names(self) -> tuple[str, ...]:
        """Every parameter and persistent buffer of the model, tied names included."""

    def get(self, name: str) -> Tensor:
        """The tensor of `name`, on the CPU, in the checkpoint's dtype.

        Raises:
            SnapfitError: the checkpoint has no such tensor.

        """

    def load_into(
        self,
        module: nn.Module,
        prefix: str,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
    ) -> None:
        """Replace `module`'s parameters and persistent buffers by those on disk, in place.

        Args:
            module: a part of the model, or the model itself.
            prefix: its qualified name, e.g. 'model.layers.3'; '' for the whole model.
            device: where the tensors go.
            dtype: of floating-point tensors; the checkpoint's when None.

        Raises:
            SnapfitError: a tensor is missing, has another shape, or holds NaN or infinity.

        """

    def release(self, module: nn.Module) -> None:
        """Put `module`'s parameters and persistent buffers back on the meta device, in place."""
