"""Imports go strictly downward, and what should be light loads nothing heavy."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import snapfit

PACKAGE = Path(snapfit.__file__).parent
MIDDLE = {"models", "calib", "methods", "hardware", "checkpoint", "evals", "viz"}
BELOW = {
    "core": set(),
    "nn": {"core"},
    **{folder: {"core", "nn"} for folder in MIDDLE},
    "pipeline": {"core", "nn", *MIDDLE},
    "cli": {"core", "nn", *MIDDLE, "pipeline"},
}
HEAVY = {"torch", "transformers"}
FILES = sorted(PACKAGE.rglob("*.py"))


def imported(file: Path) -> set[str]:
    """Every module that a file imports anywhere in it, those for type checking included."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            assert node.module is not None
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def folder_of(module: str) -> str | None:
    """Folder of this package that a module lies in."""
    parts = module.split(".")
    return parts[1] if parts[0] == "snapfit" and len(parts) > 1 and parts[1] in BELOW else None


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_go_downward(file: Path) -> None:
    own = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if own not in BELOW:
        assert own in {"__init__", "__main__", "_hooks", "assets"}, (
            f"{own} is in no layer; add it to BELOW"
        )
        return
    used = {folder for module in imported(file) if (folder := folder_of(module))}
    assert used <= BELOW[own] | {own}, f"{own} may not import {used - BELOW[own] - {own}}"


@pytest.mark.parametrize(
    "file", [f for f in FILES if f.parent.name == "core"], ids=lambda f: f.name
)
def test_core_imports_only_numpy(file: Path) -> None:
    roots = {module.partition(".")[0] for module in imported(file)}
    assert roots <= {"snapfit", "numpy"} | sys.stdlib_module_names


def heavy_after(statement: str) -> set[str]:
    """Heavy modules that are loaded once a fresh interpreter has run `statement`."""
    code = f"import sys\n{statement}\nprint(*(m for m in {sorted(HEAVY)} if m in sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ
    )
    return set(done.stdout.split("\n")[-2].split())


@pytest.mark.parametrize(
    "statement",
    [
        "import snapfit",
        "import snapfit; snapfit.align",
        "import snapfit.core.plan, snapfit.core.objectives, snapfit.core.profile",
        "from snapfit.hardware import resolve_target; resolve_target('cpu')",
        "from snapfit.cli.app import run; assert run(['--help']) == 0",
        "from snapfit.cli.app import run; assert run(['methods']) == 0",
        "from snapfit.cli.app import run; assert run(['targets']) == 0",
        "from snapfit.cli.app import run; assert run(['compress', 'x', '-o', 'y', '--ratio', '2'])",
    ],
)
def test_loads_nothing_heavy(statement: str) -> None:
    assert heavy_after(statement) == set()


def test_sizes_of_another_tool_are_aligned_where_no_torch_is_installed(tmp_path: Path) -> None:
    group = {"name": "a", "size": 12.5, "full": 64, "cost": 10, "score": 1.0}
    (tmp_path / "dims.json").write_text(json.dumps({"groups": [group], "budget": 160}))
    command = ["align", str(tmp_path / "dims.json"), "-o", str(tmp_path / "out.json")]
    code = f"""
import sys
for name in ("torch", "transformers", "safetensors", "tokenizers"):
    sys.modules[name] = None  # what is None cannot be imported
from snapfit.cli.app import run
sys.exit(run({command}))
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    assert json.loads((tmp_path / "out.json").read_text())["groups"][0]["size"] == 16


def test_heavy_imports_are_seen() -> None:
    assert heavy_after("import torch") == {"torch"}
