"""Think within a budget, then answer: the two phases of a test-time-scaling run.

Thinking runs until the model ends it or the budget is spent. With extensions, an end of thinking
is replaced by "Wait" (arXiv 2501.19393) and the model thinks on with what is left of the budget;
the tokens of "Wait" count, and what does not fit of them is not written. Then thinking is closed
and the model answers.

A budget counts thinking tokens, and an end of thinking only if all its tokens fit, so that a run
with budget b is the first b tokens of a run with more: one run serves all budgets, and only the
answer is generated again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from snapfit.core.errors import UsageError
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
    """One thought for every wanted (problem, sample), as soon as it is finished.

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
    thoughts = [
        Thought(
            problem=problem.id,
            sample=sample,
            prompt=prompt_of(task, problem, dialogue),
            ids=(),
            ended="stop",
            seconds=0.0,
            seed=sampling.seed(task.name, problem.id, sample, "think"),
        )
        for problem, sample in wanted
    ]
    for extension in range(sampling.extend + 1):
        if extension:
            thoughts = [_waiting(thought, dialogue.again(), budget) for thought in thoughts]
        ongoing = [row for row, thought in enumerate(thoughts) if thought.ended != "length"]
        requests = [
            Request(
                prompt=thoughts[row].prompt + thoughts[row].ids,
                max_tokens=budget - len(thoughts[row].ids),
                stop=dialogue.stop,
                temperature=sampling.temperature,
                seed=thoughts[row].seed + extension,
            )
            for row in ongoing
        ]
        last = extension == sampling.extend
        if last:  # a failure must not take the finished ones along
            yield from (thought for thought in thoughts if thought.ended == "length")
        for at, found in generator.generate(requests):
            row = ongoing[at]
            thoughts[row] = _continued(thoughts[row], found)
            if last:
                yield thoughts[row]


def prompt_of(task: Task, problem: Problem, dialogue: Dialogue) -> Ids:
    """What a problem's thinking follows."""
    ask = dialogue.open if task.chat else dialogue.plain
    return ask(problem.question)


def check_context(
    task: Task, *, sampling: Sampling, dialogue: Dialogue, context: int | None
) -> None:
    """Refuse, before anything is generated, what the model's context cannot hold.

    Args:
        task: its longest problem decides.
        sampling: the largest budget and the answer come after it.
        dialogue: what closes thinking counts too.
        context: tokens; None where nobody knows.

    Raises:
        UsageError: prompt, thinking and answer do not fit.

    """
    if context is None:
        return
    longest = max(len(prompt_of(task, problem, dialogue)) for problem in task.problems)
    closing = len(dialogue.close(cut=True))
    most = context - longest - closing - sampling.answer_tokens
    if most < max(sampling.budgets):
        hint = f"give at most --budgets {most}" if most > 0 else "give fewer --answer-tokens"
        raise UsageError(
            f"{task.name}: a problem of {longest} tokens, a budget of {max(sampling.budgets)} and "
            f"an answer of {sampling.answer_tokens} exceed the model's context of {context}; {hint}"
        )


def _waiting(thought: Thought, again: Ids, budget: int) -> Thought:
    """Made to go on, if it ended by itself; out of budget if "Wait" leaves no token."""
    if thought.ended == "length":
        return thought
    ids = (thought.ids + again)[:budget]
    return replace(
        thought,
        ids=ids,
        waits=(*thought.waits, len(thought.ids)),
        ended="length" if len(ids) == budget else thought.ended,
    )


def _continued(thought: Thought, found: Generation) -> Thought:
    return replace(
        thought,
        ids=thought.ids + found.ids,
        ended=found.ended,
        seconds=thought.seconds + found.seconds,
    )


def within(thought: Thought, budget: int, stop: tuple[Ids, ...]) -> tuple[Ids, bool]:
    """The thinking that a budget would have allowed, and whether the budget cut it.

    Args:
        thought: with at least this budget.
        budget: thinking tokens.
        stop: sequences that end thinking.

    """
    ids = thought.ids
    ender = max((len(tokens) for tokens in stop), default=1)
    by_itself = thought.ended != "length"
    if by_itself and len(ids) + ender <= budget:
        return ids, False
    for end in (*thought.waits, len(ids)) if by_itself else thought.waits:
        if end < budget < end + ender:  # the end of thinking did not fit whole
            return ids[:end], True
    return _without_part(ids[:budget], stop), True


def _without_part(ids: Ids, stop: tuple[Ids, ...]) -> Ids:
    """Without the first tokens of a stop sequence at the end, that the budget tore."""
    for tokens in stop:
        for count in range(min(len(tokens) - 1, len(ids)), 0, -1):
            if ids[-count:] == tokens[:count]:
                return ids[:-count]
    return ids


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
        left = {budget: within(thought, budget, dialogue.stop) for budget in budgets}
        whole = tuple(budget for budget, (_, cut) in left.items() if not cut)
        if whole:
            jobs.append((problem, thought, thought.ids, False, whole))
        jobs += [
            (problem, thought, ids, True, (budget,)) for budget, (ids, cut) in left.items() if cut
        ]
    for start in range(0, len(jobs), generator.chunk):
        part = jobs[start : start + generator.chunk]
        requests = [
            _answer_request(task, problem, thought, ids, cut, sampling, dialogue)
            for problem, thought, ids, cut, _ in part
        ]
        for at, found in generator.generate(requests):
            problem, thought, ids, cut, budgets = part[at]
            text = dialogue.decode(found.ids)
            # 'Final Answer:' tells the judge where the answer stands.
            judged = task.judge(problem, dialogue.asked(cut=_forced(thought, cut)) + text)
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
                    seconds=found.seconds,
                )


def _forced(thought: Thought, cut: bool) -> bool:
    """Whether thinking is closed for the model, and the answer asked for."""
    return cut or thought.ended == "eos"


def _answer_request(
    task: Task,
    problem: Problem,
    thought: Thought,
    ids: Ids,
    cut: bool,
    sampling: Sampling,
    dialogue: Dialogue,
) -> Request:
    return Request(
        prompt=thought.prompt + ids + dialogue.close(cut=_forced(thought, cut)),
        max_tokens=sampling.answer_tokens,
        temperature=sampling.temperature,
        seed=sampling.seed(task.name, problem.id, thought.sample, "answer"),
    )
