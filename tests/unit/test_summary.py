"""Summaries: made of the JSON lines alone, and equal to figures computed by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from tiny_models import tiny_tokenizer

from snapfit.core.errors import SnapfitError
from snapfit.core.files import write_json
from snapfit.core.verdict import BROKEN, KEEPS, UNKNOWN
from snapfit.evals.dialogue import find_delimiters
from snapfit.evals.records import Answer, Pick, Record, RecordFile, Thought
from snapfit.evals.run_settings import SETTINGS
from snapfit.evals.summary import summarise
from snapfit.evals.traces.text import repeated_share

BUDGETS = (4, 8, 32)
MARKS = find_delimiters(tiny_tokenizer()).to_json()


def task(family: str = "long", kind: str = "generate", **changes: Any) -> dict[str, Any]:
    described = {
        "family": family,
        "kind": kind,
        "equivalence": "exact",
        "budgets": list(BUDGETS),
        "samples": 2,
    }
    return {**described, **changes}


def folder(
    path: Path, records: dict[str, dict[str, list[Record]]], tasks: dict[str, Any], **changes: Any
) -> Path:
    """A run: records by model and task."""
    settings = {
        "models": list(records),
        "paths": dict.fromkeys(records, "somewhere"),
        "against": None,
        "backend": "hf",
        "dtype": "auto",
        "sampling": {"temperature": 1.0, "seeds": [7]},
        "delimiters": dict.fromkeys(records, MARKS),
        "tasks": tasks,
        **changes,
    }
    write_json(path / SETTINGS, settings)
    for model, of_task in records.items():
        for name, kept in of_task.items():
            with RecordFile(path / model / f"{name}.jsonl") as file:
                for record in kept:
                    file.append(record)
    return path


def thought(problem: str, sample: int, ids: tuple[int, ...], seconds: float = 1.0) -> Thought:
    return Thought(
        problem=problem,
        sample=sample,
        prompt=(1, 2),
        ids=ids,
        ended="stop",
        waits=(1,) if sample else (),
        seconds=seconds,
        seed=1,
    )


def said(problem: str, sample: int, budget: int, right: bool, **changes: Any) -> Answer:
    values = {
        "thinking": 3,
        "cut": False,
        "tokens": 2,
        "text": "x",
        "answer": "1" if right else "0",
        "seconds": 0.5,
        **changes,
    }
    return Answer(problem=problem, sample=sample, budget=budget, correct=right, **values)


def graded(table: dict[str, list[list[int]]]) -> list[Record]:
    """Answers from 'problem: rows of samples, columns of budgets'."""
    return [
        said(problem, sample, budget, bool(row[column]))
        for problem, rows in table.items()
        for sample, row in enumerate(rows)
        for column, budget in enumerate(BUDGETS)
    ]


TABLE = {"a": [[0, 1, 1], [0, 0, 1]], "b": [[0, 0, 0], [0, 1, 1]], "c": [[1, 1, 1], [1, 1, 1]]}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return folder(tmp_path, {"m": {"t": graded(TABLE)}}, {"t": task()})


def figures(path: Path, model: str = "m", name: str = "t") -> dict[str, Any]:
    found: dict[str, Any] = summarise(path)["models"][model]["tasks"][name]
    return found


def values(intervals: list[dict[str, float]]) -> list[float]:
    return [entry["value"] for entry in intervals]


def test_accuracy_by_budget_is_the_mean_over_problems_and_samples(run: Path) -> None:
    found = figures(run)
    assert (found["problems"], found["samples"], found["budgets"]) == (3, 2, list(BUDGETS))
    assert values(found["accuracy"]) == pytest.approx([2 / 6, 4 / 6, 5 / 6])
    for entry in found["accuracy"]:
        assert entry["low"] <= entry["value"] <= entry["high"]


def test_area_and_slope_are_over_doublings(run: Path) -> None:
    found = figures(run)
    at = [2 / 6, 4 / 6, 5 / 6]
    # 4 to 8 is one doubling, 8 to 32 two.
    area = ((at[0] + at[1]) / 2 * 1 + (at[1] + at[2]) / 2 * 2) / 3
    assert found["height"]["value"] == pytest.approx(area)
    places = [2.0, 3.0, 5.0]
    middle, mean = sum(places) / 3, sum(at) / 3
    slope = sum((p - middle) * (a - mean) for p, a in zip(places, at, strict=True))
    slope /= sum((p - middle) ** 2 for p in places)
    assert found["slope_a_doubling"]["value"] == pytest.approx(slope)


def test_samples_give_pass_and_majority_at_the_largest_budget(run: Path) -> None:
    found = figures(run)
    assert found["k"] == [1, 2]
    assert values(found["pass_at_k"]) == pytest.approx([5 / 6, 1.0])
    # Of b's two answers, wrong and right, the first seen is the majority.
    assert values(found["maj_at_k"]) == pytest.approx([5 / 6, 2 / 3])


def test_rates_and_costs(tmp_path: Path) -> None:
    records: list[Record] = [
        thought("a", 0, (5, 6, 7, 8, 5, 6, 7, 8), seconds=4.0),
        thought("a", 1, (5, 6, 7, 8, 9, 3), seconds=3.0),
    ]
    for budget in BUDGETS:
        cut = budget < 8
        records += [
            said("a", 0, budget, budget > 8, thinking=min(8, budget), cut=cut, tokens=2),
            said("a", 1, budget, False, thinking=min(6, budget), cut=cut, tokens=3, answer=None),
        ]
    path = folder(tmp_path, {"m": {"t": records}}, {"t": task()})
    found = figures(path)
    assert found["truncated"] == [1.0, 0.0, 0.0]
    assert found["no_answer"] == [0.5, 0.5, 0.5]
    assert found["thinking_tokens"] == [4.0, 7.0, 7.0]
    assert found["tokens_a_solved_problem"] == [None, None, 8 + 2 + 6 + 3]
    # Half a second an answer, half a second a thinking token; one of two is solved.
    assert found["seconds_a_solved_problem"] == [None, None, 0.5 * 2 + 0.5 * 14]
    # Five 4-grams of the first thought, one twice; three of the second.
    assert found["repeated_ngrams"] == pytest.approx((1 / 5 + 0) / 2)
    assert found["extensions"] == 0.5
    # The answers at 8 and 32 are one each; those at 4 are their own.
    assert found["tokens"] == 8 + 6 + (2 + 3) * 2


def test_a_summary_is_made_again_from_the_lines(run: Path, tmp_path_factory: Any) -> None:
    """Order and repetition of lines change nothing, nor does what a kill tore."""
    first = summarise(run)
    assert json.loads(json.dumps(first, allow_nan=False)) == first
    lines = (run / "m" / "t.jsonl").read_bytes().splitlines(keepends=True)
    (run / "m" / "t.jsonl").write_bytes(b"".join(lines[::-1] + lines[:5]) + lines[3][:20])
    assert summarise(run) == first


def test_only_problems_that_are_complete_count(run: Path) -> None:
    file = run / "m" / "t.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(lines[:-1]))  # c lacks one answer
    found = figures(run)
    assert found["problems"] == 2
    assert values(found["accuracy"]) == pytest.approx([0, 2 / 4, 3 / 4])


def test_choices_have_two_accuracies(tmp_path: Path) -> None:
    picks: list[Record] = [
        Pick(
            problem=str(i),
            log_likelihoods=(-1.0, -2.0),
            choice=0,
            by_length=1,
            correct=i < 3,
            correct_by_length=i < 1,
            seconds=0.25,
        )
        for i in range(4)
    ]
    path = folder(tmp_path, {"m": {"t": picks}}, {"t": task("knowledge", "choices")})
    found = figures(path)
    assert values(found["accuracy"]) == [0.75]
    assert found["accuracy_by_length"]["value"] == 0.25
    assert (found["budgets"], found["seconds"]) == ([0], 1.0)
    assert found["slope_a_doubling"] is None


def many(count: int, right: int) -> list[Record]:
    return graded({f"p{i:03}": [[int(i < right)] * 3] * 2 for i in range(count)})


def test_differences_are_paired_by_problem(tmp_path: Path) -> None:
    base = {"a": [[1, 1, 1]] * 2, "b": [[0, 0, 0]] * 2, "c": [[1, 1, 1]] * 2}
    other = {"a": [[0, 1, 1]] * 2, "b": [[0, 0, 1]] * 2}
    path = folder(
        tmp_path,
        {"base": {"t": graded(base)}, "m": {"t": graded(other)}},
        {"t": task()},
        against="base",
    )
    summary = summarise(path)
    (gaps,) = summary["models"]["m"]["difference"].values()
    assert values(gaps) == pytest.approx([-0.5, 0.0, 0.5])
    assert "difference" not in summary["models"]["base"]
    family = summary["models"]["m"]["verdict"]["families"]["long"]
    assert family["problems"] == 2


@pytest.mark.parametrize(("right", "label"), [(90, KEEPS), (9, BROKEN), (77, UNKNOWN)])
def test_the_verdict_is_by_families(tmp_path: Path, right: int, label: str) -> None:
    path = folder(
        tmp_path,
        {
            "base": {"t": many(100, 90), "k": many(100, 90)},
            "m": {"t": many(100, right), "k": many(100, 90)},
        },
        {"t": task(), "k": task("knowledge")},
        against="base",
    )
    verdict = summarise(path)["models"]["m"]["verdict"]
    assert verdict["label"] == label
    assert verdict["families"]["knowledge"]["label"] == KEEPS
    assert verdict["families"]["knowledge"]["reason"].endswith(": kept")
    assert verdict["families"]["long"]["retained"]["value"] == pytest.approx(right / 90)


def test_a_family_of_several_tasks_is_judged_together(tmp_path: Path) -> None:
    """Tasks without thinking do not decide where others of the family are thought about."""
    picks: list[Record] = [
        Pick(
            problem=f"c{i}",
            log_likelihoods=(-1.0, -2.0),
            choice=0,
            by_length=0,
            correct=True,
            correct_by_length=True,
            seconds=0.0,
        )
        for i in range(50)
    ]
    told = {"t": many(40, 40), "u": many(60, 30), "c": picks}
    tasks = {"t": task(), "u": task(), "c": task(kind="choices")}
    path = folder(tmp_path, {"base": told, "m": told}, tasks, against="base")
    family = summarise(path)["models"]["m"]["families"]["long"]
    assert (family["problems"], family["budgets"]) == (100, list(BUDGETS))
    assert values(family["accuracy"]) == pytest.approx([0.7] * 3)


@pytest.mark.filterwarnings("error")
def test_models_that_finished_other_problems_are_not_compared(tmp_path: Path) -> None:
    """Both runs were cut off, each at problems of its own."""
    base = graded({"a": [[1, 1, 1]] * 2})
    mine = graded({"b": [[1, 1, 1]] * 2})
    path = folder(tmp_path, {"base": {"t": base}, "m": {"t": mine}}, {"t": task()}, against="base")
    found = summarise(path)["models"]["m"]
    assert found["difference"] == {}
    assert found["verdict"]["label"] == UNKNOWN
    assert found["verdict"]["reasons"] == ["no reasoning task was answered by both models"]


def test_folders_without_a_run_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SnapfitError, match=r"settings\.json is missing"):
        summarise(tmp_path)
    folder(tmp_path, {"m": {}}, {"t": task()})
    with pytest.raises(SnapfitError, match="nothing was generated"):
        summarise(tmp_path)


def test_repeated_share() -> None:
    assert repeated_share("abcabcabc", 3) == pytest.approx(4 / 7)
    assert repeated_share("abc", 4) == 0.0
    assert math.isclose(repeated_share([1] * 10, 4), 6 / 7)
