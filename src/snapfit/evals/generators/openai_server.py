"""Generation by any server with OpenAI's completions endpoint, such as `vllm serve`.

Prompts are sent as token ids, because text would be cut into tokens again, not always the same
ones. Servers that return token ids (vLLM does when asked) are taken at their word; the text of
others is tokenised here, and the server's own count of tokens is checked against the budget.

Servers fail: 5xx, timeouts and answers that make no sense are tried again, each time after twice
the wait; a request that is wrong (4xx) is not.
"""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

from snapfit.core.errors import SnapfitError, UsageError
from snapfit.evals.generators.base import Generation, Request, finished

ATTEMPTS = 6
FIRST_WAIT = 1.0
TIMEOUT = 600.0
PARALLEL = 16
TRANSIENT = frozenset({408, 409, 425, 429})


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
        if urlsplit(url).scheme not in {"http", "https"}:
            raise UsageError(f"{url!r} is no address of a server; one is http://localhost:8000/v1")
        self._url = f"{url.rstrip('/')}/completions"
        self._model = model
        self._encode = encode
        self._decode = decode
        self._eos = eos
        self._headers = {"Content-Type": "application/json"}
        if key:
            self._headers["Authorization"] = f"Bearer {key}"
        self._attempts = attempts
        self._first_wait = first_wait
        self._timeout = timeout
        self._parallel = parallel
        self.chunk = 4 * parallel
        self.context: int | None = None

    def generate(self, requests: Sequence[Request]) -> Iterator[Generation]:
        """Answer with several requests in flight; results keep the order of the requests.

        Raises:
            SnapfitError: a request failed for good; those before it were returned.

        """
        with ThreadPoolExecutor(self._parallel) as pool:
            futures = [pool.submit(self._ask, request) for request in requests]
            try:
                for future in futures:
                    yield future.result()
            finally:
                for future in futures:
                    future.cancel()

    def _ask(self, request: Request) -> Generation:
        if request.max_tokens <= 0:
            return Generation(ids=(), ended="length", seconds=0.0)
        wait, last = self._first_wait, ""
        for attempt in range(self._attempts):
            if attempt:
                time.sleep(wait)
                wait *= 2
            began = time.perf_counter()
            try:
                ids, stopped = self._read(self._post(request), request)
            except _Again as error:
                last = str(error)
                continue
            kept, ended = finished(ids, request, self._eos)
            if ended == "length" and stopped is not None:
                # The server left out what ended it.
                ended = "stop" if stopped else "eos"
            seconds = (time.perf_counter() - began) / self._parallel
            return Generation(ids=kept, ended=ended, seconds=seconds)
        raise SnapfitError(
            f"{self._url} failed {self._attempts} times, last with: {last}; what was generated so "
            "far is kept, run the same command again when the server is well"
        )

    def _post(self, request: Request) -> Any:
        body = {
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
        call = urllib.request.Request(  # noqa: S310 - the scheme was checked
            self._url, data=json.dumps(body).encode(), headers=self._headers
        )
        try:
            with urllib.request.urlopen(call, timeout=self._timeout) as answer:  # noqa: S310
                return json.loads(answer.read())
        except urllib.error.HTTPError as error:
            said = error.read(500).decode(errors="replace").strip()
            if error.code >= 500 or error.code in TRANSIENT:
                raise _Again(f"status {error.code} {said}") from error
            raise SnapfitError(f"{self._url} refuses the request ({error.code}): {said}") from error
        except (OSError, ValueError) as error:
            raise _Again(f"{type(error).__name__}: {error}") from error

    def _read(self, answer: Any, request: Request) -> tuple[tuple[int, ...], bool | None]:
        """Token ids, and what ended them if the server says: a stop sequence, or else the model."""
        try:
            choice = answer["choices"][0]
            text, reason = choice["text"], choice.get("finish_reason")
            ids = choice.get("token_ids")
            usage = answer.get("usage") or {}
            count = usage.get("completion_tokens")
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            raise _Again(f"an answer without a completion: {str(answer)[:200]}") from error
        if not isinstance(text, str):
            raise _Again(f"an answer without text: {str(answer)[:200]}")
        if isinstance(count, int) and count > request.max_tokens:
            raise SnapfitError(
                f"{self._url} generated {count} tokens where {request.max_tokens} were allowed; "
                "its budgets cannot be trusted"
            )
        known = isinstance(ids, list) and all(isinstance(token, int) for token in ids)
        tokens = tuple(ids) if known else tuple(self._encode(text))
        stopped = None if reason != "stop" else _stopped(choice)
        return tokens, stopped


class _Again(Exception):
    """This attempt failed, the next may not."""


def _stopped(choice: Mapping[str, Any]) -> bool:
    """Whether a stop sequence ended it, as vLLM says by name; others end by either."""
    return choice.get("stop_reason") is not None
