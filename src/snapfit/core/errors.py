"""Errors that are meant to be read by the person who ran the command.

Every error that bad input, a bad file or an impossible request can cause is a `SnapfitError`:
one line that says what was wrong, with the value, and what to do. The command line prints it
without a traceback. Anything else that escapes is a defect of snapfit itself.
"""

from __future__ import annotations


class SnapfitError(Exception):
    """What went wrong and what to do about it, in one line. Exit code 1."""

    exit_code = 1


class UsageError(SnapfitError):
    """The request itself is malformed: an unknown name, a ratio of 1.5. Exit code 2."""

    exit_code = 2


class Infeasible(SnapfitError):
    """No choice of sizes satisfies the budgets.

    Attributes:
        nearest: for each budget name, the smallest value that can be met while the others hold.

    """

    def __init__(self, message: str, *, nearest: dict[str, float]) -> None:
        super().__init__(message)
        self.nearest = dict(nearest)


class CorruptFile(SnapfitError):
    """A file exists but cannot be what it claims to be (truncated, wrong sizes, bad digest)."""
