"""Fixtures of the integration tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from checkpoints import dense, write
from done import Done

from snapfit.cli.app import run


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """Runs one command in this process."""

    def call(*arguments: object) -> Done:
        code = run([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return Done(code, out, err)

    return call


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from snapfit.evals.procedural import text_lines

    file = tmp_path_factory.mktemp("text") / "held_out.txt"
    file.write_text("\n".join(text_lines(seed=3, count=200)))
    return file


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A tiny factored checkpoint; its base is in 'dense' beside it."""
    write(dense(tmp_path / "dense"), tmp_path / "small")
    return tmp_path / "small"
