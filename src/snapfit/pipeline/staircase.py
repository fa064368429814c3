"""`snapfit time group`: one part of a model at every size that a plan may give it."""

from __future__ import annotations

from difflib import get_close_matches

from snapfit.core.errors import SnapfitError, UsageError
from snapfit.core.latency import Stopwatch
from snapfit.core.plateaus import Staircase, staircase
from snapfit.core.space import Group, Space
from snapfit.core.wanted import KINDS
from snapfit.core.workload import DEFAULT_WORKLOAD, Workload
from snapfit.hardware.registry import resolve_target
from snapfit.pipeline.profile import space_of


def group_times(
    subject: str,
    name: str,
    *,
    target: str = "cpu",
    workload: str = DEFAULT_WORKLOAD,
    dtype: str | None = None,
    trust_remote_code: bool = False,
) -> Staircase:
    """Time one group of a model at every legal size.

    Args:
        subject: a model, or its config.json: weights are not needed.
        name: of the group: of a matrix for its ranks, of an MLP for its width, of an attention
            for its heads.
        target: where; a live device measures every size.
        workload: passes of the model.
        dtype: of weights and activations; None for the target's own.
        trust_remote_code: let the model's own Python code run.

    Raises:
        UsageError: the model has no such group, or the target or workload is malformed.
        SnapfitError: the target has no times, or none near.

    """
    place = resolve_target(target, dtype=dtype)
    if place.timer is None:
        raise SnapfitError(
            f"{place.name} has rules but no times; `snapfit targets` says how to get them"
        )
    passes = Workload.parse(workload)
    whole = space_of(subject, trust_remote_code=trust_remote_code)
    place.check(whole)
    group = _group(whole, subject, name)
    watch = Stopwatch(
        whole=whole, groups=(group,), timer=place.timer, workload=passes, shards=place.stack.tp
    )
    return staircase(watch, group, place.rules)


def _group(whole: Space, subject: str, name: str) -> Group:
    groups = {group.name: group for group in whole.groups if group.kind in KINDS}
    if name in groups:
        return groups[name]
    close = get_close_matches(name, groups, n=1, cutoff=0.0)
    first = [group.name for group in groups.values() if group.layer == 0]
    raise UsageError(
        f"{subject} has no group {name!r}; did you mean {close[0]!r}? Those of the first layer "
        f"are {', '.join(first)}"
    )
