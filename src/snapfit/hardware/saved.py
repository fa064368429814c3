"""A profile in a file: made on another machine, checked in, or downloaded."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from snapfit.core.errors import CorruptFile
from snapfit.core.files import read_json
from snapfit.core.profile import Profile
from snapfit.core.target import Target


def names() -> tuple[str, ...]:
    """None: a saved profile is asked for by its path."""
    return ()


def find(name: str) -> Target | None:
    """The profile in the file `name`, if that is the name of a JSON file.

    Raises:
        SnapfitError: there is no such file.
        CorruptFile: it holds no valid profile; says which field.

    """
    if not name.endswith(".json"):
        return None
    try:
        profile = Profile.from_json(read_json(Path(name)))
    except CorruptFile as error:
        raise CorruptFile(f"{name}: {error}" if name not in str(error) else str(error)) from error
    sources = Counter(timing.source for timing in profile.timings)
    return Target(
        name=name,
        device=profile.device,
        dtype=profile.dtype,
        rules=profile.rules,
        timer=profile if profile.timings else None,
        software=profile.software,
        times=", ".join(f"{count} {source}" for source, count in sources.items()) or "none",
    )
