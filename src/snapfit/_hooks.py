"""Teach transformers to load snapfit checkpoints, without importing it.

`import snapfit` must stay light, and must work before as well as after `import transformers`.
So when transformers' table of quantisers is not loaded yet, a finder at the front of
`sys.meta_path` waits for that one module, lets the normal import run, and registers afterwards.
It answers for no other module and removes itself when it is done.
"""

from __future__ import annotations

import importlib.abc
import importlib.util
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType

TABLE = "transformers.quantizers.auto"
"""The module that holds the tables of quantisation methods."""


def teach_transformers() -> None:
    """Register the format now if transformers is loaded, else as soon as it is."""
    if TABLE in sys.modules:
        _register()
    elif not any(isinstance(finder, _Waiting) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Waiting())


def _register() -> None:
    from snapfit.checkpoint.plugin import register

    register()


class _Waiting(importlib.abc.MetaPathFinder):
    """Finds `TABLE`, once, as the other finders do, but with a loader that then registers."""

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,  # noqa: ARG002 - the protocol of meta_path
        target: ModuleType | None = None,  # noqa: ARG002
    ) -> ModuleSpec | None:
        if fullname != TABLE:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _Registering(spec.loader)
        return spec


class _Registering(importlib.abc.Loader):
    """Runs another loader, then registers; steps aside, so that the module keeps its own."""

    def __init__(self, loader: Any) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        module: ModuleType | None = self._loader.create_module(spec)
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        _register()
