"""How a long job tells what it is doing, without knowing who listens."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Listens to a job; the command line draws bars, tests and notebooks may stay silent."""

    def stage(self, name: str, total: int) -> None:
        """A stage of `total` steps begins; the one before it, if any, is over."""

    def advance(self, done: int = 1) -> None:
        """`done` more steps of the current stage are finished."""

    def note(self, text: str) -> None:
        """Something that the user should know, such as too few calibration tokens."""


class Silent:
    """Listens and says nothing."""

    def stage(self, name: str, total: int) -> None:
        """Ignore the stage."""

    def advance(self, done: int = 1) -> None:
        """Ignore the steps."""

    def note(self, text: str) -> None:
        """Ignore the note."""
