"""Records: whole lines only, nothing generated twice, and nothing of a stranger's destroyed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from scripted import Scripted, dialogue, task

from snapfit.core.errors import CorruptFile, SnapfitError
from snapfit.core.progress import Silent
from snapfit.evals.asking import ask
from snapfit.evals.records import Answer, Pick, Record, RecordFile, Thought, read_records
from snapfit.evals.thinking import Sampling

SAMPLING = Sampling(budgets=(4, 12), samples=3, answer_tokens=5)


def thought(sample: int = 0, **changes: object) -> Thought:
    values = {
        "problem": "ünit 1",
        "sample": sample,
        "prompt": (1, 5),
        "ids": (7, 8, 9),
        "ended": "stop",
        "waits": (2,),
        "seconds": 0.25,
        "seed": 3,
    }
    return Thought(**{**values, **changes})  # type: ignore[arg-type]


def every_kind() -> list[Record]:
    return [
        thought(),
        Answer(
            problem="p",
            sample=0,
            budget=4,
            thinking=3,
            cut=False,
            tokens=2,
            text='line\nbreak "quoted" \u2028',
            answer=None,
            correct=False,
            seconds=0.5,
        ),
        Pick(
            problem="p",
            log_likelihoods=(-1.5, -2.0),
            choice=0,
            by_length=1,
            correct=True,
            correct_by_length=False,
            seconds=0.1,
        ),
    ]


def write(path: Path, records: list[Record]) -> bytes:
    with RecordFile(path) as file:
        for record in records:
            file.append(record)
    return path.read_bytes()


class Answering:
    """A respondent with a scripted generator."""

    def __init__(self, generator: Scripted) -> None:
        self.generator = generator
        self.dialogue = dialogue()

    @property
    def chooser(self) -> None:
        raise AssertionError("nothing is to be chosen here")


def run(path: Path, generator: Scripted) -> list[Record]:
    ask(
        task(4),
        Answering(generator),  # type: ignore[arg-type]
        path,
        sampling=SAMPLING,
        progress=Silent(),
        label="m",
    )
    return list(read_records(path))


def test_every_kind_comes_back_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "model" / "task.jsonl"
    data = write(path, every_kind())
    assert data.count(b"\n") == 3
    assert list(read_records(path)) == every_kind()


def test_records_are_appended(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    first = write(path, [thought(0)])
    assert write(path, [thought(1)]).startswith(first)
    assert [record.sample for record in read_records(path)] == [0, 1]  # type: ignore[union-attr]


def test_two_runs_do_not_write_into_one_file(tmp_path: Path) -> None:
    pytest.importorskip("fcntl", reason="this system has no such locks")
    path = tmp_path / "a.jsonl"
    with RecordFile(path) as file:
        file.append(thought(0))
        with pytest.raises(SnapfitError, match=r"another run writes into .*a\.jsonl"):
            RecordFile(path).__enter__()
        file.append(thought(1))
    write(path, [thought(2)])
    assert [record.sample for record in read_records(path)] == [0, 1, 2]  # type: ignore[union-attr]


def test_no_file_holds_no_records(tmp_path: Path) -> None:
    assert list(read_records(tmp_path / "none.jsonl")) == []


@pytest.mark.parametrize("kept", [1, 5, 12, 60, -1])
def test_a_line_that_a_kill_tore_is_dropped(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "a.jsonl"
    whole = write(path, [thought(0)])
    last = write(path, [thought(1)])[len(whole) :]
    path.write_bytes(whole + last[:kept])
    assert list(read_records(path)) == [thought(0)]
    write(path, [thought(2)])
    assert list(read_records(path)) == [thought(0), thought(2)]


@pytest.mark.parametrize("line", [b"5\n", b"[]\n", b"{}\n", b'{"kind": "x"}\n', b"\xff\n", b"\n"])
def test_a_line_that_is_no_record_is_named(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(write(path, [thought()]) + line)
    with pytest.raises(CorruptFile, match=r"a\.jsonl, line 2 is no record"):
        list(read_records(path))


def test_a_field_too_few_or_too_many_is_no_record(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    row = json.loads(write(path, [thought()]))
    for changed in ({**row, "more": 1}, {k: v for k, v in row.items() if k != "seed"}):
        path.write_text(json.dumps(changed) + "\n")
        with pytest.raises(CorruptFile, match="line 1 is no record"):
            list(read_records(path))


@pytest.mark.parametrize(
    "changed",
    [
        {"sample": "0"},
        {"sample": True},
        {"ids": ["7"]},
        {"ids": None},
        {"problem": 5},
        {"seconds": "long"},
    ],
)
def test_a_field_of_another_type_is_no_record(tmp_path: Path, changed: dict[str, object]) -> None:
    path = tmp_path / "a.jsonl"
    row = json.loads(write(path, [thought()]))
    path.write_text(json.dumps({**row, **changed}) + "\n")
    with pytest.raises(CorruptFile, match="line 1 is no record"):
        list(read_records(path))


@pytest.mark.parametrize("content", [b"my only notes", b'{"prob": 1', b"good\nmore"])
def test_a_stranger_s_file_is_left_as_it_is(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    with pytest.raises(CorruptFile, match="no record of snapfit"), RecordFile(path) as file:
        file.append(thought())
    assert path.read_bytes() == content


def test_what_is_recorded_is_not_asked_again(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    found = run(path, Scripted())
    assert len(found) == 4 * 3 * (1 + 2)
    again = Scripted()
    assert run(path, again) == found
    assert again.asked == []


@pytest.mark.parametrize("lines", [0, 1, 7, 12, 13, 20, 35])
def test_a_run_cut_anywhere_ends_in_the_same_records(tmp_path: Path, lines: int) -> None:
    whole = run(tmp_path / "whole.jsonl", Scripted())
    data = (tmp_path / "whole.jsonl").read_bytes().splitlines(keepends=True)
    path = tmp_path / "cut.jsonl"
    path.write_bytes(b"".join(data[:lines]) + data[lines][:30])
    assert sorted(map(repr, run(path, Scripted()))) == sorted(map(repr, whole))


@pytest.mark.parametrize("requests", [0, 1, 6, 11, 14, 25])
def test_a_backend_that_fails_leaves_what_it_finished(tmp_path: Path, requests: int) -> None:
    path = tmp_path / "a.jsonl"
    with pytest.raises(SnapfitError, match="failed for good"):
        run(path, Scripted(fail_after=requests))
    kept = len(list(read_records(path)))
    assert kept >= requests
    after = Scripted()
    found = run(path, after)
    assert sorted(map(repr, found)) == sorted(map(repr, run(tmp_path / "b.jsonl", Scripted())))
    assert len(after.asked) == len(Scripted().asked) + _requests(tmp_path) - requests


def _requests(folder: Path) -> int:
    fresh = Scripted()
    run(folder / "fresh.jsonl", fresh)
    return len(fresh.asked)


def test_of_duplicate_keys_nothing_is_asked_again(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    run(path, Scripted())
    path.write_bytes(path.read_bytes() * 2)
    again = Scripted()
    run(path, again)
    assert again.asked == []


def test_a_record_is_in_the_file_when_append_returns(tmp_path: Path) -> None:
    """A process that is killed after `append` has lost nothing."""
    path = tmp_path / "a.jsonl"
    script = textwrap.dedent(
        f"""
        import time
        from pathlib import Path
        from snapfit.evals.records import RecordFile, Thought
        with RecordFile(Path({str(path)!r})) as file:
            for sample in range(3):
                file.append(Thought(problem="p", sample=sample, prompt=(1,), ids=(5,),
                                    ended="stop", seconds=0.0, seed=1))
            print("written", flush=True)
            time.sleep(60)
        """
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"written\n"
        os.kill(process.pid, signal.SIGKILL)
        process.wait(10)
    assert [record.sample for record in read_records(path)] == [0, 1, 2]  # type: ignore[union-attr]
