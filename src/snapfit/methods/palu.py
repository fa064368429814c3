"""`palu`: key and value projections, a group of heads at a time (arXiv 2407.21118)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from snapfit.core.errors import SnapfitError, UsageError
from snapfit.core.space import Group, Matrix, Space
from snapfit.methods._lowrank import LowRank, by_output_error
from snapfit.methods.base import Allocation, Segments, Stats
from snapfit.nn.ordered import Ordered

BISECTIONS = 60


@dataclass(frozen=True, kw_only=True)
class Compressor(LowRank):
    """`svd-llm` whitening of key and value heads, ranks shared out by Fisher information.

    The release rounds the ranks to multiples of 32; here they stay as the shares give them, and
    aligning is the planner's work. Query, output and MLP weights are not touched.

    Settings:
        heads: key/value heads that share one factor pair (the release uses 4).
    """

    heads: int = 4

    needs = frozenset({"second_moment", "fisher_root"})
    unit = "output error"

    def __post_init__(self) -> None:
        if self.heads < 1:
            raise UsageError(f"palu: heads must be at least 1, found {self.heads}")

    def restrict(self, space: Space, segments: Segments) -> Space:
        """One group per `heads` neighbouring key or value heads."""
        groups = [
            replace(
                group,
                name=f"{group.name}#{role}:{start}-{stop}",
                role=role,
                full=min(stop - start, group.matrices[0].cols),
                matrices=(
                    Matrix(
                        name=group.name,
                        axis="rank",
                        rows=stop - start,
                        cols=group.matrices[0].cols,
                        start=start,
                    ),
                ),
            )
            for group in space.of_kind("rank").groups
            for role, start, stop in self._blocks(segments.get(group.name, ()))
        ]
        if not groups:
            raise SnapfitError(
                f"palu factors key and value heads, and {space.architecture!r} has none that "
                "snapfit can find; use kfac or svd-llm"
            )
        return replace(space, groups=tuple(groups), ties=())

    def _blocks(self, segments: tuple[tuple[str, int, int], ...]) -> list[tuple[str, int, int]]:
        """Runs of up to `heads` adjacent heads of one role, as (role, first row, last row + 1)."""
        blocks: list[tuple[str, int, int]] = []
        size = 0
        for role, start, stop in segments:
            adjoins = bool(blocks) and blocks[-1][0] == role and blocks[-1][2] == start
            if adjoins and size < self.heads:
                blocks[-1] = (role, blocks[-1][1], stop)
                size += 1
            else:
                blocks.append((role, start, stop))
                size = 1
        return [block for block in blocks if block[0] in {"k", "v"}]

    def order(self, group: Group, weight_MN: Tensor, stats: Stats) -> Ordered:
        """Components of the head group by the output error that they explain."""
        return by_output_error(group, weight_MN, stats, self.unit)

    def summarise(self, group: Group, weight_MN: Tensor, stats: Stats) -> Mapping[str, float]:  # noqa: ARG002
        """Mean square root of the Fisher information of the weights, as in the release."""
        return {"fisher_root": float(stats["fisher_root"].double().mean())}

    def allocate(self, request: Allocation) -> Mapping[str, float]:
        """Ranks proportional to Fisher information, capped, scaled until the budget is met."""
        shares = {n: max(s["fisher_root"], 1e-300) for n, s in request.summaries.items()}
        largest = max(shares.values())
        low, high = 0.0, max(group.full for group in request.space.groups) * 1e6
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            ranks = {g.name: _capped(g, middle * shares[g.name] / largest) for g in _all(request)}
            if sum(_cost(g, ranks[g.name]) for g in _all(request)) > request.budget:
                high = middle
            else:
                low = middle
        return {g.name: _capped(g, low * shares[g.name] / largest) for g in _all(request)}


def _all(request: Allocation) -> tuple[Group, ...]:
    return request.space.groups


def _capped(group: Group, rank: float) -> float:
    return float(group.full) if rank > group.break_even else max(rank, 1.0)


def _cost(group: Group, rank: float) -> float:
    if rank >= group.full:
        return float(group.dense_params)
    return rank * sum(matrix.rows + matrix.cols for matrix in group.matrices)
