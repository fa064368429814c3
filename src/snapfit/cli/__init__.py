"""The command line: one sub-command a verb; it parses, calls and prints, and decides nothing.

Nothing heavy is imported before a command needs it, so that help, lists and errors are instant.
"""

from __future__ import annotations

from snapfit.cli.app import main

__all__ = ["main"]
