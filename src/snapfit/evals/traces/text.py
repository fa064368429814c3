"""Sentences, words and repetition of a trace, by rule: no model of a language is downloaded."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

REPEATED = 4
"""Length of the n-grams whose repetition is counted."""

_SENTENCE = re.compile(r"(?<=[.!?])\s+|\n+")
_WORD = re.compile(r"\w+|[^\w\s]")


def sentences(text: str) -> list[list[str]]:
    """Words of every sentence, lower case; a sentence ends at . ! ? or at the end of a line.

    Decimal points and points within a word end nothing. What has no word is left out.
    """
    found = [words(part) for part in _SENTENCE.split(text)]
    return [sentence for sentence in found if any(word.isalnum() for word in sentence)]


def words(text: str) -> list[str]:
    """Words and punctuation marks, lower case."""
    return _WORD.findall(text.lower())


def repeated_share(ids: Sequence[Any], n: int) -> float:
    """Share of the n-grams of a sequence that occurred in it before; 0 for a short one."""
    grams = [tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0
