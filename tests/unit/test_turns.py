"""Windows that a model writes when it is asked: what is dictated, what counts, what is refused."""

from __future__ import annotations

import json

import pytest
import torch
from tiny_models import VOCABULARY, build, tiny_tokenizer
from transformers import AutoModelForCausalLM

from snapfit.calib.sources.turns import Dialogue, Monologue, Script
from snapfit.calib.token_file import read_windows, save_windows
from snapfit.calib.tokens import load_tokens
from snapfit.core.errors import CorruptFile, SnapfitError, UsageError

TEMPLATE = (
    "{% for m in messages %}<s> {{ m.content }} w60 w61 {% endfor %}"
    "{% if enable_thinking %}w62{% else %}w63{% endif %}"
)
"""'<s>' begins a turn, 'w60 w61' ends a user's, 'w62' begins to think."""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = build("llama", tmp_path_factory.mktemp("model"))
    loaded = AutoModelForCausalLM.from_pretrained(folder).eval()
    return lambda: loaded


def load(spec, model, *, template="thinking", chat=TEMPLATE, count=32 * 16, context=32, **changes):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = chat
    return load_tokens(
        str(spec),
        tokenizer=tokenizer,
        model_loader=model,
        vocab_size=VOCABULARY,
        count=count,
        context=context,
        seed=1,
        template=template,
        **changes,
    )


def written(author, sampled):
    return [author.write(token) for token in sampled]


def test_a_monologue_begins_again_after_its_end():
    author = Monologue(1, {2, 9})
    tokens = written(author, [0, 5, 9, 7, 2, 2, 6])
    assert tokens == [(1, True), (5, True), (9, True), (1, True), (2, True), (1, True), (6, True)]
    # An end token that is also the start does not end anything.
    assert written(Monologue(2, {2}), [0, 2, 2]) == [(2, True)] * 3


def test_a_model_asks_itself_and_only_answers_count():
    script = Script(questions=(), before=(1, 3), after=(60, 61), ends=frozenset({2, 60}))
    author = Dialogue(script, first=0, stride=1, limit=3)
    sampled = [0, 0, 5, 60, 0, 7, 8, 2, 0, 0, 5, 5, 5, 5, 0, 9]
    tokens, counts = zip(*written(author, sampled), strict=True)
    # Asked: 5, ended by 60. Answered: 7 8 2. Asked again, cut short after three tokens.
    assert tokens == (1, 3, 5, 60, 61, 7, 8, 2, 1, 3, 5, 5, 5, 60, 61, 9)
    assert counts == tuple(token in {7, 8, 2, 9} for token in tokens)


def test_windows_take_turns_in_the_questions():
    script = Script(questions=((4,), (5,), (6,)), before=(), after=(), ends=frozenset({2}))
    first, second = (script.author(number, 2, 16) for number in range(2))
    assert [t for t, _ in written(first, [0, 2, 0, 2, 0])] == [4, 2, 6, 2, 5]
    assert [t for t, _ in written(second, [0, 2, 0, 2, 0])] == [5, 2, 4, 2, 6]


def test_thinking_goes_through_the_chat_template(model):
    tokens = load("self", model)
    ids_BT, mask_BT = tokens.ids_BT, tokens.mask_BT
    assert (ids_BT[:, 0] == 1).all()
    assert not mask_BT[:, 0].any()
    assert tokens.used == tokens.seen == int(mask_BT.sum()) < ids_BT.numel()
    assert tokens.truncated == 0
    assert "only these count" in tokens.notes[0]
    # Every answer begins behind 'w60 w61 w62', however the question ended.
    for ids_T, mask_T in zip(ids_BT.tolist(), mask_BT.tolist(), strict=True):
        for place in range(1, len(ids_T)):
            if mask_T[place] and not mask_T[place - 1]:
                assert ids_T[place - 3 : place] == [60, 61, 62]
    assert torch.equal(load("self", model).ids_BT, ids_BT)
    assert load("self", model).digest == tokens.digest


def test_the_mask_is_part_of_the_digest_and_survives_the_disk(model, tmp_path):
    tokens = load("self", model)
    save_windows(tmp_path / "t.safetensors", tokens)
    again = read_windows(tmp_path / "t.safetensors")
    assert torch.equal(again.mask_BT, tokens.mask_BT)
    assert again.digest == tokens.digest
    again.mask_BT[0, -1] ^= True
    assert again.digest != tokens.digest


