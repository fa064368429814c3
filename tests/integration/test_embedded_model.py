"""The shipped model really knows and really reasons: the promise its docs and demo rest on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import snapfit
from snapfit.evals import procedural as text
from snapfit.evals.procedural_check import check_trace

FOLDER = Path(snapfit.__file__).parent / "assets" / "embedded"
SEED = 20260101  # not the seed that training was checked with


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(FOLDER)


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(FOLDER).eval()


def complete(model, tokenizer, questions, most):
    batch = tokenizer(questions, return_tensors="pt", padding=True, return_token_type_ids=False)
    with torch.inference_mode():
        ids_BT = model.generate(**batch, max_new_tokens=most, do_sample=False)
    return tokenizer.batch_decode(ids_BT[:, batch["input_ids"].shape[1] :])


def test_the_tokenizer_gives_one_token_a_word_and_the_text_back(tokenizer):
    for line in text.text_lines(SEED, 100):
        ids = tokenizer(line)["input_ids"]
        assert ids[0] == tokenizer.bos_token_id
        assert tokenizer.unk_token_id not in ids
        assert len(ids) == 1 + len(line.split())
        assert tokenizer.decode(ids, skip_special_tokens=True) == line


def test_the_chat_template_presents_the_question_as_trained(tokenizer):
    question = text.draw_chains(SEED, [2], 1)[0].question
    chat = [{"role": "user", "content": question}]
    ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True)["input_ids"]
    assert ids == tokenizer(question)["input_ids"]


def test_it_is_small_deep_grouped_and_tied(model):
    config = model.config
    assert config.num_hidden_layers >= 8
    assert config.num_key_value_heads < config.num_attention_heads
    assert config.tie_word_embeddings
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) < 8_000_000


def test_it_knows_the_facts(model, tokenizer):
    facts = text.fact_table()
    said = complete(model, tokenizer, [fact.question for fact in facts], 2)
    right = sum(s.split() == [f.value, "<eos>"] for f, s in zip(facts, said, strict=True))
    assert right / len(facts) >= 0.95


@pytest.mark.parametrize(
    ("lengths", "per_length", "least"),
    [
        (range(1, 4), 60, 0.95),
        (range(4, 8), 24, 0.95),
        (range(8, 12), 20, 0.95),
        (range(12, 17), 14, 0.95),
        (range(17, 25), 7, 0.90),
    ],
    ids=["1-3", "4-7", "8-11", "12-16", "17-24"],
)
def test_it_reasons_exactly_on_unseen_chains(model, tokenizer, lengths, per_length, least):
    chains = text.draw_chains(SEED, lengths, per_length)
    said = complete(model, tokenizer, [c.question for c in chains], 5 * lengths[-1] + 6)
    checks = [check_trace(c, s) for c, s in zip(chains, said, strict=True)]
    assert sum(check.exact for check in checks) / len(checks) >= least
    slips = sum(check.slips for check in checks)
    assert slips / sum(len(check.steps) for check in checks) < 0.003


def test_it_starts_over_when_told_to_wait(model, tokenizer):
    """The end of thinking is replaced by ``Wait`` after an error: the second look is right."""
    chains = text.draw_chains(SEED, [5], 40)
    prompts = [
        f"{c.question} {text.THINK} {c.trace.rsplit(' ', 1)[0]} {(c.answer + 1) % text.MODULUS} "
        f"{text.AGAIN}"
        for c in chains
    ]
    said = complete(model, tokenizer, prompts, 5 * 5 + 6)
    right = [
        s.split()[:-1] == [*c.trace.split(), text.END_THINK, str(c.answer)]
        for c, s in zip(chains, said, strict=True)
    ]
    assert sum(right) / len(right) >= 0.9


def test_its_record_says_how_it_was_made():
    record = json.loads((FOLDER / "training.json").read_text())
    assert {"command", "seed", "tokens", "date", "torch", "accuracy"} <= record.keys()
    assert record["accuracy"]["facts"] >= 0.95
