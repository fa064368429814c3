"""A completions server over any generator, that can be told to misbehave."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from snapfit.evals.generators.base import Generator, Request

Misdeed = Callable[[BaseHTTPRequestHandler], bool]
"""Answers in the server's place and returns True, or returns False to let it answer well."""


@contextmanager
def serving(
    generator: Generator,
    tokenizer: Any,
    *,
    misdeeds: list[Misdeed] | None = None,
    with_ids: bool = True,
) -> Iterator[str]:
    """Serve until the block is left; gives the base address.

    Args:
        generator: answers.
        tokenizer: of its model.
        misdeeds: one is taken, from the front, for each request while there are any.
        with_ids: return token ids as vLLM does, or text only.

    """
    pending = list(misdeeds or [])
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """Say nothing."""

        def do_POST(self) -> None:
            with lock:
                misdeed = pending.pop(0) if pending else None
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if misdeed is not None and misdeed(self):
                return
            stop = tuple(
                tuple(tokenizer.encode(text, add_special_tokens=False))
                for text in body.get("stop", [])
            )
            request = Request(
                prompt=tuple(body["prompt"]),
                max_tokens=body["max_tokens"],
                stop=stop,
                temperature=body["temperature"],
                seed=body["seed"],
            )
            with lock:
                _, found = next(iter(generator.generate([request])))
            choice: dict[str, Any] = {
                "text": tokenizer.decode(list(found.ids)),
                "finish_reason": "length" if found.ended == "length" else "stop",
                "stop_reason": "stop" if found.ended == "stop" else None,
            }
            if with_ids:
                choice["token_ids"] = list(found.ids)
            answer(self, 200, {"choices": [choice], "usage": {"completion_tokens": len(found.ids)}})

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def answer(handler: BaseHTTPRequestHandler, status: int, value: Any) -> None:
    """Send `value` as JSON, or as it is when it is text."""
    data = (value if isinstance(value, str) else json.dumps(value)).encode()
    handler.send_response(status)
    handler.send_header("Content-Length", str(len(data)))
    handler.end_headers()
    handler.wfile.write(data)


def fails(status: int) -> Misdeed:
    """Answer with an error status."""

    def misdeed(handler: BaseHTTPRequestHandler) -> bool:
        answer(handler, status, {"error": f"status {status}"})
        return True

    return misdeed


def says(value: Any) -> Misdeed:
    """Answer 200 with something else."""

    def misdeed(handler: BaseHTTPRequestHandler) -> bool:
        answer(handler, 200, value)
        return True

    return misdeed


def sends(data: bytes) -> Misdeed:
    """Send these bytes in place of an answer, and hang up."""

    def misdeed(handler: BaseHTTPRequestHandler) -> bool:
        handler.wfile.write(data)
        handler.close_connection = True
        return True

    return misdeed


def hangs(seconds: float) -> Misdeed:
    """Answer too late."""

    def misdeed(handler: BaseHTTPRequestHandler) -> bool:
        time.sleep(seconds)
        return False

    return misdeed


def once_all_are_in_flight(*misdeeds: Misdeed) -> list[Misdeed]:
    """The same, each of which waits until a request has come for every one of them."""
    arrived = threading.Barrier(len(misdeeds), timeout=60)

    def waiting(misdeed: Misdeed) -> Misdeed:
        def act(handler: BaseHTTPRequestHandler) -> bool:
            arrived.wait()
            return misdeed(handler)

        return act

    return [waiting(misdeed) for misdeed in misdeeds]
