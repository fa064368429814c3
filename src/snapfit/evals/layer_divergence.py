"""Divergence of many variants of a model that differ from some layer on.

The hidden states of the original at the input of every layer are kept; a variant that changes
layer l runs the layers from l on only, from what the original gives them. transformers' own
forward pass runs, with stand-ins that compute nothing in the place of the layers before, so that
the result is that of the whole variant, up to rounding.

Shape suffixes: B windows, T tokens of a window, D hidden size, V vocabulary, M outputs.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from snapfit.core.errors import SnapfitError
from snapfit.core.measured import Loss
from snapfit.evals.divergence import Variant, log_probabilities, varied


class LayerDivergence:
    """KL(original || variant), in nats a token, over fixed windows.

    Holds, besides the model, the hidden states of all layers and the original's prediction:
    tokens x (layers x D + V) x 4 bytes.

    Args:
        model: a causal language model; unchanged afterwards.
        layers: qualified name of its list of decoder layers.
        ids_BT: windows of token ids.
        mask_BT: positions that count; all when None.
        step: called after every window of the original.

    """

    def __init__(
        self,
        model: nn.Module,
        layers: str,
        ids_BT: Tensor,
        mask_BT: Tensor | None = None,
        step: Callable[[], None] = lambda: None,
    ) -> None:
        self._model = model
        self._layers = _list_of(model, layers)
        self._ids_BT = ids_BT
        self._mask_BT = torch.ones_like(ids_BT, dtype=torch.bool) if mask_BT is None else mask_BT
        self._hidden: list[list[Tensor]] = []
        self._original: list[Tensor] = []
        self._tuples = False
        for window_T in ids_BT:
            with torch.no_grad(), _recorded(self._layers) as seen:
                self._original.append(log_probabilities(model, window_T))
            self._hidden.append(seen.inputs)
            self._tuples = seen.tuples
            step()

    @torch.no_grad()
    def __call__(self, variant: Variant, first: int) -> Loss:
        """The divergence of a variant whose layers before `first` are the original's.

        Raises:
            SnapfitError: the variant's prediction is not finite.

        """
        totals, counts = [], []
        with varied(self._model, variant):
            for window_T, mask_T, hidden, original_TV in zip(
                self._ids_BT, self._mask_BT, self._hidden, self._original, strict=True
            ):
                if not mask_T.any():
                    continue
                with _resumed(self._layers, first, hidden[first], tuples=self._tuples):
                    changed_TV = log_probabilities(self._model, window_T)
                gap_T = (original_TV.exp() * (original_TV - changed_TV)).sum(-1)[mask_T]
                totals.append(float(gap_T.sum(dtype=torch.float64)))
                counts.append(int(mask_T.sum()))
        nats = sum(totals) / sum(counts)
        if not math.isfinite(nats):
            raise SnapfitError(
                f"a model changed from layer {first} on predicts NaN or infinity; its weights "
                "overflow, or the model is broken"
            )
        return Loss(nats=nats, stderr=_stderr(totals, counts))


def _stderr(totals: list[float], counts: list[int]) -> float | None:
    """Standard error of a ratio of sums, by its linear approximation; None of one window."""
    if len(totals) < 2:
        return None
    mean = sum(totals) / sum(counts)
    squares = sum((t - mean * n) ** 2 for t, n in zip(totals, counts, strict=True))
    windows = len(totals)
    return math.sqrt(squares * windows / (windows - 1)) / sum(counts)


def _list_of(model: nn.Module, layers: str) -> nn.ModuleList:
    found = model.get_submodule(layers)
    assert isinstance(found, nn.ModuleList)
    return found


@dataclass
class _Seen:
    """Inputs of all layers, and whether layers return tuples."""

    inputs: list[Tensor] = field(default_factory=list)
    tuples: bool = False


@contextlib.contextmanager
def _recorded(layers: nn.ModuleList) -> Iterator[_Seen]:
    """What layers are given and return, filled while the block runs."""
    seen = _Seen()

    def keep(
        _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        seen.inputs.append(args[0] if args else kwargs["hidden_states"])
        seen.tuples = isinstance(output, tuple)

    handles = [layer.register_forward_hook(keep, with_kwargs=True) for layer in layers]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def _resumed(
    layers: nn.ModuleList, first: int, hidden_1TD: Tensor, *, tuples: bool
) -> Iterator[None]:
    """Layers before `first` compute nothing, and that layer is given `hidden_1TD`."""

    def give(
        _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if args:
            return (hidden_1TD, *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": hidden_1TD}

    originals = list(layers)
    handle = originals[first].register_forward_pre_hook(give, with_kwargs=True)
    try:
        for index in range(first):
            layers[index] = _StandIn(originals[index], tuples=tuples)
        yield
    finally:
        handle.remove()
        for index in range(first):
            layers[index] = originals[index]


class _StandIn(nn.Module):
    """Returns what it is given, in the form that a layer does; other attributes are the layer's."""

    def __init__(self, layer: nn.Module, *, tuples: bool) -> None:
        super().__init__()
        self.__dict__["_stands_for"] = layer  # not a child
        self._tuples = tuples

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_stands_for"], name)

    def forward(self, hidden_states: Tensor, *_: Any, **__: Any) -> Any:
        return (hidden_states,) if self._tuples else hidden_states
