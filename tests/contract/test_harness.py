"""Choices by log-likelihood: problem by problem what lm-evaluation-harness itself says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_models import build, tiny_tokenizer

from snapfit.checkpoint.load import load
from snapfit.core.errors import SnapfitError, UsageError
from snapfit.evals.choices import Chooser
from snapfit.evals.records import Pick
from snapfit.evals.tasks import harness
from snapfit.evals.tasks.load import load_task

pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed")
pytestmark = pytest.mark.filterwarnings("ignore")

ROWS = [
    {"q": f"w{i} w{i + 1}", "c": [f"w{i + 2}", "éèé wé", f"w{i + 3} w9 w{i}"], "a": i % 3, "m": [0]}
    for i in range(20, 44)
]
"""Choices of one, two and three tokens; letters of two bytes, so that characters are not bytes."""

BASE = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: multiple_choice
description: "w50 {{{{q}}}}\\n\\n"
doc_to_text: {text}
doc_to_choice: "{{{{c}}}}"
doc_to_target: {target}
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
"""


@pytest.fixture(scope="module")
def include(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder of task definitions over one file."""
    folder = tmp_path_factory.mktemp("tasks")
    file = folder / "rows.jsonl"
    file.write_text("".join(f"{json.dumps(row)}\n" for row in ROWS))
    question = '"Question: {{q}}\\nAnswer:"'
    for name, text, target in (
        ("tiny_choice", question, "a"),
        ("tiny_inputs", "a", "q"),
        ("tiny_several", question, "m"),
    ):
        (folder / f"{name}.yaml").write_text(
            BASE.format(name=name, file=file, text=text, target=target)
        )
    for name, target in (("tiny_sum", '"so {{a}}.\\n#### {{a}}"'), ("tiny_word", '"blue"')):
        (folder / f"{name}.yaml").write_text(
            BASE.format(name=name, file=file, text=question, target=target)
            .replace("multiple_choice", "generate_until")
            .replace("metric: acc_norm", "metric: exact_match")
            .replace("{metric: acc}, ", "")
            .replace('doc_to_choice: "{{c}}"\n', "")
        )
    return str(folder)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return load(build("llama", tmp_path_factory.mktemp("llama")))


def test_both_accuracies_are_the_harness_s(include: str, model: Any) -> None:
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    tokenizer = tiny_tokenizer()
    task = harness.load("tiny_choice", limit=None, include=include)
    picks = list(Chooser(model, tokenizer, batch=4).pick(task, task.problems))
    theirs = simple_evaluate(
        model=HFLM(pretrained=model, tokenizer=tokenizer, batch_size=4),
        tasks=["tiny_choice"],
        task_manager=TaskManager(include_path=include),
        bootstrap_iters=0,
        log_samples=True,
    )
    samples = {str(sample["doc_id"]): sample for sample in theirs["samples"]["tiny_choice"]}
    assert len(samples) == len(picks) == len(ROWS)
    for pick in picks:
        sample = samples[pick.problem]
        assert pick.log_likelihoods == pytest.approx(
            [float(response[0]) for response in sample["filtered_resps"]], rel=1e-5
        )
        assert (pick.correct, pick.correct_by_length) == (sample["acc"], sample["acc_norm"])
    assert 0 < sum(pick.correct for pick in picks) < len(picks)
    assert any(pick.choice != pick.by_length for pick in picks)
    assert any(pick.by_length != _by_bytes(pick) for pick in picks)


def _by_bytes(pick: Pick) -> int:
    choices = ROWS[int(pick.problem)]["c"]
    assert isinstance(choices, list)
    relative = [
        value / len(choice.encode())
        for value, choice in zip(pick.log_likelihoods, choices, strict=True)
    ]
    return relative.index(max(relative))


def test_a_prompt_begins_with_the_task_s_description(include: str) -> None:
    first = harness.load("tiny_choice", limit=1, include=include).problems[0]
    assert first.question == "w50 w20 w21\n\nQuestion: w20 w21\nAnswer:"
    assert first.choices == (" w22", " éèé wé", " w23 w9 w20")
    assert first.answer == "2"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("tiny_inputs", "puts each choice into a question of its own"),
        ("tiny_several", r"the right choice of problem 0 is \[0\], not one of 3"),
        ("mmlu", "mmlu is a group of tasks"),
    ],
)
def test_what_is_not_one_question_with_one_right_choice_is_refused(
    name: str, said: str, include: str
) -> None:
    with pytest.raises(UsageError, match=said):
        harness.load(name, limit=2, include=include)


def test_answers_to_be_generated_are_judged_as_mathematics(include: str) -> None:
    task = harness.load("tiny_sum", limit=2, include=include)
    first = task.problems[0]
    assert (task.kind, first.answer) == ("generate", "2")
    assert first.question == "w50 w20 w21\n\nQuestion: w20 w21\nAnswer:"
    assert task.judge(first, "\\boxed{4/2}").correct
    with pytest.raises(UsageError, match="tiny_word, problem 0: the answer 'blue' is words"):
        harness.load("tiny_word", limit=2, include=include)


def test_data_that_cannot_be_had_are_named_with_a_way_out() -> None:
    """Tests cannot reach the hub."""
    with pytest.raises(SnapfitError, match=r"the data of gsm8k cannot be had .* local JSONL"):
        load_task("gsm8k", limit=1)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(UsageError, match="'gsm9k' is no file, no 'embedded:'"):
        load_task("gsm9k")


def test_a_model_that_predicts_nan_is_not_said_to_choose(include: str, tmp_path: Path) -> None:
    broken = load(build("llama", tmp_path / "llama"))
    broken.get_output_embeddings().weight.data.fill_(float("nan"))
    task = harness.load("tiny_choice", limit=2, include=include)
    with pytest.raises(SnapfitError, match="tiny_choice: the model predicts NaN"):
        list(Chooser(broken, tiny_tokenizer()).pick(task, task.problems))
