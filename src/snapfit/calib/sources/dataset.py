"""A data set of the `datasets` library: NAME[:CONFIG][:SPLIT], streamed, rows as in JSONL."""

from __future__ import annotations

from typing import TYPE_CHECKING

from snapfit.calib.sources.jsonl import row_text
from snapfit.core.errors import SnapfitError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from transformers import PreTrainedTokenizerBase

MAX_FIELDS = 3


def documents(spec: str, tokenizer: PreTrainedTokenizerBase) -> Iterator[str]:
    """The non-empty rows of a data set, in order.

    Raises:
        UsageError: `spec` is malformed.
        SnapfitError: `datasets` is not installed, or the data set cannot be loaded (no such name,
            no such configuration or split, offline).

    """
    fields = spec.split(":")
    if len(fields) > MAX_FIELDS or not fields[0]:
        raise UsageError(f"{spec!r} is no file, nor NAME[:CONFIG][:SPLIT] of a data set")
    name, config, split = fields[0], None, "train"
    if len(fields) == 2:
        split = fields[1]
    elif len(fields) == MAX_FIELDS:
        config, split = fields[1] or None, fields[2]
    try:
        import datasets
    except ImportError as error:
        raise SnapfitError(
            f"no such file: {spec}; if it is a data set, pip install 'snapfit[eval]'"
        ) from error
    try:
        rows = iter(datasets.load_dataset(name, config, split=split, streaming=True))
        for number, row in enumerate(rows):
            content = row_text(row, f"{spec}, row {number}", tokenizer)
            if content.strip():
                yield content
    except SnapfitError:
        raise
    except Exception as error:  # the library raises dozens of kinds, most of them the network's
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise SnapfitError(
            f"{spec} is no file, and as a data set it cannot be loaded: {reason}"
        ) from error
