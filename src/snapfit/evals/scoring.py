"""Right or wrong: math-verify for mathematics, the exact choice for choices; no part marks."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from snapfit.core.errors import SnapfitError, UsageError
from snapfit.evals.dialogue import FINAL
from snapfit.evals.tasks.base import Equivalence, Judged, Problem

_COMMAND = re.compile(r"\\(?:text|mbox|mathrm|begin|end)\{[^{}]*\}|\\[A-Za-z]+")
_WORD = re.compile(r"[A-Za-z]{2}")

SECONDS = 5
"""For parsing one answer, or comparing two: some expressions never end."""


def judge_math(problem: Problem, text: str) -> Judged:
    """Whether the mathematics in `text` equals the gold answer, which goes first.

    Raises:
        SnapfitError: math-verify is not installed.

    """
    found = _understood(text)
    if not found:
        return Judged(answer=None, correct=False)
    return Judged(answer=_shown(found), correct=_equal(_gold(problem.answer), found))


def check_gold(gold: str, where: str) -> None:
    """Refuse an answer that no model could be right about: words are no mathematics.

    Raises:
        UsageError: it cannot be judged.

    """
    words = not _marked(gold) and _WORD.search(_COMMAND.sub("", gold))
    if words and not _parsed(gold):
        raise UsageError(
            f"{where}: the answer {gold[:40]!r} is words; only mathematics and choices are judged"
        )


def judge_choice(problem: Problem, text: str) -> Judged:
    """Whether `text` is the index of the right choice."""
    return Judged(answer=text, correct=text == problem.answer)


def same_answer(equivalence: Equivalence) -> Callable[[str, str], bool]:
    """Whether two understood answers are equivalent."""
    if equivalence == "exact":
        return str.__eq__

    return _same_mathematics


@lru_cache(maxsize=65536)
def _same_mathematics(first: str, second: str) -> bool:
    return first == second or _equal(_gold(first), _gold(second))


@lru_cache(maxsize=4096)
def _gold(text: str) -> Any:
    """A gold answer may be bare LaTeX, so it is read within dollar signs first.

    A dollar sign behind a backslash is money.
    """
    return (_parsed(text) if _marked(text) else _parsed(f"${text}$")) or _parsed(text)


def _understood(text: str) -> Any:
    """The mathematics of an answer.

    After 'Final Answer:' it is the first line: what follows may be another question that the model
    made up. A line without words may be bare LaTeX, which is not found where nothing marks it.
    """
    asked = text.startswith(FINAL)
    lines = [line for line in text.removeprefix(FINAL).splitlines() if line.strip()]
    if lines and (asked or len(lines) == 1):
        line = lines[0].strip().lstrip("*`").rstrip("*`.")
        bare = not _marked(line) and not _WORD.search(_COMMAND.sub("", line))
        found = (bare and _parsed(f"${line}$")) or _parsed(line)
        if found:
            return found
    return _parsed(text)


def _marked(text: str) -> bool:
    return any(mark in text.replace("\\$", "") for mark in ("$", "\\boxed", "\\(", "\\["))


def _parsed(text: str) -> Any:
    verify = _math_verify()
    return verify.parse(text, parsing_timeout=SECONDS)


def _equal(gold: Any, found: Any) -> bool:
    return bool(_math_verify().verify(gold, found, timeout_seconds=SECONDS))


def _shown(found: list[Any]) -> str:
    """The text of what was understood: the last entry is the string that was parsed."""
    return str(found[-1])


def _math_verify() -> Any:
    try:
        import math_verify
    except ImportError as error:
        raise SnapfitError(
            "judging mathematics needs math-verify; pip install 'snapfit[eval]'"
        ) from error
    return math_verify
