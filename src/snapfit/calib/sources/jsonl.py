"""A JSONL file: one object a line, each a document.

A row's 'text' is taken as it is; 'messages' go through the tokenizer's chat template; otherwise
the fields in `PARTS` that a row has are joined by line breaks.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from snapfit.core.errors import CorruptFile, SnapfitError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from transformers import PreTrainedTokenizerBase

SUFFIXES = frozenset({".jsonl", ".ndjson"})
PARTS = ("question", "problem", "solution", "answer")


def documents(path: Path, tokenizer: PreTrainedTokenizerBase) -> Iterator[str]:
    """The documents of a file, in order; blank lines are skipped.

    Raises:
        SnapfitError: the file is empty or unreadable, or a row has no text.
        CorruptFile: a line is not JSON.

    """
    for where, row in rows(path):
        yield row_text(row, where, tokenizer)


def rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where, row) of every line that is not blank.

    Raises:
        SnapfitError: the file is empty or unreadable.
        CorruptFile: a line is not a JSON object.

    """
    empty = True
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    empty = False
                    yield f"{path}:{number}", _parse(path, number, line)
    except UnicodeDecodeError as error:
        raise CorruptFile(f"{path} is not UTF-8 text ({error.reason})") from error
    except OSError as error:
        raise SnapfitError(f"cannot read {path}: {error.strerror}") from error
    if empty:
        raise SnapfitError(f"{path} is empty")


def row_text(row: Mapping[str, Any], where: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """The text of one row.

    Raises:
        SnapfitError: it has none of the fields; the message lists those that it has.

    """
    if isinstance(row.get("text"), str):
        return str(row["text"])
    messages = row.get("messages")
    if isinstance(messages, list) and messages:
        return _chat(messages, where, tokenizer)
    parts = [row[key] for key in PARTS if isinstance(row.get(key), str)]
    if not parts:
        raise SnapfitError(
            f"{where}: no field 'text', 'messages' or one of {', '.join(PARTS)}; "
            f"it has {', '.join(map(str, row)) or 'none'}"
        )
    return "\n".join(parts)


def checked_messages(messages: list[Any], where: str) -> list[dict[str, Any]]:
    """The messages of a conversation.

    Raises:
        SnapfitError: one has no role or no text.

    """
    for message in messages:
        fields = [message.get(k) for k in ("role", "content")] if isinstance(message, dict) else []
        if not fields or not all(isinstance(field, str) for field in fields):
            raise SnapfitError(f"{where}: a message must have 'role' and a text 'content'")
    return messages


def rendered(
    tokenizer: PreTrainedTokenizerBase,
    messages: list[dict[str, Any]],
    where: str,
    **switches: Any,
) -> str:
    """The conversation as the chat template writes it; `switches` go to the template.

    Raises:
        SnapfitError: the template fails, or refuses the conversation.

    """
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, **switches))
    except Exception as error:  # templates are programs, and raise what they like
        raise SnapfitError(f"{where}: the model's chat template fails: {error}") from error


def _parse(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
        if "\\ud" in line.lower():  # half of a surrogate pair, which no tokenizer takes
            json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise CorruptFile(f"{path}:{number}: a text holds half of a surrogate pair") from error
    except (ValueError, RecursionError) as error:  # a number or a nesting without end too
        reason = error.msg if isinstance(error, json.JSONDecodeError) else error
        raise CorruptFile(f"{path}:{number}: not JSON ({reason})") from error
    if not isinstance(row, dict):
        raise CorruptFile(f"{path}:{number}: expected an object, found {type(row).__name__}")
    return row


def _chat(messages: list[Any], where: str, tokenizer: PreTrainedTokenizerBase) -> str:
    checked = checked_messages(messages, where)
    if tokenizer.chat_template:
        return rendered(tokenizer, checked, where)
    return "\n".join(message["content"] for message in checked)
