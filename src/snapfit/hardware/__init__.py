"""One kind of target a file: what is fast there, with the source of every number."""

from __future__ import annotations

from snapfit.hardware.registry import resolve_target, target_names

__all__ = ["resolve_target", "target_names"]
