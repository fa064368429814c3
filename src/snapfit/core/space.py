"""What of a model can be made smaller: matrices, groups that change together, and the space.

A `Group` is one decision of a plan: one integer size up to `full`. For a group of kind
'rank' the sizes below `full` are ranks of a factor pair and `full` itself means "leave the matrix
dense", because a pair is smaller than the dense matrix only below the break-even rank
mn / (m + n), and dense is always a choice.

Everything here is plain data: no tensors, no model, readable from `space.json`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from snapfit.core.errors import CorruptFile

Axis = Literal["in", "out", "rank", "whole"]
"""What a group's size counts of a matrix; 'whole': matrices are there or not, as experts are."""

Kind = Literal["rank", "width", "kv_heads", "experts", "depth"]


@dataclass(frozen=True, kw_only=True)
class Matrix:
    """One weight matrix of shape (rows = out features, cols = in features), or a block of its rows.

    In a group of `full` units, unit i of an 'out' matrix is its rows i * rows / full up to
    (i + 1) * rows / full, counted from `start`; of an 'in' matrix, the same of its columns.

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

    @property
    def features(self) -> int:
        """Features along the axis that the group's size selects on."""
        return self.cols if self.axis == "in" else self.rows


@dataclass(frozen=True, kw_only=True)
class Vector:
    """A parameter that is cut along with a group's units, such as a norm over all heads.

    Biases of 'out' matrices follow their rows and are not listed.

    Attributes:
        name: qualified parameter name.
        length: entries; unit i of `full` owns entries i * length / full and on.

    """

    name: str
    length: int


@dataclass(frozen=True, kw_only=True)
class Group:
    """Weights whose size is decided together.

    Attributes:
        name: unique in the space; the module's name for a single-matrix group.
        kind: what the size counts: ranks, MLP channels, key-value heads with the query heads that
            read them, experts, or layers.
        matrices: the matrices that change together.
        full: the size that leaves the group as it is.
        role: q, k, v, o, qkv, gate, up, gate_up, down, mlp, attention, experts, depth, or 'other';
            for 'depth', 'mlp' or 'attention' where only these go from a layer.
        layer: index of the decoder layer; 0 for 'depth'.
        least: the smallest size; 0 where the whole part may be removed from its layer.
        vectors: parameters that are cut along.
        steps: for 'depth': parameters of the kept layers' matrices at every size 0..full.

    """

    name: str
    kind: Kind
    matrices: tuple[Matrix, ...]
    full: int
    role: str
    layer: int
    least: int = 1
    vectors: tuple[Vector, ...] = ()
    steps: tuple[int, ...] = ()

    @property
    def dense_params(self) -> int:
        """Parameters of the group's matrices, uncompressed (biases are not counted)."""
        return sum(matrix.rows * matrix.cols for matrix in self.matrices)

    def params(self, size: int) -> int:
        """Parameters of the group's matrices at `size`.

        Raises:
            ValueError: `size` is outside least..full (a caller's mistake, not a user's).

        """
        if not self.least <= size <= self.full:
            raise ValueError(f"{self.name}: size {size} is outside {self.least}..{self.full}")
        if size == self.full:
            return self.dense_params
        if self.kind == "rank":
            return sum(size * (matrix.rows + matrix.cols) for matrix in self.matrices)
        if self.steps:
            return self.steps[size]
        return self.dense_params * size // self.full

    @property
    def break_even(self) -> int:
        """The largest size that is strictly smaller than dense, for ranks and everything else."""
        if self.kind != "rank":
            return self.full - 1
        pair = sum(matrix.rows + matrix.cols for matrix in self.matrices)
        return min((self.dense_params - 1) // pair, self.full - 1)


@dataclass(frozen=True, kw_only=True)
class Frame:
    """What of a model a plan does not change: enough to count its operators.

    Attributes:
        hidden: features of the residual stream.
        vocab: rows of the output layer.
        layers: decoder layers.
        heads: query heads a layer.
        kv_heads: key-value heads a layer.
        head_dim: features of a head.
        norms: norms over the residual stream a layer (query and key norms are not counted).
        tied: whether the output layer is the embedding table.
        experts_per_token: experts that compute a token; 0 without a mixture of experts.

    """

    hidden: int
    vocab: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    norms: int = 2
    tied: bool = False
    experts_per_token: int = 0


@dataclass(frozen=True, kw_only=True)
class Space:
    """Everything a plan may decide about one model.

    Groups of different kinds may cover the same weights: a method restricts the space to the ones
    that it decides, and only such a restricted space has meaningful totals.

    Attributes:
        model: the model as the user named it (a path or a hub name).
        revision: digest of the weights, so that a plan is never applied to other weights.
        architecture: `model_type` of the configuration.
        groups: in layer order, kind by kind.
        ties: tuples of group names that must get one common size.
        total_params: parameters of the whole model, embeddings included, ties counted once.
        kv_elements: elements of the KV cache a token, over all layers.
        frame: what no plan changes; None for a space that was made by hand.

    """

    model: str
    revision: str
    architecture: str
    groups: tuple[Group, ...]
    ties: tuple[tuple[str, ...], ...] = ()
    total_params: int
    kv_elements: int
    frame: Frame | None = None

    @property
    def dense_params(self) -> int:
        """Parameters of all groups, uncompressed: the base of `--of linear`."""
        return sum(group.dense_params for group in self.groups)

    def params(self, sizes: dict[str, int]) -> int:
        """Parameters of all groups at `sizes`; groups that are not named stay dense."""
        return sum(group.params(sizes.get(group.name, group.full)) for group in self.groups)

    def counted(self, sizes: Mapping[str, int]) -> tuple[Group, ...]:  # noqa: ARG002
        """Groups that together are the weights at `sizes`, each weight once: all of them."""
        return self.groups

    def of_kind(self, *kinds: Kind) -> Space:
        """The space with the groups of these kinds only, and no ties."""
        return replace(self, groups=tuple(g for g in self.groups if g.kind in kinds), ties=())

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
            groups = tuple(_group(group) for group in data["groups"])
            ties = tuple(tuple(tie) for tie in data["ties"])
            frame = data["frame"]
            return cls(
                **{
                    **data,
                    "groups": groups,
                    "ties": ties,
                    "frame": None if frame is None else Frame(**frame),
                }
            )
        except (KeyError, TypeError) as error:
            raise CorruptFile(f"not a snapfit space: {error}; delete the work folder") from error


def _group(data: dict[str, Any]) -> Group:
    matrices = tuple(Matrix(**matrix) for matrix in data["matrices"])
    vectors = tuple(Vector(**vector) for vector in data["vectors"])
    return Group(
        **{**data, "matrices": matrices, "vectors": vectors, "steps": tuple(data["steps"])}
    )
