"""Delimiters: found in chat templates, given, or none; and the prompts made with them."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from snapfit.core.errors import SnapfitError, UsageError
from snapfit.evals.dialogue import Dialogue, find_delimiters

QWEN3 = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}"
    "<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
R1 = (
    "{% for m in messages %}<|User|>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<|Assistant|><think>\n{% endif %}"
)
S1 = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>think\n{% endif %}"
    "{# the answer follows <|im_start|>answer #}"
)
QWEN2 = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
THINK = ("<think>", "</think>")
S1_MARKS = ("<|im_start|>think", "<|im_start|>answer")


def tokenizer(template: str | None = None, *words: str) -> PreTrainedTokenizerFast:
    """One token a character, with these words as tokens too."""
    letters = [chr(code) for code in range(32, 127)] + ["\n"]
    backend = Tokenizer(
        models.WordLevel({text: i for i, text in enumerate(["<unk>", *letters])}, unk_token="<unk>")
    )
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    found = PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", clean_up_tokenization_spaces=False
    )
    found.add_tokens(list(words))
    found.chat_template = template
    return found


def prompt(template: str | None, *words: str) -> str:
    made = tokenizer(template, *words)
    ids = Dialogue(made, find_delimiters(made)).open("1+1?")
    return "".join(made.convert_ids_to_tokens(list(ids)))


@pytest.mark.parametrize(
    ("template", "words", "marks", "source"),
    [
        (QWEN3, THINK, THINK, "chat template"),
        (R1, THINK, THINK, "chat template"),
        (S1, ("<|im_start|>",), S1_MARKS, "chat template"),
        (QWEN2, THINK, THINK, "vocabulary"),
        (None, THINK, THINK, "vocabulary"),
        (QWEN2, ("<|im_start|>",), ("", ""), "none"),
        (None, (), ("", ""), "none"),
    ],
    ids=["qwen3", "r1", "s1", "template without", "no template", "qwen2", "nothing"],
)
def test_delimiters_are_the_model_s(
    template: str | None, words: tuple[str, ...], marks: tuple[str, str], source: str
) -> None:
    found = find_delimiters(tokenizer(template, *words))
    assert (found.start, found.end, found.source) == (*marks, source)
    assert (found.final, found.again) == ("Final Answer:", "Wait")
    assert found.to_json()["source"] == source


def test_given_ones_come_before_the_model_s() -> None:
    made = tokenizer(QWEN3, *THINK)
    found = find_delimiters(made, start="<|im_start|>think", end="<|im_start|>answer")
    assert (found.start, found.end, found.source) == (*S1_MARKS, "given")
    only = find_delimiters(made, end="[/T]")
    assert (only.start, only.end, only.source) == ("", "[/T]", "given")
    with pytest.raises(UsageError, match="needs an end"):
        find_delimiters(made, start="[T]")


def test_phrases_that_the_tokenizer_cannot_say_are_left_out() -> None:
    backend = Tokenizer(models.WordLevel({"<unk>": 0, "Wait": 1}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")
    found = find_delimiters(made)
    assert (found.final, found.again) == ("", "Wait")


@pytest.mark.parametrize(
    ("template", "words", "expected"),
    [
        (QWEN3, THINK, "<|im_start|>user\n1+1?<|im_end|>\n<|im_start|>assistant\n<think>\n"),
        (R1, THINK, "<|User|>1+1?<|Assistant|><think>\n"),
        (S1, (), "<|im_start|>user\n1+1?<|im_end|>\n<|im_start|>think\n"),
        (QWEN2, (), "<|im_start|>user\n1+1?<|im_end|>\n<|im_start|>assistant\n"),
        (None, THINK, "1+1?\n<think>\n"),
        (None, (), "1+1?\n"),
    ],
    ids=["qwen3", "r1", "s1", "qwen2", "no template", "nothing"],
)
def test_thinking_is_opened_once(
    template: str | None, words: tuple[str, ...], expected: str
) -> None:
    assert prompt(template, *words) == expected


def test_closing_words() -> None:
    made = tokenizer(QWEN3, *THINK)
    talk = Dialogue(made, find_delimiters(made))

    def text(ids: tuple[int, ...]) -> str:
        return "".join(made.convert_ids_to_tokens(list(ids)))

    assert text(talk.close(cut=True)) == "\n</think>\nFinal Answer:"
    assert text(talk.close(cut=False)) == "</think>"
    assert (talk.asked(cut=True), talk.asked(cut=False)) == ("Final Answer:", "")
    assert text(talk.again()) == "Wait"
    assert talk.stop == (tuple(made.encode("</think>", add_special_tokens=False)),)
    bare = tokenizer(QWEN2)
    plain = Dialogue(bare, find_delimiters(bare))
    assert text(plain.close(cut=False)) == text(plain.close(cut=True)) == "\nFinal Answer:"
    assert plain.asked(cut=False) == "Final Answer:"
    assert plain.stop == ()


def test_a_template_that_fails_is_reported() -> None:
    made = tokenizer("{{ raise_exception('no user turns') }}")
    with pytest.raises(SnapfitError, match="chat template fails: no user turns"):
        Dialogue(made, find_delimiters(made)).open("1+1?")


def test_a_template_that_must_be_asked_for_thinking_is_asked() -> None:
    asked = prompt("{{ messages[0].content }}{% if enable_thinking %}<think>{% endif %}", *THINK)
    assert asked == "1+1?<think>"
