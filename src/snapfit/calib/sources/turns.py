"""Who writes the next token of a generated window: the model, or whoever talks to it.

A window is written by an author, token by token: the author is offered what the model would say
next and answers with what is written, and whether that counts as the model's own. A `Monologue`
lets the model talk. A `Dialogue` asks it one thing after another.

Where nobody gives questions, the model makes them up itself: after the part of the chat template
that comes before a user's words, a chat model continues with what a user could say (Magpie, arXiv
2406.08464). What it asks does not count as generated, only what it answers.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

from snapfit.calib.sources.jsonl import checked_messages, rendered, rows
from snapfit.core.errors import SnapfitError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from pathlib import Path

    from transformers import PreTrainedTokenizerBase

THINKING = "thinking"
"""The template that asks for reasoning: the tokenizer's own, with thinking switched on."""

_SWITCHES: dict[str, Any] = {"enable_thinking": True, "thinking": True}
"""How chat templates call it (Qwen3; Granite and DeepSeek); the others ignore both."""

_NOTHING: tuple[int, ...] = ()

_CONTENT = "snapfitusercontent"
"""Stands for a user's words where only what is around them is wanted."""

QUESTIONS = ("prompt", "question", "problem", "text")
"""Fields of a row that may hold a question, in order."""


class Author(Protocol):
    """Writes one window."""

    def write(self, sampled: int) -> tuple[int, bool]:
        """The next token of the window, and whether it is the model's own.

        Args:
            sampled: what the model would say; anything at the first token.

        """


class Monologue:
    """The model's text, begun again after its end."""

    def __init__(self, start: int, ends: Collection[int]) -> None:
        self._start = start
        self._ends = frozenset(ends) - {start}
        self._ended = True

    def write(self, sampled: int) -> tuple[int, bool]:
        """The start token after an end, else what the model says; all of it counts."""
        token = self._start if self._ended else sampled
        self._ended = token in self._ends
        return token, True


@dataclass(frozen=True, kw_only=True)
class Script:
    """What is said to the model.

    Attributes:
        questions: token ids of whole prompts, up to where the answer begins; () where the model
            asks itself.
        before: ids before a question that the model makes up.
        after: ids after it, up to where the answer begins.
        ends: ids that end an answer.

    """

    questions: tuple[tuple[int, ...], ...]
    before: tuple[int, ...]
    after: tuple[int, ...]
    ends: frozenset[int]

    def author(self, number: int, of: int, context: int) -> Dialogue:
        """The author of window `number`: it takes every `of`-th question, round and round."""
        return Dialogue(self, first=number, stride=of, limit=max(1, context // 4))


class Dialogue:
    """Question and answer, one after another; only answers count."""

    def __init__(self, script: Script, *, first: int, stride: int, limit: int) -> None:
        self._script = script
        self._next, self._stride, self._limit = first, stride, limit
        self._dictated: deque[int] = deque()
        self._asking = False
        self._asked = 0
        self._ask()

    def write(self, sampled: int) -> tuple[int, bool]:
        """What the script dictates, else what the model says."""
        if self._dictated:
            return self._dictated.popleft(), False
        script = self._script
        if self._asking:
            if sampled in script.ends or self._asked >= self._limit:
                self._asking = False
                self._dictated.extend(script.after)
                return self.write(sampled)
            self._asked += 1
            return sampled, False
        if sampled in script.ends:
            self._ask()
        return sampled, True

    def _ask(self) -> None:
        script = self._script
        if script.questions:
            self._dictated.extend(script.questions[self._next % len(script.questions)])
            self._next += self._stride
            return
        self._dictated.extend(script.before)
        # A template that puts nothing after a question leaves the model to find its end.
        self._asking, self._asked = bool(script.after), 0


def make_script(
    tokenizer: PreTrainedTokenizerBase,
    *,
    prompts: Path | None,
    template: bool,
    start: int | None,
    ends: Collection[int],
    context: int,
) -> tuple[Script, tuple[str, ...]]:
    """What to say to the model, and what a reader of the report should know about it.

    Args:
        tokenizer: of the model.
        prompts: a JSONL file of questions: 'messages', or a field of `QUESTIONS`.
        template: whether questions go through the chat template, with thinking switched on.
        start: the token that a text begins with, where nothing else does.
        ends: the model's end-of-sequence tokens.
        context: tokens of a window.

    Raises:
        SnapfitError: no chat template or one that fails, a row without a question, or questions
            that leave no room.
        CorruptFile: the file is not JSONL.

    """
    if template and not tokenizer.chat_template:
        raise SnapfitError(
            "the model's tokenizer has no chat template, which --calib-template thinking needs; "
            "leave the option out, or give prompts with --calib self:PROMPTS.jsonl"
        )
    opening: tuple[int, ...] = () if start is None else (start,)
    before, after = opening, _NOTHING
    if template:
        text = _rendered(
            tokenizer, [{"role": "user", "content": _CONTENT}], f"--calib-template {THINKING}"
        )
        parts = text.rpartition(_CONTENT)
        if not parts[1]:
            raise SnapfitError("the model's chat template leaves out what the user says")
        before = _encode(tokenizer, parts[0]) or opening
        after = _encode(tokenizer, parts[2])
    script = Script(
        questions=(), before=before, after=after, ends=frozenset(ends) | frozenset(after[:1])
    )
    if prompts is None:
        return script, ()
    asked = []
    for where, row in rows(prompts):
        messages = _messages(row, where)
        if template:
            asked.append(_encode(tokenizer, _rendered(tokenizer, messages, where)))
        else:
            text = "\n".join(str(message["content"]) for message in messages)
            asked.append((*opening, *_encode(tokenizer, text)))
    short = tuple(ids for ids in asked if 0 < len(ids) <= context // 2)
    if not short:
        raise SnapfitError(
            f"{prompts}: every prompt is longer than half a window of {context} tokens; use "
            "shorter prompts or a larger --context"
        )
    script = replace(script, questions=short)
    if len(short) == len(asked):
        return script, ()
    note = (
        f"{len(asked) - len(short)} of {len(asked)} prompts were left out: they fill more than "
        f"half a window of {context} tokens"
    )
    return script, (note,)


def _messages(row: Mapping[str, Any], where: str) -> list[dict[str, Any]]:
    """The conversation up to the last thing that the user says."""
    messages = row.get("messages")
    if isinstance(messages, list):
        messages = checked_messages(messages, where)
        while messages and messages[-1]["role"] == "assistant":
            messages = messages[:-1]
        if messages:
            return messages
    for name in QUESTIONS:
        if isinstance(row.get(name), str) and row[name].strip():
            return [{"role": "user", "content": row[name]}]
    raise SnapfitError(
        f"{where}: no field 'messages' or one of {', '.join(QUESTIONS)} with a question; "
        f"it has {', '.join(map(str, row)) or 'none'}"
    )


def _rendered(
    tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, Any]], where: str
) -> str:
    return rendered(tokenizer, messages, where, add_generation_prompt=True, **_SWITCHES)


def _encode(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[int, ...]:
    return tuple(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
