"""Where everything that a rerun can reuse is kept."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from snapfit.core.files import digest_json


@dataclass(frozen=True, kw_only=True)
class Workspace:
    """A root folder with one sub-folder per stage and per combination of what it depends on."""

    root: Path

    @classmethod
    def at(cls, root: Path | None) -> Workspace:
        """`root`, or $SNAPFIT_WORK, or the user's cache folder."""
        if root is not None:
            return cls(root=Path(root))
        if named := os.environ.get("SNAPFIT_WORK"):
            return cls(root=Path(named))
        cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        return cls(root=Path(cache) / "snapfit")

    def folder(self, stage: str, depends: dict[str, Any]) -> Path:
        """The folder of `stage` for exactly these inputs; not created."""
        return self.root / f"{stage}-{digest_json(depends)}"
