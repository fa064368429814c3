"""What there is to choose from, found without importing anything heavy."""

from __future__ import annotations

import ast
from pathlib import Path

import snapfit.methods
from snapfit.core.names import plugin_files


def method_names() -> tuple[str, ...]:
    """Methods by their names on the command line, found by file name: none is imported."""
    return tuple(name.replace("_", "-") for name in plugin_files(snapfit.methods.__path__))


def method_summary(name: str) -> str:
    """The first line of a method's file, read without importing it (and so torch)."""
    file = Path(snapfit.methods.__path__[0]) / f"{name.replace('-', '_')}.py"
    docstring = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    return docstring.partition("\n")[0].removeprefix(f"`{name}`: ")
