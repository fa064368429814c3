"""The multi-choice knapsack: one size per item, least total loss, within one or two budgets.

Exact. The answer's loss is within `1e-9 x |loss|` (plus float rounding, 1e-12 of the sum of the
largest losses) of the optimum, costs are integers from end to end and nothing is quantised, and
the answer is checked against the caller's own numbers before it is returned. Should an instance
be so hard that the bounded memory does not suffice, the best answer is returned with a `gap`
above that tolerance: look at `Solution.exact`. One budget and real curves never came near that;
two budgets that both bind tightly over hundreds of items with hundreds of sizes each can, and
were then left with a relative gap of some 1e-5.

Equal input gives an equal answer. Of the choices of one item that are equal in loss, the cheapest
wins, then the smallest size; of equal partial answers, the one found first, in an order that
depends on the input alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from snapfit.core.errors import Infeasible, SnapfitError, UsageError
from snapfit.core.knapsack_items import Item, prepare
from snapfit.core.knapsack_search import Found, search
from snapfit.core.relaxation import Choices, Ints

__all__ = ["Item", "Solution", "solve"]

RELATIVE_TOLERANCE = 1e-9
_ROUNDING = 1e-12
_LARGEST = 1 << 53


@dataclass(frozen=True, kw_only=True)
class Solution:
    """An answer that was checked.

    Attributes:
        sizes: the chosen size of every item, tied items included.
        loss: total loss.
        costs: the total of each budget.
        bound: no answer loses less than this minus `tolerance`.
        tolerance: losses closer than this were treated as equal.

    """

    sizes: dict[str, int]
    loss: float
    costs: dict[str, int]
    bound: float
    tolerance: float

    @property
    def gap(self) -> float:
        """By how much a better answer could at most be better (beyond `tolerance`)."""
        return max(0.0, self.loss - self.bound)

    @property
    def exact(self) -> bool:
        """Whether the answer is proved optimal to within `tolerance`."""
        return self.gap <= self.tolerance


def solve(
    items: Sequence[Item],
    budgets: Mapping[str, int] | Sequence[int],
    ties: Sequence[Sequence[str]] = (),
    *,
    relative: float = RELATIVE_TOLERANCE,
) -> Solution:
    """Choose one size per item.

    Args:
        items: the decisions.
        budgets: one or two upper limits on total cost, by column; a sequence is named
            'budget 1', 'budget 2'.
        ties: names of items that must get one common size.
        relative: losses closer than this times the optimal loss are treated as equal; a larger
            one saves time.

    Raises:
        Infeasible: no answer is within the budgets; names the smallest value of each that can
            be reached while the others hold.
        UsageError: malformed items, budgets or ties.

    """
    named = _named(budgets)
    _check(items, named)
    problem = prepare(items, named, ties)
    choices = problem.choices
    start = _feasible(choices, list(named))

    # Losses near one inside; a power of two, so that scaling does not round.
    largest = float(np.maximum.reduceat(np.abs(choices.losses), choices.starts[:-1]).sum())
    exponent = -math.frexp(largest)[1] if largest > 0 else 0
    scaled = replace(choices, losses=np.ldexp(choices.losses, exponent))
    found = _optimum(scaled, start, _ROUNDING * math.ldexp(largest, exponent), relative)
    sizes = {
        name: int(problem.sizes[chosen])
        for names, chosen in zip(problem.names, found.pick, strict=True)
        for name in names
    }
    loss, costs = _verified(items, sizes, named, ties)
    return Solution(
        sizes={item.name: sizes[item.name] for item in items},
        loss=loss,
        costs=costs,
        bound=min(loss, math.ldexp(found.bound, -exponent)),
        tolerance=math.ldexp(found.tolerance, -exponent),
    )


def _named(budgets: Mapping[str, int] | Sequence[int]) -> dict[str, int]:
    if not isinstance(budgets, Mapping):
        budgets = {f"budget {index + 1}": limit for index, limit in enumerate(budgets)}
    if not 1 <= len(budgets) <= 2:
        raise UsageError(f"the solver takes one or two budgets, found {len(budgets)}")
    for name, limit in budgets.items():
        if not isinstance(limit, int | np.integer) or isinstance(limit, bool):
            raise UsageError(f"{name} must be a whole number, found {limit!r}")
    return {name: int(limit) for name, limit in budgets.items()}


def _check(items: Sequence[Item], budgets: dict[str, int]) -> None:
    if not items:
        raise UsageError("nothing to choose: no items were given")
    seen: set[str] = set()
    total = 0
    for item in items:
        if item.name in seen:
            raise UsageError(f"two items are named {item.name!r}")
        seen.add(item.name)
        if item.costs.shape[1] != len(budgets):
            raise UsageError(
                f"{item.name}: {item.costs.shape[1]} cost columns for {len(budgets)} budgets"
            )
        total += int(item.costs.max())
    if total >= _LARGEST:
        raise UsageError(f"total cost {total} is too large; use a coarser unit (limit 2^53)")


def _optimum(choices: Choices, start: Ints, rounding: float, relative: float) -> Found:
    """Search; with two budgets first under each alone, since often only one of them binds."""
    single: list[Found] = []
    if len(choices.budgets) == 2:
        for column in ([0], [1]):
            relaxed = replace(
                choices, costs=choices.costs[:, column], budgets=choices.budgets[column]
            )
            found = search(relaxed, start, absolute=rounding, relative=relative)
            if (
                choices.fits(found.pick)
                and choices.loss(found.pick) - found.bound <= found.tolerance
            ):
                return found
            single.append(found)
    found = search(choices, start, absolute=rounding, relative=relative)
    # What holds without a budget holds with it.
    bounds = [found.bound, *(one.bound - one.tolerance for one in single)]
    return replace(found, bound=min(max(bounds), choices.loss(found.pick)))


def _feasible(choices: Choices, names: list[str]) -> Ints:
    """An answer within the budgets, or the reason why there is none."""
    if len(names) == 1:
        cheapest = choices.best(choices.costs[:, 0].astype(np.float64))
        if choices.fits(cheapest):
            return cheapest
        raise _infeasible(choices, names, {names[0]: int(choices.spent(cheapest)[0])})
    nearest: dict[str, int] = {}
    for column in (0, 1):
        # While the other budget holds, how small can this one get? Enough is within budget.
        found = _smallest(choices, column, enough=float(choices.budgets[column]))
        if found is None:
            continue
        if choices.fits(found.pick):
            return found.pick
        value = int(choices.spent(found.pick)[column])
        if value - found.bound >= 1:
            raise SnapfitError(
                f"could not decide whether any answer fits: the smallest {names[column]} lies "
                f"between {math.ceil(found.bound)} and {value}; raise the budget a little"
            )
        nearest[names[column]] = value
    if not nearest:
        lowest = np.minimum.reduceat(choices.costs, choices.starts[:-1]).sum(axis=0)
        nearest = {name: int(value) for name, value in zip(names, lowest, strict=True)}
    raise _infeasible(choices, names, nearest)


def _smallest(choices: Choices, column: int, *, enough: float) -> Found | None:
    """The answer of least cost in `column` within the other budget; None if that alone is lost."""
    other = 1 - column
    costs = choices.costs[:, [other]]
    # The other cost first, then this one: exact in float64, for sums stay below 2^53.
    goal = replace(
        choices,
        costs=costs,
        losses=choices.costs[:, column].astype(np.float64),
        budgets=choices.budgets[[other]],
    )
    start = goal.best(costs[:, 0].astype(np.float64))
    if not goal.fits(start):
        return None
    return search(goal, start, absolute=0.5, enough=enough)


def _infeasible(choices: Choices, names: list[str], nearest: dict[str, int]) -> Infeasible:
    asked = ", ".join(f"{name} {limit}" for name, limit in zip(names, choices.budgets, strict=True))
    reachable = " or ".join(f"{name} {value}" for name, value in nearest.items())
    return Infeasible(
        f"no choice of sizes meets {asked}; the nearest that can be met is {reachable}",
        nearest={name: float(value) for name, value in nearest.items()},
    )


def _verified(
    items: Sequence[Item],
    sizes: dict[str, int],
    budgets: dict[str, int],
    ties: Sequence[Sequence[str]],
) -> tuple[float, dict[str, int]]:
    """Recompute loss and costs from the caller's own numbers, in exact arithmetic."""
    losses = []
    costs = dict.fromkeys(budgets, 0)
    for item in items:
        (rows,) = np.nonzero(item.sizes == sizes[item.name])
        assert len(rows) == 1, f"{item.name}: size {sizes[item.name]} was not on offer"
        losses.append(float(item.losses[rows[0]]))
        for name, cost in zip(budgets, item.costs[rows[0]], strict=True):
            costs[name] += int(cost)
    for name, limit in budgets.items():
        assert costs[name] <= limit, f"{name}: {costs[name]} exceeds {limit}"
    for tie in ties:
        assert len({sizes[name] for name in tie}) <= 1, f"tie broken: {tie}"
    return math.fsum(losses), costs
