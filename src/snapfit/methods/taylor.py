"""`taylor`: the layers whose weights hardly move the loss, to first order, go first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from snapfit.core.schedule import Schedule
from snapfit.methods._depth import DepthView, GuardedBase, one_shot, part_of, positive
from snapfit.methods._passes import scored_pieces
from snapfit.nn.labels import head_gradient
from snapfit.nn.stream import micro_batches

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, kw_only=True)
class Compressor(GuardedBase):
    """Sum over a layer's weights, its norms included, of abs(w * dL/dw); the smallest goes first.

    L is the mean loss of the calibration text's own next tokens; the gradient is that of all
    pieces together, before the absolute value (Shortened LLaMA, arXiv 2402.02834). Forward and
    backward, one layer in memory beside the hidden states of samples x length tokens.

    Settings: part: layer, attention or mlp; samples and length: pieces of calibration text and
    the tokens of each, 10 and 128 as published; keep_first and keep_last: layers that never go (4
    and 2 in the paper's "Taylor+").
    """

    unit = "first-order loss change"
    reads_tokens: ClassVar[bool] = True
    samples: int = 10
    length: int = 128

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(samples=self.samples, length=self.length)

    def schedule(self, view: DepthView) -> Schedule:
        """Remove the layers of the smallest first-order terms first."""
        part, stream = part_of(self), view.stream
        view.names(part)
        ids_BT, mask_BT = scored_pieces(view, samples=self.samples, length=self.length)
        inputs = [stream.embed(ids_BT)]
        for index in range(len(stream)):
            with stream.layer(index) as layer:
                inputs.append(stream.run_layer(index, layer, inputs[-1]))
            view.progress("forward", index + 1, len(stream))
        gradient_BTD = head_gradient(
            stream, inputs.pop(), ids_BT, labels="text", seed=view.seed, progress=view.progress
        )
        if mask_BT is not None:
            gradient_BTD[~mask_BT] = 0
        labelled_BT = torch.ones_like(ids_BT[:, :-1]) if mask_BT is None else mask_BT[:, :-1]
        gradient_BTD /= labelled_BT.sum()
        scores = []
        for index in reversed(range(len(stream))):
            with stream.layer(index) as layer:
                weights = _weights(view.inner(index, layer, part))
                terms, gradient_BTD = first_order(
                    view, index, layer, weights, inputs.pop(), gradient_BTD
                )
            scores.append(sum(float(term.abs().sum(dtype=torch.float64)) for term in terms))
            view.progress("backward", len(scores), len(stream))
        return one_shot(
            view,
            scores[::-1],
            part=part,
            unit=self.unit,
            meaning="sum of abs(w * dL/dw)",
            keep_first=self.keep_first,
            keep_last=self.keep_last,
        )


def first_order(
    view: DepthView,
    index: int,
    layer: nn.Module,
    weights: list[nn.Parameter],
    input_BTD: Tensor,
    gradient_BTD: Tensor,
) -> tuple[list[Tensor], Tensor]:
    """The terms w * dL/dw of `weights`, and the gradient at the layer's input (B, T, D).

    Args:
        view: the model.
        index: of the layer.
        layer: with its weights in memory.
        weights: some of its parameters.
        input_BTD: the layer's input.
        gradient_BTD: dL/d(output of the layer).

    """
    stream = view.stream
    gradients = [torch.zeros_like(weight) for weight in weights]
    down_BTD = torch.empty_like(gradient_BTD)
    for weight in weights:
        weight.requires_grad_()
    for rows in micro_batches(*input_BTD.shape[:2]):
        hidden_bTD = input_BTD[rows].to(stream.device).requires_grad_()
        output_bTD = stream.call_layer(index, layer, hidden_bTD)
        down_bTD, *parts = torch.autograd.grad(
            output_bTD,
            [hidden_bTD, *weights],
            gradient_BTD[rows].to(stream.device),
            allow_unused=True,  # an expert that no token reached
            materialize_grads=True,
        )
        stream.require_finite(down_bTD, index, "gradient", layer)
        down_BTD[rows] = down_bTD.cpu()
        gradients = [total + part for total, part in zip(gradients, parts, strict=True)]
    terms = [w.detach() * g for w, g in zip(weights, gradients, strict=True)]
    return terms, down_BTD


def _weights(module: nn.Module) -> list[nn.Parameter]:
    return [weight for name, weight in module.named_parameters() if name.endswith("weight")]
