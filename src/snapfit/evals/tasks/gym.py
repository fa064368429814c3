"""Problems of reasoning-gym: generated and judged by code, at a difficulty that is asked for.

reasoning-gym:chain_sum                          as the library sets it
reasoning-gym:chain_sum:2                        every dimension of its curriculum at level 2
reasoning-gym:chain_sum:min_terms=8+max_terms=8  its own settings
"""

from __future__ import annotations

import re
from typing import Any

from snapfit.core.errors import SnapfitError, UsageError
from snapfit.core.names import unknown_name
from snapfit.evals.dialogue import FINAL
from snapfit.evals.tasks.base import Judged, Problem, Task

PREFIX = "reasoning-gym:"
DEFAULT_LIMIT = 100
_TAGGED = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_BOXED = re.compile(r"\\boxed\{(.*)")
_SAID = re.compile(r".*answer(?:\s+is)?\s*[:=]?\**\s+(.+)", re.IGNORECASE)

HARD_LEVEL = 2
"""From this level of difficulty on, a task counts as long reasoning."""


def load(spec: str, *, limit: int | None, seed: int) -> Task:
    """A task from `NAME[:DIFFICULTY]`.

    Raises:
        SnapfitError: the library is not installed.
        UsageError: it has no such task, level or setting.

    """
    try:
        import reasoning_gym
        from reasoning_gym.factory import DATASETS
    except ImportError as error:
        raise SnapfitError("reasoning-gym is not installed; pip install 'snapfit[eval]'") from error
    name, _, difficulty = spec.partition(":")
    if name not in DATASETS:
        raise unknown_name("reasoning-gym task", name, tuple(sorted(DATASETS)))
    settings = _settings(name, difficulty)
    count = DEFAULT_LIMIT if limit is None else limit
    try:
        data: Any = reasoning_gym.create_dataset(name, size=count, seed=seed, **settings)
    except (TypeError, ValueError, AssertionError) as error:
        raise UsageError(f"{PREFIX}{spec}: {error}") from error
    entries = [data[index] for index in range(count)]

    def judge(problem: Problem, text: str) -> Judged:
        answer = understood(text, lines="\n" in problem.answer)
        entry = entries[int(problem.id)]
        return Judged(answer=answer, correct=answer is not None and _right(data, answer, entry))

    easy = difficulty.isdecimal() and int(difficulty) < HARD_LEVEL
    return Task(
        name=re.sub(r"[^A-Za-z0-9_.-]", "-", f"reasoning-gym-{spec}"),
        family="shallow" if easy else "long",
        kind="generate",
        problems=tuple(
            Problem(id=str(i), question=str(entry["question"]), answer=str(entry["answer"]))
            for i, entry in enumerate(entries)
        ),
        judge=judge,
        equivalence="exact",
        settings={"seed": seed, **settings},
    )


def _right(data: Any, answer: str, entry: Any) -> bool:
    """Whether it gets full marks; an answer that the library's scorer stumbles over gets none."""
    try:
        return float(data.score_answer(answer, entry)) >= 1.0
    except Exception:  # noqa: BLE001 - what a task's own scorer makes of nonsense
        return False


def understood(text: str, *, lines: bool = False) -> str | None:
    """The answer in what a model wrote after its thinking; None if it wrote nothing.

    The last of what it marked: by <answer> tags, by a box, by saying that it is the answer; else
    the first line that says anything, or the whole where an answer has several lines. After 'Final
    Answer:' it is that first line, or the whole, unless it is tagged or boxed there.

    Args:
        text: what was written.
        lines: whether an answer has several lines.

    """
    asked = text.startswith(FINAL)
    text = text.removeprefix(FINAL)
    if asked and not lines:
        text = next((line for line in text.splitlines() if line.strip()), "")
    tagged = _TAGGED.findall(text) or [_unboxed(box) for box in _BOXED.findall(text)]
    if tagged:
        return str(tagged[-1]).strip() or None
    if lines:
        return text.strip() or None
    said = _SAID.findall(text)
    parts = [_bare(part) for part in (said[-1:] or text.splitlines())]
    return next((part for part in parts if part), None)


def _bare(line: str) -> str:
    """Without a full stop and what sets it off: emphasis, dollar signs."""
    return line.strip().rstrip(".").strip("*$` ").rstrip(".")


def _unboxed(box: str) -> str:
    """The content of a box, from behind its opening brace to the brace that closes it."""
    depth = 1
    for place, letter in enumerate(box):
        depth += {"{": 1, "}": -1}.get(letter, 0)
        if depth == 0:
            return box[:place]
    return box


def _settings(name: str, difficulty: str) -> dict[str, Any]:
    if not difficulty:
        return {}
    if difficulty.isdecimal():
        return _level(name, int(difficulty))
    settings: dict[str, Any] = {}
    for part in difficulty.split("+"):
        key, equals, value = part.partition("=")
        if not key or not equals:
            raise UsageError(f"{PREFIX}{name}: {part!r} is neither a level nor KEY=VALUE")
        settings[key] = _number(value)
    return settings


def _level(name: str, level: int) -> dict[str, Any]:
    from dataclasses import asdict

    from reasoning_gym.factory import create_curriculum

    try:
        curriculum: Any = create_curriculum(name)
    except (KeyError, ValueError) as error:
        raise UsageError(f"{PREFIX}{name} has no curriculum; give KEY=VALUE") from error
    for attribute, defined in curriculum.attributes.items():
        curriculum.set_attr_level(attribute, min(level, len(defined.levels) - 1))
    settings = asdict(curriculum.generate_configuration())
    return {key: value for key, value in settings.items() if key not in {"seed", "size"}}


def _number(text: str) -> int | float | str:
    if re.fullmatch(r"[+-]?\d+", text):
        return int(text)
    return float(text) if re.fullmatch(r"[+-]?\d*\.\d+", text) else text
