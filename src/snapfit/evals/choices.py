"""The likeliest continuation, by lm-evaluation-harness: its tokenisation, its two accuracies."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from typing import Any

from snapfit.core.errors import SnapfitError
from snapfit.evals.records import Pick
from snapfit.evals.tasks.base import Problem, Task

CHUNK = 32
"""Problems that are asked together; a kill loses no more."""


class Chooser:
    """Scores continuations with a loaded model.

    Args:
        model: a causal language model of transformers.
        tokenizer: its tokenizer.
        batch: rows at once.

    Raises:
        SnapfitError: lm-evaluation-harness is not installed.

    """

    def __init__(self, model: Any, tokenizer: Any, *, batch: int = 16) -> None:
        try:
            from lm_eval.models.huggingface import HFLM
        except ImportError as error:
            raise SnapfitError(
                "choices are scored by lm-evaluation-harness with its models of transformers "
                f"({error}); pip install 'snapfit[eval]'"
            ) from error
        self._lm: Any = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch)

    def pick(self, task: Task, problems: Sequence[Problem]) -> Iterator[Pick]:
        """A pick for every problem, a chunk at a time.

        Raises:
            SnapfitError: the model predicts NaN.

        """
        for start in range(0, len(problems), CHUNK):
            yield from self._chunk(task, problems[start : start + CHUNK])

    def _chunk(self, task: Task, problems: Sequence[Problem]) -> Iterator[Pick]:
        from lm_eval.api.instance import Instance

        began = time.perf_counter()
        asked = [
            Instance("loglikelihood", {}, (problem.question, choice), index)
            for problem in problems
            for index, choice in enumerate(problem.choices)
        ]
        found = iter(self._lm.loglikelihood(asked, disable_tqdm=True))
        share = (time.perf_counter() - began) / len(problems)
        for problem in problems:
            likely = [float(next(found)[0]) for _ in problem.choices]
            if any(math.isnan(value) for value in likely):
                raise SnapfitError(
                    f"{task.name}: the model predicts NaN; it is broken, or its dtype overflows: "
                    "use --dtype float32"
                )
            # The harness divides by the length of the choice itself, without the space before it.
            lengths = [max(1, len(choice.removeprefix(" "))) for choice in problem.choices]
            relative = [value / length for value, length in zip(likely, lengths, strict=True)]
            choice, by_length = likely.index(max(likely)), relative.index(max(relative))
            yield Pick(
                problem=problem.id,
                log_likelihoods=tuple(likely),
                choice=choice,
                by_length=by_length,
                correct=task.judge(problem, str(choice)).correct,
                correct_by_length=task.judge(problem, str(by_length)).correct,
                seconds=share,
            )
