"""Operators as calls of torch, ready to be timed on a device.

A model reads every weight once a pass, so a benchmark that repeats one product would find its
weights in a cache that the model never has warm. Here the calls of one operator go round over
copies of its weights, or of its keys and values, that together exceed the cache. What was just
written stays in the cache of a GPU. On a CPU it has left the innermost caches, for weights went
through them: inputs and outputs of products, and what element-wise passes read and write, go round
over `ACTIVATIONS` there. With everything in the inner caches, element-wise passes took a third of
the time that they take in a model, and products 8% less.

Letters: M tokens, N output and K input features; B sequences, Q new tokens, S tokens of context,
H query heads, G key-value heads, D features of a head; E elements.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from snapfit.core.errors import SnapfitError
from snapfit.core.operators import Attention, Elementwise, Linear, Operator

MOST_COPIES = 1 << 14
ACTIVATIONS = 1 << 25
"""Bytes that activations on a CPU go round over: more than its inner caches hold."""
ALIGNED = 64
"""Copies begin at multiples of this many elements, as parameters do."""

_FUSED = "_scaled_dot_product_"

Call = Callable[[], object]


@dataclass(frozen=True, kw_only=True)
class Calls:
    """One operator on one device.

    Attributes:
        calls: do the same to different buffers; to be called in turn, round and round.
        how: what is called, in a few words.

    """

    calls: Sequence[Call]
    how: str


class Buffers:
    """Where the operators of one device and data type find their numbers.

    One pool, larger than the cache, is filled once and cut into copies for every operator: filling
    takes longer than most measurements.
    """

    def __init__(self, device: str, dtype: str, cache: int) -> None:
        """Fill a pool of `cache` bytes.

        Args:
            device: 'cpu' or 'cuda'.
            dtype: a name of torch.
            cache: bytes that the copies of weights together must exceed.

        """
        self._device = torch.device(device)
        self._dtype: torch.dtype = getattr(torch, dtype)
        self._pool = self.fresh(max(1, cache // self._dtype.itemsize))
        self._flat: dict[str, torch.Tensor] = {}

    def fresh(self, *shape: int) -> torch.Tensor:
        """A new buffer of ordinary numbers; never untouched pages, which would all be one."""
        # A short random block repeated: much faster than that many random numbers.
        length = math.prod(shape)
        block = torch.randn(min(length, 1 << 16), device=self._device) / 8
        repeated = block.to(self._dtype).repeat(math.ceil(length / len(block)))
        return repeated[:length].view(shape)

    def copies(self, *shape: int) -> list[torch.Tensor]:
        """Buffers of one shape that together fill the pool; two or more."""
        length = math.prod(shape)
        stride = -(-length // ALIGNED) * ALIGNED
        count = min(len(self._pool) // stride, MOST_COPIES)
        if count < 2:
            return [self.fresh(*shape), self.fresh(*shape)]
        return [self._pool[i * stride : i * stride + length].view(shape) for i in range(count)]

    @property
    def device(self) -> torch.device:
        """Where the buffers are."""
        return self._device

    def inputs(self, *shape: int) -> list[torch.Tensor]:
        """Activations of one shape to read: one, or on a CPU half of `ACTIVATIONS` together."""
        return self._activations("read", *shape)

    def outputs(self, *shape: int) -> list[torch.Tensor]:
        """Activations of one shape to write; they share no memory with those to read."""
        return self._activations("written", *shape)

    def _activations(self, use: str, *shape: int) -> list[torch.Tensor]:
        length = math.prod(shape)
        stride = -(-length // ALIGNED) * ALIGNED
        size = min(len(self._pool), ACTIVATIONS // 2 // self._dtype.itemsize)
        count = min(size // stride, MOST_COPIES)
        if self._device.type != "cpu" or count < 2:
            return [self.fresh(*shape)]
        if use not in self._flat:
            self._flat[use] = self.fresh(size)
        flat = self._flat[use][: count * stride].view(count, stride)
        return [row[:length].view(shape) for row in flat]


def build(operator: Operator, buffers: Buffers) -> Calls:
    """Allocate what an operator needs and say how to call it.

    A GPU is called once: what a product writes is allocated there by the call.

    Raises:
        SnapfitError: the device has too little memory for the shape.

    """
    try:
        with torch.inference_mode(mode=False), torch.no_grad():
            made = _build(operator, buffers)
            if buffers.device.type != "cpu":
                made.calls[0]()
            return made
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "memory" not in str(error):
            raise
        raise SnapfitError(f"there is too little memory here to time {operator}") from error


def _build(operator: Operator, buffers: Buffers) -> Calls:
    if isinstance(operator, Linear):
        return _linear(operator, buffers)
    if isinstance(operator, Attention):
        return _attention(operator, buffers)
    if isinstance(operator, Elementwise):
        return _elementwise(operator, buffers)
    x_E = buffers.fresh(1)
    return Calls(calls=(lambda: x_E + 1,), how="one element + 1")


def _linear(operator: Linear, buffers: Buffers) -> Calls:
    weights = buffers.copies(operator.n, operator.k)
    how = f"torch linear, {len(weights)} weights"
    if buffers.device.type == "cpu":
        inputs = buffers.inputs(operator.m, operator.k)
        outputs = buffers.outputs(operator.m, operator.n)
        around = zip(weights, itertools.cycle(inputs), itertools.cycle(outputs))
        return Calls(calls=[_product(*each) for each in around], how=how)
    x_MK = buffers.fresh(operator.m, operator.k)

    def bind(w_NK: torch.Tensor) -> Call:
        return lambda: functional.linear(x_MK, w_NK)

    return Calls(calls=[bind(w_NK) for w_NK in weights], how=how)


def _product(w_NK: torch.Tensor, x_MK: torch.Tensor, y_MN: torch.Tensor) -> Call:
    """What a linear layer calls on a CPU, into memory that is there already."""
    w_KN = w_NK.t()
    return lambda: torch.mm(x_MK, w_KN, out=y_MN)


def _attention(operator: Attention, buffers: Buffers) -> Calls:
    # Heads are taken out of the features of a token, as projections leave them.
    features = (operator.batch, operator.query, operator.heads, operator.head_dim)
    q_BHQD = buffers.fresh(*features).transpose(1, 2)
    # Keys and values of one pass lie in one copy, one after the other.
    cached = (2, operator.batch, operator.context, operator.kv_heads, operator.head_dim)
    causal = operator.causal and operator.query > 1

    def bind(kv_2BSGD: torch.Tensor) -> Call:
        k_BGSD, v_BGSD = kv_2BSGD.transpose(2, 3)
        return lambda: functional.scaled_dot_product_attention(
            q_BHQD,
            k_BGSD,
            v_BGSD,
            is_causal=causal,
            enable_gqa=operator.heads > operator.kv_heads,
        )

    calls = [bind(kv_2BSGD) for kv_2BSGD in buffers.copies(*cached)]
    return Calls(calls=calls, how=f"torch SDPA, {attention_backend(calls[0])} backend")


def _elementwise(operator: Elementwise, buffers: Buffers) -> Calls:
    # As much is written as is read, by every kernel.
    length = max(1, operator.elements // (2 * operator.ops))
    pairs = list(zip(buffers.inputs(length), buffers.outputs(length), strict=True))
    following = itertools.cycle(pairs).__next__

    def call() -> None:
        for _ in range(operator.ops):
            x_E, y_E = following()
            torch.mul(x_E, 1.5, out=y_E)

    return Calls(calls=(call,), how=f"{operator.ops} x torch mul, {len(pairs)} buffers")


def attention_backend(call: Call) -> str:
    """Which implementation torch takes for a call of its attention: watched, not assumed.

    Returns:
        'flash', 'efficient', 'cudnn', ... as torch names its fused operators, 'math' where it took
        none but a softmax of its own, 'unknown' where nothing could be seen.

    """
    # In inference mode, or on its tensors, torch would make the choice out of sight.
    watch = _Watch()
    with torch.inference_mode(mode=False), torch.no_grad(), watch:
        call()
    fused = [name.partition(_FUSED)[2] for name in watch.names if _FUSED in name]
    if fused:
        return fused[0].partition("_attention")[0]
    return "math" if any("softmax" in name for name in watch.names) else "unknown"


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Names of the operators that run inside."""

    names: list[str]

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names = []

    def __torch_dispatch__(
        self,
        func: Callable[..., object],
        types: Sequence[type],
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        """Note the operator and run it."""
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))
