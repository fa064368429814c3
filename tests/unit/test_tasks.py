"""Tasks: where problems come from, what their golds are, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from snapfit.core.errors import CorruptFile, SnapfitError, UsageError
from snapfit.evals.procedural import fact_table
from snapfit.evals.tasks.base import Task
from snapfit.evals.tasks.embedded import LONG, SHORT, chain_of
from snapfit.evals.tasks.load import load_task
from snapfit.evals.tasks.local import family_of

DATA = Path(__file__).parents[3] / "shared" / "data" / "tasks"
published = pytest.mark.skipif(not DATA.is_dir(), reason="../shared/data/tasks is not there")


def file(folder: Path, *rows: object, name: str = "mine.jsonl") -> str:
    path = folder / name
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return str(path)


def right(task: Task, text: str, index: int = 0) -> bool:
    return task.judge(task.problems[index], text).correct


@published
class TestPublished:
    """The files of `../shared/data/tasks`, as they are."""

    @pytest.mark.parametrize(
        ("name", "count", "family", "kind", "keys"),
        [
            ("gsm8k_test", 1319, "shallow", "generate", ("question", "answer")),
            ("math500", 500, "long", "generate", ("question", "answer")),
            ("aime24", 30, "long", "generate", ("problem", "answer")),
            ("piqa_valid", 1838, "knowledge", "choices", (None, None)),
            ("mmlu_stem", 1200, "knowledge", "choices", (None, None)),
        ],
    )
    def test_each_is_understood(
        self, name: str, count: int, family: str, kind: str, keys: tuple[str | None, str | None]
    ) -> None:
        task = load_task(str(DATA / f"{name}.jsonl"))
        assert (task.name, task.family, task.kind) == (name, family, kind)
        assert len({problem.id for problem in task.problems}) == count
        found = (task.settings.get("problem_key"), task.settings.get("answer_key"))
        assert found == keys
        assert task.chat == (kind == "generate")

    def test_gold_of_gsm8k_follows_the_hashes(self) -> None:
        task = load_task(str(DATA / "gsm8k_test.jsonl"), limit=4)
        assert [problem.answer for problem in task.problems] == ["18", "3", "70000", "540"]
        assert right(task, "Janet makes \\boxed{18} dollars")

    def test_gold_of_math500_is_the_answer_and_not_the_solution(self) -> None:
        task = load_task(str(DATA / "math500.jsonl"), limit=3)
        assert task.problems[0].answer == "\\left( 3, \\frac{\\pi}{2} \\right)"
        assert all("therefore" not in problem.answer.lower() for problem in task.problems)

    def test_gold_of_aime24_is_the_answer_although_there_is_a_solution(self) -> None:
        task = load_task(str(DATA / "aime24.jsonl"), limit=1)
        assert task.problems[0].answer == "204"

    def test_piqa_is_asked_as_the_harness_does_with_labels_beside_it(self) -> None:
        task = load_task(str(DATA / "piqa_valid.jsonl"), limit=3)
        labels = (DATA / "piqa_valid_labels.txt").read_text().split()[:3]
        assert [problem.answer for problem in task.problems] == labels
        first = task.problems[0]
        assert first.question.startswith("Question: How do I ready a guinea pig cage")
        assert first.question.endswith("\nAnswer:")
        assert len(first.choices) == 2
        assert all(choice.startswith(" Provide") for choice in first.choices)

    def test_mmlu_is_asked_as_the_harness_does_by_letters(self) -> None:
        first = load_task(str(DATA / "mmlu_stem.jsonl"), limit=1).problems[0]
        assert first.question.startswith(
            "The following are multiple choice questions (with answers) about college biology.\n\n"
        )
        assert "\nA. maintain the population" in first.question
        assert first.question.endswith("\nD. increase the mortality rate\nAnswer:")
        assert first.choices == (" A", " B", " C", " D")
        assert first.answer == "2"


def test_the_first_problems_are_taken(tmp_path: Path) -> None:
    rows = [{"question": f"q{i}", "answer": str(i)} for i in range(5)]
    task = load_task(file(tmp_path, *rows), limit=2)
    assert [problem.question for problem in task.problems] == ["q0", "q1"]
    assert task.family == "other"
    assert right(task, "1", 1)


def test_a_family_can_be_given(tmp_path: Path) -> None:
    path = file(tmp_path, {"question": "q", "answer": "1"})
    assert load_task(f"long={path}").family == "long"
    assert load_task(f"knowledge={path}").family == "knowledge"


def test_keys_can_be_given(tmp_path: Path) -> None:
    path = file(tmp_path, {"text": "one and one?", "key": "2", "answer": "5"})
    with pytest.raises(UsageError, match=r"has the keys text, key, answer; say .* --problem-key"):
        load_task(path)
    task = load_task(path, problem_key="text", answer_key="key")
    assert (task.problems[0].question, task.problems[0].answer) == ("one and one?", "2")
    with pytest.raises(SnapfitError, match="line 1 has no key 'other'"):
        load_task(path, problem_key="other", answer_key="key")


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        ("so 9.\n#### 9", "9"),
        ("We see it. The answer is: 7.", "7"),
        ("The answer is not 8, so\n#### 9", "9"),
        ("x+1", "x+1"),
        (12, "12"),
    ],
)
def test_gold_in_a_solution(tmp_path: Path, answer: object, gold: str) -> None:
    task = load_task(file(tmp_path, {"question": "q", "answer": answer}))
    assert task.problems[0].answer == gold


@pytest.mark.parametrize("answer", ["B", 1])
def test_a_choice_is_named_by_letter_or_index(tmp_path: Path, answer: object) -> None:
    row = {"question": "q", "choices": ["x", "y"], "answer": answer}
    assert load_task(file(tmp_path, row)).problems[0].answer == "1"


@pytest.mark.parametrize("answer", ["C", 2, -1, None, "yes", "", "AB", True])
def test_an_answer_that_is_no_choice_is_refused(tmp_path: Path, answer: object) -> None:
    row = {"question": "q", "choices": ["x", "y"], "answer": answer}
    with pytest.raises(CorruptFile, match=r"line 1: answer .* is no choice"):
        load_task(file(tmp_path, row))


def test_what_a_file_may_lack(tmp_path: Path) -> None:
    with pytest.raises(SnapfitError, match="no such file"):
        load_task(str(tmp_path / "none.jsonl"))
    with pytest.raises(SnapfitError, match="has no problems"):
        load_task(file(tmp_path))
    (tmp_path / "bad.jsonl").write_text('{"question": "q", "answer": "1"}\nnot json\n')
    with pytest.raises(CorruptFile, match="line 2 is no JSON"):
        load_task(str(tmp_path / "bad.jsonl"))
    with pytest.raises(CorruptFile, match="line 1 is no JSON object"):
        load_task(file(tmp_path, [1, 2]))
    pair = {"goal": "g", "sol1": "a", "sol2": "b"}
    with pytest.raises(SnapfitError, match="solutions without labels"):
        load_task(file(tmp_path, pair, name="p.jsonl"))
    (tmp_path / "p_labels.txt").write_text("2\n")
    with pytest.raises(CorruptFile, match="a label, 0 or 1, for each of 1"):
        load_task(str(tmp_path / "p.jsonl"))


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"question": "q", "answer": None}, "line 2: answer is None, no text"),
        ({"question": " ", "answer": "1"}, "line 2: question is ' ', no text"),
        ({"question": "q", "answer": ["1"]}, r"line 2: answer is \['1'\], no text"),
        ({"question": "q"}, "line 2 has no key 'answer'"),
    ],
)
def test_a_problem_without_its_parts_is_named(tmp_path: Path, row: object, said: str) -> None:
    with pytest.raises(CorruptFile, match=said):
        load_task(file(tmp_path, {"question": "q", "answer": "1"}, row))


@pytest.mark.parametrize("answer", ["Tuesday", "New York", "The answer is: yes."])
def test_words_cannot_be_judged_and_are_refused(tmp_path: Path, answer: str) -> None:
    """Every answer would be wrong, of the original too."""
    with pytest.raises(UsageError, match=r"line 1: the answer '(Tuesday|New York|yes)' is words"):
        load_task(file(tmp_path, {"question": "q", "answer": answer}))
    for known in ("\\text{Tuesday}", "\\boxed{yes}", "C", "3 apples", "x = y"):
        load_task(file(tmp_path, {"question": "q", "answer": known}))


def test_choices_without_their_parts_are_named(tmp_path: Path) -> None:
    good = {"question": "q", "choices": ["x", "y"], "answer": 0}
    for changed, said in (
        ({"choices": 5}, "line 2 has no list of 2 to 10 choices"),
        ({"question": None}, "line 2: question is None"),
    ):
        with pytest.raises(CorruptFile, match=said):
            load_task(file(tmp_path, good, {**good, **changed}))
    (tmp_path / "p_labels.txt").write_text("1 1\n")
    pair = {"goal": "g", "sol1": "a", "sol2": "b"}
    with pytest.raises(CorruptFile, match="line 2 has no key 'sol2'"):
        load_task(file(tmp_path, pair, {"goal": "g", "sol1": "a"}, name="p.jsonl"))


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"question": "q", "answer": "1"}\n\xff\xfe\n')
    with pytest.raises(CorruptFile, match="line 2 is no JSON"):
        load_task(str(tmp_path / "a.jsonl"))


def test_well_known_names_have_a_family() -> None:
    assert family_of("hellaswag_de") == "knowledge"
    assert family_of("GPQA_diamond") == "long"
    assert family_of("poems") == "other"


class TestEmbedded:
    """Facts, short chains, long chains."""

    def test_facts_are_of_the_table(self) -> None:
        task = load_task("embedded:facts", limit=5, seed=1)
        known = {fact.question: fact.value for fact in fact_table()}
        assert (task.family, task.kind) == ("knowledge", "recall")
        assert all(known[problem.question] == problem.answer for problem in task.problems)
        assert right(task, task.problems[0].answer)
        assert not right(task, f"x{task.problems[0].answer}")

    @pytest.mark.parametrize(
        ("name", "lengths", "family"), [("short", SHORT, "shallow"), ("long", LONG, "long")]
    )
    def test_chains_are_held_out_of_their_lengths_and_differ(
        self, name: str, lengths: tuple[int, ...], family: str
    ) -> None:
        task = load_task(f"embedded:{name}", limit=60, seed=4)
        chains = [chain_of(problem) for problem in task.problems]
        assert (task.family, task.kind, len(task.problems)) == (family, "generate", 60)
        assert {len(chain.steps) for chain in chains} == set(lengths)
        assert {chain.split for chain in chains} == {"held_out"}
        assert len({problem.id for problem in task.problems}) == 60
        for problem, chain in zip(task.problems, chains, strict=True):
            assert (problem.question, problem.answer) == (chain.question, str(chain.answer))

    def test_a_seed_names_the_problems(self) -> None:
        first, again = (load_task("embedded:long", limit=9, seed=2).problems for _ in range(2))
        assert first == again
        assert first != load_task("embedded:long", limit=9, seed=3).problems

    def test_there_are_three(self) -> None:
        with pytest.raises(UsageError, match="no family 'longer'; it has: facts, short, long"):
            load_task("embedded:longer")


class TestGym:
    """reasoning-gym, at a difficulty."""

    @pytest.fixture(autouse=True)
    def _installed(self) -> None:
        pytest.importorskip("reasoning_gym", reason="reasoning-gym is not installed")

    def test_levels_rise(self) -> None:
        easy = load_task("reasoning-gym:chain_sum:0", limit=5, seed=3)
        hard = load_task("reasoning-gym:chain_sum:3", limit=5, seed=3)
        assert (easy.family, hard.family) == ("shallow", "long")
        assert hard.settings["max_terms"] > easy.settings["max_terms"]
        assert easy.name == "reasoning-gym-chain_sum-0"

    def test_settings_are_the_library_s_own(self) -> None:
        spec = "reasoning-gym:chain_sum:min_terms=8+max_terms=8"
        task = load_task(spec, limit=3, seed=3)
        assert all(problem.question.count(" + ") <= 7 for problem in task.problems)
        numbers = [problem.question.split(":")[1].split() for problem in task.problems]
        assert {len(parts) for parts in numbers} == {8 + 7 + 1}

    def test_its_own_answers_are_right_and_near_ones_get_no_part_marks(self) -> None:
        task = load_task("reasoning-gym:chain_sum:1", limit=8, seed=0)
        for index, problem in enumerate(task.problems):
            assert right(task, f" {problem.answer}\n", index)
            assert right(task, f"so it is \\boxed{{{problem.answer}}}.", index)
            assert not right(task, f" {problem.answer}1", index)
            assert not right(task, f" not sure, {problem.answer} or 7", index)
            assert not right(task, "", index)

    def test_an_answer_that_its_scorer_stumbles_over_is_wrong(self) -> None:
        """This one reads numbers from whatever it is given."""
        task = load_task("reasoning-gym:prime_factorization", limit=1, seed=0)
        assert right(task, task.problems[0].answer)
        assert not right(task, "I do not know")

    def test_what_is_unknown_is_refused(self) -> None:
        with pytest.raises(UsageError, match="unknown reasoning-gym task 'chain_sums'"):
            load_task("reasoning-gym:chain_sums")
        with pytest.raises(UsageError, match="unexpected keyword argument 'foo'"):
            load_task("reasoning-gym:chain_sum:foo=1")
        with pytest.raises(UsageError, match="neither a level nor KEY=VALUE"):
            load_task("reasoning-gym:chain_sum:hard")


def test_a_limit_is_at_least_one() -> None:
    with pytest.raises(UsageError, match="must be at least 1, got 0"):
        load_task("embedded:facts", limit=0)
