"""Sets of choices of which none is worse than another in every respect, and how they combine.

A `Front` holds choices of sizes for a few groups at once, with what each costs and loses. Two
fronts of different groups merge by adding every choice of one to every choice of the other and
dropping what is dominated (a min-plus product): exact, since a dominated part is in no better
whole, whatever the rest of the model is given.

Legend: K choices, G groups, J costs.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from snapfit.core.knapsack_states import undominated

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

MOST = 20_000
"""Choices of one front above which nearly equal ones are dropped, and the difference is kept."""

_CHUNK = 512


@dataclass(frozen=True, kw_only=True, eq=False)
class Front:
    """Choices of sizes for some groups.

    Attributes:
        names: (G,) of the groups.
        sizes_KG: the size of each group under each choice.
        costs_KJ: whole numbers, one column a budget.
        losses_K: predicted loss.
        slack: by how much the loss of a whole plan can at most be worse for choices that were
            dropped although nothing dominated them; 0 unless there were more than `MOST`.

    """

    names: tuple[str, ...]
    sizes_KG: Ints
    costs_KJ: Ints
    losses_K: Floats
    slack: float = 0.0

    def __len__(self) -> int:
        return len(self.losses_K)

    def take(self, rows: Ints | NDArray[np.bool_]) -> Front:
        """Some of the choices."""
        return replace(
            self,
            sizes_KG=self.sizes_KG[rows],
            costs_KJ=self.costs_KJ[rows],
            losses_K=self.losses_K[rows],
        )

    def shifted(self, costs_J: Ints) -> Front:
        """The same choices, each costing `costs_J` more."""
        return replace(self, costs_KJ=self.costs_KJ + costs_J)


def single(name: str, sizes_K: Ints, costs_KJ: Ints, losses_K: Floats) -> Front:
    """The choices of one group, without those that another dominates."""
    front = Front(names=(name,), sizes_KG=sizes_K[:, None], costs_KJ=costs_KJ, losses_K=losses_K)
    return thinned(front)


def thinned(front: Front, *, most: int = MOST) -> Front:
    """Without dominated choices; of more than `most`, nearly equal ones are dropped too."""
    rows, slack = _kept(front.costs_KJ, front.losses_K, most)
    return replace(front.take(rows), slack=front.slack + slack)


def merged(one: Front, other: Front, *, most: int = MOST) -> Front:
    """Both decided at once: costs and losses add up."""
    count = len(other)
    costs_KJ = (one.costs_KJ[:, None] + other.costs_KJ).reshape(-1, one.costs_KJ.shape[1])
    losses_K = (one.losses_K[:, None] + other.losses_K).reshape(-1)
    rows, slack = _kept(costs_KJ, losses_K, most)
    return Front(
        names=(*one.names, *other.names),
        sizes_KG=np.concatenate([one.sizes_KG[rows // count], other.sizes_KG[rows % count]], 1),
        costs_KJ=costs_KJ[rows],
        losses_K=losses_K[rows],
        slack=one.slack + other.slack + slack,
    )


def either(fronts: Sequence[Front], idle: Mapping[str, int], *, most: int = MOST) -> Front:
    """One of several ways to decide about the same weights.

    Args:
        fronts: the ways; a group that a way does not name stays at its idle size.
        idle: of every group that any way names.
        most: as for `thinned`.

    """
    names = tuple(idle)
    blocks = []
    for front in fronts:
        block = np.tile(np.array([idle[name] for name in names], dtype=np.int64), (len(front), 1))
        block[:, [names.index(name) for name in front.names]] = front.sizes_KG
        blocks.append(block)
    union = Front(
        names=names,
        sizes_KG=np.concatenate(blocks),
        costs_KJ=np.concatenate([front.costs_KJ for front in fronts]),
        losses_K=np.concatenate([front.losses_K for front in fronts]),
        # Only one way is taken.
        slack=max(front.slack for front in fronts),
    )
    return thinned(union, most=most)


def _kept(costs_KJ: Ints, losses_K: Floats, most: int) -> tuple[Ints, float]:
    """Rows to keep, cheapest first, and what leaving out the others may cost at most."""
    rows = _undominated(costs_KJ, losses_K, 0.0)
    if len(rows) <= most:
        return rows, 0.0
    spread = float(np.ptp(losses_K[rows]))
    slack = 1e-6 * spread
    while True:
        left = rows[_undominated(costs_KJ[rows], losses_K[rows], slack)]
        # With several costs, even choices of one loss may be many.
        if len(left) <= most or slack >= spread:
            return left, slack
        slack *= 2


def _undominated(costs_KJ: Ints, losses_K: Floats, slack: float) -> Ints:
    """Rows, by cost, to which none that is kept is equal or better in all costs and the loss.

    With `slack`, a loss that is larger by no more than that counts as equal.
    """
    if costs_KJ.shape[1] == 2 and slack == 0:
        return _undominated_by_two(costs_KJ, losses_K)
    order = np.lexsort((losses_K, *costs_KJ.T[::-1]))
    if costs_KJ.shape[1] > 1:
        return _undominated_by_several(costs_KJ, losses_K, order, slack)
    losses = losses_K[order]
    if slack == 0:
        before = np.minimum.accumulate(losses)
        keep = np.append(True, losses[1:] < before[:-1])
        return np.asarray(order[keep], dtype=np.int64)
    kept, least = [], np.inf
    for row, loss in zip(order.tolist(), losses.tolist(), strict=True):
        if loss < least - slack:
            kept.append(row)
            least = loss
    return np.array(kept, dtype=np.int64)


def _undominated_by_two(costs_KJ: Ints, losses_K: Floats) -> Ints:
    """As `_undominated` without slack: a sweep by loss over a staircase of costs."""
    rows = undominated(costs_KJ, losses_K)  # drops nearly all that is dominated, at once
    rows = rows[np.lexsort((rows, *costs_KJ[rows].T[::-1], losses_K[rows]))]
    # The cheapest rows so far: the first cost rises, the second falls.
    firsts: list[int] = []
    seconds: list[int] = []
    kept: list[int] = []
    for row, (first, second) in zip(rows.tolist(), costs_KJ[rows].tolist(), strict=True):
        below = bisect_right(firsts, first)
        if below and seconds[below - 1] <= second:
            continue
        start = stop = bisect_left(firsts, first)
        while stop < len(seconds) and seconds[stop] >= second:
            stop += 1
        firsts[start:stop], seconds[start:stop] = [first], [second]
        kept.append(row)
    left = np.array(kept, dtype=np.int64)
    return left[np.lexsort(costs_KJ[left].T[::-1])]


def _undominated_by_several(costs_KJ: Ints, losses_K: Floats, order: Ints, slack: float) -> Ints:
    """As `_undominated`, a chunk at a time: first against all that is kept, then among itself."""
    kept = np.empty(0, dtype=np.int64)
    for start in range(0, len(order), _CHUNK):
        chunk = order[start : start + _CHUNK]
        chunk = chunk[~_beaten(costs_KJ, losses_K, kept, chunk, slack)]
        fresh: list[int] = []
        for row in chunk.tolist():
            rivals = np.array(fresh, dtype=np.int64)
            if not _beaten(costs_KJ, losses_K, rivals, np.array([row]), slack)[0]:
                fresh.append(row)
        kept = np.append(kept, np.array(fresh, dtype=np.int64))
    return kept


def _beaten(
    costs_KJ: Ints, losses_K: Floats, by: Ints, rows: Ints, slack: float
) -> NDArray[np.bool_]:
    """Which of `rows` cost and lose at least as much as one of `by`."""
    cheaper = np.all(costs_KJ[by][:, None] <= costs_KJ[rows], axis=2)
    better = losses_K[by][:, None] <= losses_K[rows] + slack
    return np.asarray((cheaper & better).any(axis=0))
