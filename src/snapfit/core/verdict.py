"""Does it still reason? One rule, written down.

For each family of tasks, `retained` is the area under the compressed model's curve of accuracy
over log2 of the thinking budget, divided by the base model's on the same problems. Its 95%
interval comes from resampling problems, both models together. Then

    not enough samples to say   the base model hardly solves the family (the lower end of its
                                accuracy is below FLOOR), or none of the following holds
    broken                      the upper end is at most BREAK: at least half is lost
    weakened                    the upper end is below KEEP: something is lost, surely
    keeps reasoning             the lower end is at least KEEP

A resampled interval is too sure of itself where all problems agree: of P problems without a
surprise, the next may surprise with probability 3/P (the rule of three). So neither end is closer
to the value than that, relative to the base's accuracy: 30 problems are the least that can say
"keeps reasoning".

The verdict on the model is the worst one of its reasoning families; of knowledge it is only said
how it did, because the finding is the contrast (arXiv 2510.22228).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from snapfit.core.curves import Outcomes, retained
from snapfit.core.resample import Interval

KEEP = 0.9
BREAK = 0.5
FLOOR = 0.05
MOST_SAMPLES = 1_000_000
LEAST = 30
"""Problems, all alike and all solved by the base, that can say "keeps reasoning"."""

Label = Literal["keeps reasoning", "weakened", "broken", "not enough samples to say"]
KEEPS: Label = "keeps reasoning"
WEAKENED: Label = "weakened"
BROKEN: Label = "broken"
UNKNOWN: Label = "not enough samples to say"

WORST_FIRST: tuple[Label, ...] = (BROKEN, WEAKENED, UNKNOWN, KEEPS)
KNOWLEDGE = "knowledge"


@dataclass(frozen=True, kw_only=True)
class FamilyVerdict:
    """What became of one family.

    Attributes:
        label: by the rule of this module.
        reason: one sentence, with the figures.
        retained: relative area under the curve, its interval widened by the rule of three.
        base: mean height of the base model's curve.
        other: mean height of the compressed model's curve.
        problems: that both were asked.
        needed: problems that would be enough; 0 where these were, None where no number would be.

    """

    label: Label
    reason: str
    retained: Interval
    base: Interval
    other: Interval
    problems: int
    needed: int | None


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What became of a model."""

    label: Label
    reasons: tuple[str, ...]
    families: Mapping[str, FamilyVerdict]


def judge(base: Mapping[str, Outcomes], other: Mapping[str, Outcomes], *, seed: int = 0) -> Verdict:
    """Judge a compressed model by the families that both models were asked.

    Args:
        base: outcomes of the original by family; problems in one order.
        other: of the compressed model, on the same problems and budgets.
        seed: of the resampling.

    """
    families = {
        name: judge_family(base[name], other[name], name=name, seed=seed)
        for name in base
        if name in other
    }
    reasoning = {name: found for name, found in families.items() if name != KNOWLEDGE}
    if not reasoning:
        reason = "no reasoning task was answered by both models"
        return Verdict(label=UNKNOWN, reasons=(reason,), families=families)
    label = min((found.label for found in reasoning.values()), key=WORST_FIRST.index)
    reasons = [found.reason for found in reasoning.values() if found.label == label]
    reasons += [found.reason for found in families.values() if found.reason not in reasons]
    return Verdict(label=label, reasons=tuple(reasons), families=families)


def judge_family(base: Outcomes, other: Outcomes, *, name: str, seed: int = 0) -> FamilyVerdict:
    """Judge one family by the rule of this module.

    Raises:
        ValueError: the two were asked different problems or budgets (a caller's mistake).

    """
    if base.accuracy_PB.shape != other.accuracy_PB.shape or base.budgets != other.budgets:
        raise ValueError(f"{name}: the models were asked different problems or budgets")
    heights = {"base": base.height(seed), "other": other.height(seed)}
    solved = heights["base"].value
    kept = _widened(retained(base, other, seed=seed), base.problems, solved)
    label = _label(kept)
    shown = (
        f"{name}: {heights['other'].value:.1%} of {base.problems} problems, the original "
        f"{solved:.1%}: {kept.value:.0%} retained [{kept.low:.0%}, {kept.high:.0%}]"
    )
    floor = _floor(heights["base"], base.problems)
    if floor < FLOOR:
        label = UNKNOWN
        reason = (
            f"{name}: the original itself solves {solved:.1%} of {base.problems} problems "
            f"(at least {floor:.1%} for sure), too few to judge by"
        )
        poor = solved <= FLOOR and base.problems > 1
        needed = None if poor else _needed(base.problems, heights["base"], FLOOR)
        if needed is not None:  # and then the curves must still be compared
            needed = max(needed, _needed(base.problems, kept, KEEP) or 0)
    else:
        # Knowing is not reasoning.
        reason = f"{shown}: {'kept' if label == KEEPS and name == KNOWLEDGE else label}"
        needed = 0
    if label == UNKNOWN and floor >= FLOOR:
        needed = _needed(base.problems, kept, KEEP)
    if label == UNKNOWN:
        reason += f"; {_advice(needed, heights['base'])}"
    return FamilyVerdict(
        label=label,
        reason=reason,
        retained=kept,
        problems=base.problems,
        needed=needed,
        **heights,
    )


def _advice(needed: int | None, solved: Interval) -> str:
    if needed is not None:
        return f"about {needed} problems would be enough"
    if solved.value <= FLOOR < solved.high:
        return f"more would help only if it really solves over {FLOOR:.0%}"
    return "more would not help"


def _label(kept: Interval) -> Label:
    if kept.high <= BREAK:
        return BROKEN
    if kept.high < KEEP:
        return WEAKENED
    if kept.low >= KEEP:
        return KEEPS
    return UNKNOWN


def _widened(interval: Interval, problems: int, solved: float) -> Interval:
    """At least the rule of three wide on either side; all there is where nothing can be said."""
    if solved <= 0 or problems < 2 or not math.isfinite(interval.low + interval.high):
        return replace(interval, low=0.0, high=math.inf)
    surprise = 3 / (problems * solved)
    return replace(
        interval,
        low=max(0.0, min(interval.low, interval.value - surprise)),
        high=max(interval.high, interval.value + surprise),
    )


def _floor(solved: Interval, problems: int) -> float:
    """Lower end of the base's accuracy; nothing is sure of fewer than two problems."""
    return solved.low if problems > 1 else 0.0


def _needed(problems: int, interval: Interval, threshold: float) -> int | None:
    """Problems at which the interval would no longer reach the threshold.

    The side that reaches it shrinks with the root of the number of problems. Of one problem there
    is no interval; the rule of three says how many can have one that is narrow enough.
    """
    distance = abs(interval.value - threshold)
    if problems < 2:
        return LEAST
    above = interval.value >= threshold
    side = interval.value - interval.low if above else interval.high - interval.value
    if not math.isfinite(side) or distance * math.sqrt(MOST_SAMPLES / problems) <= side:
        return None
    return math.ceil(problems * (side / distance) ** 2)
