"""From records to figures: curves, intervals, and a verdict on every compressed model.

Everything here is computed from the JSON lines alone, so a summary can be made again from a folder
that somebody else filled (`snapfit scaling --rescore DIR`).

Shape suffixes: P problems, B budgets, S samples.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from snapfit.core.curves import Outcomes, difference
from snapfit.core.errors import SnapfitError
from snapfit.core.passk import maj_at_k, pass_at_k, powers_of_two
from snapfit.core.resample import SHARE, Interval, mean_interval
from snapfit.core.verdict import Verdict, judge
from snapfit.evals.records import Answer, Pick, Thought, read_records
from snapfit.evals.run_settings import read_settings
from snapfit.evals.scoring import same_answer
from snapfit.evals.traces.text import REPEATED, repeated_share


@dataclass(frozen=True, kw_only=True)
class Told:
    """What one model said to one task, as arrays.

    Attributes:
        problems: ids, sorted.
        budgets: of the task.
        correct_PBS: whether it was right.
        answers: of the largest budget, by problem and sample.
        facts: means that describe the generations.

    """

    problems: tuple[str, ...]
    budgets: tuple[int, ...]
    correct_PBS: NDArray[np.bool_]
    answers: tuple[tuple[str | None, ...], ...]
    facts: Mapping[str, Any]

    @property
    def outcomes(self) -> Outcomes:
        """Accuracy by problem and budget."""
        return Outcomes(
            accuracy_PB=self.correct_PBS.mean(axis=2),
            budgets=self.budgets,
            samples=self.correct_PBS.shape[2],
        )


def summarise(folder: Path) -> dict[str, Any]:
    """All figures of a run, JSON-able; see `docs/scaling.md` for what they mean.

    Raises:
        SnapfitError: the folder holds no run, or no model finished any problem.
        CorruptFile: its settings or records are not snapfit's.

    """
    settings = read_settings(folder)
    told = {
        model: {
            name: found
            for name, task in settings["tasks"].items()
            if (found := _told(folder / model / f"{name}.jsonl", task)) is not None
        }
        for model in settings["models"]
    }
    if not any(told.values()):
        raise SnapfitError(f"nothing was generated in {folder} yet")
    base = settings["against"]
    models: dict[str, Any] = {}
    for model, tasks in told.items():
        families = _families(tasks, settings["tasks"])
        entry: dict[str, Any] = {
            "tasks": {
                name: _task_figures(found, settings["tasks"][name]) for name, found in tasks.items()
            },
            "families": {name: _curve(outcomes) for name, outcomes in families.items()},
        }
        if base and model != base:
            entry["verdict"] = _verdict(told[base], tasks, settings["tasks"])
            entry["difference"] = _differences(told[base], tasks)
        models[model] = entry
    plain: dict[str, Any] = _plain({"settings": settings, "against": base, "models": models})
    return plain


def _told(path: Path, task: Mapping[str, Any]) -> Told | None:
    """The records of the problems that are complete; None if there are none."""
    records = list(read_records(path))
    if task["kind"] == "choices":
        return _picked([r for r in records if isinstance(r, Pick)])
    thoughts = [r for r in records if isinstance(r, Thought)]
    answers = [r for r in records if isinstance(r, Answer)]
    budgets = tuple(task["budgets"]) if task["kind"] == "generate" else (0,)
    samples = int(task["samples"]) if task["kind"] == "generate" else 1
    kept = {(t.problem, t.sample): t for t in thoughts}
    by_problem: dict[str, dict[tuple[int, int], Answer]] = defaultdict(dict)
    for found in answers:
        if found.budget in budgets and found.sample < samples:
            by_problem[found.problem][found.budget, found.sample] = found
    complete = sorted(p for p, seen in by_problem.items() if len(seen) == len(budgets) * samples)
    if not complete:
        return None
    correct_PBS = np.array(
        [[[by_problem[p][b, s].correct for s in range(samples)] for b in budgets] for p in complete]
    )
    last = budgets[-1]
    return Told(
        problems=tuple(complete),
        budgets=budgets,
        correct_PBS=correct_PBS,
        answers=tuple(
            tuple(by_problem[p][last, s].answer for s in range(samples)) for p in complete
        ),
        facts=_facts(
            [a for p in complete for a in by_problem[p].values()],
            [kept[p, s] for p in complete for s in range(samples) if (p, s) in kept],
            budgets,
        ),
    )


def _picked(picks: Sequence[Pick]) -> Told | None:
    if not picks:
        return None
    ordered = sorted({pick.problem: pick for pick in picks}.values(), key=lambda p: p.problem)
    by_length = _share(np.array([float(pick.correct_by_length) for pick in ordered]))
    return Told(
        problems=tuple(pick.problem for pick in ordered),
        budgets=(0,),
        correct_PBS=np.array([[[pick.correct]] for pick in ordered]),
        answers=tuple((str(pick.choice),) for pick in ordered),
        facts={
            "accuracy_by_length": asdict(by_length),
            "seconds": sum(pick.seconds for pick in ordered),
        },
    )


def _facts(
    answers: Sequence[Answer], thoughts: Sequence[Thought], budgets: tuple[int, ...]
) -> dict[str, Any]:
    """By budget: thinking tokens, how often it was cut, how often nothing was answered."""
    rows: dict[str, list[float]] = defaultdict(list)
    spent = {(t.problem, t.sample): t.seconds / max(1, len(t.ids)) for t in thoughts}
    for budget in budgets:
        here = [a for a in answers if a.budget == budget]
        tokens = [a.thinking + a.tokens for a in here]
        # The time of the thinking that a budget allows, of the one run that serves them all.
        seconds = [a.seconds + spent.get((a.problem, a.sample), 0.0) * a.thinking for a in here]
        solved = sum(a.correct for a in here)
        rows["thinking_tokens"].append(_mean([a.thinking for a in here]))
        rows["truncated"].append(_mean([a.cut for a in here]))
        rows["no_answer"].append(_mean([a.answer is None for a in here]))
        rows["tokens_a_solved_problem"].append(sum(tokens) / solved if solved else float("inf"))
        rows["seconds_a_solved_problem"].append(sum(seconds) / solved if solved else float("inf"))
    # JSON has no infinity: nothing solved is null.
    facts: dict[str, Any] = dict(rows)
    if thoughts:
        facts["repeated_ngrams"] = _mean([repeated_share(t.ids, REPEATED) for t in thoughts])
        facts["extensions"] = _mean([len(t.waits) for t in thoughts])
        # Budgets that leave a thought whole share one answer.
        told = {(a.problem, a.sample, a.budget if a.cut else None): a.tokens for a in answers}
        facts["tokens"] = sum(len(t.ids) for t in thoughts) + sum(told.values())
    return facts


def _task_figures(told: Told, task: Mapping[str, Any]) -> dict[str, Any]:
    figures = {**_curve(told.outcomes), **told.facts, "kind": task["kind"]}
    samples = told.correct_PBS.shape[2]
    if samples > 1:
        correct_PS = told.correct_PBS[:, -1]
        same = same_answer(task["equivalence"])
        ks = powers_of_two(samples)
        figures["k"] = list(ks)
        figures["pass_at_k"] = [asdict(_share(pass_at_k(correct_PS, k))) for k in ks]
        majorities_KP = [
            [
                maj_at_k(answers, row_S.tolist(), same, k)
                for answers, row_S in zip(told.answers, correct_PS, strict=True)
            ]
            for k in ks
        ]
        figures["maj_at_k"] = [asdict(_share(np.array(row_P))) for row_P in majorities_KP]
    return figures


def _share(values_P: NDArray[np.float64]) -> Interval:
    return mean_interval(values_P, reach=SHARE)


def _curve(outcomes: Outcomes) -> dict[str, Any]:
    slope = outcomes.slope()
    return {
        "budgets": list(outcomes.budgets),
        "problems": outcomes.problems,
        "samples": outcomes.samples,
        "accuracy": [asdict(interval) for interval in outcomes.at()],
        "height": asdict(outcomes.height()),
        "slope_a_doubling": asdict(slope) if slope else None,
    }


def _families(
    tasks: Mapping[str, Told],
    described: Mapping[str, Any],
    common: Mapping[str, Told] | None = None,
) -> dict[str, Outcomes]:
    """Outcomes by family: the problems of all its tasks together.

    Where some of a family's tasks are thought about and others are not, those that are decide.

    Args:
        tasks: what was told, by task.
        described: the tasks of the settings.
        common: keep the problems that are in here too.

    """
    parts: dict[str, list[Outcomes]] = defaultdict(list)
    for name, told in tasks.items():
        shared = set(common[name].problems) if common is not None else set(told.problems)
        rows = [row for row, problem in enumerate(told.problems) if problem in shared]
        kept = told.outcomes
        if rows:
            parts[described[name]["family"]].append(
                Outcomes(
                    accuracy_PB=kept.accuracy_PB[rows], budgets=kept.budgets, samples=kept.samples
                )
            )
    return {family: _together(members) for family, members in parts.items()}


def _together(members: Sequence[Outcomes]) -> Outcomes:
    budgets = max((member.budgets for member in members), key=max)
    alike = [member for member in members if member.budgets == budgets]
    return Outcomes(
        accuracy_PB=np.concatenate([member.accuracy_PB for member in alike]),
        budgets=budgets,
        samples=alike[0].samples,
    )


def _verdict(
    base: Mapping[str, Told], other: Mapping[str, Told], described: Mapping[str, Any]
) -> dict[str, Any]:
    shared = [name for name in other if name in base]
    mine = {name: other[name] for name in shared}
    theirs = {name: base[name] for name in shared}
    found: Verdict = judge(_families(theirs, described, mine), _families(mine, described, theirs))
    return asdict(found)


def _differences(base: Mapping[str, Told], other: Mapping[str, Told]) -> dict[str, Any]:
    """Accuracy minus the base's at every budget, by task, over the problems of both."""
    gaps: dict[str, list[Interval]] = {}
    for name in [name for name in other if name in base]:
        told = other[name]
        shared = set(told.problems) & set(base[name].problems)
        if not shared:
            continue
        pair = []
        for one in (base[name], told):
            rows = [row for row, problem in enumerate(one.problems) if problem in shared]
            outcomes = one.outcomes
            pair.append(
                Outcomes(
                    accuracy_PB=outcomes.accuracy_PB[rows],
                    budgets=outcomes.budgets,
                    samples=outcomes.samples,
                )
            )
        gaps[name] = difference(*pair)
    return {name: [asdict(gap) for gap in found] for name, found in gaps.items()}


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else 0.0


def _plain(value: Any) -> Any:
    """The same without infinity and NaN, which JSON does not have: null says "nothing known"."""
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    return [_plain(entry) for entry in value] if isinstance(value, list | tuple) else value
