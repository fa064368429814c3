"""Timing many operators into a profile: resumable, and bounded in time."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from snapfit.core.errors import CorruptFile, SnapfitError
from snapfit.core.files import read_json, write_json
from snapfit.core.operators import Operator
from snapfit.core.profile import Profile, Timing
from snapfit.core.progress import Progress
from snapfit.core.target import Target
from snapfit.hardware._live import LiveTimer
from snapfit.hardware._multiples import measured_rules, tier_operators
from snapfit.hardware._tiers import tiers_of

SAVE_SECONDS = 5.0
HALVES = frozenset({"float16", "bfloat16"})
"""Types that the published tiers are of."""


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """What a sweep found.

    Attributes:
        profile: everything that was timed.
        left: operators that there was no time for.
        unknown: operators that the target's timer knows nothing about.

    """

    profile: Profile
    left: tuple[Operator, ...] = ()
    unknown: tuple[Operator, ...] = ()


def sweep(
    target: Target,
    operators: Sequence[Operator],
    partial: Path,
    *,
    seconds: float | None,
    progress: Progress,
) -> Sweep:
    """Time operators in the order given.

    On a live device the multiples that suit it are found as well, from a few shapes of their own;
    until then, and without it, a GPU has the published tiers.

    Args:
        target: a bare device with a timer.
        operators: the most valuable first, each once.
        partial: file that keeps what is timed so far; what it holds already is not timed again.
        seconds: stop when these are over; the operator then being timed is finished.
        progress: told of every operator.

    Raises:
        SnapfitError: the target has no timer, or `partial` cannot be written.
        CorruptFile: `partial` is damaged, or of another device, version or data type.

    """
    timer = target.timer
    if timer is None:
        raise SnapfitError(
            f"{target.name} has rules but no times: nothing to sweep; install snapfit[hardware] "
            "for tables, or run this on the device"
        )
    live = isinstance(timer, LiveTimer)
    software = timer.software() if isinstance(timer, LiveTimer) else target.software
    rules = target.rules
    if target.capability is not None and timer.dtype in HALVES:
        rules = tiers_of(target.capability).steps(target.device)
    empty = Profile(
        device=timer.device, software=software, dtype=timer.dtype, rules=rules, timings=()
    )
    wanted = [*operators, *(tier_operators() if live else ())]
    known = {timing.operator: timing for timing in _resumed(partial, empty).timings}
    todo = [operator for operator in dict.fromkeys(wanted) if operator not in known]
    unknown: list[Operator] = []
    progress.stage("time", len(todo) + len(known))
    progress.advance(len(known))
    began = saved = time.monotonic()
    try:
        while todo and (seconds is None or time.monotonic() - began < seconds):
            operator = todo.pop(0)
            try:
                known[operator] = Timing.of(operator, timer.time(operator))
            except SnapfitError:
                if live:
                    raise
                unknown.append(operator)
            progress.advance()
            if time.monotonic() - saved > SAVE_SECONDS:
                write_json(partial, _with(empty, known).to_json())
                saved = time.monotonic()
    finally:
        if known:
            write_json(partial, _with(empty, known).to_json())
    profile = _with(empty, known)
    if live and not set(tier_operators()) - known.keys():
        profile = replace(profile, rules=measured_rules(profile))
    return Sweep(profile=profile, left=tuple(todo), unknown=tuple(unknown))


def _with(empty: Profile, known: dict[Operator, Timing]) -> Profile:
    return replace(empty, timings=tuple(known.values()))


def _resumed(partial: Path, empty: Profile) -> Profile:
    """What `partial` holds, or nothing where there is no such file."""
    if not partial.exists():
        return empty
    try:
        found = Profile.from_json(read_json(partial))
    except CorruptFile as error:
        raise CorruptFile(f"{partial}: {error}; delete it to start again") from error
    for name in ("device", "dtype", "software"):
        then, now = getattr(found, name), getattr(empty, name)
        if then != now:
            raise CorruptFile(
                f"{partial} was begun with {name} {then!r}, this is {now!r}; delete it to start "
                "again, or name another output"
            )
    return found
