"""A judge that reads: any chat model behind an OpenAI-compatible address counts the habits.

Never used unless asked for. What it says is kept apart from the counts by rule.
"""

from __future__ import annotations

import json
import re
import time
import urllib.error
import urllib.request
from typing import Any
from urllib.parse import urlsplit

from snapfit.core.errors import SnapfitError, UsageError
from snapfit.evals.traces.behaviours import HABITS

TIMEOUT = 300.0
ATTEMPTS = 3
FIRST_WAIT = 1.0
TRANSIENT = frozenset({408, 409, 425, 429})

QUESTION = """Below is a chain of reasoning. Count the places where the writer
- verifies a result (verification),
- gives up an approach or corrects an error (backtracking),
- sets an intermediate goal (sub-goals).
Answer with one JSON object and nothing else:
{{"verification": N, "backtracking": N, "sub-goals": N}}

<reasoning>
{text}
</reasoning>"""


def judged_behaviours(
    text: str, *, url: str, model: str, key: str | None = None, wait: float = FIRST_WAIT
) -> dict[str, int]:
    """What the judge counts in `text`.

    Args:
        text: a trace.
        url: base address, up to and including '/v1'.
        model: name that the server knows the judge by.
        key: sent as a bearer token; None sends none.
        wait: seconds before the second attempt; doubled each time.

    Raises:
        UsageError: `url` is no http address.
        SnapfitError: the judge refuses the request, or cannot be reached or does not answer as
            asked, three times.

    """
    if urlsplit(url).scheme not in {"http", "https"}:
        raise UsageError(f"{url!r} is no address of a server; one is http://localhost:8000/v1")
    headers = {"Content-Type": "application/json"}
    if key:
        headers["Authorization"] = f"Bearer {key}"
    body = {
        "model": model,
        "messages": [{"role": "user", "content": QUESTION.format(text=text)}],
        "temperature": 0,
    }
    last = ""
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(wait * 2 ** (attempt - 1))
        call = urllib.request.Request(  # noqa: S310 - the scheme was checked
            f"{url.rstrip('/')}/chat/completions", data=json.dumps(body).encode(), headers=headers
        )
        try:
            with urllib.request.urlopen(call, timeout=TIMEOUT) as answer:  # noqa: S310
                return _read(json.loads(answer.read()))
        except urllib.error.HTTPError as error:
            last = f"status {error.code}"
            if error.code < 500 and error.code not in TRANSIENT:
                raise SnapfitError(
                    f"the judge at {url} refuses the request ({error.code})"
                ) from error
        except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
            last = f"{type(error).__name__}: {error}"
    raise SnapfitError(f"the judge at {url} failed {ATTEMPTS} times, last with {last}")


def _read(answer: Any) -> dict[str, int]:
    said = str(answer["choices"][0]["message"]["content"])
    match = re.search(r"\{[^{}]*\}", said)
    if match is None:
        raise ValueError(f"no JSON object in {said[:100]!r}")
    counts = json.loads(match[0])
    return {habit: int(counts[habit]) for habit in HABITS}
