"""From what the user typed to a task."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from snapfit.core.errors import UsageError
from snapfit.evals.tasks import embedded, gym, harness, local
from snapfit.evals.tasks.base import FAMILIES, Family, Task

EMBEDDED = "embedded:"


def load_task(
    spec: str,
    *,
    limit: int | None = None,
    seed: int = 0,
    problem_key: str | None = None,
    answer_key: str | None = None,
) -> Task:
    """The task that `spec` names.

    Args:
        spec: `[FAMILY=]` and then a .jsonl file, 'embedded:facts|short|long',
            'reasoning-gym:NAME[:DIFFICULTY]', or a task of lm-evaluation-harness. FAMILY
            (knowledge, shallow, long, other) overrides what the name suggests.
        limit: most problems.
        seed: of problems that are drawn.
        problem_key: key of the problem in a file.
        answer_key: key of its answer.

    Raises:
        UsageError: nothing is called that.
        SnapfitError: what it needs is not there.

    """
    if limit is not None and limit < 1:
        raise UsageError(f"the limit of problems must be at least 1, got {limit}")
    family: Family | None = None
    head, equals, rest = spec.partition("=")
    if equals and head in FAMILIES:
        family, spec = head, rest
    if spec.startswith(EMBEDDED):
        task = embedded.load(spec.removeprefix(EMBEDDED), limit=limit, seed=seed)
    elif spec.startswith(gym.PREFIX):
        task = gym.load(spec.removeprefix(gym.PREFIX), limit=limit, seed=seed)
    elif spec.endswith((".jsonl", ".json")) or Path(spec).is_file():
        task = local.load(
            Path(spec), limit=limit, family=family, problem_key=problem_key, answer_key=answer_key
        )
    else:
        task = harness.load(spec, limit=limit)
    return replace(task, family=family) if family else task
