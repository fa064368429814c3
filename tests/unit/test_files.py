"""Files exist whole or not at all."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from snapfit.core.errors import CorruptFile, SnapfitError
from snapfit.core.files import (
    atomic_directory,
    atomic_path,
    check_new_directory,
    digest_files,
    digest_json,
    read_json,
    write_json,
)


def test_a_file_appears_whole(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "a.txt"
    with atomic_path(target) as temporary:
        temporary.write_text("whole")
        assert not target.exists()
    assert target.read_text() == "whole"
    assert stat.S_IMODE(target.stat().st_mode) == 0o644
    assert [path.name for path in target.parent.iterdir()] == ["a.txt"]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    target.write_text("old")
    with pytest.raises(RuntimeError), atomic_path(target) as temporary:  # noqa: PT012
        temporary.write_text("half")
        raise RuntimeError
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_disk_full_is_explained(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    with pytest.raises(SnapfitError, match="No space left on device; free space"):  # noqa: SIM117
        with atomic_path(target):
            raise OSError(28, "No space left on device")
    assert list(tmp_path.iterdir()) == []


def test_a_directory_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with pytest.raises(RuntimeError), atomic_directory(target) as temporary:  # noqa: PT012
        (temporary / "half").write_text("")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    with atomic_directory(target) as temporary:
        (temporary / "a").write_text("1")
    assert [path.name for path in target.iterdir()] == ["a"]


def test_an_existing_directory_needs_overwrite(tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.mkdir()
    check_new_directory(target)
    (target / "old").write_text("1")
    with pytest.raises(SnapfitError, match="--overwrite"), atomic_directory(target):
        pytest.fail("entered")
    with atomic_directory(target, overwrite=True) as temporary:
        (temporary / "new").write_text("1")
    assert [path.name for path in target.iterdir()] == ["new"]
    assert list(tmp_path.iterdir()) == [target]
    with pytest.raises(SnapfitError, match="is a file"):
        check_new_directory(target / "new")


def test_json_round_trip_and_refusals(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"b": [1, 2.5]})
    assert read_json(path) == {"b": [1, 2.5]}
    with pytest.raises(ValueError, match="Out of range"):
        write_json(path, float("nan"))
    assert json.loads(path.read_text()) == {"b": [1, 2.5]}
    with pytest.raises(SnapfitError, match="no such file"):
        read_json(tmp_path / "b.json")
    path.write_text('{"half": ')
    with pytest.raises(CorruptFile, match="not readable JSON"):
        read_json(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(CorruptFile, match="not readable JSON"):
        read_json(path)


def test_digests_name_content(tmp_path: Path) -> None:
    assert digest_json({"a": 1, "b": 2}) == digest_json({"b": 2, "a": 1})
    assert digest_json({"a": 1}) != digest_json({"a": 2})
    one, two = tmp_path / "1", tmp_path / "2"
    one.write_text("x")
    two.write_text("y")
    before = digest_files([one, two])
    two.write_text("z")
    assert digest_files([one, two]) != before
    assert len(before) == 16
