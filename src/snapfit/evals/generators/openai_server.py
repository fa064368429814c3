"""Generation by any server with OpenAI's completions endpoint, such as `vllm serve`.

Prompts are sent as token ids, because text would be cut into tokens again, not always the same
ones. Servers that return token ids (vLLM does when asked) are taken at their word; the text of
others is tokenised here, and the server's own count of tokens is checked against the budget.

Servers fail: 5xx, timeouts and answers that make no sense are tried again, each time after twice
the wait; a request that is wrong (4xx) is not.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from typing import Any

from snapfit.core.errors import SnapfitError
from snapfit.evals.generators.base import Generation, Request, finished
from snapfit.evals.remote import MayPass, check_address, post, retried

ATTEMPTS = 6
FIRST_WAIT = 1.0
TIMEOUT = 600.0
PARALLEL = 16

PLAIN = {
    "top_p": 1.0,
    "top_k": -1,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}
"""The model's own distribution. Unsaid, `vllm serve` samples as the checkpoint recommends."""


class ServerGenerator:
    """Answers by asking a server.

    Args:
        url: base address, up to and including '/v1'.
        model: name that the server knows the model by.
        encode: text to token ids, for servers that return text only.
        decode: token ids to text, for stop sequences.
        eos: tokens that end a sequence.
        key: sent as a bearer token; None sends none.
        attempts: how often a request is tried.
        first_wait: seconds before the second attempt; doubled each time.
        timeout: seconds for one attempt.
        parallel: requests in flight.

    Raises:
        UsageError: `url` is no http address.

    """

    backend = "openai"

    def __init__(
        self,
        url: str,
        *,
        model: str,
        encode: Callable[[str], Sequence[int]],
        decode: Callable[[Sequence[int]], str],
        eos: frozenset[int],
        key: str | None = None,
        attempts: int = ATTEMPTS,
        first_wait: float = FIRST_WAIT,
        timeout: float = TIMEOUT,
        parallel: int = PARALLEL,
    ) -> None:
        check_address(url)
        self._url = f"{url.rstrip('/')}/completions"
        self._model = model
        self._encode = encode
        self._decode = decode
        self._eos = eos
        self._key = key
        self._attempts = attempts
        self._first_wait = first_wait
        self._timeout = timeout
        self._parallel = parallel
        self.chunk = 4 * parallel
        self.context: int | None = None

    def generate(self, requests: Sequence[Request]) -> Iterator[tuple[int, Generation]]:
        """Answer with several requests in flight; results come in the order in which they end.

        Raises:
            SnapfitError: a request failed for good. Those that were in flight are awaited and
                returned first, and no other is begun.

        """
        with ThreadPoolExecutor(self._parallel) as pool:
            futures = {pool.submit(self._ask, request): at for at, request in enumerate(requests)}
            failure: SnapfitError | None = None
            try:
                for future in as_completed(futures):
                    if future.cancelled():
                        continue
                    try:
                        found = future.result()
                    except SnapfitError as error:
                        failure = failure or error
                        _cancel(futures)
                    else:
                        yield futures[future], found
            finally:
                _cancel(futures)
        if failure is not None:
            raise failure

    def _ask(self, request: Request) -> Generation:
        if request.max_tokens <= 0:
            return Generation(ids=(), ended="length", seconds=0.0)
        return retried(
            lambda: self._attempt(request),
            name=self._url,
            attempts=self._attempts,
            first_wait=self._first_wait,
            advice="; what was generated so far is kept, run the same command again when the "
            "server is well",
        )

    def _attempt(self, request: Request) -> Generation:
        began = time.perf_counter()
        body = {
            **PLAIN,
            "model": self._model,
            "prompt": list(request.prompt),
            "max_tokens": request.max_tokens,
            "temperature": request.temperature,
            "seed": request.seed,
            "return_token_ids": True,
            "skip_special_tokens": False,
        }
        if request.stop:
            body["stop"] = [self._decode(stop) for stop in request.stop]
        answer = post(self._url, body, key=self._key, timeout=self._timeout)
        ids, stopped = self._read(answer, request)
        kept, ended = finished(ids, request, self._eos)
        if ended == "length" and stopped is not None:
            # The server left out what ended it.
            ended = "stop" if stopped else "eos"
        seconds = (time.perf_counter() - began) / self._parallel
        return Generation(ids=kept, ended=ended, seconds=seconds)

    def _read(self, answer: Any, request: Request) -> tuple[tuple[int, ...], bool | None]:
        """Token ids, and what ended them if the server says: a stop sequence, or else the model."""
        try:
            choice = answer["choices"][0]
            text, reason = choice["text"], choice.get("finish_reason")
            ids = choice.get("token_ids")
            usage = answer.get("usage") or {}
            count = usage.get("completion_tokens")
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            raise MayPass(f"an answer without a completion: {str(answer)[:200]}") from error
        if not isinstance(text, str):
            raise MayPass(f"an answer without text: {str(answer)[:200]}")
        if isinstance(count, int) and count > request.max_tokens:
            raise SnapfitError(
                f"{self._url} generated {count} tokens where {request.max_tokens} were allowed; "
                "its budgets cannot be trusted"
            )
        known = isinstance(ids, list) and all(isinstance(token, int) for token in ids)
        tokens = tuple(ids) if known else tuple(self._encode(text))
        stopped = None if reason != "stop" else _stopped(choice)
        return tokens, stopped


def _cancel(futures: Iterable[Future[Generation]]) -> None:
    for future in futures:
        future.cancel()


def _stopped(choice: Mapping[str, Any]) -> bool:
    """Whether a stop sequence ended it, which vLLM names; a number is a token that ends it.

    Others do not say, and end by either.
    """
    return isinstance(choice.get("stop_reason"), str)
