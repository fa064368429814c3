"""What a choice of sizes costs: parameters, bytes, FLOPs a token, KV-cache bytes a token, time.

All but the time is counted; what operators take is up to a target's timer.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from snapfit.core.forward import dense_modules, expert_counts, expert_holder
from snapfit.core.latency import Latency, Stopwatch
from snapfit.core.operators import Timer
from snapfit.core.space import Group, Space
from snapfit.core.workload import Workload


def group_params(group: Group, sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Parameters of `group` at each of `sizes`, (k,) int64; the full size is the dense matrix.

    The vectorised `Group.params`, for sizes that are already known to be in range.
    """
    if group.steps:
        return np.array(group.steps, dtype=np.int64)[sizes]
    if group.kind != "rank":
        return np.asarray(group.dense_params * sizes // group.full, dtype=np.int64)
    unit = sum(matrix.rows + matrix.cols for matrix in group.matrices)
    return np.where(sizes == group.full, group.dense_params, sizes * unit).astype(np.int64)


def group_kv(group: Group, sizes: NDArray[np.int64], kv_elements: int) -> NDArray[np.int64]:
    """Elements that one token adds to the KV cache and the group decides, (k,) int64.

    Only heads and layers decide any: low rank does not change what is cached, nor do MLPs that
    are removed alone.

    Args:
        group: of any kind; of the kind 'depth', its role says what of the layers goes.
        sizes: (k,) in range.
        kv_elements: of the whole model.

    """
    if group.kind == "depth" and group.role != "mlp":
        return np.asarray(kv_elements * sizes // group.full, dtype=np.int64)
    if group.kind != "kv_heads":
        return np.zeros(len(sizes), dtype=np.int64)
    # Queries, keys and values, fused or not, less the queries: the output reads as many features.
    cached = sum(
        matrix.features if matrix.axis == "out" else -matrix.features for matrix in group.matrices
    )
    return np.asarray(cached * sizes // group.full, dtype=np.int64)


@dataclass(frozen=True, kw_only=True)
class CostModel:
    """Costs of a whole model at given sizes.

    Attributes:
        space: what may change; groups that `sizes` does not name stay dense.
        dtype_bytes: bytes of one stored parameter and of one KV-cache element.
        whole: the unrestricted space, for what a restricted one leaves out; by default `space`.

    """

    space: Space
    dtype_bytes: int = 2
    whole: Space | None = None

    def params(self, sizes: dict[str, int]) -> int:
        """Parameters of the whole model, embeddings included, tied weights counted once."""
        return self.space.total_params - self.space.dense_params + self.space.params(sizes)

    def weight_bytes(self, sizes: dict[str, int]) -> int:
        """Bytes of all weights."""
        return self.params(sizes) * self.dtype_bytes

    def flops_per_token(self, sizes: dict[str, int], *, context: int = 0) -> int:
        """Floating-point operations of the compressible matrices for one token.

        A weight is one multiplication and one addition, so this is 2 x parameters: embeddings
        are looked up and the head is not compressible, so neither is counted. Of a mixture of
        experts, the matrices of as many experts count as compute one token, and all experts are
        taken to be used equally often. With `context` > 0 attention over that many cached tokens
        is added: the KV elements a token, each read once for a score or a sum (grouped query
        heads re-read them, so this is a lower bound).
        """
        shares = self._shares_used()
        used = 0.0
        for group in self.space.counted(sizes):
            size = sizes.get(group.name, group.full)
            share = shares.get(group.name, 1.0)
            if group.kind == "experts":
                share = min(1.0, share * group.full / max(1, size))
            used += group.params(size) * share
        return 2 * round(used) + 2 * self._kv_elements(sizes) * context

    def kv_bytes_per_token(self, sizes: dict[str, int] | None = None) -> int:
        """Bytes the KV cache grows by a token: less with fewer heads or layers, never with rank."""
        return self._kv_elements(sizes or {}) * self.dtype_bytes

    def latency(
        self, sizes: dict[str, int], timer: Timer, workload: Workload, *, shards: int = 1
    ) -> Latency:
        """The time of the workload; `Stopwatch` answers many such questions faster.

        Raises:
            SnapfitError: the timer knows nothing near one of the operators, or the space has no
                frame.

        """
        whole = self.space if self.whole is None else self.whole
        watch = Stopwatch(
            whole=whole, groups=self.space.groups, timer=timer, workload=workload, shards=shards
        )
        return watch.latency(sizes)

    def _kv_elements(self, sizes: dict[str, int]) -> int:
        total = self.space.kv_elements
        for group in self.space.groups:
            ends = np.array([sizes.get(group.name, group.full), group.full], dtype=np.int64)
            left, full = group_kv(group, ends, self.space.kv_elements).tolist()
            total -= full - left
        return max(0, total)

    def _shares_used(self) -> dict[str, float]:
        """Share of each group's matrices that one token goes through, where that is not all."""
        whole = self.space if self.whole is None else self.whole
        frame = whole.frame
        if frame is None or not frame.experts_per_token:
            return {}
        counts = expert_counts(dense_modules(whole), frame)
        shares = {}
        for group in self.space.groups:
            holder = expert_holder(group.matrices[0].name) if group.matrices else None
            if group.kind != "depth" and holder in counts:
                shares[group.name] = min(1.0, frame.experts_per_token / counts[holder][1])
        return shares
