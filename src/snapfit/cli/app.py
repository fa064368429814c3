"""The sub-commands, and what becomes of an error.

Exit codes: 0 done, 1 failed, 2 bad use, 130 interrupted.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from typing import Annotated, Any

import typer

import snapfit
from snapfit.cli import compressing as _compressing  # noqa: F401 each adds its commands
from snapfit.cli import diagnose as _diagnose  # noqa: F401
from snapfit.cli import hardware as _hardware  # noqa: F401
from snapfit.cli import layers as _layers  # noqa: F401
from snapfit.cli import scaling as _scaling  # noqa: F401
from snapfit.cli import serve_check as _serve_check  # noqa: F401
from snapfit.cli import tools as _tools  # noqa: F401
from snapfit.cli.console import answer_json, complain, say
from snapfit.cli.root import app
from snapfit.core.errors import SnapfitError

INTERRUPTED = 130

# typer brings click under another name from version to version; what it raises for bad use is
# always the base of its own BadParameter.
_BadUse: Any = typer.BadParameter.__base__


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal without '±' is no failure
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: list[str]) -> int:
    """Run one command; every error that its user can cause becomes one line and a code."""
    # Bars of other libraries would be drawn across ours.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    try:
        code = app(arguments or ["--help"], prog_name="snapfit", standalone_mode=False)
    except SnapfitError as error:
        return _failed(arguments, str(error), error.exit_code)
    except _BadUse as error:
        return _failed(arguments, f"{error.format_message()} (see snapfit --help)", 2)
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _failed(arguments, f"{where}{error.strerror or error}", 1)
    if code == INTERRUPTED:  # some versions of typer raise, others return this
        return _failed(arguments, "interrupted; rerun the same command to resume", INTERRUPTED)
    return code if isinstance(code, int) else 0


def _failed(arguments: list[str], message: str, code: int) -> int:
    complain(message)
    if "--json" in arguments:
        with contextlib.suppress(OSError):  # stdout itself may be what failed
            answer_json({"error": message, "exit_code": code})
    return code


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        say(snapfit.__version__)
        raise typer.Exit
