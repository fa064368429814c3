"""What a choice of sizes costs: parameters, bytes, FLOPs a token, KV-cache bytes a token.

Everything is counted, nothing is measured; times come from a hardware profile.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from snapfit.core.space import Group, Space


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


@dataclass(frozen=True, kw_only=True)
class CostModel:
    """Costs of a whole model at given sizes.

    Attributes:
        space: what may change; groups that `sizes` does not name stay dense.
        dtype_bytes: bytes of one stored parameter and of one KV-cache element.

    """

    space: Space
    dtype_bytes: int = 2

    def params(self, sizes: dict[str, int]) -> int:
        """Parameters of the whole model, embeddings included, tied weights counted once."""
        return self.space.total_params - self.space.dense_params + self.space.params(sizes)

    def weight_bytes(self, sizes: dict[str, int]) -> int:
        """Bytes of all weights."""
        return self.params(sizes) * self.dtype_bytes

    def flops_per_token(self, sizes: dict[str, int], *, context: int = 0) -> int:
        """Floating-point operations of the compressible matrices for one token.

        A weight is one multiplication and one addition, so this is 2 x parameters: embeddings
        are looked up and the head is not compressible, so neither is counted; in a mixture of
        experts all experts are counted, as if every one were used. With `context` > 0 attention
        over that many cached tokens is added: the KV elements a token, each read once for a
        score or a sum (grouped query heads re-read them, so this is a lower bound).
        """
        return 2 * self.space.params(sizes) + 2 * self.space.kv_elements * context

    def kv_bytes_per_token(self) -> int:
        """Bytes the KV cache grows by a token; low rank does not change what is cached."""
        return self.space.kv_elements * self.dtype_bytes
