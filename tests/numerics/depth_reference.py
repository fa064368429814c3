"""The published formulas of depth methods, transcribed for plain transformers models."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn


def stack(model: Any) -> nn.ModuleList:
    layers: nn.ModuleList = model.model.layers
    return layers


@torch.no_grad()
def residual_stream(model: Any, ids_BT: Tensor) -> list[Tensor]:
    """Inputs of all layers, and the output of the last before the final norm."""
    last: list[Tensor] = []
    handle = stack(model)[-1].register_forward_hook(lambda _m, _i, out: last.append(out))
    states = model(ids_BT, output_hidden_states=True, use_cache=False).hidden_states
    handle.remove()
    return [*states[:-1], last[0]]


def influence(before_BTD: Tensor, after_BTD: Tensor) -> float:
    """1 - E[x . y / (|x| |y|)]."""
    products_BT = (before_BTD * after_BTD).sum(-1)
    return float(1 - (products_BT / (before_BTD.norm(dim=-1) * after_BTD.norm(dim=-1))).mean())


def angle(before_BD: Tensor, after_BD: Tensor) -> float:
    """Mean of arccos(x . y / (|x| |y|)) / pi."""
    cosine_B = (before_BD * after_BD).sum(-1) / (before_BD.norm(dim=-1) * after_BD.norm(dim=-1))
    return float((cosine_B.arccos() / math.pi).mean())


@contextlib.contextmanager
def without(module: nn.Module, answer: Callable[..., Any]) -> Iterator[None]:
    """Let a module answer something else."""
    original = module.forward
    module.forward = answer
    try:
        yield
    finally:
        module.forward = original


def log_perplexity(model: Any, ids_BT: Tensor) -> float:
    with torch.no_grad():
        return float(model(ids_BT, labels=ids_BT, use_cache=False).loss)


def taylor(model: Any, ids_BT: Tensor, modules: list[nn.Module]) -> list[float]:
    """Sum of abs(w * dL/dw) over the parameters of each module."""
    model.requires_grad_(True)
    model.zero_grad()
    model(ids_BT, labels=ids_BT, use_cache=False).loss.backward()
    scores = [
        sum(
            float((w.detach() * w.grad).abs().sum())
            for w in module.parameters()
            if w.grad is not None
        )
        for module in modules
    ]
    model.zero_grad()
    return scores


@torch.no_grad()
def merge(model: Any, at: int, count: int) -> Any:
    """theta_l + sum_k (theta_{l+k} - theta_l), layers l+1 .. l+count-1 dropped."""
    merged = copy.deepcopy(model)
    for name, parameter in stack(merged)[at].named_parameters():
        base = stack(model)[at].get_parameter(name)
        for k in range(1, count):
            parameter.add_(stack(model)[at + k].get_parameter(name) - base)
    kept = [layer for i, layer in enumerate(stack(merged)) if not at < i < at + count]
    merged.model.layers = nn.ModuleList(kept)
    merged.config.num_hidden_layers = len(kept)
    return merged


@torch.no_grad()
def final_cosine(model: Any, original: Any, ids_BT: Tensor) -> float:
    """Mean over sentences of the cosine of all final hidden states."""
    states, wanted = (
        m.model(ids_BT, use_cache=False).last_hidden_state.flatten(1) for m in (model, original)
    )
    return float(torch.cosine_similarity(states, wanted).mean())


def laco(
    original: Any, ids_BT: Tensor, *, merge_layers: int, interval: int, threshold: float
) -> tuple[Any, list[tuple[int, float]]]:
    """Algorithm 1 of the paper: the merged model, and (layers, cosine) of every merge."""
    model, accepted = original, []
    place = len(stack(original)) - merge_layers
    while place >= 0:
        tried = merge(model, place, merge_layers)
        cosine = final_cosine(tried, original, ids_BT)
        if cosine > threshold:
            model = tried
            accepted.append((len(stack(model)), cosine))
            place = min(place - interval, len(stack(model)) - merge_layers)
        else:
            place -= 1
    return model, accepted
