"""What is decided at once: a group, or a tie of groups, with its legal and its wanted size.

Here too is rounding: to the nearest legal size, and down into a budget.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

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
        prices: (k, J) what the budgets count, one column a budget; parameters by default.
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
    prices: NDArray[np.int64] | None = None

    @property
    def columns(self) -> NDArray[np.int64]:
        """(k, J) what the budgets count."""
        return self.costs[:, None] if self.prices is None else self.prices

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
    legal: Callable[[Group], NDArray[np.int64]],
    unaligned: Mapping[str, float],
    scores: Mapping[str, float] | None,
    tables: Sequence[Callable[[Group, NDArray[np.int64]], NDArray[np.int64]]] = (group_params,),
) -> list[Unit]:
    """The units of a space, in the order of their first group.

    Args:
        space: the groups and their ties.
        legal: the sizes that a group may have, increasing, full last.
        unaligned: the method's own size of every group.
        scores: worth of one parameter of every group; 1 for all by default.
        tables: what each budget counts of a group at given sizes.

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
        sizes = legal(members[0])
        for member in members[1:]:
            sizes = np.intersect1d(sizes, legal(member))
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
                prices=np.stack(
                    [np.sum([t(member, sizes) for member in members], axis=0) for t in tables],
                    axis=1,
                ),
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


def repaired(units: list[Unit], picks: list[int], budgets: Mapping[str, int]) -> list[int]:
    """Step sizes down until the budgets hold.

    A step goes to the next smaller legal size that costs less in what is exceeded; for parameters
    that is simply the next smaller one, but a smaller size may well be slower. Groups go in order
    of harm, score x parameters that the step removes, the least first (of equal harms the earlier
    group), one step each: first those that were rounded up, then, while a budget is still
    exceeded, all of them, pass after pass. A plan below the budgets is left as it is.

    Raises:
        Infeasible: no step is left; says what was reached.

    """
    picks = list(picks)
    limit_J = np.array(list(budgets.values()), dtype=np.int64)
    total_J = np.sum([unit.columns[pick] for unit, pick in zip(units, picks, strict=True)], axis=0)
    turn = [i for i, unit in enumerate(units) if picks[i] > unit.below()]
    everyone = False
    while (total_J > limit_J).any():
        over_J = total_J > limit_J
        steps = {i: step for i in turn if (step := _step(units[i], picks[i], over_J)) is not None}
        if everyone and not steps:
            raise _unrepaired(budgets, total_J)
        harm = {
            i: units[i].score * int(units[i].costs[picks[i]] - units[i].costs[step])
            for i, step in steps.items()
        }
        for index in sorted(steps, key=lambda i: harm[i]):
            total_J = total_J + units[index].columns[steps[index]]
            total_J = total_J - units[index].columns[picks[index]]
            picks[index] = steps[index]
            if ((total_J > limit_J) != over_J).any():
                break
        turn = list(range(len(units)))
        everyone = True
    return picks


def _step(unit: Unit, pick: int, over_J: NDArray[np.bool_]) -> int | None:
    """Index of the next smaller size that costs less in every budget of `over_J`, or None."""
    less = (unit.columns[:pick, over_J] < unit.columns[pick, over_J]).all(axis=1)
    found = np.flatnonzero(less)
    return int(found[-1]) if found.size else None


def _unrepaired(budgets: Mapping[str, int], total_J: NDArray[np.int64]) -> Infeasible:
    reached = dict(zip(budgets, total_J.tolist(), strict=True))
    exceeded = {name: cost for name, cost in reached.items() if cost > budgets[name]}
    asked = ", ".join(f"{name} {limit}" for name, limit in budgets.items())
    nearest = ", ".join(f"{name} {cost}" for name, cost in exceeded.items())
    return Infeasible(
        f"no choice of sizes meets {asked}; the nearest that can be met is {nearest}",
        nearest={name: float(cost) for name, cost in exceeded.items()},
    )


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
