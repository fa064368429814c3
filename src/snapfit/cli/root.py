"""The application that every file of commands adds its own to."""

from __future__ import annotations

import typer

app = typer.Typer(
    name="snapfit",
    help="Compress causal language models into shapes that are fast where they are served.",
    add_completion=False,
    pretty_exceptions_enable=False,
)
