"""Problems of lm-evaluation-harness, by the name of the task. Most are fetched from the hub."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from typing import Any

from snapfit.core.errors import SnapfitError, UsageError
from snapfit.evals.scoring import check_gold, judge_choice, judge_math
from snapfit.evals.tasks.base import Problem, Task
from snapfit.evals.tasks.local import family_of, gold


def load(name: str, *, limit: int | None, include: str | None = None) -> Task:
    """The harness's task `name`, zero-shot, with its own prompt and choices.

    Args:
        name: of one task, not of a group.
        limit: most problems, from the first.
        include: folder of further task definitions.

    Raises:
        SnapfitError: the harness is not installed, or the data cannot be had.
        UsageError: no such task, or one that cannot be asked: a group, one that neither generates
            nor chooses, one whose choices are no continuations of one question, or one with several
            right choices.

    """
    try:
        from lm_eval.tasks import get_task_dict
    except ImportError as error:
        raise SnapfitError(
            "lm-evaluation-harness is not installed; pip install 'snapfit[eval]'"
        ) from error
    manager = _manager(include)
    if name in {*manager.all_groups, *manager.all_tags}:
        raise UsageError(
            f"{name} is a group of tasks of lm-evaluation-harness; give tasks by their names "
            "(lm_eval --tasks list shows them)"
        )
    if name not in manager.all_subtasks:
        raise UsageError(
            f"{name!r} is no file, no 'embedded:' or 'reasoning-gym:' task, and no task of "
            "lm-evaluation-harness (lm_eval --tasks list shows those)"
        )
    try:
        task: Any = get_task_dict([name], manager)[name]
        documents = list(task.eval_docs)
    except Exception as error:
        raise SnapfitError(
            f"the data of {name} cannot be had ({type(error).__name__}: {_first(error)}); it is "
            "fetched from the hub: check the network, or give a local JSONL file"
        ) from error
    kept = documents if limit is None else documents[:limit]
    kind = str(task.OUTPUT_TYPE)
    if kind not in {"multiple_choice", "generate_until"}:
        raise UsageError(f"{name} is of type {kind}; only choices and generation are supported")
    if getattr(task, "multiple_input", 0):
        raise UsageError(f"{name} puts each choice into a question of its own: not supported")
    chooses = kind == "multiple_choice"
    make = _choice if chooses else _generated
    return Task(
        name=re.sub(r"[^A-Za-z0-9_.-]", "-", name),
        family=family_of(name),
        kind="choices" if chooses else "generate",
        problems=tuple(make(task, index, document) for index, document in enumerate(kept)),
        judge=judge_choice if chooses else judge_math,
        equivalence="exact" if chooses else "math",
        chat=not chooses,
        settings={"harness": name, "version": str(task.VERSION)},
    )


@cache
def _manager(include: str | None) -> Any:
    """Reads thousands of definitions, so it is made once."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=include)


def _choice(task: Any, index: int, document: Any) -> Problem:
    delimiter = str(task.config.target_delimiter)
    target = task.doc_to_target(document)
    choices = [str(choice) for choice in task.doc_to_choice(document)]
    answer = target if type(target) is int else _index(choices, target)
    if not 0 <= answer < len(choices):
        raise UsageError(
            f"{task.config.task}: the right choice of problem {index} is {target!r}, not one of "
            f"{len(choices)}; such tasks are not supported"
        )
    return Problem(
        id=str(index),
        question=_question(task, document),
        choices=tuple(delimiter + choice for choice in choices),
        answer=str(answer),
    )


def _index(choices: Sequence[str], target: Any) -> int:
    return choices.index(target) if target in choices else -1


def _generated(task: Any, index: int, document: Any) -> Problem:
    target = task.doc_to_target(document)
    answer = gold(str(target[0] if isinstance(target, list) else target))
    check_gold(answer, f"{task.config.task}, problem {index}")
    return Problem(id=str(index), question=_question(task, document), answer=answer)


def _question(task: Any, document: Any) -> str:
    """The task's description and the question, as the harness puts them together."""
    return str(task.fewshot_context(document, num_fewshot=0))


def _first(error: Exception) -> str:
    lines = str(error).splitlines()
    return lines[0][:200] if lines else ""
