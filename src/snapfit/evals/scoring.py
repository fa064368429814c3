"""Right or wrong: math-verify for mathematics, the exact choice for choices; no part marks."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

from snapfit.core.errors import SnapfitError
from snapfit.evals.tasks.base import Equivalence, Judged, Problem

SECONDS = 5
"""For parsing one answer, or comparing two: some expressions never end."""


def judge_math(problem: Problem, text: str) -> Judged:
    """Whether the mathematics in `text` equals the gold answer, which goes first.

    Raises:
        SnapfitError: math-verify is not installed.

    """
    found = _parsed(text)
    if not found:
        return Judged(answer=None, correct=False)
    return Judged(answer=_shown(found), correct=_equal(_gold(problem.answer), found))


def judge_choice(problem: Problem, text: str) -> Judged:
    """Whether `text` is the index of the right choice."""
    return Judged(answer=text, correct=text == problem.answer)


def same_answer(equivalence: Equivalence) -> Callable[[str, str], bool]:
    """Whether two understood answers are equivalent."""
    if equivalence == "exact":
        return str.__eq__

    def same(first: str, second: str) -> bool:
        return first == second or _equal(_gold(first), _gold(second))

    return same


@lru_cache(maxsize=4096)
def _gold(text: str) -> Any:
    """A gold answer may be bare LaTeX, so it is read within dollar signs first."""
    found = _parsed(text) if "$" in text or "\\boxed" in text else _parsed(f"${text}$")
    return found or _parsed(text)


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
