"""A generator that computes its next token from all tokens before it, and a dialogue for it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from functools import cache

from tiny_models import tiny_tokenizer
from transformers import PreTrainedTokenizerFast

from snapfit.core.errors import SnapfitError
from snapfit.evals.dialogue import Delimiters, Dialogue
from snapfit.evals.generators.base import Generation, Ids, Request, finished
from snapfit.evals.tasks.base import Judged, Problem, Task

EOS = 2
FIRST, LAST = 4, 12
"""Its words: few, so that delimiters of several tokens are often begun and often completed."""


class Scripted:
    """Answers by a hash of the prompt and of what it said so far, its temperature and seed.

    Args:
        salt: another one is another model.
        chunk: requests at once.
        context: of the pretended model.
        fail_after: requests after which it breaks; None for never.

    """

    backend = "scripted"

    def __init__(
        self,
        salt: int = 0,
        *,
        chunk: int = 4,
        context: int | None = None,
        fail_after: int | None = None,
    ) -> None:
        self._salt = salt
        self.chunk = chunk
        self.context = context
        self._left = fail_after
        self.asked: list[Request] = []

    def generate(self, requests: Sequence[Request]) -> Iterator[tuple[int, Generation]]:
        """Answer one by one."""
        for at, request in enumerate(requests):
            if self._left is not None:
                if self._left == 0:
                    raise SnapfitError("the backend failed for good")
                self._left -= 1
            self.asked.append(request)
            ids: list[int] = []
            while len(ids) < request.max_tokens:
                ids.append(self._next(request, ids))
                if finished(tuple(ids), request, frozenset({EOS}))[1] != "length":
                    break
            kept, ended = finished(tuple(ids), request, frozenset({EOS}))
            yield at, Generation(ids=kept, ended=ended, seconds=0.5)

    def _next(self, request: Request, said: Sequence[int]) -> int:
        seed = request.seed if request.temperature else 0
        text = f"{self._salt}/{seed}/{len(said)}/{request.prompt}/{said}"
        drawn = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "big")
        return EOS if drawn % 19 == 0 else FIRST + drawn % (LAST - FIRST)


@cache
def words() -> PreTrainedTokenizerFast:
    """The tiny tokenizer, made once."""
    return tiny_tokenizer()


def dialogue(*, end: str = "w5", again: str = "w6", final: str = "w20") -> Dialogue:
    """Words of the tiny tokenizer as delimiters; thinking opens with 'w21'."""
    marks = Delimiters(start="w21", end=end, final=final, again=again, source="given")
    return Dialogue(words(), marks)


def task(problems: int = 3, name: str = "scripted") -> Task:
    """Problems whose answer is any that begins with 'w7'."""
    asked = tuple(
        Problem(id=f"p{i}", question=f"w{30 + i} w{40 + i}", answer="w7") for i in range(problems)
    )
    return Task(
        name=name,
        family="long",
        kind="generate",
        problems=asked,
        judge=judge,
        equivalence="exact",
    )


def judge(problem: Problem, text: str) -> Judged:
    """The first word is the answer."""
    first = next(iter(text.split()), None)
    return Judged(answer=first, correct=first == problem.answer)


def ids_of(text: str) -> Ids:
    """Token ids of words."""
    return tuple(words().encode(text, add_special_tokens=False))
