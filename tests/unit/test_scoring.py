"""Answers are right or wrong: equal mathematics is right, an answer that holds the gold is not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from snapfit.evals.scoring import judge_choice, judge_math, same_answer
from snapfit.evals.tasks.base import Problem
from snapfit.evals.tasks.gym import understood
from snapfit.evals.tasks.load import load_task

DATA = Path(__file__).parents[3] / "shared" / "data" / "tasks"


def judged(gold: str, text: str) -> tuple[str | None, bool]:
    found = judge_math(Problem(id="0", question="?", answer=gold), text)
    return found.answer, found.correct


@pytest.mark.parametrize(
    ("gold", "text"),
    [
        ("18", "18"),
        ("18", " 18 dollars a day."),
        ("18", "Therefore \\boxed{18}."),
        ("18", "$18.00$"),
        ("18", "Final Answer: 18\n\nQuestion: how many are 3 and 4? 7"),
        ("\\frac{1}{2}", "0.5"),
        ("\\frac{1}{2}", "$\\frac{2}{4}$"),
        ("\\frac43", "Final Answer: \\frac43"),
        ("\\frac43", "Final Answer: \\frac43."),
        ("\\frac43", "Final Answer: **\\frac43**."),
        ("3\\sqrt{13}", " 3\\sqrt{13}"),
        ("3\\sqrt{13}", "so it is \\(\\sqrt{117}\\)"),
        ("p - q", "p - q"),
        ("\\left( 3, \\frac{\\pi}{2} \\right)", "\\boxed{(3, \\pi/2)}"),
        ("\\text{Evelyn}", "Final Answer: \\text{Evelyn}"),
        ("\\$36", "\\boxed{36}"),
        ("\\$32,\\!348", "It costs 32348."),
        ("x+1", "$1 + x$"),
        ("204", "the walk takes \\boxed{204} minutes"),
        ("1,000", "1000"),
    ],
)
def test_equal_mathematics_is_right(gold: str, text: str) -> None:
    assert judged(gold, text)[1]


@pytest.mark.parametrize(
    ("gold", "text"),
    [
        ("5", "15"),
        ("5", "$5x + 3$"),
        ("5", "\\boxed{51}"),
        ("3", "Final Answer: 3\\sqrt{13}"),
        ("3", "\\boxed{\\frac{3}{4}}"),
        ("5", "\\boxed{5, 7}"),
        ("(3,4)", "\\boxed{3}"),
        ("\\frac{1}{2}", "1/3"),
        ("18", "Final Answer: 19\nor perhaps it is 18"),
        ("42", "Wait, let me see"),
    ],
)
def test_an_answer_that_holds_the_gold_is_wrong(gold: str, text: str) -> None:
    assert not judged(gold, text)[1]


@pytest.mark.parametrize("text", ["", "   \n", "I do not know", "Final Answer:"])
def test_nothing_understood_is_no_answer(text: str) -> None:
    assert judged("3", text) == (None, False)


def test_choices_are_exact() -> None:
    problem = Problem(id="0", question="?", answer="1", choices=(" A", " B"))
    assert judge_choice(problem, "1").correct
    assert not judge_choice(problem, "11").correct
    assert not judge_choice(problem, "0").correct


def test_answers_are_grouped_by_equivalence() -> None:
    same = same_answer("math")
    assert same("1/2", "0.5")
    assert same("\\frac{1}{2}", "0.5")
    assert not same("1/2", "0.25")
    exact = same_answer("exact")
    assert exact("a", "a")
    assert not exact("0.5", "0.50")


@pytest.mark.skipif(not DATA.is_dir(), reason="../shared/data/tasks is not there")
class TestPublished:
    """Golds as published are understood, and their own solutions are right by them."""

    def test_every_solution_of_math500_is_right(self) -> None:
        path = DATA / "math500.jsonl"
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        task = load_task(str(path))
        solutions = [row["answer"].rsplit("The answer is", 1)[0] for row in rows]
        wrong = [
            problem.id
            for problem, solution in zip(task.problems, solutions, strict=True)
            if not task.judge(problem, solution).correct
        ]
        assert wrong == []

    @pytest.mark.parametrize(("name", "every"), [("gsm8k_test", 10), ("math500", 1), ("aime24", 1)])
    def test_the_bare_gold_is_right_where_the_answer_was_asked_for(
        self, name: str, every: int
    ) -> None:
        task = load_task(str(DATA / f"{name}.jsonl"))
        wrong = [
            problem.answer
            for problem in task.problems[::every]
            if not task.judge(problem, f"Final Answer: {problem.answer}\n\nWhat is 3 + 4?").correct
        ]
        assert wrong == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (" 12", "12"),
        ("\n\n**12**.\nsome more 13", "12"),
        ("So I find: the answer is 12.", "12"),
        ("The answer is 11, no. Final answer: 12", "12"),
        ("It is \\boxed{12} as 3 + 9 is", "12"),
        ("\\boxed{\\frac{1}{2}} of it", "\\frac{1}{2}"),
        ("<answer>11</answer> no, <answer> 12 </answer>", "12"),
        ("Final Answer: 12\n\nQuestion: 3 + 4? The answer is 7", "12"),
        ("Final Answer:\n\\boxed{12}\n\\boxed{7}", "12"),
        ("", None),
        ("Final Answer:  \n", None),
    ],
)
def test_what_a_model_answered_to_reasoning_gym(text: str, expected: str | None) -> None:
    assert understood(text) == expected


def test_an_answer_of_several_lines_is_taken_whole() -> None:
    assert understood("1 2\n3 4\n", lines=True) == "1 2\n3 4"
    assert understood("Final Answer:\n1 2\n3 4", lines=True) == "1 2\n3 4"
    assert understood("here <answer>1 2\n3 4</answer>", lines=True) == "1 2\n3 4"
