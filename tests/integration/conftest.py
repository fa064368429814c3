"""Fixtures of the command line tests."""

from __future__ import annotations

from collections.abc import Callable

import pytest
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
