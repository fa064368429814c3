"""The operators that a forward pass is timed by, and what a timer answers.

Every target, measured or modelled, answers the same question: how long does this operator take?
Operators are plain values, equal and hashable by their sizes, so that answers can be kept.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import ClassVar, Literal, Protocol, get_args

from snapfit.core.errors import UsageError

OperatorKind = Literal["linear", "attention", "elementwise", "launch"]
Source = Literal["measured", "table", "model"]
"""Measured on the device, read from a vendor's table, or predicted by a model of it."""

MAX_SIZE = 2**40


@dataclass(frozen=True, kw_only=True)
class Linear:
    """A product with a weight matrix, y_MN = x_MK @ w_NK^T; the output layer is one too.

    Attributes:
        m: tokens.
        n: output features.
        k: input features.

    Raises:
        UsageError: a size is not a positive whole number.

    """

    m: int
    n: int
    k: int
    kind: ClassVar[OperatorKind] = "linear"

    def __post_init__(self) -> None:
        _check(self)

    @property
    def shape(self) -> tuple[int, ...]:
        """(m, n, k)."""
        return (self.m, self.n, self.k)

    @property
    def flops(self) -> int:
        """Multiplications and additions."""
        return 2 * self.m * self.n * self.k

    def bytes(self, itemsize: int) -> int:
        """Bytes read and written once each, at `itemsize` bytes an element."""
        return itemsize * (self.m * self.k + self.n * self.k + self.m * self.n)

    def __str__(self) -> str:
        return f"linear M {self.m} N {self.n} K {self.k}"


@dataclass(frozen=True, kw_only=True)
class Attention:
    """Scaled dot-product attention of new tokens over a context that includes them.

    Prefill has `query` equal to `context`, a decoding step has `query` 1. Grouped heads read
    shared keys and values.

    Attributes:
        batch: sequences.
        query: new tokens a sequence.
        context: tokens attended to, the new ones included.
        heads: query heads, a multiple of `kv_heads`.
        kv_heads: key-value heads.
        head_dim: features of a head.
        causal: whether a new token sees no later ones; without meaning where `query` is 1.

    Raises:
        UsageError: a size is not a positive whole number, or the sizes contradict one another.

    """

    batch: int
    query: int
    context: int
    heads: int
    kv_heads: int
    head_dim: int
    causal: bool = True
    kind: ClassVar[OperatorKind] = "attention"

    def __post_init__(self) -> None:
        _check(self)
        if self.query > self.context:
            raise UsageError(f"attention: context {self.context} lacks the {self.query} new tokens")
        if self.heads % self.kv_heads:
            raise UsageError(
                f"attention: {self.heads} heads cannot share {self.kv_heads} key-value heads; "
                "heads must be a multiple"
            )

    @property
    def shape(self) -> tuple[int, ...]:
        """(batch, query, context, heads, kv_heads, head_dim, causal as 0 or 1)."""
        sizes = (self.batch, self.query, self.context, self.heads, self.kv_heads, self.head_dim)
        return (*sizes, int(self.causal))

    @property
    def pairs(self) -> int:
        """Query-key pairs that are scored, of one head of one sequence."""
        hidden = self.query * (self.query - 1) // 2 if self.causal else 0
        return self.query * self.context - hidden

    @property
    def flops(self) -> int:
        """Multiplications and additions of both products; the softmax is not counted."""
        return 4 * self.batch * self.heads * self.head_dim * self.pairs

    def bytes(self, itemsize: int) -> int:
        """Queries and outputs, and keys and values once each, at `itemsize` bytes an element."""
        rows = 2 * self.heads * self.query + 2 * self.kv_heads * self.context
        return itemsize * self.batch * self.head_dim * rows

    def __str__(self) -> str:
        return (
            f"attention B {self.batch} Q {self.query} S {self.context} H {self.heads} "
            f"KV {self.kv_heads} D {self.head_dim}"
        )


