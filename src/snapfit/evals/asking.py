"""Ask one model one task: what is recorded already is not asked again."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from snapfit.core.progress import Progress
from snapfit.evals.choices import Chooser
from snapfit.evals.dialogue import Dialogue
from snapfit.evals.generators.base import Generator
from snapfit.evals.recall import recall
from snapfit.evals.records import Answer, Pick, RecordFile, Thought, read_records
from snapfit.evals.tasks.base import Problem, Task
from snapfit.evals.thinking import Sampling, answer, check_context, think

RECALL_TOKENS = 16
"""Most tokens of an answer that needs no thinking."""


class Respondent(Protocol):
    """A model that can be asked; what is costly is made when first used."""

    @property
    def dialogue(self) -> Dialogue:
        """Its prompts and delimiters."""

    @property
    def generator(self) -> Generator:
        """Generates."""

    @property
    def chooser(self) -> Chooser:
        """Scores choices."""


def ask(
    task: Task, model: Respondent, path: Path, *, sampling: Sampling, progress: Progress, label: str
) -> None:
    """Complete the records of one model on one task.

    Args:
        task: what is asked.
        model: who is asked.
        path: of the records.
        sampling: how.
        progress: told of every record.
        label: names the model on the progress bar.

    Raises:
        SnapfitError: the backend failed; what was generated is kept.

    """
    known = list(read_records(path))
    if task.kind == "choices":
        picked = {record.problem for record in known if isinstance(record, Pick)}
        missing = [problem for problem in task.problems if problem.id not in picked]
        if missing:
            progress.stage(f"{label} {task.name}", len(missing))
            with RecordFile(path) as file:
                for pick in model.chooser.pick(task, missing):
                    file.append(pick)
                    progress.advance()
        return
    answered = {
        (record.problem, record.sample, record.budget)
        for record in known
        if isinstance(record, Answer)
    }
    if task.kind == "recall":
        missing = [problem for problem in task.problems if (problem.id, 0, 0) not in answered]
        if missing:
            progress.stage(f"{label} {task.name}", len(missing))
            with RecordFile(path) as file:
                for found in recall(
                    task,
                    missing,
                    dialogue=model.dialogue,
                    generator=model.generator,
                    tokens=RECALL_TOKENS,
                ):
                    file.append(found)
                    progress.advance()
        return
    thoughts = {(r.problem, r.sample): r for r in known if isinstance(r, Thought)}
    _generate(task, model, path, sampling, progress, label, thoughts, answered)


def _generate(
    task: Task,
    model: Respondent,
    path: Path,
    sampling: Sampling,
    progress: Progress,
    label: str,
    thoughts: dict[tuple[str, int], Thought],
    answered: set[tuple[str, int, int]],
) -> None:
    every = [(problem, sample) for sample in range(sampling.samples) for problem in task.problems]
    wanted = [(p, s) for p, s in every if (p.id, s) not in thoughts]
    # Those of like length together: a batch is padded to its longest prompt.
    wanted.sort(key=lambda pair: (pair[1], len(pair[0].question)))
    with RecordFile(path) as file:
        if wanted:
            check_context(
                task,
                sampling=sampling,
                dialogue=model.dialogue,
                context=model.generator.context,
            )
            progress.stage(f"{label} {task.name}: think", len(wanted))
            for thought in think(
                task,
                wanted,
                sampling=sampling,
                dialogue=model.dialogue,
                generator=model.generator,
            ):
                file.append(thought)
                thoughts[thought.problem, thought.sample] = thought
                progress.advance()
        open_ended: list[tuple[Problem, Thought, tuple[int, ...]]] = []
        for problem, sample in every:
            thought = thoughts[problem.id, sample]
            budgets = tuple(b for b in sampling.budgets if (problem.id, sample, b) not in answered)
            if budgets:
                open_ended.append((problem, thought, budgets))
        open_ended.sort(key=lambda item: len(item[1].prompt) + len(item[1].ids))
        if open_ended:
            total = sum(len(budgets) for _, _, budgets in open_ended)
            progress.stage(f"{label} {task.name}: answer", total)
            for found in answer(
                task,
                open_ended,
                sampling=sampling,
                dialogue=model.dialogue,
                generator=model.generator,
            ):
                file.append(found)
                progress.advance()
