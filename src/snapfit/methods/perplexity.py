"""`perplexity`: the layers without which calibration perplexity stays lowest go first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from snapfit.core.curve import NATS
from snapfit.core.schedule import Schedule
from snapfit.methods._depth import DepthView, PartBase, one_shot, part_of, positive
from snapfit.methods._passes import Memo, scored_pieces, silenced, text_loss

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn


@dataclass(frozen=True, kw_only=True)
class Compressor(PartBase):
    """Loss on calibration text without each layer in turn, less that of the whole model, in nats.

    The perplexity criterion of Shortened LLaMA (arXiv 2402.02834), one-shot as published: all
    layers are scored once, with everything else in place. The whole model is in memory. A probe
    runs only what comes after its layer, so all together cost half a forward pass a layer over
    samples x length tokens. Every probe is kept, so a killed search loses at most one.

    Settings: part: layer, attention or mlp; samples and length: pieces of calibration text and
    the tokens of each, 10 and 128 as published.
    """

    unit = NATS
    reads_tokens: ClassVar[bool] = True
    samples: int = 10
    length: int = 128

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(samples=self.samples, length=self.length)

    def schedule(self, view: DepthView) -> Schedule:
        """Remove the layers first that cost the least perplexity."""
        part, full = part_of(self), len(view.stream)
        view.names(part)
        probe = _Probe(self, view)
        without = []
        for index in range(full):
            without.append(probe(index))
            view.progress("perplexity", index + 1, full)
        dense = probe(None)
        return one_shot(
            view,
            [loss - dense for loss in without],
            part=part,
            unit=self.unit,
            meaning="log perplexity without the layer, less that of the whole model",
        )


class _Probe:
    """Loss without one layer; layers are asked for from the first to the last."""

    def __init__(self, settings: Compressor, view: DepthView) -> None:
        self._view, self._part = view, part_of(settings)
        self._ids_BT, self._mask_BT = scored_pieces(
            view, samples=settings.samples, length=settings.length
        )
        self._memo = Memo(view.folder / "losses.json")
        self._layers: Sequence[nn.Module] = ()
        self._input_BTD = torch.empty(0)
        self._at = 0

    def __call__(self, without: int | None) -> float:
        return self._memo(str(without), lambda: self._measure(without))

    def _measure(self, without: int | None) -> float:
        view, full = self._view, len(self._view.stream)
        if not self._layers:
            self._layers = view.dense()
            self._input_BTD = view.stream.embed(self._ids_BT)
        start = full if without is None else without
        self._input_BTD = self._run(self._input_BTD, self._at, start)
        self._at = start
        hidden_BTD = self._input_BTD
        if without is not None:
            if self._part != "layer":
                layer = self._layers[without]
                with silenced(view.inner(without, layer, self._part)):
                    hidden_BTD = self._run(hidden_BTD, without, without + 1)
            hidden_BTD = self._run(hidden_BTD, without + 1, full)
        return text_loss(view.stream, hidden_BTD, self._ids_BT, self._mask_BT)

    def _run(self, hidden_BTD: Tensor, start: int, stop: int) -> Tensor:
        for index in range(start, stop):
            hidden_BTD = self._view.stream.run_layer(index, self._layers[index], hidden_BTD)
        return hidden_BTD
