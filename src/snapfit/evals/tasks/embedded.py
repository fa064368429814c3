"""The families that the embedded model was trained on: facts, short chains, long chains.

Nothing is downloaded and every answer is known, so the contrast between knowing and reasoning can
be measured anywhere.
"""

from __future__ import annotations

import random

from snapfit.core.errors import UsageError
from snapfit.evals.dialogue import FINAL
from snapfit.evals.procedural import Chain, Step, draw_chain, fact_table
from snapfit.evals.tasks.base import Family, Judged, Kind, Problem, Task

SHORT = (1, 2, 3)
LONG = tuple(range(8, 25))
NAMES = ("facts", "short", "long")
DEFAULT_LIMIT = 128
DRAWS = 20
"""Draws a problem that is wanted, at most."""


def load(name: str, *, limit: int | None, seed: int) -> Task:
    """The family `name`.

    Args:
        name: 'facts', 'short' (1 to 3 steps) or 'long' (8 to 24 steps).
        limit: problems; chains of all lengths in turn.
        seed: of the draw.

    Raises:
        UsageError: there is no such family.

    """
    count = DEFAULT_LIMIT if limit is None else limit
    if name == "facts":
        facts = list(fact_table())
        random.Random(seed).shuffle(facts)  # noqa: S311 - reproducible draws are the point
        problems = tuple(
            Problem(id=f"{f.entity}-{f.relation}", question=f.question, answer=f.value)
            for f in facts[:count]
        )
        return _task(name, "knowledge", "recall", problems, seed)
    if name == "short":
        return _task(name, "shallow", "generate", _chains(SHORT, count, seed), seed)
    if name == "long":
        return _task(name, "long", "generate", _chains(LONG, count, seed), seed)
    raise UsageError(f"embedded has no family {name!r}; it has: {', '.join(NAMES)}")


def _chains(lengths: tuple[int, ...], count: int, seed: int) -> tuple[Problem, ...]:
    """Different chains, turn by turn through the lengths, so that a small number holds all.

    Of one step there are a dozen chains only, so drawing goes on, for a while, until enough differ.
    """
    rng = random.Random(seed)  # noqa: S311
    found: dict[str, Problem] = {}
    for draw in range(DRAWS * count):
        if len(found) == count:
            break
        problem = _problem(draw_chain(rng, lengths[draw % len(lengths)]))
        found.setdefault(problem.id, problem)
    return tuple(found.values())


def chain_of(problem: Problem) -> Chain:
    """The chain that a problem was made from."""
    steps = tuple(Step(operator, operand) for operator, operand in problem.meta["steps"])
    return Chain(problem.meta["start"], steps)


def _problem(chain: Chain) -> Problem:
    steps = [[step.operator, step.operand] for step in chain.steps]
    return Problem(
        id=chain.question.replace(" ", "")[:-1],
        question=chain.question,
        answer=str(chain.answer),
        meta={"start": chain.start, "steps": steps, "length": len(steps)},
    )


def _task(name: str, family: Family, kind: Kind, problems: tuple[Problem, ...], seed: int) -> Task:
    return Task(
        name=f"embedded-{name}",
        family=family,
        kind=kind,
        problems=problems,
        judge=judge,
        equivalence="exact",
        settings={"seed": seed, "limit": len(problems)},
    )


def judge(problem: Problem, text: str) -> Judged:
    """The first word is the answer."""
    words = text.removeprefix(FINAL).split()
    answer = words[0] if words else None
    return Judged(answer=answer, correct=answer == problem.answer)