def test_a_strange_mask_is_refused(model, tmp_path):
    from dataclasses import replace

    tokens = load("self", model)
    save_windows(tmp_path / "t.safetensors", replace(tokens, mask_BT=tokens.mask_BT[:, 1:]))
    with pytest.raises(CorruptFile, match="the mask is"):
        read_windows(tmp_path / "t.safetensors")


def test_given_prompts_are_asked_with_and_without_a_template(model, tmp_path):
    rows = [
        {"prompt": "w10 w11"},
        {"messages": [{"role": "user", "content": "w12"}, {"role": "assistant", "content": "w13"}]},
        {"question": "w14", "answer": "w15"},
    ]
    path = tmp_path / "p.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    begins = [[1, 10, 11, 60, 61, 62], [1, 12, 60, 61, 62], [1, 14, 60, 61, 62]]
    tokens = load(f"self:{path}", model)
    for row in range(6):
        begin = begins[row % 3]
        assert tokens.ids_BT[row, : len(begin)].tolist() == begin
        assert tokens.mask_BT[row, : len(begin) + 1].tolist() == [False] * len(begin) + [True]
    plain = load(f"self:{path}", model, template="none", chat=None)
    assert plain.ids_BT[0, :3].tolist() == [1, 10, 11]
    assert plain.mask_BT[0, :4].tolist() == [False, False, False, True]
    assert plain.ids_BT[1, :2].tolist() == [1, 12]


def test_prompts_that_fill_the_window_are_left_out(model, tmp_path):
    path = tmp_path / "p.jsonl"
    long = " ".join(["w9"] * 20)
    path.write_text(f'{{"prompt": "{long}"}}\n{{"prompt": "w10"}}')
    tokens = load(f"self:{path}", model)
    assert tokens.notes[0].startswith("1 of 2 prompts were left out")
    assert (tokens.ids_BT[:, 1] == 10).all()
    path.write_text(f'{{"prompt": "{long}"}}')
    with pytest.raises(SnapfitError, match="every prompt is longer than half a window"):
        load(f"self:{path}", model)


def test_a_mixture_keeps_what_counts_of_every_source(model, tmp_path):
    text = tmp_path / "a.txt"
    text.write_text(" ".join(["w7"] * 400))
    tokens = load(f"{text}*0.75+self*0.25", model)
    from_text = (tokens.ids_BT == 7).all(1)
    assert from_text.tolist() == ([True, True, False, True] * 4)
    assert tokens.mask_BT[from_text].all()
    assert not tokens.mask_BT[~from_text].all()
    assert tokens.seen == 400 + int(tokens.mask_BT[~from_text].sum())


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('{"id": 3}', "it has id"),
        ('{"messages": [{"role": "assistant", "content": "w4"}]}', "with a question"),
        ('{"messages": [{"role": "user"}]}', "'role' and a text"),
        ('{"messages": [{"content": "w4"}]}', "'role' and a text"),
    ],
)
def test_rows_without_a_question(row, message, model, tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text(row)
    with pytest.raises(SnapfitError, match=f"p.jsonl:1.*{message}"):
        load(f"self:{path}", model)


def test_a_template_that_refuses_is_named(model, tmp_path):
    chat = "{% if messages|length > 1 %}{{ raise_exception('Take turns') }}{% endif %}" + TEMPLATE
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps({"messages": [{"role": "user", "content": "w4"}] * 2}))
    with pytest.raises(SnapfitError, match=r"p\.jsonl:1: .* template fails: Take turns"):
        load(f"self:{path}", model, chat=chat)
    with pytest.raises(SnapfitError, match=r"p\.jsonl:1: .* template fails: Take turns"):
        load(path, model, chat=chat, template="none")
    with pytest.raises(SnapfitError, match=r"--calib-template thinking: .*template fails: Never"):
        load("self", model, chat="{{ raise_exception('Never') }}")
    with pytest.raises(SnapfitError, match="template leaves out what the user says"):
        load("self", model, chat="<s> w60 w61")


def test_what_a_template_needs(model, tmp_path):
    with pytest.raises(SnapfitError, match="no chat template"):
        load("self", model, chat=None)
    with pytest.raises(UsageError, match="is for --calib self"):
        load("a.txt", model)
    with pytest.raises(SnapfitError, match=r"(?i)no such file"):
        load(f"self:{tmp_path / 'gone.jsonl'}", model)
    with pytest.raises(SnapfitError, match="larger --context"):
        load("self", model, context=2, count=8)
