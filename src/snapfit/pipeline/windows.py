"""Which calibration windows a measurement reads, where all of them would take too long.

Shape suffixes: B windows, T tokens of a window.
"""

from __future__ import annotations

import torch
from torch import Tensor

from snapfit.pipeline.job import Job


def windows_of(job: Job, count: int, length: int) -> tuple[Tensor, Tensor]:
    """(ids, mask) of the first tokens of windows spread over all calibration windows."""
    tokens = job.tokens
    step = max(1, len(tokens.ids_BT) // count)
    ids_BT = tokens.ids_BT[::step][:count, :length]
    if tokens.mask_BT is None:
        return ids_BT, torch.ones_like(ids_BT, dtype=torch.bool)
    mask_BT = tokens.mask_BT[::step][:count, :length]
    if mask_BT.any():
        return ids_BT, mask_BT
    # Where only generated tokens count, they may come late in a window.
    return tokens.ids_BT[::step][:count], tokens.mask_BT[::step][:count]


def first_windows(job: Job, count: int) -> tuple[Tensor, Tensor | None]:
    """(ids, mask) of the first windows with a token that counts and can be predicted."""
    ids_BT, mask_BT = job.tokens.ids_BT, job.tokens.mask_BT
    if mask_BT is None:
        return ids_BT[:count], None
    read_B = mask_BT[:, 1:].any(dim=1)
    return ids_BT[read_B][:count], mask_BT[read_B][:count]
