"""Finding targets: every file of this folder, and every entry point of 'snapfit.hardware'."""

from __future__ import annotations

import importlib
from importlib.metadata import EntryPoint, entry_points
from typing import cast

import snapfit.hardware
from snapfit.core.errors import SnapfitError, UsageError
from snapfit.core.names import plugin_files, unknown_name
from snapfit.core.profile import Profile
from snapfit.hardware.base import TargetKind

ENTRY_POINTS = "snapfit.hardware"


def target_kinds() -> dict[str, TargetKind]:
    """Every kind of target by its name, ours first.

    Raises:
        SnapfitError: an installed package's entry point cannot be loaded.

    """
    kinds = {
        name: cast("TargetKind", importlib.import_module(f"snapfit.hardware.{name}"))
        for name in plugin_files(snapfit.hardware.__path__)
    }
    return kinds | {point.name: _load(point) for point in entry_points(group=ENTRY_POINTS)}


def _load(point: EntryPoint) -> TargetKind:
    try:
        return cast("TargetKind", point.load())
    except (ImportError, AttributeError) as error:
        raise SnapfitError(
            f"the hardware plug-in {point.name!r} ({point.value}) cannot be loaded: {error}; "
            "repair or uninstall the package that brought it"
        ) from error


def target_names() -> tuple[str, ...]:
    """Targets that can be asked for by name."""
    return tuple(name for kind in target_kinds().values() for name in kind.names())


def resolve_target(name: str) -> Profile:
    """The profile of the target called `name`, or saved in the file `name`.

    Raises:
        UsageError: nothing is called that.
        SnapfitError: the file does not exist or holds no profile.

    """
    for kind in target_kinds().values():
        if (profile := kind.find(name)) is not None:
            return profile
    unknown = unknown_name("target", name, target_names())
    raise UsageError(f"{unknown}; or name a saved profile such as ./profile.json")
