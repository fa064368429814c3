"""A tiny checkpoint as a stream, and tokens for it."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import nn

from snapfit.calib.tokens import Tokens
from snapfit.models.source import empty_model, open_model
from snapfit.models.weights import open_weights
from snapfit.nn.stream import LayerStream

sys.path.insert(0, str(Path(__file__).parents[1] / "contract"))
from tiny_models import ARCHITECTURES, VOCABULARY, build

STREAMED = (*ARCHITECTURES, "stablelm", "opt", "olmoe")
"""Everything that the tests stream: what is described as data, and some of the rest."""

__all__ = ["STREAMED", "build", "stream_of", "tokens_for"]


def stream_of(folder: Path | str) -> LayerStream:
    source = open_model(folder)
    model = empty_model(source)
    path = next(n for n, m in model.named_modules() if isinstance(m, nn.ModuleList))
    return LayerStream(model, open_weights(source, model), path)


def tokens_for(windows: int = 5, context: int = 12) -> Tokens:
    generator = torch.Generator().manual_seed(2)
    ids_BT = torch.randint(0, VOCABULARY, (windows, context), generator=generator)
    return Tokens(ids_BT=ids_BT, source="test", requested=ids_BT.numel(), seen=ids_BT.numel())
