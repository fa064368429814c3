"""What a kind of target is. To add one, add a file beside this one, or an entry point.

The file (or what an entry point of the group 'snapfit.hardware' names) has two functions, the
ones of `TargetKind`. It should import nothing heavy at the top: listing targets asks every kind.
"""

from __future__ import annotations

from typing import Protocol

from snapfit.core.profile import Profile


class TargetKind(Protocol):
    """One kind of target: a module with these two functions."""

    def names(self) -> tuple[str, ...]:
        """Targets that can be asked for by name here, on this machine."""

    def find(self, name: str) -> Profile | None:
        """The profile of `name`, or None if it is none of this kind's.

        Raises:
            SnapfitError: it is this kind's, and cannot be had; says why.

        """
