"""GPUs whose alignment tiers were measured and published: rules only, no timings.

The tiers are those of `_tiers`: an A100 wants multiples of 16 and an H100 of 8; larger multiples
gain at most 3%. A rank is the N of the first factor and the K of the second, so it is bound on
both sides. Where NVIDIA's tables are installed, 'silicon' adds the times.
"""

from __future__ import annotations

from snapfit.core.target import Target
from snapfit.hardware._tiers import MEASURED

_SOFTWARE = "PyTorch 2.9.1, CUDA 12.8"
_CAPABILITIES = {"a100_sxm": 80, "h100_sxm": 90}


def names() -> tuple[str, ...]:
    """The GPUs of the table."""
    return tuple(MEASURED)


def find(name: str) -> Target | None:
    """The rules of one of them."""
    if name not in MEASURED:
        return None
    return Target(
        name=name,
        device=name,
        dtype="float16",
        rules=MEASURED[name].rules(name),
        software=_SOFTWARE,
        capability=_CAPABILITIES[name],
    )
