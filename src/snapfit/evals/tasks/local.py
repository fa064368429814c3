"""Problems from a JSONL file: one object a line with a problem and its answer.

Which keys hold them is found out where it is not said. Three shapes are known: a problem with an
answer to be generated; a question with `choices` and the index of the right one (as MMLU is);
`goal`, `sol1`, `sol2` with a file of labels beside it, `<stem>_labels.txt` (as PIQA is).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from snapfit.core.errors import CorruptFile, SnapfitError, UsageError
from snapfit.evals.scoring import check_gold, judge_choice, judge_math
from snapfit.evals.tasks.base import Family, Problem, Task

PROBLEM_KEYS = ("problem", "question", "prompt", "input")
ANSWER_KEYS = ("answer", "gold", "target", "solution", "output")
LETTERS = "ABCDEFGHIJ"

_FAMILIES: tuple[tuple[str, Family], ...] = (
    ("mmlu", "knowledge"),
    ("piqa", "knowledge"),
    ("hellaswag", "knowledge"),
    ("arc", "knowledge"),
    ("gsm8k", "shallow"),
    ("math", "long"),
    ("aime", "long"),
    ("gpqa", "long"),
)
_MARK = re.compile(r"####|[Tt]he answer is:?")


def load(
    path: Path,
    *,
    limit: int | None,
    family: Family | None = None,
    problem_key: str | None = None,
    answer_key: str | None = None,
) -> Task:
    """A task from a file.

    Args:
        path: the file.
        limit: most problems, from the first.
        family: which part of the contrast it is; guessed from the file's name when None.
        problem_key: key of the problem; found when None.
        answer_key: key of the answer; found when None.

    Raises:
        SnapfitError: no such file, no such key.
        UsageError: an answer can be judged by nobody here.
        CorruptFile: a line is no JSON object, or lacks what a problem needs.

    """
    rows = list(_rows(path, limit))
    if not rows:
        raise SnapfitError(f"{path} has no problems")
    name = re.sub(r"[^A-Za-z0-9_.-]", "-", path.stem)
    found = family or family_of(name)
    settings = {"file": str(path), "problems": len(rows)}
    if {"goal", "sol1", "sol2"} <= rows[0].keys():
        labels = _labels(path, len(rows))
        problems = tuple(_pair(i, row, labels[i], path) for i, row in enumerate(rows))
        return _choices(name, found, problems, settings)
    if isinstance(rows[0].get("choices"), list):
        problems = tuple(_letters(i, row, path) for i, row in enumerate(rows))
        return _choices(name, found, problems, settings)
    asked = problem_key or _found(rows[0], PROBLEM_KEYS, path, "--problem-key")
    answered = answer_key or _found(rows[0], ANSWER_KEYS, path, "--answer-key")
    return Task(
        name=name,
        family=found,
        kind="generate",
        problems=tuple(
            Problem(
                id=str(i),
                question=_field(row, asked, path, i),
                answer=_gold(row, answered, path, i),
            )
            for i, row in enumerate(rows)
        ),
        judge=judge_math,
        equivalence="math",
        settings={**settings, "problem_key": asked, "answer_key": answered},
    )


def gold(text: str) -> str:
    """The answer in a solution: after the last '####' or 'The answer is', else the whole text."""
    *before, last = _MARK.split(text)
    return (last.strip().rstrip(".") if before else "") or text


def _gold(row: Mapping[str, Any], key: str, path: Path, index: int) -> str:
    answer = gold(_field(row, key, path, index))
    check_gold(answer, f"{path}, line {index + 1}")
    return answer


def family_of(name: str) -> Family:
    """The family of a well-known benchmark by its name; 'other' for the rest."""
    return next((family for part, family in _FAMILIES if part in name.lower()), "other")


def _choices(
    name: str, family: Family, problems: tuple[Problem, ...], settings: Mapping[str, Any]
) -> Task:
    return Task(
        name=name,
        family=family,
        kind="choices",
        problems=problems,
        judge=judge_choice,
        equivalence="exact",
        chat=False,
        settings=settings,
    )


def _pair(index: int, row: Mapping[str, Any], label: int, path: Path) -> Problem:
    """PIQA as lm-evaluation-harness asks it."""
    goal, first, second = (_field(row, key, path, index) for key in ("goal", "sol1", "sol2"))
    return Problem(
        id=str(index),
        question=f"Question: {goal}\nAnswer:",
        choices=(f" {first}", f" {second}"),
        answer=str(label),
    )


def _letters(index: int, row: Mapping[str, Any], path: Path) -> Problem:
    """MMLU as lm-evaluation-harness asks it: the choices are in the question, letters follow."""
    choices, answer = row.get("choices"), row.get("answer")
    if not isinstance(choices, list) or not 2 <= len(choices) <= len(LETTERS):
        raise CorruptFile(f"{path}, line {index + 1} has no list of 2 to {len(LETTERS)} choices")
    if isinstance(answer, str) and answer in set(LETTERS):
        answer = LETTERS.index(answer)
    if type(answer) is not int or not 0 <= answer < len(choices):
        raise CorruptFile(f"{path}, line {index + 1}: answer {answer!r} is no choice's index")
    subject = str(row.get("type") or row.get("subject") or "").replace("_", " ")
    head = "The following are multiple choice questions (with answers)"
    about = f"{head} about {subject}.\n\n" if subject else f"{head}.\n\n"
    listed = "\n".join(f"{LETTERS[i]}. {choice}" for i, choice in enumerate(choices))
    return Problem(
        id=str(index),
        question=f"{about}{_field(row, 'question', path, index).strip()}\n{listed}\nAnswer:",
        choices=tuple(f" {LETTERS[i]}" for i in range(len(choices))),
        answer=str(answer),
    )


def _rows(path: Path, limit: int | None) -> Iterator[dict[str, Any]]:
    if not path.is_file():
        raise SnapfitError(f"no such file of problems: {path}")
    with path.open("rb") as lines:
        for number, line in enumerate(lines):
            if limit is not None and number >= limit:
                return
            try:
                row = json.loads(line)
            except ValueError as error:
                raise CorruptFile(f"{path}, line {number + 1} is no JSON: {error}") from error
            if not isinstance(row, dict):
                raise CorruptFile(f"{path}, line {number + 1} is no JSON object")
            yield row


def _labels(path: Path, count: int) -> list[int]:
    file = path.with_name(f"{path.stem}_labels.txt")
    if not file.is_file():
        raise SnapfitError(f"{path} has solutions without labels, and {file} is missing")
    labels = file.read_text(encoding="utf-8").split()
    if len(labels) < count or not set(labels) <= {"0", "1"}:
        raise CorruptFile(f"{file} must have a label, 0 or 1, for each of {count} problems")
    return [int(label) for label in labels[:count]]


def _found(row: Mapping[str, Any], keys: tuple[str, ...], path: Path, option: str) -> str:
    for key in keys:
        if key in row:
            return key
    raise UsageError(f"{path} has the keys {', '.join(row)}; say which one with {option}")


def _field(row: Mapping[str, Any], key: str, path: Path, index: int) -> str:
    if key not in row:
        raise CorruptFile(f"{path}, line {index + 1} has no key {key!r}")
    value = row[key]
    if type(value) not in {str, int, float} or not str(value).strip():
        raise CorruptFile(f"{path}, line {index + 1}: {key} is {value!r}, no text and no number")
    return str(value)
