"""How far a compressed model strays from the original along one and the same trace.

Both read the same tokens. At every position: the divergence KL(original || compressed) of the
next-token distributions, and the cosine of the hidden states, layer by layer. Layers that were
removed have no state of their own; where the models differ in depth, the states are compared at
the same fraction of it.

Shape suffixes: T positions, L layers, V vocabulary, D hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Drift:
    """Of one trace.

    Attributes:
        divergence_T: nats, at every position.
        cosine_LT: of the states after the embedding and after each layer of the compressed model.

    """

    divergence_T: Floats
    cosine_LT: Floats


def comparable(base: Any, other: Any) -> bool:
    """Whether two models have the same vocabulary and hidden size."""
    first, second = (model.get_input_embeddings().weight.shape for model in (base, other))
    return bool(first == second)


@torch.no_grad()
def drift(base: Any, other: Any, ids: Sequence[int]) -> Drift:
    """Drift along the token ids of one trace, prompt included.

    Args:
        base: the original model.
        other: the compressed model, with the same vocabulary and hidden size.
        ids: at least two tokens.

    """
    window_1T = torch.tensor([list(ids)], device=base.device)
    mine = base(input_ids=window_1T, use_cache=False, output_hidden_states=True)
    theirs = other(input_ids=window_1T, use_cache=False, output_hidden_states=True)
    original_TV = torch.log_softmax(mine.logits[0].float(), dim=-1)
    changed_TV = torch.log_softmax(theirs.logits[0].float(), dim=-1)
    gap_T = (original_TV.exp() * (original_TV - changed_TV)).sum(-1).clamp_min(0)
    states, others = mine.hidden_states, theirs.hidden_states
    cosine_LT = torch.stack(
        [
            _cosine(states[_matching(level, len(others), len(states))][0], state[0])
            for level, state in enumerate(others)
        ]
    )
    return Drift(
        divergence_T=gap_T.double().numpy(force=True), cosine_LT=cosine_LT.numpy(force=True)
    )


def by_position(values: Sequence[Floats], bins: int) -> tuple[Floats, Floats]:
    """Mean of several traces' values in equal parts of their length.

    Returns:
        The mean of each part (bins,), and its standard error over traces.

    """
    rows = np.array(
        [
            [part.mean() for part in np.array_split(value, bins)]
            for value in values
            if len(value) >= bins
        ]
    )
    if not len(rows):
        return np.full(bins, np.nan), np.full(bins, np.nan)
    spread = rows.std(axis=0, ddof=1) if len(rows) > 1 else np.full(bins, np.nan)
    return rows.mean(axis=0), spread / np.sqrt(len(rows))


def _matching(level: int, levels: int, total: int) -> int:
    """The original's state at the same fraction of the depth."""
    return round(level * (total - 1) / max(1, levels - 1))


def _cosine(first_TD: Tensor, second_TD: Tensor) -> Tensor:
    return torch.cosine_similarity(first_TD.double(), second_TD.double(), dim=-1)
