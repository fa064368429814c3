"""How far a changed model's next-token distribution is from the original's.

Shape suffixes: B windows, T tokens of a window, V vocabulary.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn

Weights = Mapping[str, Tensor]
"""Replacement values by parameter name."""


@torch.no_grad()
def divergences(
    model: nn.Module,
    ids_BT: Tensor,
    variants: Mapping[str, Weights],
    step: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """KL(original || variant) in nats a token, of each variant, on the same windows.

    One window at a time goes through the original and all variants, so that two sets of logits
    are in memory, whatever the number of windows.

    Args:
        model: a causal language model; unchanged afterwards.
        ids_BT: windows of token ids.
        variants: by name, the parameters that differ from the model's.
        step: called after every window.
    """
    totals = dict.fromkeys(variants, 0.0)
    for window_T in ids_BT:
        original_TV = _log_probabilities(model, window_T)
        for name, weights in variants.items():
            with replaced(model, weights):
                changed_TV = _log_probabilities(model, window_T)
            gap_TV = original_TV.exp() * (original_TV - changed_TV)
            totals[name] += float(gap_TV.sum(dtype=torch.float64))
        step()
    return {name: total / ids_BT.numel() for name, total in totals.items()}


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


def _log_probabilities(model: nn.Module, window_T: Tensor) -> Tensor:
    logits_TV: Tensor = model(input_ids=window_T[None], use_cache=False).logits[0]
    return torch.log_softmax(logits_TV.float(), dim=-1)
