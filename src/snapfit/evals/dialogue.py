"""How a model is asked to think, and how it is made to stop: prompts and delimiters.

A reasoning model thinks between two delimiters, which differ from model to model, and the wrong
ones change the result without a word. They are read off the chat template; where neither the
template nor the vocabulary has any, the model's whole turn is its thinking.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from snapfit.core.errors import SnapfitError, UsageError
from snapfit.evals.generators.base import Ids

FINAL = "Final Answer:"
AGAIN = "Wait"

_KNOWN = (("<|im_start|>think", "<|im_start|>answer"), ("<think>", "</think>"))
"""Of s1 and of R1, Qwen3 and most others."""


@dataclass(frozen=True, kw_only=True)
class Delimiters:
    """What surrounds thinking.

    Attributes:
        start: opens it; '' where there is none.
        end: closes it; '' where there is none.
        final: asks for the answer.
        again: makes the model think on in place of `end`.
        source: 'chat template', 'vocabulary', 'given', or 'none'.

    """

    start: str
    end: str
    final: str = FINAL
    again: str = AGAIN
    source: str

    def to_json(self) -> dict[str, str]:
        """For records: using other delimiters would have been another experiment."""
        return asdict(self)


def find_delimiters(
    tokenizer: Any, *, start: str | None = None, end: str | None = None
) -> Delimiters:
    """The delimiters of a tokenizer's model.

    Args:
        tokenizer: of transformers.
        start: given by the user, with `end`.
        end: given by the user; alone where the chat template opens thinking by itself.

    Raises:
        UsageError: only `start` is given, so that thinking would never end.

    """
    if start and not end:
        raise UsageError(f"thinking that opens with {start!r} needs an end; give --think-end too")
    if start is not None or end is not None:
        return _sayable(tokenizer, Delimiters(start=start or "", end=end or "", source="given"))
    template = getattr(tokenizer, "chat_template", None)
    text = template if isinstance(template, str) else ""
    vocabulary = tokenizer.get_vocab()
    for opening, closing in _KNOWN:
        if opening in text:
            return _sayable(
                tokenizer, Delimiters(start=opening, end=closing, source="chat template")
            )
        if closing in vocabulary:
            return _sayable(tokenizer, Delimiters(start=opening, end=closing, source="vocabulary"))
    return _sayable(tokenizer, Delimiters(start="", end="", source="none"))


def _sayable(tokenizer: Any, wanted: Delimiters) -> Delimiters:
    """Without the phrases that the tokenizer has no words for."""
    unknown = tokenizer.unk_token_id

    def kept(phrase: str) -> str:
        ids = tokenizer.encode(phrase, add_special_tokens=False)
        return "" if unknown is not None and unknown in ids else phrase

    return Delimiters(
        start=wanted.start,
        end=wanted.end,
        final=kept(wanted.final),
        again=kept(wanted.again),
        source=wanted.source,
    )


class Dialogue:
    """Turns questions and half-finished answers into token ids.

    Args:
        tokenizer: of transformers.
        delimiters: of its model.

    """

    def __init__(self, tokenizer: Any, delimiters: Delimiters) -> None:
        self._tokenizer = tokenizer
        self.delimiters = delimiters
        self.stop: tuple[Ids, ...] = (self._ids(delimiters.end),) if delimiters.end else ()

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids, special tokens included."""
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=False)
        return text

    def plain(self, question: str) -> Ids:
        """The question as it is, after what the tokenizer puts before every text."""
        return tuple(self._tokenizer.encode(question))

    def open(self, question: str) -> Ids:
        """The question as the chat template asks it, with thinking opened.

        Raises:
            SnapfitError: the template fails.

        """
        start = self.delimiters.start
        if getattr(self._tokenizer, "chat_template", None) is None:
            return self.plain(question) + self._ids(f"\n{start}\n" if start else "\n")
        try:
            text: str = self._tokenizer.apply_chat_template(
                [{"role": "user", "content": question}],
                tokenize=False,
                add_generation_prompt=True,
                enable_thinking=True,
            )
        except Exception as error:
            raise SnapfitError(f"the model's chat template fails: {error}") from error
        ids = tuple(self._tokenizer.encode(text, add_special_tokens=False))
        opened = not start or text.rstrip().endswith(start)
        return ids if opened else ids + self._ids(f"{start}\n")

    def close(self, *, cut: bool) -> Ids:
        """What follows thinking and asks for the answer.

        Args:
            cut: the budget ran out, so thinking is closed for the model; else it wrote the
                delimiter itself, which was left out, and goes on by itself.

        """
        marks = self.delimiters
        if not cut and marks.end:
            return self._ids(marks.end)
        asked = f"\n{marks.final}" if marks.final else ""
        return self._ids(f"\n{marks.end}{asked}" if marks.end else asked)

    def asked(self, *, cut: bool) -> str:
        """What `close` puts right before the answer in words; '' where the model begins it."""
        marks = self.delimiters
        return marks.final if cut or not marks.end else ""

    def again(self) -> Ids:
        """What is written in place of the end of thinking, to make the model think on."""
        return self._ids(self.delimiters.again)

    def _ids(self, text: str) -> Ids:
        return tuple(self._tokenizer.encode(text, add_special_tokens=False))
