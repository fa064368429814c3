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
from snapfit.evals.tasks.base import Judged, Problem, Task

PREFIX = "reasoning-gym:"
DEFAULT_LIMIT = 100
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
        answer = last_line(text)
        entry = entries[int(problem.id)]
        right = answer is not None and float(data.score_answer(answer, entry)) >= 1.0
        return Judged(answer=answer, correct=right)

    hard = difficulty.isdecimal() and int(difficulty) < HARD_LEVEL
    return Task(
        name=re.sub(r"[^A-Za-z0-9_.-]", "-", f"reasoning-gym-{spec}"),
        family="shallow" if hard else "long",
        kind="generate",
        problems=tuple(
            Problem(id=str(i), question=str(entry["question"]), answer=str(entry["answer"]))
            for i, entry in enumerate(entries)
        ),
        judge=judge,
        equivalence="exact",
        settings={"seed": seed, **settings},
    )


def last_line(text: str) -> str | None:
    """The answer in what a model wrote after 'Final Answer:': its first line that says anything."""
    lines = [line.strip().strip("*$` ") for line in text.strip().splitlines()]
    return next((line.rstrip(".") for line in lines if line), None)


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
