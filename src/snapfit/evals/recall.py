"""Ask for what a model knows: greedily, at once, with nothing between question and answer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from snapfit.evals.dialogue import Dialogue
from snapfit.evals.generators.base import Generator, Request
from snapfit.evals.records import Answer
from snapfit.evals.tasks.base import Problem, Task


def recall(
    task: Task,
    problems: Sequence[Problem],
    *,
    dialogue: Dialogue,
    generator: Generator,
    tokens: int,
) -> Iterator[Answer]:
    """Answer at once, greedily, without thinking; budget 0."""
    requests = [
        Request(prompt=dialogue.plain(problem.question), max_tokens=tokens) for problem in problems
    ]
    for at, found in generator.generate(requests):
        problem = problems[at]
        text = dialogue.decode(found.ids)
        judged = task.judge(problem, text)
        yield Answer(
            problem=problem.id,
            sample=0,
            budget=0,
            thinking=0,
            cut=False,
            tokens=len(found.ids),
            text=text,
            answer=judged.answer,
            correct=judged.correct,
            seconds=found.seconds,
        )
