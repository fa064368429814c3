"""Plug-ins are files: listing them without importing them, and answering a name that is none."""

from __future__ import annotations

import pkgutil
from collections.abc import Iterable
from difflib import get_close_matches

from snapfit.core.errors import UsageError

HELPERS = frozenset({"base", "registry"})
"""Files of a plug-in folder that are no plug-ins; so are those that begin with an underscore."""


def plugin_files(path: Iterable[str]) -> tuple[str, ...]:
    """Module names of the plug-ins in a package's `__path__`, sorted; none is imported."""
    names = (module.name for module in pkgutil.iter_modules(path))
    return tuple(sorted(n for n in names if n not in HELPERS and not n.startswith("_")))


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UsageError:
    """The error for a name that is not `known`: the nearest one, and the list."""
    choices = list(known)
    close = get_close_matches(name.lower(), choices, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return UsageError(f"unknown {kind} {name!r}; {hint}choose from: {', '.join(choices)}")
