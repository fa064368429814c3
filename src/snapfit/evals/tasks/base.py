"""What a task is: problems, and how an answer to one is judged."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Family = Literal["knowledge", "shallow", "long", "other"]
"""Recall, a few steps, many steps, or unknown: the finding is the contrast between them."""

FAMILIES: tuple[Family, ...] = ("knowledge", "shallow", "long", "other")

Kind = Literal["generate", "recall", "choices"]
"""Think and answer; answer at once, greedily; or pick the likeliest of some continuations."""


Equivalence = Literal["exact", "math"]


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One problem.

    Attributes:
        id: unique in its task.
        question: what the model is asked; for choices, the context that they continue.
        answer: the gold answer as text; for choices, the index of the right one.
        choices: continuations of the question.
        meta: what the judge needs beside.

    """

    id: str
    question: str
    answer: str
    choices: tuple[str, ...] = ()
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Judged:
    """One answer.

    Attributes:
        answer: what was understood, None if nothing was.
        correct: exactly right; no part marks.

    """

    answer: str | None
    correct: bool


@dataclass(frozen=True, kw_only=True)
class Task:
    """Problems of one kind.

    Attributes:
        name: names files, so it is made of letters, digits, '-', '_' and '.'.
        family: which part of the contrast it belongs to.
        kind: how it is asked.
        problems: in a fixed order.
        judge: from a problem and what the model answered to what is thought of it.
        equivalence: when two understood answers count as one: spelled alike, or equal.
        chat: whether the question goes through the model's chat template.
        settings: what one needs to know to ask again.

    """

    name: str
    family: Family
    kind: Kind
    problems: tuple[Problem, ...]
    judge: Callable[[Problem, str], Judged]
    equivalence: Equivalence
    chat: bool = True
    settings: Mapping[str, Any] = field(default_factory=dict)
