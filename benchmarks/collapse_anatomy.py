"""Why chains break: the first wrong step, what was wrong with it, and where the model drifts.

Used by reasoning_collapse.py. A step reads ``sK op n = v``: its label, operator and operand are
copied from the question, its value is computed, so a first error is of one of four kinds.

Shape suffix: T positions.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from snapfit.evals.dialogue import Dialogue
from snapfit.evals.procedural import AGAIN, END_THINK, Chain
from snapfit.evals.procedural_check import check_trace
from snapfit.evals.records import Answer, Record, Thought
from snapfit.evals.tasks.base import Task
from snapfit.evals.tasks.embedded import chain_of
from snapfit.evals.traces.chains import anatomy
from snapfit.evals.traces.drift import by_position, drift

BINS = 12
TRACES = 24
"""Of the original, along which drift is measured: those of the longest chains that it solved."""

Fault = Literal["copied wrongly", "computed wrongly", "stopped early", "ran on"]
FAULTS: tuple[Fault, ...] = ("copied wrongly", "computed wrongly", "stopped early", "ran on")
WORDS = ("label", "operator", "operand", "equals", "value")


@dataclass(frozen=True, kw_only=True)
class Trace:
    """Token ids of a question and of the thinking after it."""

    prompt: tuple[int, ...]
    thinking: tuple[int, ...]
    words: tuple[str, ...]


def dissect(task: Task, dialogue: Dialogue, records: Sequence[Record]) -> dict[str, Any]:
    """First errors by step and by kind, of everything written with the largest budget."""
    chains = {problem.id: chain_of(problem) for problem in task.problems}
    thoughts = {(r.problem, r.sample): r for r in records if isinstance(r, Thought)}
    answers = [r for r in records if isinstance(r, Answer)]
    last = max(answer.budget for answer in answers)
    asked, written, faults = [], [], Counter[str]()
    looked_again = 0
    for answer in answers:
        if answer.budget != last:
            continue
        chain = chains[answer.problem]
        thought = dialogue.decode(thoughts[answer.problem, answer.sample].ids)
        looked_again += AGAIN in thought.split()
        text = f"{thought} {END_THINK} {answer.text}"
        asked.append(chain)
        written.append(text)
        fault = fault_of(chain, text)
        if fault is not None:
            faults[fault] += 1
    found = anatomy(asked, written)
    return {
        **asdict(found),
        "rate": found.rate,
        "faults": {fault: faults[fault] for fault in FAULTS},
        "looked_again": looked_again,
    }


def fault_of(chain: Chain, written: str) -> Fault | None:
    """What is wrong with the first wrong step; None if no step is."""
    first = check_trace(chain, written).first_wrong_step
    if first is None:
        return None
    if first > len(chain.steps):
        return "ran on"
    words = written.split()
    labels = [at for at, word in enumerate(words) if word[0] == "s" and word[1:].isdecimal()]
    if len(labels) < first:
        return "stopped early"
    at, step = labels[first - 1], chain.steps[first - 1]
    copied = words[at : at + 4] == [f"s{first}", step.operator, str(step.operand), "="]
    return "computed wrongly" if copied else "copied wrongly"


def solved_traces(task: Task, dialogue: Dialogue, records: Sequence[Record]) -> list[Trace]:
    """The original's own traces of the longest chains that it solved, one a problem."""
    questions = {problem.id: problem.question for problem in task.problems}
    right = {
        (r.problem, r.sample)
        for r in records
        if isinstance(r, Answer) and r.correct and not r.cut and r.sample == 0
    }
    thoughts = [r for r in records if isinstance(r, Thought) and (r.problem, r.sample) in right]
    thoughts.sort(key=lambda thought: (-len(thought.ids), thought.problem))
    return [
        Trace(
            prompt=dialogue.open(questions[thought.problem]),
            thinking=thought.ids,
            words=tuple(dialogue.decode(thought.ids).split()),
        )
        for thought in thoughts[:TRACES]
    ]


def drift_of(base: Any, other: Any, traces: Sequence[Trace]) -> dict[str, Any]:
    """Drift of the prediction of every thinking token, by position and by kind of word."""
    divergences, cosines = [], []
    by_word: dict[str, list[float]] = defaultdict(list)
    for trace in traces:
        found = drift(base, other, trace.prompt + trace.thinking)
        # What predicts a token stands before it.
        own = slice(len(trace.prompt) - 1, len(trace.prompt) - 1 + len(trace.thinking))
        gap_T = found.divergence_T[own]
        divergences.append(gap_T)
        cosines.append(found.cosine_LT[-1][own])
        for kind, gap in zip(kinds(trace.words), gap_T, strict=True):
            by_word[kind].append(float(gap))
    mean, error = by_position(divergences, BINS)
    close, close_error = by_position(cosines, BINS)
    return {
        "divergence": [mean.tolist(), error.tolist()],
        "cosine": [close.tolist(), close_error.tolist()],
        "by_word": {kind: float(np.mean(by_word[kind])) for kind in WORDS},
    }


def kinds(words: Sequence[str]) -> list[str]:
    """The kind of every word of a trace: its first two are ``start`` and the start value."""
    return ["start" if at < 2 else WORDS[(at - 2) % len(WORDS)] for at in range(len(words))]
