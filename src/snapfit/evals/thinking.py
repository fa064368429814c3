"""Think within a budget, then answer: the two phases of a test-time-scaling run.

Thinking runs until the model ends it or the budget is spent. With extensions, an end of thinking
is replaced by "Wait" (arXiv 2501.19393) and the model thinks on with what is left of the budget;
the tokens of "Wait" count. Then thinking is closed and the model answers.

A budget counts thinking tokens, the delimiter that ends them included, so that a run with budget b
is the first b tokens of a run with more: one run serves all budgets, and only the answer is
generated again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from snapfit.evals.dialogue import Dialogue
from snapfit.evals.generators.base import Generation, Generator, Ids, Request
from snapfit.evals.records import Answer, Thought
from snapfit.evals.tasks.base import Problem, Task


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How problems are asked.

    Attributes:
        budgets: thinking tokens, increasing.
        temperature: of thinking and answering; 0 is greedy.
        seeds: sample i of a problem is drawn with seed i of these, counted around.
        samples: samples a problem.
        extend: how often an end of thinking is replaced by "Wait".
        answer_tokens: most tokens of an answer.

    """

    budgets: tuple[int, ...]
    temperature: float = 1.0
    seeds: tuple[int, ...] = (7, 11, 42)
    samples: int = 16
    extend: int = 0
    answer_tokens: int = 256

    def seed(self, task: str, problem: str, sample: int, purpose: str) -> int:
        """The seed of one generation: of its own, and the same for every model."""
        base, around = self.seeds[sample % len(self.seeds)], sample // len(self.seeds)
        text = f"{base}/{around}/{task}/{problem}/{purpose}"
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "big") >> 1


def think(
    task: Task,
    wanted: Sequence[tuple[Problem, int]],
    *,
    sampling: Sampling,
    dialogue: Dialogue,
    generator: Generator,
) -> Iterator[Thought]:
    """One thought for every wanted (problem, sample), a chunk of the generator at a time.

    Raises:
        SnapfitError: the generator failed.

    """
    for start in range(0, len(wanted), generator.chunk):
        part = wanted[start : start + generator.chunk]
        yield from _think_chunk(task, part, sampling, dialogue, generator)


def _think_chunk(
    task: Task,
    wanted: Sequence[tuple[Problem, int]],
    sampling: Sampling,
    dialogue: Dialogue,
    generator: Generator,
) -> Iterator[Thought]:
    budget = max(sampling.budgets)
    prompts = [
        dialogue.open(problem.question) if task.chat else dialogue.plain(problem.question)
        for problem, _ in wanted
    ]
    seeds = [sampling.seed(task.name, p.id, sample, "think") for p, sample in wanted]
    thoughts = [
        Thought(
            problem=problem.id,
            sample=sample,
            ids=(),
            ended="stop",
            extensions=-1,  # the first round is none
            seconds=0.0,
            seed=seed,
            prompt_tokens=len(prompt),
        )
        for (problem, sample), prompt, seed in zip(wanted, prompts, seeds, strict=True)
    ]
    for extension in range(sampling.extend + 1):
        again = dialogue.again() if extension else ()
        ongoing = [
            row
            for row, thought in enumerate(thoughts)
            if thought.ended != "length" and len(thought.ids) + len(again) < budget
        ]
        requests = [
            Request(
                prompt=prompts[row] + thoughts[row].ids + again,
                max_tokens=budget - len(thoughts[row].ids) - len(again),
                stop=dialogue.stop,
                temperature=sampling.temperature,
                seed=seeds[row] + extension,
            )
            for row in ongoing
        ]
        for row, found in zip(ongoing, generator.generate(requests), strict=True):
            thoughts[row] = _continued(thoughts[row], again, found)
    yield from thoughts


def _continued(thought: Thought, again: Ids, found: Generation) -> Thought:
    return replace(
        thought,
        ids=thought.ids + again + found.ids,
        ended=found.ended,
        extensions=thought.extensions + 1,
        seconds=thought.seconds + found.seconds,
    )


def was_cut(thought: Thought, budget: int, stop: tuple[Ids, ...]) -> bool:
    """Whether `budget` ends the thought before the model does; what ends it counts."""
    if thought.ended == "length":
        return True
    ender = max((len(ids) for ids in stop), default=1) if thought.ended == "stop" else 1
    return len(thought.ids) + ender > budget


def answer(
    task: Task,
    wanted: Sequence[tuple[Problem, Thought, tuple[int, ...]]],
    *,
    sampling: Sampling,
    dialogue: Dialogue,
    generator: Generator,
) -> Iterator[Answer]:
    """Answers to problems after a thought, at several budgets each.

    Budgets that leave a thought whole share one answer.

    Args:
        task: judges.
        wanted: problem, thought, and the budgets that are still to be answered.
        sampling: how.
        dialogue: closes thinking.
        generator: answers.

    Raises:
        SnapfitError: the generator failed.

    """
    jobs: list[tuple[Problem, Thought, Ids, bool, tuple[int, ...]]] = []
    for problem, thought, budgets in wanted:
        whole = tuple(b for b in budgets if not was_cut(thought, b, dialogue.stop))
        if whole:
            jobs.append((problem, thought, thought.ids, False, whole))
        jobs += [
            (problem, thought, thought.ids[:budget], True, (budget,))
            for budget in budgets
            if budget not in whole
        ]
    for start in range(0, len(jobs), generator.chunk):
        part = jobs[start : start + generator.chunk]
        requests = [
            _answer_request(task, problem, thought, ids, cut, sampling, dialogue)
            for problem, thought, ids, cut, _ in part
        ]
        for job, found in zip(part, generator.generate(requests), strict=True):
            problem, thought, ids, cut, budgets = job
            text = dialogue.decode(found.ids)
            judged = task.judge(problem, text)
            for budget in budgets:
                yield Answer(
                    problem=problem.id,
                    sample=thought.sample,
                    budget=budget,
                    thinking=len(ids),
                    cut=cut,
                    tokens=len(found.ids),
                    text=text,
                    answer=judged.answer,
                    correct=judged.correct,
                    seconds=found.seconds / len(budgets),
                )


def _answer_request(
    task: Task,
    problem: Problem,
    thought: Thought,
    ids: Ids,
    cut: bool,
    sampling: Sampling,
    dialogue: Dialogue,
) -> Request:
    opened = dialogue.open(problem.question) if task.chat else dialogue.plain(problem.question)
    forced = cut or thought.ended == "eos"
    return Request(
        prompt=opened + ids + dialogue.close(cut=forced),
        max_tokens=sampling.answer_tokens,
        temperature=sampling.temperature,
        seed=sampling.seed(task.name, problem.id, thought.sample, "answer"),
    )


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
    for problem, found in zip(problems, generator.generate(requests), strict=True):
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
