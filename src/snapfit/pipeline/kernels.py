"""Which kernels a device runs for an operator: watched by torch's profiler, not assumed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from snapfit.core.errors import SnapfitError
from snapfit.core.operators import Operator
from snapfit.hardware._calls import Buffers, build


def kernel_names(operator: Operator, *, device: str, dtype: str) -> tuple[str, ...]:
    """Names of the kernels of one operator, the longest-running first.

    Args:
        operator: what to run.
        device: 'cuda'; 'cpu' names torch's own operators instead, for it has no kernels.
        dtype: of every buffer.

    Raises:
        SnapfitError: there is no such device, or the operator does not fit into its memory.

    """
    if device == "cuda" and not torch.cuda.is_available():
        raise SnapfitError("no CUDA device is visible to torch here, so no kernel can be named")
    call = build(operator, Buffers(device, dtype, cache=1)).calls[0]
    with torch.inference_mode():
        call()  # the first call chooses a kernel, and may try several
        events = _watched(call, device)
    spent: dict[str, float] = {}
    for event in events:
        on_device = str(event.device_type).endswith("CUDA")
        if on_device == (device == "cuda"):
            time = event.self_device_time_total if on_device else event.self_cpu_time_total
            spent[event.key] = spent.get(event.key, 0.0) + time
    return tuple(sorted((name for name in spent if spent[name] > 0), key=lambda name: -spent[name]))


def _watched(call: Callable[[], object], device: str) -> Any:
    """Averages by name of everything that ran during a call."""
    activities = [ProfilerActivity.CPU]
    if device == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities) as watched:
        call()
        if device == "cuda":
            torch.cuda.synchronize()
    return watched.key_averages()
