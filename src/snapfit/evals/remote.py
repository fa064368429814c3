"""JSON over HTTP to servers that fail: what may pass is tried again, after ever longer waits.

5xx, timeouts, broken connections and answers that make no sense may pass; a request that is wrong
(4xx) does not.
"""

from __future__ import annotations

import http.client
import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any, TypeVar
from urllib.parse import urlsplit

from snapfit.core.errors import SnapfitError, UsageError

TRANSIENT = frozenset({408, 409, 425, 429})

Found = TypeVar("Found")


class MayPass(Exception):
    """This attempt failed, the next may not."""


def check_address(url: str) -> None:
    """Refuse what is no address.

    Raises:
        UsageError: `url` is no http address.

    """
    if urlsplit(url).scheme not in {"http", "https"}:
        raise UsageError(f"{url!r} is no address of a server; one is http://localhost:8000/v1")


def post(url: str, body: Any, *, key: str | None, timeout: float) -> Any:
    """The JSON that a server answers to JSON.

    Args:
        url: an address that `check_address` let pass.
        body: what is sent.
        key: sent as a bearer token; None sends none.
        timeout: seconds.

    Raises:
        MayPass: the server failed, or its answer is no JSON.
        SnapfitError: the server refuses the request.

    """
    headers = {"Content-Type": "application/json"}
    if key:
        headers["Authorization"] = f"Bearer {key}"
    call = urllib.request.Request(  # noqa: S310 - the scheme was checked
        url, data=json.dumps(body).encode(), headers=headers
    )
    try:
        with urllib.request.urlopen(call, timeout=timeout) as answer:  # noqa: S310
            return json.loads(answer.read())
    except urllib.error.HTTPError as error:
        said = _said(error)
        if error.code >= 500 or error.code in TRANSIENT:
            raise MayPass(f"status {error.code} {said}".rstrip()) from error
        raise SnapfitError(f"{url} refuses the request ({error.code}): {said}") from error
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise MayPass(f"{type(error).__name__}: {error}") from error


def retried(
    attempt: Callable[[], Found], *, name: str, attempts: int, first_wait: float, advice: str = ""
) -> Found:
    """What an attempt finds, made again while it may pass.

    Args:
        attempt: raises `MayPass` where another may do better.
        name: of the server, for the error.
        attempts: at most.
        first_wait: seconds before the second; doubled each time.
        advice: what to do when all failed.

    Raises:
        SnapfitError: all attempts failed.

    """
    last = ""
    for number in range(attempts):
        if number:
            time.sleep(first_wait * 2 ** (number - 1))
        try:
            return attempt()
        except MayPass as error:
            last = str(error)
    raise SnapfitError(f"{name} failed {attempts} times, last with: {last}{advice}")


def _said(error: urllib.error.HTTPError) -> str:
    """The beginning of what came with an error status, as far as it can be read."""
    try:
        return error.read(500).decode(errors="replace").strip()
    except (OSError, http.client.HTTPException):
        return ""
