"""Whether an engine serves what was saved: greedy tokens beside those of a reference.

The reference is transformers in float32. An engine that computes in half precision may choose
another token where two logits nearly tie, and goes its own way from there; so what counts is the
first token that differs, and by how much the reference prefers its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

Ids = tuple[int, ...]

PROMPTS = (
    "The capital of France is",
    "Once upon a time, in a village by the sea,",
    "Water boils at a temperature of",
    "To bake bread you need",
    "The three laws of motion say that",
    "If a train leaves at noon and travels 60 miles an hour, then after three hours",
    "def fibonacci(n):",
    "Question: Which planet is the largest? Answer:",
    "In 1969, for the first time,",
    "The difference between a virus and a bacterium is",
    "Dear Sir or Madam, I am writing to",
    "A list of five animals: 1.",
    "She opened the door slowly and",
    "The square root of 144 is",
    "Photosynthesis is the process by which",
    "My favourite season is autumn, because",
)
"""The fixed prompts; sixteen, so that a rare path through the model has a chance to be taken."""

TOKENS = 64
"""Tokens that are compared for each prompt."""

TIES = {"float32": 1e-3, "float16": 0.05, "bfloat16": 0.4}
"""Gap of two logits below which an engine's rounding may choose either, by its dtype.

float32 sums in another order move a logit by about 1e-4. A half-precision logit near 16 is a
multiple of 1/64 (float16) or 1/8 (bfloat16) itself, and the layers below add about twice that.
"""


@dataclass(frozen=True, kw_only=True)
class Divergence:
    """The first difference of two continuations.

    Attributes:
        prompt: index of the prompt.
        position: index of the first generated token that differs.
        expected: the reference's token.
        found: the engine's token.
        gap: by how much the reference's logit of its own token exceeds that of the engine's.

    """

    prompt: int
    position: int
    expected: int
    found: int
    gap: float


@dataclass(frozen=True, kw_only=True)
class Parity:
    """How greedy tokens compare.

    Attributes:
        prompts: compared continuations.
        tokens: length of each.
        tie: gap below which a difference is rounding.
        divergences: at most one a prompt.

    """

    prompts: int
    tokens: int
    tie: float
    divergences: tuple[Divergence, ...] = field(default=())

    @property
    def equal(self) -> int:
        """Continuations that are the same to the last token."""
        return self.prompts - len(self.divergences)

    @property
    def wrong(self) -> tuple[Divergence, ...]:
        """Differences that are no ties."""
        return tuple(found for found in self.divergences if not found.gap < self.tie)

    @property
    def holds(self) -> bool:
        """Whether every difference is a tie."""
        return not self.wrong

    def to_json(self) -> dict[str, Any]:
        """A JSON-serialisable dictionary; a gap that is no number is None."""
        found = [
            {**asdict(entry), "gap": entry.gap if math.isfinite(entry.gap) else None}
            for entry in self.divergences
        ]
        return {**asdict(self), "divergences": found, "equal": self.equal, "holds": self.holds}


def compare(
    logits: Callable[[Tensor], Tensor], prompts: Sequence[Ids], found: Sequence[Ids], tie: float
) -> Parity:
    """Compare greedy continuations with those of a model that is right by definition.

    One forward pass over a prompt and its continuation says what the model would have chosen at
    every step, up to the first difference: that is all its own greedy generation would say.

    Args:
        logits: of the reference, (T,) token ids -> (T, V).
        prompts: token ids.
        found: the engine's continuation of each prompt.
        tie: gap of two logits below which a difference is rounding.

    """
    different = (
        _divergence(logits, index, prompt, tokens)
        for index, (prompt, tokens) in enumerate(zip(prompts, found, strict=True))
    )
    return Parity(
        prompts=len(prompts),
        tokens=min(map(len, found), default=0),
        tie=tie,
        divergences=tuple(entry for entry in different if entry is not None),
    )


def _divergence(
    logits: Callable[[Tensor], Tensor], index: int, prompt: Ids, found: Ids
) -> Divergence | None:
    logits_TV = logits(torch.tensor([*prompt, *found[:-1]]))[len(prompt) - 1 :].double()
    for position, (ours, last_V) in enumerate(zip(found, logits_TV, strict=True)):
        expected = int(last_V.argmax())
        gap = float(last_V[expected] - last_V[ours])
        if math.isnan(gap):
            gap = math.inf  # NaN is no tie
        if gap > 0:
            return Divergence(
                prompt=index, position=position, expected=expected, found=ours, gap=gap
            )
    return None


def encode_prompts(tokenizer: Any) -> list[Ids]:
    """The fixed prompts as token ids of a tokenizer of transformers."""
    return [tuple(tokenizer(text)["input_ids"]) for text in PROMPTS]
