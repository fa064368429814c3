"""What is decided at once: a group, or a tie of groups, with its legal and its wanted size.

Here too is rounding: to the nearest legal size, and down into a budget.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from snapfit.core.candidates import AlignRule, legal_sizes
from snapfit.core.cost import group_params
from snapfit.core.errors import Infeasible, UsageError
from snapfit.core.space import Group, Space


@dataclass(frozen=True, kw_only=True)
class Unit:
    """What is decided at once: a group, or a tie of groups.

    Attributes:
        names: of the groups.
        sizes: (k,) legal, increasing, the last is full.
        costs: (k,) parameters.
        limit: the (fractional) size at which a pair costs as much as dense.
        wanted: the unaligned size, at most `limit`.
        wanted_params: parameters at the unaligned size, also fractional.
        score: worth of one parameter.

    """

    names: tuple[str, ...]
    sizes: NDArray[np.int64]
    costs: NDArray[np.int64]
    limit: float
    wanted: float
    wanted_params: float
    score: float

    @property
    def places(self) -> NDArray[np.float64]:
        """(k,) where the legal sizes lie on the axis of sizes; dense lies at `limit`."""
        return np.append(self.sizes[:-1].astype(np.float64), self.limit)

    def below(self) -> int:
        """Index of the largest legal size not above the wanted one; -1 if all are above."""
        return int(np.searchsorted(self.places, self.wanted, side="right")) - 1

    def window(self, width: int) -> slice:
        """The legal size equal to the wanted one, if any, and `width` on either side."""
        below = self.below()
        exact = below >= 0 and self.places[below] == self.wanted
        return slice(max(0, below + 1 - width - exact), below + 1 + width)


def decision_units(
    space: Space,
    rules: tuple[AlignRule, ...],
    unaligned: Mapping[str, float],
    scores: Mapping[str, float] | None,
) -> list[Unit]:
    """The units of a space, in the order of their first group.

    Raises:
        UsageError: a size or score is missing or negative, or tied groups differ in full size.

    """
    groups = {group.name: group for group in space.groups}
    worth = dict.fromkeys(groups, 1.0) if scores is None else scores
    for name, table in (("unaligned size", unaligned), ("score", worth)):
        for key in groups:
            if key not in table:
                raise UsageError(f"no {name} was given for {key}")
            if not math.isfinite(table[key]) or table[key] < 0:
                raise UsageError(f"the {name} of {key} must be >= 0, found {table[key]}")
    tied = {name: tie for tie in space.ties for name in tie}
    units = []
    for group in space.groups:
        bundle = tied.get(group.name, (group.name,))
        if group.name != bundle[0]:
            continue
        members = [groups[name] for name in bundle]
        sizes = legal_sizes(members[0], rules)
        for member in members[1:]:
            sizes = np.intersect1d(sizes, legal_sizes(member, rules))
        if not sizes.size or any(sizes[-1] != member.full for member in members):
            raise UsageError(f"tied groups must have one full size: {', '.join(bundle)}")
        price = np.array([_unit_cost(member) for member in members])
        limit = sum(member.dense_params for member in members) / price.sum()
        share = price / price.sum()
        mean = float(share @ np.array([unaligned[name] for name in bundle]))
        wanted = min(mean, limit)
        units.append(
            Unit(
                names=bundle,
                sizes=sizes,
                costs=np.sum([group_params(member, sizes) for member in members], axis=0),
                limit=limit,
                wanted=wanted,
                wanted_params=wanted * float(price.sum()),
                score=float(share @ np.array([worth[name] for name in bundle])),
            )
        )
    return units


def _unit_cost(group: Group) -> float:
    """Parameters that one more unit of size adds."""
    if group.kind == "rank":
        return float(sum(matrix.rows + matrix.cols for matrix in group.matrices))
    return group.dense_params / group.full


def rounded(unit: Unit, *, down: bool) -> int:
    """Index of the nearest legal size (of two equally near the smaller), or of the floor."""
    if down:
        return max(0, unit.below())
    return int(np.argmin(np.abs(unit.places - unit.wanted)))


def repaired(units: list[Unit], picks: list[int], budget: int) -> list[int]:
    """Step sizes down to their next smaller legal one until the budget holds.

    Groups go in order of harm, score x parameters that the step removes, the least first (of
    equal harms the earlier group), one step each: first those that were rounded up, then, while
    the budget is still exceeded, all of them, pass after pass. A plan below the budget is left
    as it is.
    """
    picks = list(picks)
    total = sum(int(unit.costs[pick]) for unit, pick in zip(units, picks, strict=True))
    turn = [i for i, unit in enumerate(units) if picks[i] > 0 and picks[i] > unit.below()]
    everyone = False
    while total > budget:
        if everyone and not turn:
            raise Infeasible(
                f"no choice of sizes meets params {budget}; the nearest that can be met is "
                f"params {total}",
                nearest={"params": float(total)},
            )
        steps = {i: int(units[i].costs[picks[i]] - units[i].costs[picks[i] - 1]) for i in turn}
        for index in sorted(turn, key=lambda i: units[i].score * steps[i]):
            total -= steps[index]
            picks[index] -= 1
            if total <= budget:
                break
        turn = [i for i, pick in enumerate(picks) if pick > 0]
        everyone = True
    return picks


def reason(unit: Unit, pick: int) -> str:
    """How the chosen size relates to the wanted one, in a few words."""
    size, wanted = int(unit.sizes[pick]), unit.wanted
    shown = f"{wanted:.1f}".removesuffix(".0")
    if pick == len(unit.sizes) - 1:
        if wanted >= unit.limit:
            return "dense, as the method wants it"
        return f"dense: up from {shown}, break-even is {unit.limit:.1f}"
    if wanted >= unit.limit:
        return f"down from dense to {size}"
    if size == wanted:
        return f"{size}, as the method wants it"
    return f"{'up' if size > wanted else 'down'} from {shown} to {size}"
