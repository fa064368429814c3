"""CPUs: alignment hardly matters there, so every size is legal and the budget decides.

Measured with oneDNN and MKL on an AVX-512 machine: a misaligned dimension costs 0 to 10% in
float32, and 0 to 15% in bfloat16 where N is just over a multiple of 32. No multiple wins.
"""

from __future__ import annotations

from snapfit.core.candidates import AlignRule
from snapfit.core.profile import Profile

_SOURCE = "AVX-512, oneDNN/MKL: misalignment costs 0-10% (float32), 0-15% (bfloat16)"


def names() -> tuple[str, ...]:
    """The one name of this kind."""
    return ("cpu",)


def find(name: str) -> Profile | None:
    """The profile of 'cpu'."""
    if name != "cpu":
        return None
    rule = AlignRule(axis="rank", multiple=1, source=_SOURCE, measured=True)
    return Profile(device="cpu", software="oneDNN, MKL", dtype="float32", rules=(rule,))
