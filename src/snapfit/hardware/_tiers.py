"""Kernel tiers: what a dimension that is no multiple of 8 or 16 elements costs, as published.

Half-precision products with M 512 and the other dimension 4096, PyTorch 2.9.1 and CUDA 12.8, as
recovered from the figures of the GAC paper (EuroMLSys '26). Time relative to a multiple of 16:

    swept dimension    odd    multiple of 2 or 4    of 8    of 16 and up
    A100, K            x3.0   x1.6                  x1.12   1
    A100, N            x3.1   x1.7                  x1.09   1
    H100, K or N       x3.4   x2.1                  x1.0    1

On A100 the aligned tier is a cuBLAS kernel, the next a CUTLASS kernel that loads two elements at a
time, the last one that loads one, with a weaker multiply. M has no tier. A product with a
vector is bound by traffic: there K that is no multiple of 8 costs 12%, such an N 4%.

Other GPUs borrow the tier of the one whose kernels theirs descend from, and say so.
"""

from __future__ import annotations

from dataclasses import dataclass

from snapfit.core.candidates import AlignRule, RuleAxis

STREAM_IN, STREAM_OUT = 1.12, 1.04
"""What traffic costs more where K, or N, is no multiple of 8 (A100, M 1)."""


@dataclass(frozen=True, kw_only=True)
class Tiers:
    """Times relative to a multiple of 16.

    Attributes:
        gpu: the GPU that was measured.
        inner: of K: odd, multiple of 2 only, multiple of 8 only.
        outer: of N, likewise.
        multiple: the smallest multiple that costs nothing.
        launch: share of the launch in the measured time of a multiple of 16, which no tier slows.

    """

    gpu: str
    inner: tuple[float, float, float]
    outer: tuple[float, float, float]
    multiple: int
    launch: float

    def factor(self, n: int, k: int) -> float:
        """What the arithmetic costs; the worse of both dimensions decides on the kernel."""
        slower = max(_step(self.inner, k), _step(self.outer, n))
        return (slower - self.launch) / (1 - self.launch)

    def rules(self, name: str) -> tuple[AlignRule, ...]:
        """What the GPU called `name` wants of K, of N, and so of ranks."""
        borrowed = "" if name == self.gpu else f" (borrowed: {name} was not measured)"
        axes: tuple[tuple[RuleAxis, tuple[float, float, float]], ...] = (
            ("in", self.inner),
            ("out", self.outer),
            ("rank", _worse(self.inner, self.outer)),
        )
        found = []
        for axis, (odd, two, eight) in axes:
            cost = f"odd sizes cost x{odd}, multiples of 2 or 4 x{two}, of 8 x{eight}"
            found.append(
                AlignRule(
                    axis=axis,
                    multiple=self.multiple,
                    source=f"GAC paper, {_LABELS[self.gpu]} FP16 GEMM: {cost}{borrowed}",
                    measured=False,
                    penalty=eight if self.multiple > 8 else two,
                )
            )
        return tuple(found)

    def steps(self, name: str) -> tuple[AlignRule, ...]:
        """What each multiple of K and of N costs the GPU called `name`: a rule a tier.

        A profile needs them: it answers for sizes between those that it times.
        """
        label = _LABELS[self.gpu]
        borrowed = "" if label in name.upper() else f" (borrowed: {name} was not measured)"
        axes: tuple[tuple[RuleAxis, tuple[float, float, float]], ...] = (
            ("in", self.inner),
            ("out", self.outer),
        )
        return tuple(
            AlignRule(
                axis=axis,
                multiple=multiple,
                source=f"GAC paper, {label} FP16 GEMM: {sizes} cost x{cost}{borrowed}",
                penalty=cost,
            )
            for axis, costs in axes
            for (multiple, sizes), cost in zip(_TIERS.items(), reversed(costs), strict=True)
            if cost > 1
        )


_TIERS = {16: "multiples of 8 only", 8: "multiples of 2 or 4 only", 2: "odd sizes"}
"""The multiple that is broken, and by which sizes."""

# 3.6 us of 98, and 2.5 of 50.
A100 = Tiers(
    gpu="a100_sxm", inner=(3.0, 1.6, 1.12), outer=(3.1, 1.7, 1.09), multiple=16, launch=0.037
)
H100 = Tiers(gpu="h100_sxm", inner=(3.4, 2.1, 1.0), outer=(3.4, 2.1, 1.0), multiple=8, launch=0.05)
_LABELS = {"a100_sxm": "A100", "h100_sxm": "H100"}

MEASURED = {tiers.gpu: tiers for tiers in (A100, H100)}


def tiers_of(capability: int) -> Tiers:
    """The tiers of a compute capability, 10 x major + minor.

    Hopper and the data-centre Blackwells fetch tiles by a copy engine that takes multiples of 16
    bytes; Ampere, Ada and the workstation Blackwells share Ampere's kind of kernel.
    """
    return H100 if 90 <= capability < 120 else A100


def tier_name(size: int) -> str:
    """In words, e.g. 'multiple of 2 only'."""
    if size % 16 == 0:
        return "multiple of 16"
    if size % 8 == 0:
        return "multiple of 8 only"
    return "multiple of 2 only" if size % 2 == 0 else "odd"


def _worse(
    first: tuple[float, float, float], second: tuple[float, float, float]
) -> tuple[float, float, float]:
    odd, two, eight = map(max, first, second)
    return odd, two, eight


def _step(steps: tuple[float, float, float], size: int) -> float:
    odd, two, eight = steps
    if size % 16 == 0:
        return 1.0
    if size % 8 == 0:
        return eight
    return two if size % 2 == 0 else odd
