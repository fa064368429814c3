"""Everything generated, as JSON lines: appended as it comes, so that nothing is generated twice.

    DIR/settings.json              what was asked; another question needs another folder
    DIR/<model>/<task>.jsonl       one line a thought, an answer, or a choice

A thought is one run of thinking at the largest budget; the thinking at a smaller budget is its
first tokens. An answer belongs to a thought and a budget. A line is written whole and flushed; a
line that a kill tore is the last one, and is dropped when the file is opened again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from snapfit.core.errors import CorruptFile, SnapfitError

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(frozen=True, kw_only=True)
class Thought:
    """Thinking on one problem.

    Attributes:
        problem: its id.
        sample: which of its samples.
        prompt: token ids that it follows.
        ids: thinking tokens, at most the largest budget.
        ended: 'stop' by itself, 'eos' by ending the sequence, 'length' by the budget.
        waits: thinking tokens before each end of thinking that was replaced by "Wait".
        seconds: share of the time its batches took.
        seed: of its sampling.

    """

    problem: str
    sample: int
    prompt: tuple[int, ...]
    ids: tuple[int, ...]
    ended: str
    waits: tuple[int, ...] = ()
    seconds: float
    seed: int
    kind: str = "thought"


@dataclass(frozen=True, kw_only=True)
class Answer:
    """An answer after thinking with a budget.

    Attributes:
        problem: its id.
        sample: of the thought.
        budget: most thinking tokens; 0 where the model answered at once.
        thinking: thinking tokens that it had, at most `budget`.
        cut: whether the budget ended the thinking.
        tokens: of the answer.
        text: of the answer.
        answer: what was understood, or None.
        correct: exactly right.
        seconds: share of the time its batch took, thinking not included; budgets that leave the
            thought whole share one answer, and each has its time.

    """

    problem: str
    sample: int
    budget: int
    thinking: int
    cut: bool
    tokens: int
    text: str
    answer: str | None
    correct: bool
    seconds: float
    kind: str = "answer"


@dataclass(frozen=True, kw_only=True)
class Pick:
    """The likeliest of a problem's choices.

    Attributes:
        problem: its id.
        log_likelihoods: of each choice.
        choice: index of the largest.
        by_length: index of the largest per character, the harness's acc_norm.
        correct: whether `choice` is right.
        correct_by_length: whether `by_length` is right.
        seconds: share of the time.

    """

    problem: str
    log_likelihoods: tuple[float, ...]
    choice: int
    by_length: int
    correct: bool
    correct_by_length: bool
    seconds: float
    kind: str = "pick"


Record: TypeAlias = Thought | Answer | Pick

_START = b'{"problem": '
"""Of every line, so that a torn one can be told from a stranger's."""

_KINDS: dict[str, Any] = {"thought": Thought, "answer": Answer, "pick": Pick}

_IS: dict[str, Callable[[Any], bool]] = {
    "str": lambda value: isinstance(value, str),
    "str | None": lambda value: value is None or isinstance(value, str),
    "bool": lambda value: isinstance(value, bool),
    "int": lambda value: type(value) is int,
    "float": lambda value: type(value) in {int, float},
    "tuple[int, ...]": lambda value: all(type(entry) is int for entry in value),
    "tuple[float, ...]": lambda value: all(type(entry) in {int, float} for entry in value),
}
"""Whether a value is of a type, by the annotation of a field."""


class RecordFile:
    """The records of one model on one task; a context manager that appends.

    Args:
        path: of the file; made where there is none.

    Raises:
        SnapfitError: on entering, another run writes into the file.
        CorruptFile: on entering, it ends with something that is no record.

    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stream: Any = None

    def __enter__(self) -> Self:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._stream = self.path.open("a", encoding="utf-8")
        try:
            _lock(self._stream, self.path)
            os.truncate(self.path, _whole_bytes(self.path))
        except SnapfitError:
            self._stream.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()
        self._stream = None

    def append(self, record: Record) -> None:
        """Write one record; it is in the file, whole, when this returns."""
        self._stream.write(json.dumps(asdict(record), ensure_ascii=False) + "\n")
        self._stream.flush()


def _lock(stream: Any, path: Path) -> None:
    """Keep other runs out until the file is closed: they would tear each other's lines.

    Where the system has no such locks, nobody is kept out.
    """
    try:
        import fcntl
    except ImportError:
        return
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise SnapfitError(
            f"another run writes into {path}; wait until it ends, or use another folder"
        ) from error
    except OSError:
        return


def read_records(path: Path) -> Iterator[Record]:
    """All whole records of a file; none if there is no file.

    Raises:
        CorruptFile: a line that is not the last one is no record.

    """
    if not path.exists():
        return
    with path.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            if not line.endswith(b"\n"):
                return  # torn by a kill, or a stranger's: `RecordFile` tells
            yield _record(line, path, number)


def _record(line: bytes, path: Path, number: int) -> Record:
    try:
        data = json.loads(line)
        for name in ("prompt", "ids", "waits", "log_likelihoods"):
            if name in data:
                data[name] = tuple(data[name])
        record: Record = _KINDS[data["kind"]](**data)
        for field in fields(record):
            value = getattr(record, field.name)
            if not _IS[str(field.type)](value):
                raise ValueError(f"{field.name} is {str(value)[:40]!r}")
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptFile(
            f"{path}, line {number} is no record of snapfit ({error}); delete the line"
        ) from error
    return record


def _whole_bytes(path: Path) -> int:
    """Bytes up to the end of the last whole line.

    Raises:
        CorruptFile: what follows it is no part of a record, so it is not ours to drop.

    """
    whole = 0
    with path.open("rb") as stream:
        for line in stream:
            if line.endswith(b"\n"):
                whole += len(line)
            elif not _START.startswith(line[: len(_START)]):
                raise CorruptFile(
                    f"{path} ends with something that is no record of snapfit: "
                    f"{line[:40]!r}; delete it, or use another folder"
                )
    return whole
