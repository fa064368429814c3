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
from snapfit.core.resample import Interval, mean_interval

KEEP = 0.9
BREAK = 0.5
FLOOR = 0.05
MOST_SAMPLES = 1_000_000

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
        return Verdict(label=UNKNOWN, reasons=("no reasoning task was asked",), families=families)
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
    heights = {
        "base": mean_interval(base.height_P, seed=seed),
        "other": mean_interval(other.height_P, seed=seed),
    }
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
        above = solved > FLOOR
        needed = _needed(base.problems, heights["base"], FLOOR) if above else None
    else:
        # Knowing is not reasoning.
        reason = f"{shown}: {'kept' if label == KEEPS and name == KNOWLEDGE else label}"
        needed = 0
    if label == UNKNOWN and floor >= FLOOR:
        needed = _needed(base.problems, kept, KEEP, BREAK)
    if label == UNKNOWN:
        reason += "; " + (
            f"about {needed} problems would be enough" if needed else "more would not help"
        )
    return FamilyVerdict(
        label=label,
        reason=reason,
        retained=kept,
        problems=base.problems,
        needed=needed,
        **heights,
    )


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


def _needed(problems: int, interval: Interval, *thresholds: float) -> int | None:
    """Problems at which the interval would no longer reach the nearest threshold.

    Half-widths shrink with the root of the number of problems.
    """
    distance = min(abs(interval.value - threshold) for threshold in thresholds)
    half = max(interval.value - interval.low, interval.high - interval.value)
    if not math.isfinite(half) or distance * math.sqrt(MOST_SAMPLES / problems) <= half:
        return None
    return math.ceil(problems * (half / distance) ** 2)
