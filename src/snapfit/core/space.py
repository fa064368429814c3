"""What of a model can be made smaller: matrices, groups that change together, and the space.

A `Group` is one decision of a plan: one integer size between 1 and `full`. For a group of kind
'rank' the sizes below `full` are ranks of a factor pair and `full` itself means "leave the matrix
dense", because a pair is smaller than the dense matrix only below the break-even rank
mn / (m + n), and dense is always a choice.

Everything here is plain data: no tensors, no model, readable from `space.json`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from snapfit.core.errors import CorruptFile

Axis = Literal["in", "out", "rank"]
Kind = Literal["rank", "width", "kv_heads", "head_dim", "experts", "depth"]


@dataclass(frozen=True, kw_only=True)
class Matrix:
    """One weight matrix of shape (rows = out features, cols = in features).

    Attributes:
        name: qualified module name, e.g. 'model.layers.0.self_attn.q_proj'.
        axis: the axis that the group's size selects on: 'rank' for factor pairs.
        rows: output features (of the block, when the matrix is a row block).
        cols: input features.
        start: first output row, when only a block of rows of the module is meant.

    """

    name: str
    axis: Axis
    rows: int
    cols: int
    start: int = 0


@dataclass(frozen=True, kw_only=True)
class Group:
    """Weights whose size is decided together.

    Attributes:
        name: unique in the space; the module's name for a single-matrix group.
        kind: what the size counts.
        matrices: the matrices that change together.
        full: the size that leaves the group as it is.
        role: q, k, v, o, qkv, gate, up, gate_up, down, or 'other'.
        layer: index of the decoder layer.

    """

    name: str
    kind: Kind
    matrices: tuple[Matrix, ...]
    full: int
    role: str
    layer: int

    @property
    def dense_params(self) -> int:
        """Parameters of the group's matrices, uncompressed (biases are not counted)."""
        return sum(matrix.rows * matrix.cols for matrix in self.matrices)

    def params(self, size: int) -> int:
        """Parameters of the group's matrices at `size`.

        Raises:
            ValueError: `size` is outside 1..full (a caller's mistake, not a user's).

        """
        if not 1 <= size <= self.full:
            raise ValueError(f"{self.name}: size {size} is outside 1..{self.full}")
        if size == self.full:
            return self.dense_params
        if self.kind == "rank":
            return sum(size * (matrix.rows + matrix.cols) for matrix in self.matrices)
        raise ValueError(f"{self.name}: groups of kind {self.kind!r} have no cost model yet")

    @property
    def break_even(self) -> int:
        """The largest rank whose factor pair is strictly smaller than the dense matrix."""
        pair = sum(matrix.rows + matrix.cols for matrix in self.matrices)
        return min((self.dense_params - 1) // pair, self.full - 1)


@dataclass(frozen=True, kw_only=True)
class Space:
    """Everything a plan may decide about one model.

    Attributes:
        model: the model as the user named it (a path or a hub name).
        revision: digest of the weights, so that a plan is never applied to other weights.
        architecture: `model_type` of the configuration.
        groups: in layer order.
        ties: tuples of group names that must get one common size.
        total_params: parameters of the whole model, embeddings included, ties counted once.
        kv_elements: elements of the KV cache a token, over all layers.

    """

    model: str
    revision: str
    architecture: str
    groups: tuple[Group, ...]
    ties: tuple[tuple[str, ...], ...] = ()
    total_params: int
    kv_elements: int

    @property
    def dense_params(self) -> int:
        """Parameters of all groups, uncompressed: the base of `--of linear`."""
        return sum(group.dense_params for group in self.groups)

    def params(self, sizes: dict[str, int]) -> int:
        """Parameters of all groups at `sizes`; groups that are not named stay dense."""
        return sum(group.params(sizes.get(group.name, group.full)) for group in self.groups)

    def to_json(self) -> dict[str, Any]:
        """A JSON-serialisable dictionary; `from_json` is its inverse."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Space:
        """Rebuild a space.

        Raises:
            CorruptFile: a field is missing or has the wrong type.

        """
        try:
            groups = tuple(
                Group(**{**group, "matrices": tuple(Matrix(**m) for m in group["matrices"])})
                for group in data["groups"]
            )
            ties = tuple(tuple(tie) for tie in data["ties"])
            return cls(**{**data, "groups": groups, "ties": ties})
        except (KeyError, TypeError) as error:
            raise CorruptFile(f"not a snapfit space: {error}; delete the work folder") from error
