"""What generates text: prompts of token ids in, token ids out, never one more than was allowed.

Sampling belongs to a request, not to a batch: a request with a seed gives the same tokens
whatever it is batched with, and the first b tokens of a long generation are the tokens of a
generation that was allowed b. (Up to rounding: a batch may be summed in another order, which
decides ties.) That is what lets one generation serve every budget.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

Ids = tuple[int, ...]

Ended = Literal["stop", "eos", "length"]
"""By a stop sequence, by the model's end of sequence, or out of tokens."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """One prompt.

    Attributes:
        prompt: token ids, at least one.
        max_tokens: most tokens to generate, a stop sequence included; 0 generates nothing.
        stop: token sequences that end the generation; left out of what is returned.
        temperature: 0 is greedy.
        seed: of the sampling.

    """

    prompt: Ids
    max_tokens: int
    stop: tuple[Ids, ...] = ()
    temperature: float = 0.0
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Generation:
    """What came of a request.

    Attributes:
        ids: generated tokens, without the stop sequence or the end of sequence that ended them.
        ended: why it ended.
        seconds: this request's share of the time its batch took.

    """

    ids: Ids
    ended: Ended
    seconds: float


class Generator(Protocol):
    """A model that can be asked.

    Attributes:
        backend: 'hf', 'vllm' or 'openai', for records.
        chunk: requests that are worth handing over together; a kill loses no more.
        context: most tokens of a prompt and its generation; None where nobody knows.

    """

    backend: str

    @property
    def chunk(self) -> int:
        """See the attributes."""

    @property
    def context(self) -> int | None:
        """See the attributes."""

    def generate(self, requests: Sequence[Request]) -> Iterator[tuple[int, Generation]]:
        """Answer every request; results come as soon as they are there, each with its index.

        Raises:
            SnapfitError: the backend failed for good; says what it said last. What was generated
                came before.

        """


def finished(ids: Ids, request: Request, eos: frozenset[int]) -> tuple[Ids, Ended]:
    """Cut generated tokens at the first thing that ends them.

    For backends that generate on, or that keep what ended them.

    Args:
        ids: generated tokens.
        request: what was asked.
        eos: end-of-sequence tokens.

    """
    ids = ids[: request.max_tokens]
    for end in range(1, len(ids) + 1):
        for stop in request.stop:
            if stop and ids[max(0, end - len(stop)) : end] == stop:
                return ids[: end - len(stop)], "stop"
        if ids[end - 1] in eos:
            return ids[: end - 1], "eos"
    return ids, "length"
