"""The model's own generations: calibration without any data.

Windows are sampled at temperature 1 from the model's distribution, beginning with its BOS token;
after an end-of-sequence token the window goes on with a new text from BOS. With a model's own
text the second moments are those of the distribution that it was trained to reproduce (data-free
calibration as in LLM-QAT, arXiv 2305.17888).

Shape suffixes: b windows of a batch, T tokens, V vocabulary.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from snapfit.core.errors import SnapfitError

if TYPE_CHECKING:
    from collections.abc import Callable

    from transformers import PreTrainedModel

    from snapfit.nn.sweep import Progress

NAME = "self"

BATCH_TOKENS = 1 << 15
"""Tokens of the windows that are generated together; bounds the KV cache."""


@torch.no_grad()
def windows(
    model_loader: Callable[[], PreTrainedModel],
    *,
    windows: int,
    context: int,
    seed: int,
    progress: Progress | None = None,
) -> Tensor:
    """Sampled windows (B, T), int64.

    Args:
        model_loader: loads the whole model.
        windows: how many.
        context: tokens of each, BOS included.
        seed: the result depends on it and on the model only.
        progress: told ('generate', tokens, total).

    Raises:
        SnapfitError: the model names no BOS or EOS token, its context is shorter than a window,
            or its logits are not finite.

    """
    model = model_loader()
    config = model.config.get_text_config()
    start = _first(config.bos_token_id, _first(config.eos_token_id, None))
    if start is None:
        raise SnapfitError("the model names no BOS or EOS token to start from; give --calib FILE")
    limit = getattr(config, "max_position_embeddings", None)
    if isinstance(limit, int) and context > limit:
        raise SnapfitError(f"a window of {context} tokens exceeds the model's context of {limit}")
    ends = torch.tensor(_all(config.eos_token_id), dtype=torch.int64, device=model.device)
    generator = torch.Generator().manual_seed(seed)
    uniform_BT = torch.rand(windows, context, generator=generator)
    size = max(1, BATCH_TOKENS // context)
    parts = []
    for row in range(0, windows, size):
        parts.append(_generate(model, start, ends, uniform_BT[row : row + size]))
        if progress is not None:
            progress("generate", min(row + size, windows) * context, windows * context)
    return torch.cat(parts)


def _generate(model: PreTrainedModel, start: int, ends: Tensor, uniform_bT: Tensor) -> Tensor:
    """One batch of windows; `uniform_bT` in [0, 1) decides every choice."""
    from transformers import DynamicCache

    size, context = uniform_bT.shape
    ids_bT = torch.full((size, context), start, dtype=torch.int64, device=model.device)
    cache = {_cache_argument(model): DynamicCache(config=model.config), "use_cache": True}
    for step in range(1, context):
        previous_b1 = ids_bT[:, step - 1 : step]
        logits_bV = model(previous_b1, **cache).logits[:, -1].float()
        if not torch.isfinite(logits_bV).all():
            raise SnapfitError("the model's own logits hold NaN or infinity; the model is broken")
        cumulative_bV = logits_bV.softmax(-1).cumsum(-1)
        threshold_b1 = uniform_bT[:, step, None].to(cumulative_bV) * cumulative_bV[:, -1:]
        chosen_b = torch.searchsorted(cumulative_bV, threshold_b1, right=True)[:, 0]
        chosen_b = chosen_b.clamp_max(logits_bV.shape[1] - 1)
        ended_b = torch.isin(previous_b1[:, 0], ends) & (previous_b1[:, 0] != start)
        ids_bT[:, step] = torch.where(ended_b, start, chosen_b)
    return ids_bT.cpu()


def _cache_argument(model: PreTrainedModel) -> str:
    """'cache' since transformers 5.24 or so, 'past_key_values' before."""
    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"


def _all(value: Any) -> list[int]:
    if value is None:
        return []
    return [value] if isinstance(value, int) else list(value)


def _first(value: Any, default: int | None) -> int | None:
    return next(iter(_all(value)), default)
