"""Sizes under budgets that people state as shares of the dense model.

Everything that is the same for all plans of one model on one target: its rules, its times, what
each budget counts. Many plans can then be made from one set of curves, each in a fraction of a
second.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from snapfit.core.budgets import Column, column
from snapfit.core.candidates import AlignRule, legal_sizes
from snapfit.core.curve import Curve
from snapfit.core.errors import Infeasible, UsageError
from snapfit.core.knapsack import RELATIVE_TOLERANCE
from snapfit.core.latency import Stopwatch
from snapfit.core.objectives import Choice, choose
from snapfit.core.plateaus import candidates
from snapfit.core.space import Group, Space

ATTEMPTS = 5
"""Solves with a stricter limit each, where operators that groups share take longer together."""

ROUGHLY = 1e-4
"""Of the optimal loss: times are known to some per cent, so nearer is not worth the seconds."""

_FIXED = {
    "kv": "no size that this method decides changes the KV cache; use one that removes heads or "
    "layers",
}


@dataclass(frozen=True, kw_only=True)
class Planner:
    """Makes plans of one model for one target.

    Attributes:
        space: the groups that are decided.
        rules: alignment rules.
        watch: times on the target; None where it has none: then there is no latency budget, and
            every legal size is a candidate.
        of: what a budget of 'params' is a share of: 'linear' or 'model'.
        itemsize: bytes of a weight.

    """

    space: Space
    rules: tuple[AlignRule, ...] = ()
    watch: Stopwatch | None = None
    of: str = "linear"
    itemsize: int = 2
    _columns: dict[str, Column] = field(default_factory=dict, init=False, repr=False)
    _candidates: dict[str, NDArray[np.int64]] = field(default_factory=dict, init=False, repr=False)

    def column(self, name: str) -> Column:
        """What the budget `name` counts.

        Raises:
            UsageError: there is no such budget, or the target has no times.

        """
        if name not in self._columns:
            self._columns[name] = column(
                name, self.space, of=self.of, itemsize=self.itemsize, watch=self.watch
            )
        return self._columns[name]

    def choose(
        self,
        objective: str,
        shares: Mapping[str, float],
        *,
        curves: Mapping[str, Curve] | None = None,
        unaligned: Mapping[str, float] | None = None,
        scores: Mapping[str, float] | None = None,
        relative: float | None = None,
    ) -> Choice:
        """Choose sizes; see `snapfit.core.objectives.choose`.

        Args:
            objective: one of `OBJECTIVES`.
            shares: what is to be kept, of one or two budgets, the one to repair first first.
            curves: loss curves, for 'curve'.
            unaligned: the method's own sizes, for the others.
            scores: worth of a parameter.
            relative: how far from optimal the answer may be; None for `ROUGHLY` under a budget of
                latency, and next to nothing under others.

        Raises:
            Infeasible: says, as shares, what can be met.
            UsageError: a budget that no size can change, or what the objective needs is missing.

        """
        columns = {name: self.column(name) for name in shares}
        limits = {name: columns[name].limit(share) for name, share in shares.items()}
        for name, limit in limits.items():
            self._check_changes(columns[name], limit)
        if relative is None:
            relative = ROUGHLY if "latency" in shares else RELATIVE_TOLERANCE
        stricter = 0
        for _ in range(ATTEMPTS):
            try:
                choice = choose(
                    objective,
                    self.space,
                    budgets=limits,
                    tables={name: found.table for name, found in columns.items()},
                    rules=self.rules,
                    edges=self._edges if self.watch is not None else None,
                    curves=curves,
                    unaligned=unaligned,
                    scores=scores,
                    relative=relative,
                )
            except Infeasible as error:
                raise self._unmet(error.nearest, shares, stricter) from error
            excess = self._excess(choice.sizes, shares)
            if excess <= 0:
                return choice
            # Groups that share an operator were each timed alone: be that much stricter.
            limits["latency"] -= excess
            stricter += excess
        raise self._missed(shares, excess)

    def candidates(self, group: Group) -> NDArray[np.int64]:
        """Sizes that a group may have on the target: legal, and right edges where times are known.

        Raises:
            UsageError: the rules contradict one another.

        """
        return self._edges(group, legal_sizes(group, self.rules))

    def _edges(self, group: Group, sizes: NDArray[np.int64]) -> NDArray[np.int64]:
        if self.watch is None:
            return sizes
        if group.name not in self._candidates:
            self._candidates[group.name] = candidates(self.watch, group, sizes)
        return self._candidates[group.name]

    def _excess(self, sizes: Mapping[str, int], shares: Mapping[str, float]) -> int:
        """Nanoseconds by which the whole model exceeds its latency budget."""
        if "latency" not in shares or self.watch is None:
            return 0
        limit = shares["latency"] * self.column("latency").dense
        return math.ceil(1000 * self.watch.latency(sizes).microseconds - limit)

    def _check_changes(self, found: Column, limit: int) -> None:
        ends = [
            found.table(group, np.array([group.least, group.full], dtype=np.int64))
            for group in self.space.groups
        ]
        full = sum(int(end[1]) for end in ends)
        if limit < full and all(end[0] == end[1] for end in ends):
            text = _FIXED.get(found.name, "no size that this method decides changes it")
            raise UsageError(f"--budget {found.name} cannot be met: {text}")

    def _missed(self, shares: Mapping[str, float], excess: int) -> Infeasible:
        """The error where even the last attempt takes `excess` nanoseconds too long."""
        return Infeasible(
            f"no choice of sizes was found that keeps latency={shares['latency']:g}; ask for less",
            nearest={"latency": shares["latency"] + excess / self.column("latency").dense},
        )

    def _unmet(
        self, costs: Mapping[str, float], shares: Mapping[str, float], stricter: int
    ) -> Infeasible:
        """The error where no choice is within the limits.

        Args:
            costs: the nearest that can be met, as the groups' own costs.
            shares: what was asked.
            stricter: nanoseconds by which the limit of time is below what was asked.

        """
        extra = {"latency": stricter}
        nearest = {
            name: self.column(name).share(cost + extra.get(name, 0)) for name, cost in costs.items()
        }
        asked = ", ".join(f"{name}={share:g}" for name, share in shares.items())
        # Rounded up: the share that is printed can be met.
        told = {name: math.ceil(share * 1e4) / 1e4 for name, share in nearest.items()}
        reachable = " or ".join(f"{name}={share:g}" for name, share in told.items())
        advice = "ask for less, or align to a smaller multiple"
        if self.watch is not None and told.get("latency", 0.0) >= 1:
            # Two small products take longer to launch than one takes to run.
            advice = (
                f"for {self.watch.workload} no size that may be chosen is faster than dense on "
                f"{self.watch.timer.device}; more tokens, or a method that removes channels, heads "
                "or layers, may be"
            )
        return Infeasible(
            f"no choice of legal sizes keeps within {asked} of the dense model; the nearest that "
            f"can be met is {reachable}; {advice}",
            nearest=told,
        )
