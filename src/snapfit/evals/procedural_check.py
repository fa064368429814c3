"""Judge a written chain step by step: where it first goes wrong, and whether it recovers.

The usual check compares answers. A chain allows more, since every step it should contain is
known: a step is *on track* if it states the true running value, and *sound* if it copies the
question and follows from the value written before it. After one slip all later values are off
track although each may be sound, so slips give the error rate a step and tracks its compounding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from snapfit.evals.procedural import END_THINK, SPECIAL

if TYPE_CHECKING:
    from collections.abc import Sequence

    from snapfit.evals.procedural import Chain


@dataclass(frozen=True, slots=True)
class WrittenStep:
    """One step as a model wrote it, judged in two ways."""

    number: int
    on_track: bool  # it agrees with the chain: label, operation and running value
    sound: bool  # it copies the question and follows from the value written before it


@dataclass(frozen=True, slots=True)
class TraceCheck:
    """What became of one chain."""

    exact: bool  # the whole completion, word for word
    answer: int | None
    answer_right: bool
    steps: tuple[WrittenStep, ...]  # as written, a second look after the first
    first_wrong_step: int | None  # from 1; one never reached, or past the end, is wrong
    corrected: bool  # a step from there on was written rightly later

    @property
    def slips(self) -> int:
        """How many steps are wrong by themselves."""
        return sum(not step.sound for step in self.steps)


def check_trace(chain: Chain, generated: str) -> TraceCheck:
    """Judge the text a model generated after `chain.question`, by exact comparison only."""
    words = [word for word in generated.split() if word not in SPECIAL]
    thought, answer = words, None
    if END_THINK in words:
        end = len(words) - 1 - words[::-1].index(END_THINK)
        thought, answer = words[:end], _number(words[end + 1 : end + 2])
    steps = _written_steps(chain, thought)
    first_wrong, corrected = None, False
    for at, step in enumerate(steps):
        if not step.on_track:
            first_wrong = step.number
            corrected = any(s.on_track and s.number >= step.number for s in steps[at + 1 :])
            break
    else:
        reached = max((step.number for step in steps), default=0)
        if reached < len(chain.steps):
            first_wrong = reached + 1
    return TraceCheck(
        exact=words == chain.completion.split(),
        answer=answer,
        answer_right=answer == chain.answer,
        steps=tuple(steps),
        first_wrong_step=first_wrong,
        corrected=corrected,
    )


def _number(words: Sequence[str]) -> int | None:
    return int(words[0]) if words and words[0].isdecimal() else None


def _written_steps(chain: Chain, words: Sequence[str]) -> list[WrittenStep]:
    """Read ``sK op n = value`` wherever a label stands; ``start`` begins the chain anew."""
    written: list[WrittenStep] = []
    expected, before = 1, None
    for at, word in enumerate(words):
        if word == "start":
            expected, before = 1, _number(words[at + 1 : at + 2])
        if word[0] != "s" or not word[1:].isdecimal() or expected > len(chain.steps) + 1:
            continue
        if expected > len(chain.steps):  # it does not stop: one slip, however far it runs on
            written.append(WrittenStep(expected, on_track=False, sound=False))
            expected += 1
            continue
        step, value = chain.steps[expected - 1], _number(words[at + 4 : at + 5])
        copied = [f"s{expected}", step.operator, str(step.operand), "="]
        faithful = list(words[at : at + 4]) == copied
        sound = faithful and before is not None and value == step.apply(before)
        on_track = faithful and value == chain.values[expected - 1]
        written.append(WrittenStep(expected, on_track, sound))
        expected, before = expected + 1, value
    return written
