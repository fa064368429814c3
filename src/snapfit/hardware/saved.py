"""A profile in a file: made on another machine, checked in, or downloaded."""

from __future__ import annotations

from pathlib import Path

from snapfit.core.errors import CorruptFile
from snapfit.core.files import read_json
from snapfit.core.profile import Profile


def names() -> tuple[str, ...]:
    """None: a saved profile is asked for by its path."""
    return ()


def find(name: str) -> Profile | None:
    """The profile in the file `name`, if that is the name of a JSON file.

    Raises:
        SnapfitError: there is no such file.
        CorruptFile: it holds no valid profile; says which field.

    """
    if not name.endswith(".json"):
        return None
    try:
        return Profile.from_json(read_json(Path(name)))
    except CorruptFile as error:
        raise CorruptFile(f"{name}: {error}" if name not in str(error) else str(error)) from error
