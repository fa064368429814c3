"""The model's own generations: calibration without any data.

Windows are sampled at temperature 1 from the model's distribution, beginning with its BOS token;
after an end-of-sequence token the window goes on with a new text from BOS. With a model's own
text the second moments are those of the distribution that it was trained to reproduce (data-free
calibration as in LLM-QAT, arXiv 2305.17888).

Asked for answers, the model is given questions, its own or those of a file, and a mask says which
tokens it answered: reasoning is calibrated on what the model reads while it reasons.

Shape suffixes: B windows, b of a batch, T tokens, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from snapfit.calib.sources.turns import Author, Monologue, make_script
from snapfit.core.errors import SnapfitError
from snapfit.nn.cache import cache_argument

if TYPE_CHECKING:
    from collections.abc import Callable

    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from snapfit.nn.sweep import Progress

NAME = "self"
PREFIX = "self:"
"""Before a JSONL file of prompts."""

BATCH_TOKENS = 1 << 15
"""Tokens of the windows that are generated together; bounds the KV cache."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Written:
    """Generated windows.

    Attributes:
        ids_BT: int64 token ids.
        mask_BT: whether a token is the model's answer; None where all are its own.
        notes: what a reader of the report should know.

    """

    ids_BT: Tensor
    mask_BT: Tensor | None = None
    notes: tuple[str, ...] = ()


def is_self(spec: str) -> bool:
    """Whether `spec` names the model's own generations."""
    return spec == NAME or spec.startswith(PREFIX)


def prompts_of(spec: str) -> Path | None:
    """The file of prompts in 'self:FILE', or None."""
    return Path(spec.removeprefix(PREFIX)) if spec.startswith(PREFIX) else None


@torch.no_grad()
def windows(
    model_loader: Callable[[], PreTrainedModel],
    *,
    windows: int,
    context: int,
    seed: int,
    spec: str = NAME,
    template: bool = False,
    tokenizer: PreTrainedTokenizerBase | None = None,
    progress: Progress | None = None,
) -> Written:
    """Sampled windows.

    Args:
        model_loader: loads the whole model.
        windows: how many.
        context: tokens of each, BOS included.
        seed: the result depends on it, on the model and on the prompts only.
        spec: 'self', or 'self:FILE' with prompts.
        template: let the model answer through its chat template, thinking.
        tokenizer: for prompts and the template.
        progress: told ('generate', tokens, total).

    Raises:
        SnapfitError: the model names no BOS or EOS token, its context is shorter than a window,
            its logits are not finite, or the prompts or the template cannot be used.

    """
    model = model_loader()
    config = model.config.get_text_config()
    start = _first(config.bos_token_id, _first(config.eos_token_id, None))
    if start is None:
        raise SnapfitError("the model names no BOS or EOS token to start from; give --calib FILE")
    limit = getattr(config, "max_position_embeddings", None)
    if isinstance(limit, int) and context > limit:
        raise SnapfitError(f"a window of {context} tokens exceeds the model's context of {limit}")
    ends = set(_all(config.eos_token_id))
    prompts = prompts_of(spec)
    notes: tuple[str, ...] = ()
    authors: list[Author]
    asked = prompts is not None or template
    if asked:
        if tokenizer is None:
            raise SnapfitError("prompts and chat templates need the model's tokenizer")
        ends |= set(_all(getattr(model.generation_config, "eos_token_id", None)))
        script, notes = make_script(
            tokenizer, prompts=prompts, template=template, start=start, ends=ends, context=context
        )
        authors = [script.author(number, windows, context) for number in range(windows)]
    else:
        authors = [Monologue(start, ends) for _ in range(windows)]
    generator = torch.Generator().manual_seed(seed)
    uniform_BT = torch.rand(windows, context, generator=generator)
    size = max(1, BATCH_TOKENS // context)
    ids_BT = torch.empty(windows, context, dtype=torch.int64)
    mask_BT = torch.empty(windows, context, dtype=torch.bool)
    for row in range(0, windows, size):
        part = slice(row, row + size)
        ids_BT[part], mask_BT[part] = _generate(model, authors[part], uniform_BT[part])
        if progress is not None:
            progress("generate", min(row + size, windows) * context, windows * context)
    if not mask_BT.any():
        raise SnapfitError(
            f"the model answered nothing within {windows} windows of {context} tokens; use a "
            "larger --context"
        )
    return Written(ids_BT=ids_BT, mask_BT=mask_BT if asked else None, notes=notes)


def _generate(
    model: PreTrainedModel, authors: list[Author], uniform_bT: Tensor
) -> tuple[Tensor, Tensor]:
    """One batch of windows (b, T) and their mask; `uniform_bT` in [0, 1) decides every choice."""
    from transformers import DynamicCache

    ids_bT = torch.empty(uniform_bT.shape, dtype=torch.int64)
    mask_bT = torch.empty(uniform_bT.shape, dtype=torch.bool)
    cache = {cache_argument(model): DynamicCache(config=model.config), "use_cache": True}
    sampled = [0] * len(authors)
    for step in range(uniform_bT.shape[1]):
        written = [author.write(token) for author, token in zip(authors, sampled, strict=True)]
        ids_bT[:, step] = torch.tensor([token for token, _ in written])
        mask_bT[:, step] = torch.tensor([counts for _, counts in written])
        if step + 1 == uniform_bT.shape[1]:
            break
        previous_b1 = ids_bT[:, step : step + 1].to(model.device)
        logits_bV = model(previous_b1, **cache).logits[:, -1].float()
        if not torch.isfinite(logits_bV).all():
            raise SnapfitError("the model's own logits hold NaN or infinity; the model is broken")
        cumulative_bV = logits_bV.softmax(-1).cumsum(-1)
        threshold_b1 = uniform_bT[:, step + 1, None].to(cumulative_bV) * cumulative_bV[:, -1:]
        chosen_b = torch.searchsorted(cumulative_bV, threshold_b1, right=True)[:, 0]
        sampled = chosen_b.clamp_max(logits_bV.shape[1] - 1).tolist()
    return ids_bT, mask_bT


def _all(value: Any) -> list[int]:
    if value is None:
        return []
    return [value] if isinstance(value, int) else list(value)


def _first(value: Any, default: int | None) -> int | None:
    return next(iter(_all(value)), default)
