"""GPUs whose alignment tiers were measured and published: rules only, no timings.

Half-precision products with M 512 and the other dimension 4096, PyTorch 2.9.1 and CUDA 12.8, as
recovered from the figures of the GAC paper (EuroMLSys '26). Time relative to a multiple of 16:

    swept dimension    odd    multiple of 2 or 4    of 8     of 16 and up
    A100, K or N       x3.1   x1.6                  x1.09-12  1
    H100, K or N       x3.4   x2.1                  x1        1

So an A100 wants multiples of 16 and an H100 of 8; larger multiples gain at most 3%. A rank is the
N of the first factor and the K of the second, so it is bound on both sides.
"""

from __future__ import annotations

from snapfit.core.candidates import AlignRule
from snapfit.core.profile import Profile

_SOFTWARE = "PyTorch 2.9.1, CUDA 12.8"
_MULTIPLES = {
    "a100_sxm": (16, "GAC paper, A100 FP16 GEMM: multiples of 8 only cost 9-12%, odd sizes x3"),
    "h100_sxm": (8, "GAC paper, H100 FP16 GEMM: multiples of 8 are free, of 2 or 4 cost x2.1"),
}


def names() -> tuple[str, ...]:
    """The GPUs of the table."""
    return tuple(_MULTIPLES)


def find(name: str) -> Profile | None:
    """The rules of one of them."""
    if name not in _MULTIPLES:
        return None
    multiple, source = _MULTIPLES[name]
    rules = tuple(
        AlignRule(axis=axis, multiple=multiple, source=source, measured=False)
        for axis in ("in", "out", "rank")
    )
    return Profile(device=name, software=_SOFTWARE, dtype="float16", rules=rules)
