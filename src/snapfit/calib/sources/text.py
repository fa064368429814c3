"""A plain text file: one document, taken as it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from snapfit.core.errors import CorruptFile, SnapfitError

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedTokenizerBase

SUFFIXES = frozenset({".txt", ".text", ".md"})


def documents(path: Path, tokenizer: PreTrainedTokenizerBase) -> list[str]:  # noqa: ARG001
    """The whole text.

    Raises:
        SnapfitError: the file is empty or unreadable.
        CorruptFile: it is not UTF-8.

    """
    try:
        content = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise CorruptFile(f"{path} is not UTF-8 text ({error.reason})") from error
    except OSError as error:
        raise SnapfitError(f"cannot read {path}: {error.strerror}") from error
    if not content.strip():
        raise SnapfitError(f"{path} is empty")
    return [content]
