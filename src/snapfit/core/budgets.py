"""Budgets: what is to be kept of the dense model, and what every size costs of it.

    latency=0.8             the workload takes at most 0.8 of the time that it takes now
    params=0.8,kv=0.5       two at once

Shares are of the whole model, except that `params` follows `--of`: of the linear layers that the
method may touch, or of the model.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from snapfit.core.cost import group_kv, group_params
from snapfit.core.errors import UsageError
from snapfit.core.latency import Stopwatch
from snapfit.core.names import unknown_name
from snapfit.core.space import Group, Space

BUDGETS = ("params", "bytes", "kv", "latency")
"""Parameters, bytes of the weights, bytes of the KV cache a token, time of the workload."""

Table: TypeAlias = Callable[[Group, NDArray[np.int64]], NDArray[np.int64]]
"""What a group costs at each of the given sizes: (k,) whole numbers."""


def parse_budgets(text: str) -> dict[str, float]:
    """Read `what=share`, one or two separated by a comma.

    Raises:
        UsageError: says which one is wrong, and what is allowed.

    """
    budgets: dict[str, float] = {}
    for part in text.split(","):
        name, equals, value = part.strip().partition("=")
        if not equals:
            raise UsageError(f"{part!r} is no budget; one looks like latency=0.8")
        if name not in BUDGETS:
            raise unknown_name("budget", name, BUDGETS)
        if name in budgets:
            raise UsageError(f"the budget {name} is given twice")
        try:
            share = float(value)
        except ValueError:
            share = math.nan
        if not 0 < share <= 1:
            raise UsageError(
                f"a budget is the share of the dense model to keep, above 0 and at most 1; "
                f"found {part.strip()!r}"
            )
        budgets[name] = share
    if len(budgets) > 2:
        raise UsageError(f"give one budget, or two at once; found {', '.join(budgets)}")
    return budgets


@dataclass(frozen=True, kw_only=True)
class Column:
    """The costs that one budget counts.

    Attributes:
        name: one of `BUDGETS`.
        table: what every group costs.
        dense: what the share is of, in whole units.
        outside: the part of `dense` that no group decides.
        unit: of the numbers.

    """

    name: str
    table: Table
    dense: int
    outside: int
    unit: str

    def limit(self, share: float) -> int:
        """The most that the groups may cost together, for `share` of dense; may be negative."""
        # 0.8 x 1000 is 800, not 799: forgive the last digits of a share.
        return math.floor(share * self.dense * (1 + 1e-12)) - self.outside

    def share(self, cost: float) -> float:
        """What the groups' `cost`, with what is outside, is of dense."""
        return (cost + self.outside) / self.dense


def column(
    name: str,
    space: Space,
    *,
    of: str = "linear",
    itemsize: int = 2,
    watch: Stopwatch | None = None,
) -> Column:
    """The column of a budget.

    Args:
        name: one of `BUDGETS`.
        space: the groups that are decided.
        of: what `params` is a share of: 'linear', the groups, or 'model'.
        itemsize: bytes of a weight and of an element of the KV cache.
        watch: for 'latency'.

    Raises:
        UsageError: there is no such budget, or the target has no times.

    """
    if name == "params":
        whole = space.dense_params if of == "linear" else space.total_params
        return Column(
            name=name,
            table=group_params,
            dense=whole,
            outside=whole - space.dense_params,
            unit="parameters",
        )
    if name == "bytes":
        return Column(
            name=name,
            table=lambda group, sizes: group_params(group, sizes) * itemsize,
            dense=space.total_params * itemsize,
            outside=(space.total_params - space.dense_params) * itemsize,
            unit="bytes",
        )
    if name == "kv":
        total = space.kv_elements

        def cached(group: Group, sizes: NDArray[np.int64]) -> NDArray[np.int64]:
            return group_kv(group, sizes, total) * itemsize

        return _rest(name, cached, space, total * itemsize, "bytes a token")
    if name != "latency":
        raise unknown_name("budget", name, BUDGETS)
    if watch is None:
        raise UsageError(
            "a latency budget needs a target that knows times: --target a100_sxm or a "
            "saved profile (see snapfit targets)"
        )
    dense = math.ceil(1000 * watch.latency({}).microseconds)
    return _rest(name, watch.table, space, dense, "ns")


def _rest(name: str, table: Table, space: Space, dense: int, unit: str) -> Column:
    full = sum(int(table(g, np.array([g.full], dtype=np.int64))[0]) for g in space.groups)
    return Column(name=name, table=table, dense=dense, outside=dense - full, unit=unit)
