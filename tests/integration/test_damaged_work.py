"""Files of the work folder that somebody broke: each is named, with what to do."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from done import Done, assert_one_line_error
from tiny_models import build

SMALL = ["--calib-tokens", "256", "--context", "32", "--align", "4"]
MEASURE = ["--eval-context", "32", "--eval-windows", "2"]
PROBED = ["--method", "kfac", "--probe"]
MIXED = ["--method", "mixed"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("llama", tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def works(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A work folder for each method, filled by the first test that needs it."""
    folder = tmp_path_factory.mktemp("works")
    return {name: folder / name for name in ("kfac", "mixed")}


@pytest.mark.parametrize("damage", ["", "5", "{}", "null"])
@pytest.mark.parametrize(
    ("asked", "pattern"),
    [
        (PROBED, "stats-*/*/meta.json"),
        (PROBED, "probe-*/roles.json"),
        (PROBED, "evaluate-*/dense.json"),
        (MIXED, "mixed-*/layer_001.json"),
        (MIXED, "mixed-plans-*/*.json"),
    ],
    ids=lambda value: value if isinstance(value, str) else value[1],
)
def test_a_damaged_record_is_named(
    cli: Callable[..., Done],
    tmp_path: Path,
    model: Path,
    works: dict[str, Path],
    asked: list[str],
    pattern: str,
    damage: str,
) -> None:
    text = tmp_path / "text.txt"
    text.write_text(" ".join(f"w{4 + i * i % 60}" for i in range(200)))
    done_once = works[asked[1]]
    command = ["compress", model, *asked, *SMALL, "--eval-text", text, *MEASURE]
    if not done_once.exists():
        assert cli(*command, "-o", tmp_path / "first", "--work", done_once).code == 0
    work = shutil.copytree(done_once, tmp_path / "work")
    damaged = sorted(work.glob(pattern))
    assert damaged
    for file in damaged:
        file.write_text(damage)
    done = cli(*command, "-o", tmp_path / "out", "--work", work)
    assert done.code == 1
    errors = [line for line in done.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert any(str(file) in errors[0] for file in damaged)
    assert not (tmp_path / "out").exists()
    assert "delete it and rerun" in errors[0]


@pytest.mark.parametrize("damage", ["5", "null"])
def test_damaged_notes_are_named(
    cli: Callable[..., Done], tmp_path: Path, model: Path, damage: str
) -> None:
    asked = ["plan", model, "--method", "svd", "--objective", "none", "--work", tmp_path / "work"]
    assert cli(*asked, "-o", tmp_path / "first.json").code == 0
    (notes,) = (tmp_path / "work").glob("ordered-*/notes.json")
    notes.write_text(damage)
    done = cli(*asked, "-o", tmp_path / "plan.json")
    assert_one_line_error(done, 1, str(notes), "delete it and rerun")
