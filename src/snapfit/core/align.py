"""Aligned sizes for the output of any other tool: GAC over a table of dimensions, no model needed.

    {"groups": [{"name", "size", "full", "cost", "score"}], "budget"?}

`size` is what the tool chose and may be fractional, `full` the size before compression, `cost`
the parameters that one unit of size has, `score` what one parameter is worth. A rank group may
also say `dense`, the parameters of the matrix itself, since a pair of full rank has more: sizes
that cost as much as `dense` are then read, and offered, as "leave it dense".
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from snapfit.core.checked import MAX_TEXT, is_real, is_whole, shown
from snapfit.core.errors import Infeasible, UsageError
from snapfit.core.layout import MAX_DIMENSION
from snapfit.core.objectives import gac
from snapfit.core.options import DEFAULT_ALIGN
from snapfit.core.units import Unit, reason

SCHEMA = 1
_MAX_PARAMS = 1 << 50
_MAX_SCORE = 1e100
_FIELDS = ("name", "size", "full", "cost", "score")


def align_dims(
    data: Any, *, align: int = DEFAULT_ALIGN, keep: float | None = None, version: str = ""
) -> dict[str, Any]:
    """Choose a multiple of `align`, or the full size, for every group, within the budget.

    Args:
        data: the table described above, as read from JSON.
        align: sizes must be multiples of this; the full size is always allowed.
        keep: the budget as a share of the uncompressed parameters, in (0, 1]; by default the
            budget is the file's own, or else what the sizes in the file cost.
        version: written into the answer.

    Returns:
        A JSON-serialisable table: schema, version, align, budget, params, alignment, groups.

    Raises:
        UsageError: the table, `align` or `keep` is malformed; says which group and field.
        Infeasible: even the smallest aligned sizes exceed the budget.

    """
    if not is_whole(align) or not 1 <= align <= MAX_DIMENSION:
        raise UsageError(f"--align must be a positive whole number, found {shown(align)}")
    groups = _groups(data)
    units = [_unit(group, align) for group in groups]
    budget = _budget(data, units, keep)
    try:
        picks, gap = gac(units, {"params": budget})
    except Infeasible as error:
        raise Infeasible(
            f"multiples of {align} cannot meet the budget of {budget} parameters; the smallest "
            f"that can be met is {error.nearest['params']:.0f}",
            nearest=error.nearest,
        ) from error

    rows = [
        {
            "name": group["name"],
            "size": int(unit.sizes[pick]),
            "was": group["size"],
            "full": group["full"],
            "params": int(unit.costs[pick]),
            "params_before": round(unit.wanted_params, 3),
            "reason": reason(unit, pick),
        }
        for group, unit, pick in zip(groups, units, picks, strict=True)
    ]
    return {
        "schema": SCHEMA,
        "version": version,
        "align": align,
        "budget": budget,
        "params": {
            "dense": sum(int(unit.costs[-1]) for unit in units),
            "before": round(math.fsum(unit.wanted_params for unit in units), 3),
            "after": sum(row["params"] for row in rows),
        },
        "alignment": {
            f"mod{multiple}": {
                "before": _share([group["size"] for group in groups], multiple),
                "after": _share([row["size"] for row in rows], multiple),
            }
            for multiple in (8, 16)
        },
        "gap": gap,
        "groups": rows,
    }


def _groups(data: Any) -> list[dict[str, Any]]:
    if not isinstance(data, dict) or not isinstance(data.get("groups"), list):
        raise UsageError('the file must be a table with a list "groups"')
    if not data["groups"]:
        raise UsageError('"groups" is empty: there is nothing to align')
    seen: set[str] = set()
    for place, group in enumerate(data["groups"]):
        where = f"group {place + 1}"
        if not isinstance(group, dict):
            raise UsageError(f"{where} must be a table, found {shown(group)}")
        name = group.get("name")
        if not isinstance(name, str) or not name.isprintable() or not 0 < len(name) <= MAX_TEXT:
            raise UsageError(f"{where}: name must be a short text, found {shown(name)}")
        where = f"{where} ({name})"
        if name in seen:
            raise UsageError(f"{where}: the name is used twice")
        seen.add(name)
        _check_numbers(group, where)
    return list(data["groups"])


def _check_numbers(group: dict[str, Any], where: str) -> None:
    if missing := [field for field in _FIELDS if field not in group]:
        raise UsageError(f"{where} lacks {', '.join(missing)}")
    size, full, cost, score = (group[field] for field in _FIELDS[1:])
    dense = group.get("dense")
    if not is_whole(full) or not 1 <= full <= MAX_DIMENSION:
        raise UsageError(f"{where}: full must be a positive whole number, found {shown(full)}")
    if not is_whole(cost) or not 1 <= cost <= _MAX_PARAMS // full:
        raise UsageError(f"{where}: cost must be a positive whole number, found {shown(cost)}")
    if not is_real(size) or not 0 < size <= full:
        raise UsageError(
            f"{where}: size must be above 0 and at most full ({full}), found {shown(size)}"
        )
    if not is_real(score) or not 0 <= score <= _MAX_SCORE:
        raise UsageError(
            f"{where}: score must be 0 or more, up to {_MAX_SCORE:g}, found {shown(score)}"
        )
    if dense is not None and (not is_whole(dense) or not cost <= dense <= full * cost):
        raise UsageError(
            f"{where}: dense must be a whole number from {cost} to {full * cost}, "
            f"found {shown(dense)}"
        )


def _unit(group: dict[str, Any], align: int) -> Unit:
    full, cost = group["full"], group["cost"]
    dense = group.get("dense")
    whole = full * cost if dense is None else dense
    last = min(full - 1, (whole - 1) // cost)
    below = np.arange(align, last + 1, align, dtype=np.int64)
    wanted = min(float(group["size"]), whole / cost)
    return Unit(
        names=(group["name"],),
        sizes=np.append(below, np.int64(full)),
        costs=np.append(below * cost, np.int64(whole)),
        limit=whole / cost,
        wanted=wanted,
        wanted_params=wanted * cost,
        score=float(group["score"]),
    )


def _budget(data: dict[str, Any], units: list[Unit], keep: float | None) -> int:
    given = data.get("budget")
    if keep is None:
        if given is None:
            # Sizes such as 143.2 are not exact in binary: forgive the last digits.
            total = math.fsum(unit.wanted_params for unit in units)
            return math.floor(total * (1 + 1e-12))
        if not is_real(given) or not 1 <= given <= _MAX_PARAMS:
            raise UsageError(f"budget must be a number of parameters, found {shown(given)}")
        return int(given)
    if given is not None:
        raise UsageError("the file has a budget; drop it or --keep, both were given")
    if not is_real(keep) or not 0 < keep <= 1:
        raise UsageError(f"--keep must be above 0 and at most 1, found {shown(keep)}")
    return math.floor(keep * sum(int(unit.costs[-1]) for unit in units) * (1 + 1e-12))


def _share(sizes: list[float], multiple: int) -> float:
    return sum(size % multiple == 0 for size in sizes) / len(sizes)
