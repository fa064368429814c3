"""Why an operator is slow at its size, by layer of the stack: framework, library, hardware.

Facts, 2-byte weights on A100 and H100 (PyTorch 2.9.1, CUDA 12.8), as recovered from the figures
of the GAC paper (EuroMLSys '26):

    framework  attention with a head of d features, d no multiple of 8, pads and copies: +26..41%.
               FlashAttention-2 has kernels for 64, 96, 128, 160, 192, 224 and 256 features; the
               next larger one runs: 64 -> 72 costs +36..46%.
    library    a product whose N or K is odd runs an align-1 kernel (x3.0-3.4), of 2 or 4 an align-2
               kernel (x1.6-2.1), from 8 on the full one. M, the tokens, has no such tiers.
    hardware   rows of a multiple of 8 only start off 32-byte sectors: x1.09-1.12 on A100. Tiles of
               the output run in waves over the multiprocessors: a wave is paid for whole.
               A product of one token is bound by bytes: K no multiple of 8 costs +12%.

Tiers follow from the bytes that one instruction loads, so other widths of numbers scale with them.
On a CPU none of this holds, and only a measured difference is reported.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from snapfit.core.operators import Attention, Estimate, Linear, Operator

StackLayer = Literal["framework", "library", "hardware"]

TEMPLATES = (64, 96, 128, 160, 192, 224, 256)
"""Features of a head that FlashAttention-2 has kernels for."""

PAPER = "GAC paper, A100 and H100 FP16"
_VECTOR_BYTES = 16
_SECTOR_BYTES = 32


@dataclass(frozen=True, kw_only=True)
class Cause:
    """One reason.

    Attributes:
        layer: of the stack.
        short: in a word or two, e.g. 'align-1'.
        text: in a sentence.
        source: where that is known from.

    """

    layer: StackLayer
    short: str
    text: str
    source: str


def tier(operator: Operator) -> int | None:
    """The alignment tier: 1, 2, 8 or 16, of the worse of a product's N and K, or of a head.

    None for element-wise operators.
    """
    if isinstance(operator, Linear):
        return min(_tier(operator.n), _tier(operator.k))
    if isinstance(operator, Attention):
        return _tier(operator.head_dim)
    return None


def gpu_causes(operator: Operator, *, itemsize: int, suited: bool) -> tuple[Cause, ...]:
    """Causes that follow from an operator's sizes on a GPU.

    Args:
        operator: as it is.
        itemsize: bytes of a weight.
        suited: whether the target's rules hold for it: then only what no rule sees is reported.

    """
    if isinstance(operator, Attention):
        return _attention_causes(operator)
    if not isinstance(operator, Linear) or suited:
        return ()
    name, size = min(
        (("N", operator.n), ("K", operator.k)), key=lambda side: (_tier(side[1]), side[0] != "K")
    )
    vector, sector = _VECTOR_BYTES // itemsize, _SECTOR_BYTES // itemsize
    if size % vector and operator.m == 1:
        cause = Cause(
            layer="hardware",
            short="sectors",
            text=f"reading the weights is the work, and rows with {name} {size} start off "
            f"{_VECTOR_BYTES}-byte boundaries",
            source=PAPER,
        )
    elif size % vector:
        step = 1 if size % 2 else 2
        loads = "one element" if step == 1 else "two elements"
        cause = Cause(
            layer="library",
            short=f"align-{step} kernel",
            text=f"{name} {size} is {'odd' if step == 1 else f'no multiple of {vector}'}: the "
            f"kernel loads {loads} at a time (align-{step})",
            source=PAPER,
        )
    elif size % sector:
        cause = Cause(
            layer="hardware",
            short="sectors",
            text=f"rows with {name} {size} start off {_SECTOR_BYTES}-byte sectors",
            source=PAPER,
        )
    else:
        return ()
    return (cause,)


def measured_cause(operator: Operator, now: Estimate, good: Estimate) -> Cause:
    """A difference that was found and has no rule: the way it is on a CPU."""
    return Cause(
        layer="library",
        short="remainder",
        text=f"{operator} takes {now.microseconds / good.microseconds:.2f} x the time of the "
        "nearest suited shape: what is left over of vectors and tiles",
        source=f"times: {now.source}, {good.source}",
    )


def wave_cause(axis: str, size: int, edge: int, saved: float) -> Cause:
    """A smaller size takes out of proportion less time: a wave, or a row of tiles, less.

    Args:
        axis: 'N' or 'K', or what else the size counts.
        size: as it is.
        edge: the smaller size.
        saved: share of the operator's time.

    """
    return Cause(
        layer="hardware",
        short="wave of tiles",
        text=f"{axis} {size} begins a wave of tiles that {edge} does not need: "
        f"{1 - edge / size:.1%} less size, {saved:.1%} less time",
        source="times of the target at both sizes",
    )


def _tier(size: int) -> int:
    return next(step for step in (16, 8, 2, 1) if size % step == 0)


def _attention_causes(operator: Attention) -> tuple[Cause, ...]:
    size = operator.head_dim
    causes = []
    padded = -(-size // 8) * 8
    if size != padded:
        causes.append(
            Cause(
                layer="framework",
                short="padded heads",
                text=f"SDPA pads heads of {size} features to {padded} and copies queries, keys "
                "and values",
                source=PAPER,
            )
        )
    template = next((step for step in TEMPLATES if padded <= step), None)
    if template is not None and size > TEMPLATES[0] and padded != template:
        causes.append(
            Cause(
                layer="framework",
                short=f"template {template}",
                text=f"FlashAttention-2, where SDPA takes it, runs its kernel for {template} "
                f"features on heads of {size}",
                source=PAPER,
            )
        )
    return tuple(causes)
