"""The file beside a `standalone` checkpoint is put together from sources that fit together."""

from __future__ import annotations

import ast
from collections import Counter

from snapfit.checkpoint.standalone import sources

TREES = {name: ast.parse(source) for name, source in sources().items()}


def test_every_source_comes_after_those_it_imports() -> None:
    before: set[str] = set()
    for name, tree in TREES.items():
        found = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        assert {node.module for node in found if "snapfit" in str(node.module)} <= before, name
        before.add(name)
    assert "snapfit.core.structure" in before


def test_no_two_sources_define_one_name() -> None:
    names: Counter[str] = Counter()
    for tree in TREES.values():
        for node in tree.body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                names[node.name] += 1
            elif isinstance(node, ast.Assign | ast.AnnAssign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                names.update(ast.unparse(target) for target in targets)
    assert len(names) > 50
    assert [name for name, count in names.items() if count > 1] == []