@dataclass(frozen=True, kw_only=True)
class Elementwise:
    """Norms, activations, rotary embeddings and residual sums: passes over memory.

    Attributes:
        elements: elements read plus elements written, all passes together.
        ops: kernels that do it, each launched on its own; a fused kernel is one.

    Raises:
        UsageError: a size is not a positive whole number.

    """

    elements: int
    ops: int = 1
    kind: ClassVar[OperatorKind] = "elementwise"

    def __post_init__(self) -> None:
        _check(self)

    @property
    def shape(self) -> tuple[int, ...]:
        """(elements, ops)."""
        return (self.elements, self.ops)

    @property
    def flops(self) -> int:
        """One operation an element: what matters is the traffic."""
        return self.elements

    def bytes(self, itemsize: int) -> int:
        """Bytes read and written, at `itemsize` bytes an element."""
        return itemsize * self.elements

    def __str__(self) -> str:
        return f"element-wise {self.elements} elements in {self.ops} kernels"


@dataclass(frozen=True, kw_only=True)
class Launch:
    """One kernel that does nothing: the least time that any operator takes."""

    kind: ClassVar[OperatorKind] = "launch"

    @property
    def shape(self) -> tuple[int, ...]:
        """()."""
        return ()

    @property
    def flops(self) -> int:
        """None."""
        return 0

    def bytes(self, itemsize: int) -> int:  # noqa: ARG002 the operators share this signature
        """None."""
        return 0

    def __str__(self) -> str:
        return "kernel launch"


Operator = Linear | Attention | Elementwise | Launch


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """How long one operator takes.

    Attributes:
        microseconds: the median.
        spread: relative half-width: half the interquartile range over the median of what was
            measured, or the known error of a table or a model; 0.1 means plus or minus 10%.
        source: where the number comes from.
        how: in a few words, e.g. 'A100 table, M 1000 between 768 and 1024'.

    """

    microseconds: float
    spread: float
    source: Source
    how: str


class Timer(Protocol):
    """Whatever can say how long operators take on one device: a profile, tables, a model."""

    @property
    def device(self) -> str:
        """The device's name, e.g. 'h100_sxm'."""

    @property
    def dtype(self) -> str:
        """Of weights and activations, e.g. 'float16'."""

    def time(self, operator: Operator) -> Estimate:
        """The time of one operator.

        Raises:
            SnapfitError: this timer knows nothing near; names the operator and what to run.

        """


def itemsize_of(dtype: str) -> int:
    """Bytes of an activation; where weights are narrower it is in half precision."""
    return {"float32": 4, "float64": 8}.get(dtype, 2)


def operator_of(kind: str, shape: tuple[int, ...]) -> Operator:
    """The operator of a kind and a shape, as `kind` and `shape` of an operator give them.

    Raises:
        UsageError: there is no such kind, or the shape is none of its shapes.

    """
    if kind not in get_args(OperatorKind):
        raise UsageError(f"unknown operator {kind!r}; it is {', '.join(get_args(OperatorKind))}")
    lengths = {"linear": 3, "attention": 7, "elementwise": 2, "launch": 0}
    if len(shape) != lengths[kind]:
        raise UsageError(f"{kind}: a shape of {lengths[kind]} sizes is needed, found {len(shape)}")
    if kind == "linear":
        m, n, k = shape
        return Linear(m=m, n=n, k=k)
    if kind == "attention":
        batch, query, context, heads, kv_heads, head_dim, causal = shape
        if isinstance(causal, bool) or causal not in (0, 1):
            raise UsageError(f"attention: causal is 0 or 1, found {causal!r}")
        return Attention(
            batch=batch,
            query=query,
            context=context,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            causal=bool(causal),
        )
    if kind == "elementwise":
        elements, ops = shape
        return Elementwise(elements=elements, ops=ops)
    return Launch()


def _check(operator: Linear | Attention | Elementwise) -> None:
    for field in fields(operator):  # class variables are none
        name, size = field.name, getattr(operator, field.name)
        if name == "causal":
            if not isinstance(size, bool):
                raise UsageError(f"attention: causal is true or false, found {size!r}")
        elif not isinstance(size, int) or isinstance(size, bool) or not 1 <= size <= MAX_SIZE:
            raise UsageError(
                f"{operator.kind}: {name} must be a positive whole number up to 2^40, "
                f"found {size!r}"
            )
