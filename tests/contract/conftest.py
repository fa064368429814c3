"""Fixtures of all contract tests: tiny checkpoints, each built once a session."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import transformers
from tiny_models import build


@pytest.fixture(scope="session", autouse=True)
def _quiet() -> None:
    transformers.logging.disable_progress_bar()


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Folder of a tiny random checkpoint, by architecture. Do not write into it."""
    built: dict[str, Path] = {}

    def folder(architecture: str) -> Path:
        if architecture not in built:
            path = tmp_path_factory.mktemp("tiny") / architecture
            built[architecture] = build(architecture, path)
        return built[architecture]

    return folder
