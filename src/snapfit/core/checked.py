"""Values in a file that a stranger wrote: what is believed of them, and how the rest is shown."""

from __future__ import annotations

import math
from typing import Any, TypeGuard

from snapfit.core.errors import CorruptFile

MAX_TEXT = 4096


def is_whole(value: Any) -> TypeGuard[int]:
    """Whether it is a whole number; true and false are none."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_real(value: Any) -> TypeGuard[float]:
    """Whether it is a finite number, small enough for a float; true and false are none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # JSON has whole numbers of any length
        return False


def whole(value: Any, what: str, least: int, most: int) -> int:
    """A whole number in a range.

    Raises:
        CorruptFile: anything else; `what` says whose value it is.

    """
    if not is_whole(value) or not least <= value <= most:
        raise CorruptFile(
            f"{what} must be a whole number from {least} to {most}, found {shown(value)}"
        )
    return value


def real(value: Any, what: str) -> float:
    """A finite number.

    Raises:
        CorruptFile: anything else; `what` says whose value it is.

    """
    if not is_real(value):
        raise CorruptFile(f"{what} must be a finite number, found {shown(value)}")
    return float(value)


def text(value: Any, what: str, most: int = MAX_TEXT) -> str:
    """A text of at most `most` characters.

    Raises:
        CorruptFile: anything else; `what` says whose value it is.

    """
    if not isinstance(value, str) or len(value) > most:
        raise CorruptFile(f"{what} must be a short text, found {shown(value)}")
    return value


def shown(value: Any) -> str:
    """As it would be written in Python, but never long."""
    written = repr(value)
    return written if len(written) <= 80 else written[:77] + "..."
