"""The CUDA device at hand, measured when it is asked, by CUDA events.

Small operators are bound by their launch from Python, and are timed with it, as a model that is run
that way has it. Clocks are noted and never set.
"""

from __future__ import annotations

import functools
import itertools
import os
import shutil
import subprocess
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from snapfit.core.candidates import AlignRule
from snapfit.core.errors import SnapfitError
from snapfit.core.operators import Operator
from snapfit.core.target import Target
from snapfit.hardware._live import LiveTimer, Samples
from snapfit.hardware._tiers import tiers_of

if TYPE_CHECKING:
    from snapfit.hardware._calls import Buffers

WARM_UP = 50
TIMED = 200
TRIALS = 3

_MEASURED = frozenset({80, 90})
_COSTS = "GAC paper, FP16 GEMM: multiples of 8 only cost 9-12% on an A100, nothing on an H100"
_ABSENT = (
    "no CUDA device is visible here; name a GPU of the tables instead, such as h100_sxm "
    "(`snapfit targets`)"
)


def names() -> tuple[str, ...]:
    """The one name of this kind."""
    return ("cuda",)


def find(name: str) -> Target | None:
    """The first visible CUDA device, its timer idle until asked. Loads no torch.

    Raises:
        SnapfitError: there is none.

    """
    if name != "cuda":
        return None
    found = _smi("name", "compute_cap")
    if len(found) != 2 or not found[1].replace(".", "").isdecimal():
        raise SnapfitError(_ABSENT)
    device, capability = found[0], int(found[1].replace(".", ""))
    borrowed = "" if capability in _MEASURED else "; this GPU was not measured: sweep it"
    rules = tuple(
        AlignRule(axis=axis, multiple=tiers_of(capability).multiple, source=_COSTS + borrowed)
        for axis in ("in", "out", "rank")
    )
    return Target(
        name="cuda",
        device=device,
        dtype="float16",
        rules=rules,
        timer=LiveTimer(device, "float16", CudaClock(device)),
        times="measured here, when asked",
        capability=capability,
    )


class CudaClock:
    """CUDA events around every call; buffers go round over twice the L2 cache."""

    def __init__(self, device: str) -> None:
        """Measure on the current device, which must be called `device`."""
        self._device = device
        self._buffers: dict[str, Buffers] = {}

    def samples(self, operator: Operator, dtype: str) -> Samples:
        """Times of single calls, all trials together.

        Raises:
            SnapfitError: memory does not suffice, or torch sees no or another device.

        """
        import torch

        from snapfit.hardware._calls import Buffers, build

        self._require_device()
        if dtype not in self._buffers:
            cache = 2 * torch.cuda.get_device_properties(0).L2_cache_size
            self._buffers = {dtype: Buffers("cuda", dtype, cache)}
        made = build(operator, self._buffers[dtype])
        with torch.inference_mode():
            following = itertools.cycle(made.calls).__next__
            event = functools.partial(torch.cuda.Event, enable_timing=True)
            milliseconds = [
                time
                for _ in range(TRIALS)
                for time in clocked(following, event, torch.cuda.synchronize)
            ]
        return Samples(
            microseconds=[time * 1e3 for time in milliseconds],
            how=f"{made.how}, {TRIALS} x {TIMED} runs, CUDA events, clocks {_clocks()}",
        )

    def software(self) -> str:
        """Versions; the clocks of each measurement are noted with it."""
        import torch

        return f"torch {torch.__version__}, CUDA {torch.version.cuda}"

    def _require_device(self) -> None:
        import torch

        if not torch.cuda.is_available():
            raise SnapfitError(f"torch {torch.__version__} sees no CUDA device; install CUDA's")
        if (found := torch.cuda.get_device_name()) != self._device:
            raise SnapfitError(
                f"torch takes the {found} first, nvidia-smi the {self._device}; set "
                "CUDA_DEVICE_ORDER=PCI_BUS_ID"
            )


def clocked(
    following: Callable[[], Callable[[], object]],
    event: Callable[[], Any],
    synchronise: Callable[[], None],
    *,
    warm_up: int = WARM_UP,
    timed: int = TIMED,
) -> list[float]:
    """Milliseconds of each of `timed` calls after `warm_up` others.

    Args:
        following: gives the next call.
        event: makes an event with `record()` and `elapsed_time(later)`.
        synchronise: waits until every event has happened.
        warm_up: calls that are not timed.
        timed: calls that are.

    """
    for _ in range(warm_up):
        following()()
    pairs = [(event(), event()) for _ in range(timed)]
    synchronise()
    for before, after in pairs:
        call = following()
        before.record()
        call()
        after.record()
    synchronise()
    return [before.elapsed_time(after) for before, after in pairs]


def _clocks() -> str:
    """Clocks of the multiprocessors and the memory at this moment."""
    return " and ".join(_smi("clocks.sm", "clocks.mem")) or "unknown"


def _smi(*fields: str) -> list[str]:
    """What nvidia-smi says of the first visible device; nothing if it is absent, fails or hangs."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0]
    query = [tool, f"--query-gpu={','.join(fields)}", "--format=csv,noheader", f"--id={first}"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, check=False, timeout=20)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [part.strip() for part in done.stdout.split(",")] if done.returncode == 0 else []
