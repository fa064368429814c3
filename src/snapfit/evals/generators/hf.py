"""Generation with transformers: batches padded on the left, cached, on any device.

Sampling is greedy choice under Gumbel noise: the largest of log p_i / t + g_i, g_i of the Gumbel
distribution, is a sample at temperature t (Gumbel, 1954). Each row draws its noise from its own
generator, one vector a step, so its tokens do not depend on the rows beside it.

Shape suffixes: B rows, T tokens so far, V vocabulary.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import GenerationConfig

from snapfit.core.errors import SnapfitError
from snapfit.evals.generators.base import Generation, Request, finished

if TYPE_CHECKING:
    from transformers import PreTrainedModel

DEFAULT_BATCH = 16


class TransformersGenerator:
    """Answers with a loaded model.

    Args:
        model: a causal language model in eval mode.
        eos: tokens that end a sequence.
        pad: token that pads; any will do, since it is masked.
        batch: most rows at once.

    """

    backend = "hf"

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        eos: frozenset[int],
        pad: int = 0,
        batch: int = DEFAULT_BATCH,
    ) -> None:
        self._model = model
        self._eos = eos
        self._pad = pad
        self.chunk = batch
        told: Any = model.config.get_text_config()
        self.context: int | None = getattr(told, "max_position_embeddings", None)

    def generate(self, requests: Sequence[Request]) -> Iterator[tuple[int, Generation]]:
        """Answer in batches of consecutive requests: put those of like length together.

        Raises:
            SnapfitError: a request does not fit the model's context.

        """
        for start in range(0, len(requests), self.chunk):
            part = requests[start : start + self.chunk]
            yield from enumerate(self._answer(part), start)

    @torch.no_grad()
    def _answer(self, requests: Sequence[Request]) -> Iterator[Generation]:
        began = time.perf_counter()
        asked = [request for request in requests if request.max_tokens > 0]
        found = iter(self._batched(asked) if asked else [])
        share = (time.perf_counter() - began) / max(1, len(asked))
        for request in requests:
            if request.max_tokens <= 0:
                yield Generation(ids=(), ended="length", seconds=0.0)
                continue
            ids, ended = finished(next(found), request, self._eos)
            yield Generation(ids=ids, ended=ended, seconds=share)

    def _batched(self, requests: Sequence[Request]) -> list[tuple[int, ...]]:
        self._check(requests)
        width = max(len(request.prompt) for request in requests)
        device = self._model.device
        ids_BT = torch.full((len(requests), width), self._pad, dtype=torch.int64)
        mask_BT = torch.zeros_like(ids_BT)
        for row, request in enumerate(requests):
            ids_BT[row, width - len(request.prompt) :] = torch.tensor(request.prompt)
            mask_BT[row, width - len(request.prompt) :] = 1
        model: Any = self._model
        with _without_habits(model):
            generated_BT: Tensor = model.generate(
                ids_BT.to(device),
                attention_mask=mask_BT.to(device),
                do_sample=False,
                max_new_tokens=max(request.max_tokens for request in requests),
                eos_token_id=sorted(self._eos) or None,
                pad_token_id=self._pad,
                logits_processor=[_Noise(requests)],
                stopping_criteria=[_Limits(requests, width)],
                use_cache=True,
            )
        return [tuple(row[width:]) for row in generated_BT.tolist()]

    def _check(self, requests: Sequence[Request]) -> None:
        for request in requests:
            longest = len(request.prompt) + request.max_tokens
            if self.context is not None and longest > self.context:
                raise SnapfitError(
                    f"a prompt of {len(request.prompt)} tokens and a budget of "
                    f"{request.max_tokens} exceed the model's context of {self.context}; use "
                    "smaller budgets or shorter problems"
                )


@contextlib.contextmanager
def _without_habits(model: Any) -> Iterator[None]:
    """Leave out, while the block runs, the settings that a checkpoint recommends.

    Such as a repetition penalty, which no other backend would apply.
    """
    own = model.generation_config
    model.generation_config = GenerationConfig()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        model.generation_config = own


class _Noise:
    """Adds Gumbel noise to the rows that sample; one vector a row and step."""

    def __init__(self, requests: Sequence[Request]) -> None:
        self._temperatures = [request.temperature for request in requests]
        self._generators = [torch.Generator().manual_seed(request.seed) for request in requests]

    def __call__(self, _ids_BT: Tensor, scores_BV: Tensor) -> Tensor:
        scores_BV = scores_BV.float()
        for row, temperature in enumerate(self._temperatures):
            if temperature > 0:
                uniform_V = torch.rand(scores_BV.shape[1], generator=self._generators[row])
                gumbel_V = -torch.log(-torch.log(uniform_V.clamp(1e-20, 1 - 1e-7)))
                scores_BV[row] = scores_BV[row] / temperature + gumbel_V.to(scores_BV.device)
        return scores_BV


class _Limits:
    """Ends a row at its own number of tokens, or at one of its stop sequences."""

    def __init__(self, requests: Sequence[Request], width: int) -> None:
        self._requests = requests
        self._width = width

    def __call__(self, ids_BT: Tensor, _scores: object, **_: object) -> Tensor:
        generated = ids_BT.shape[1] - self._width
        tail = max((len(stop) for r in self._requests for stop in r.stop), default=0)
        tails = ids_BT[:, -min(tail, generated) :].tolist() if tail else []
        done = [
            generated >= request.max_tokens
            or any(stop and tuple(tails[row][-len(stop) :]) == stop for stop in request.stop)
            for row, request in enumerate(self._requests)
        ]
        return torch.tensor(done, device=ids_BT.device)
