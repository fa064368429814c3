"""`shortgpt`: layers that hardly turn the residual stream go first (arXiv 2403.03853)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from snapfit.core.schedule import Schedule
from snapfit.methods._depth import DepthView, PartBase, one_shot, part_of
from snapfit.methods._passes import observe, silenced

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, kw_only=True)
class Compressor(PartBase):
    """Block influence, 1 - E[cos(h_in, h_out)] over all tokens; the lowest goes first.

    Every layer is scored, the last too, by its output before the model's final norm (the output
    that transformers lists last is after it). One pass over the calibration tokens, one layer in
    memory.

    For part=attention or part=mlp the same is measured around that part, residual included
    (arXiv 2406.15786): between the layer's input and the stream after attention, or between that
    and the layer's output. Where both parts read one input (GPT-NeoX), attention counts as first.

    Settings: part: layer, attention or mlp.
    """

    unit = "block influence"
    reads_tokens: ClassVar[bool] = True

    def schedule(self, view: DepthView) -> Schedule:
        """Remove the layers of the lowest influence first."""
        part = part_of(self)
        view.names(part)

        def see(
            index: int, layer: nn.Module, input_BTD: Tensor, output_BTD: Tensor
        ) -> Mapping[str, Tensor]:
            if part != "layer":
                with silenced(view.inner(index, layer, "mlp")):
                    between_BTD = view.stream.run_layer(index, layer, input_BTD)
                if part == "attention":
                    output_BTD = between_BTD
                else:
                    input_BTD = between_BTD
            return {"score": block_influence(input_BTD, output_BTD, view.mask_BT)}

        scores = [float(seen["score"]) for seen in observe(view, see)]
        return one_shot(
            view, scores, part=part, unit=self.unit, meaning="1 - mean cosine of input and output"
        )


def block_influence(input_BTD: Tensor, output_BTD: Tensor, mask_BT: Tensor | None = None) -> Tensor:
    """1 - mean over tokens of the cosine between input and output, a float64 scalar."""
    total, count = torch.zeros((), dtype=torch.float64), 0
    for row, (input_TD, output_TD) in enumerate(zip(input_BTD, output_BTD, strict=True)):
        cosine_T = torch.cosine_similarity(input_TD.double(), output_TD.double(), dim=-1)
        if mask_BT is not None:
            cosine_T = cosine_T[mask_BT[row]]
        total += cosine_T.sum()
        count += cosine_T.numel()
    return 1 - total / max(1, count)
