"""How far a changed model's next-token distribution is from the original's.

Shape suffixes: B windows, T tokens of a window, V vocabulary, M outputs of a module.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

Weights = Mapping[str, Tensor]
"""Replacement values by parameter name."""


@dataclass(frozen=True, kw_only=True)
class Variant:
    """What is different from the original.

    Attributes:
        weights: values of parameters, by name.
        shifts: constants (M,) that are added to the output of modules, by name: for a bias on a
            module that has none.

    """

    weights: Weights = field(default_factory=dict)
    shifts: Mapping[str, Tensor] = field(default_factory=dict)


@torch.no_grad()
def divergences(
    model: nn.Module,
    ids_BT: Tensor,
    variants: Mapping[str, Weights],
    step: Callable[[], None] = lambda: None,
    *,
    mask_BT: Tensor | None = None,
) -> dict[str, float]:
    """KL(original || variant) in nats a token, of each variant, on the same windows.

    One window at a time goes through the original and all variants, so that two sets of logits
    are in memory, whatever the number of windows.

    Args:
        model: a causal language model; unchanged afterwards.
        ids_BT: windows of token ids.
        variants: by name, the parameters that differ from the model's.
        step: called after every window.
        mask_BT: positions that count; all when None.
    """
    mask_BT = torch.ones_like(ids_BT, dtype=torch.bool) if mask_BT is None else mask_BT
    totals = dict.fromkeys(variants, 0.0)
    for window_T, mask_T in zip(ids_BT, mask_BT, strict=True):
        original_TV = log_probabilities(model, window_T)
        for name, weights in variants.items():
            with replaced(model, weights):
                changed_TV = log_probabilities(model, window_T)
            gap_T = (original_TV.exp() * (original_TV - changed_TV)).sum(-1)[mask_T]
            totals[name] += float(gap_T.sum(dtype=torch.float64))
        step()
    return {name: total / int(mask_BT.sum()) for name, total in totals.items()}


@contextlib.contextmanager
def varied(model: nn.Module, variant: Variant) -> Iterator[None]:
    """Make a model the variant while the block runs."""

    def shift(value_M: Tensor) -> Callable[[nn.Module, tuple[Any, ...], Tensor], Tensor]:
        return lambda _module, _inputs, output: output + value_M

    handles = [
        model.get_submodule(name).register_forward_hook(shift(value_M))
        for name, value_M in variant.shifts.items()
    ]
    try:
        with replaced(model, variant.weights):
            yield
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def replaced(model: nn.Module, weights: Weights) -> Iterator[None]:
    """Give parameters other values, by reference, while the block runs."""
    parameters = {name: model.get_parameter(name) for name in weights}
    originals = {name: parameter.data for name, parameter in parameters.items()}
    try:
        for name, parameter in parameters.items():
            parameter.data = weights[name]
        yield
    finally:
        for name, parameter in parameters.items():
            parameter.data = originals[name]


def log_probabilities(model: nn.Module, window_T: Tensor) -> Tensor:
    """(T, V) in float32, of a window."""
    logits_TV: Tensor = model(input_ids=window_T[None], use_cache=False).logits[0]
    return torch.log_softmax(logits_TV.float(), dim=-1)
