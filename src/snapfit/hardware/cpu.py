"""The CPU at hand, measured when it is asked; every size is legal and the budget decides.

Measured with oneDNN and MKL on an AVX-512 machine: a misaligned dimension costs 0 to 10% in
float32, and 0 to 15% in bfloat16 where N is just over a multiple of 32. No multiple wins.
"""

from __future__ import annotations

import itertools
import platform
import time
import timeit
from pathlib import Path
from typing import TYPE_CHECKING

from snapfit.core.candidates import AlignRule
from snapfit.core.operators import Operator
from snapfit.core.target import Target
from snapfit.hardware._live import LiveTimer, Samples

if TYPE_CHECKING:
    from snapfit.hardware._calls import Buffers

_SOURCE = "AVX-512, oneDNN/MKL: misalignment costs 0-10% (float32), 0-15% (bfloat16)"

CACHE = 1 << 28
"""Bytes of weights that a product goes round over. Measured here: a product of one token with a
1536 x 576 matrix takes 140 us over 16 MB, and 300 us over 256 MB, 512 MB and 1 GB alike."""

LEAST_SECONDS = 0.1
MOST_SECONDS = 0.6
STEADY = 0.04
"""Repeating ends when the interquartile range is this share of the median."""


def names() -> tuple[str, ...]:
    """The one name of this kind."""
    return ("cpu",)


def find(name: str) -> Target | None:
    """The CPU, its timer idle until asked."""
    if name != "cpu":
        return None
    rule = AlignRule(axis="rank", multiple=1, source=_SOURCE, measured=True)
    return Target(
        name="cpu",
        device="cpu",
        dtype="float32",
        rules=(rule,),
        timer=LiveTimer("cpu", "float32", CpuClock()),
        software="oneDNN, MKL",
        times="measured here, when asked",
    )


class CpuClock:
    """`torch.utils.benchmark`, in blocks of runs, until they agree."""

    def __init__(
        self,
        cache: int = CACHE,
        *,
        least: float = LEAST_SECONDS,
        most: float = MOST_SECONDS,
    ) -> None:
        """Go round over `cache` bytes of weights; they are allocated when first needed.

        Every operator is timed for `least` seconds, and at `most` until the runs agree.
        """
        self._cache = cache
        self._least, self._most = least, most
        self._buffers: dict[str, Buffers] = {}

    def samples(self, operator: Operator, dtype: str) -> Samples:
        """Block means of the operator's calls, on as many threads as torch uses now.

        On one thread it is the time that the processor spends, which is that of the clock on the
        wall unless other programs run; these would lengthen a long call and spare a short one.

        Raises:
            SnapfitError: memory does not suffice.

        """
        import torch
        from torch.utils.benchmark import Timer

        from snapfit.hardware._calls import Buffers, build

        if dtype not in self._buffers:
            self._buffers = {dtype: Buffers("cpu", dtype, self._cache)}
        made = build(operator, self._buffers[dtype])
        with torch.inference_mode():
            following = itertools.cycle(made.calls).__next__
            threads = torch.get_num_threads()
            timer = Timer(
                "following()()",
                globals={"following": following},
                num_threads=threads,
                timer=time.process_time if threads == 1 else timeit.default_timer,
            )
            measured = timer.adaptive_autorange(
                STEADY, min_run_time=self._least, max_run_time=self._most
            )
        how = f"{made.how}, {len(measured.times)} blocks of {measured.number_per_run}"
        return Samples(
            microseconds=[seconds * 1e6 for seconds in measured.times],
            how=f"{how}, {threads} thread{'s' * (threads > 1)}",
        )

    def software(self) -> str:
        """Torch's version, instruction set and threads, and the processor."""
        import torch

        capability = torch.backends.cpu.get_cpu_capability()
        return (
            f"torch {torch.__version__}, {capability}, {torch.get_num_threads()} threads, "
            f"{_processor()}"
        )


def _processor() -> str:
    """The processor's name as Linux tells it, or what Python knows of it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    found = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return found[0] if found else platform.machine()
