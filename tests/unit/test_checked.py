"""What is believed of a value that a stranger wrote."""

from __future__ import annotations

from typing import Any

import pytest

from snapfit.core.checked import is_real, is_whole, real, shown, text, whole
from snapfit.core.errors import CorruptFile


@pytest.mark.parametrize(
    ("value", "a_whole", "a_real"),
    [
        (3, True, True),
        (-(10**300), True, True),
        (10**400, True, False),
        (2.0, False, True),
        (float("inf"), False, False),
        (float("nan"), False, False),
        (True, False, False),
        ("3", False, False),
        (None, False, False),
        ([3], False, False),
    ],
)
def test_numbers(value: Any, a_whole: bool, a_real: bool) -> None:
    assert (is_whole(value), is_real(value)) == (a_whole, a_real)


def test_what_is_in_range_comes_back() -> None:
    assert whole(8, "size", 1, 8) == 8
    assert real(2, "loss") == 2.0
    assert isinstance(real(2, "loss"), float)
    assert text("abc", "name", 3) == "abc"


def test_what_is_not_is_named() -> None:
    with pytest.raises(CorruptFile, match="size must be a whole number from 1 to 8, found 9"):
        whole(9, "size", 1, 8)
    with pytest.raises(CorruptFile, match="loss must be a finite number, found nan"):
        real(float("nan"), "loss")
    with pytest.raises(CorruptFile, match="name must be a short text, found 'abcd'"):
        text("abcd", "name", 3)


def test_nothing_long_is_shown() -> None:
    assert shown("x") == "'x'"
    assert len(shown("x" * 1000)) == 80
    assert shown(10**400).endswith("...")
