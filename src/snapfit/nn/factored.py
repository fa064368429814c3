"""The linear layer made of factor pairs.

Shape suffixes: M output features, N input features, R rank (summed over blocks), B any leading
dimensions.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from snapfit.core.layout import ModuleLayout


class FactoredLinear(nn.Module):
    """A linear layer whose output rows are factor pairs: y = b (a x) + bias.

    `a.weight` is (R, N), all first factors stacked, so that they cost one product; `b.weight`
    is (M, R), or one `b.<i>` per block when there are several. The bias lives on `b`.

    `weight` is empty on purpose. A loader that does not know this format finds a `weight` whose
    shape does not fit and stops, instead of leaving the layer randomly initialised without a word.
    """

    def __init__(
        self,
        layout: ModuleLayout,
        *,
        bias: bool,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if not layout.ranks:
            raise ValueError("a layout without factored blocks is a plain nn.Linear")
        self.layout = layout
        self.in_features = layout.inputs
        self.out_features = layout.outputs
        options: dict[str, Any] = {"device": device, "dtype": dtype}
        self.weight = nn.Parameter(torch.empty(0, **options), requires_grad=False)
        self.a = nn.Linear(layout.inputs, sum(layout.ranks), bias=False, **options)
        parts = [
            nn.Linear(layout.inputs if b.rank is None else b.rank, b.rows, bias=bias, **options)
            for b in layout.blocks
        ]
        self.b = parts[0] if len(parts) == 1 else nn.ModuleList(parts)

    def forward(self, x_BN: Tensor) -> Tensor:
        """(..., N) -> (..., M)."""
        hidden_BR = self.a(x_BN)
        if not isinstance(self.b, nn.ModuleList):
            output_BM: Tensor = self.b(hidden_BR)
            return output_BM
        outputs, start = [], 0
        for block, part in zip(self.layout.blocks, self.b, strict=True):
            if block.rank is None:
                outputs.append(part(x_BN))
            else:
                outputs.append(part(hidden_BR[..., start : start + block.rank]))
                start += block.rank
        return torch.cat(outputs, dim=-1)

    def extra_repr(self) -> str:
        """Shapes, for `print(model)`."""
        return f"in={self.in_features}, out={self.out_features}, ranks={self.layout.ranks}"
