"""A judge that reads: any chat model behind an OpenAI-compatible address counts the habits.

Never used unless asked for. What it says is kept apart from the counts by rule.
"""

from __future__ import annotations

import json
import re
from typing import Any

from snapfit.evals.remote import MayPass, check_address, post, retried
from snapfit.evals.traces.behaviours import HABITS

TIMEOUT = 300.0
ATTEMPTS = 3
FIRST_WAIT = 1.0

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
    check_address(url)
    body = {
        "model": model,
        "messages": [{"role": "user", "content": QUESTION.format(text=text)}],
        "temperature": 0,
    }
    address = f"{url.rstrip('/')}/chat/completions"
    return retried(
        lambda: _read(post(address, body, key=key, timeout=TIMEOUT)),
        name=f"the judge at {url}",
        attempts=ATTEMPTS,
        first_wait=wait,
    )


def _read(answer: Any) -> dict[str, int]:
    try:
        said = str(answer["choices"][0]["message"]["content"])
        match = re.search(r"\{[^{}]*\}", said)
        if match is None:
            raise ValueError(f"no JSON object in {said[:100]!r}")
        counts = json.loads(match[0])
        return {habit: int(counts[habit]) for habit in HABITS}
    except (ValueError, OverflowError, KeyError, IndexError, TypeError) as error:
        raise MayPass(f"{type(error).__name__}: {error}") from error
