"""How often a trace checks itself, turns back, or sets a sub-goal: counted by rule.

The four habits of arXiv 2503.01307, less backward chaining. A sentence counts once for each habit
that one of its phrases shows. The phrases are English; a judge that reads any language can be had
by option (`judge.py`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

HABITS: dict[str, tuple[str, ...]] = {
    "verification": (
        r"let(?: me|'s| us) (?:double[- ]?|re)?check",
        r"(?:double[- ]?|re|cross[- ]?)check",
        r"verif(?:y|ies|ied|ying|ication)",
        r"make sure",
        r"confirm(?:s|ed|ing)?",
        r"plug(?:ging)? (?:it|this|that|these|them|back)",
        r"does (?:this|that|it) (?:make sense|work|hold)",
        r"is (?:this|that) (?:right|correct)",
        r"to be sure",
        r"sanity check",
    ),
    "backtracking": (
        r"wait\b",
        r"actually\b",
        r"on second thought",
        r"hold on",
        r"let(?: me|'s| us) (?:try|start|go back|rethink|reconsider|redo)",
        r"(?:that|this) (?:is|was|isn't|is not|doesn't|does not) (?:wrong|right|correct|work)",
        r"i made (?:a|an) (?:mistake|error)",
        r"another (?:approach|way|method)",
        r"alternatively",
        r"instead",
    ),
    "sub-goals": (
        r"first(?:ly)?,",
        r"second(?:ly)?,",
        r"third(?:ly)?,",
        r"next,",
        r"then,? (?:we|i|let)",
        r"finally,",
        r"step \d+",
        r"(?:we|i) (?:need|have|want) to (?:find|compute|calculate|determine|show|solve)",
        r"(?:the|my|our) (?:goal|plan|strategy) is",
        r"let(?: me|'s| us) (?:find|compute|calculate|determine|define|denote|set|break)",
    ),
}

_PATTERNS = {
    habit: re.compile(r"\b(?:" + "|".join(phrases) + ")", re.IGNORECASE)
    for habit, phrases in HABITS.items()
}
_SENTENCE = re.compile(r"(?<=[.!?])\s+|\n+")


def count_behaviours(text: str) -> dict[str, int]:
    """Sentences of `text` that show each habit."""
    parts: Sequence[str] = _SENTENCE.split(text)
    return {
        habit: sum(pattern.search(part) is not None for part in parts)
        for habit, pattern in _PATTERNS.items()
    }
