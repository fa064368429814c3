"""Whole passes of models, and the operators that they are made of, timed in the same rounds.

Used by `cpu_prediction.py`: on a shared machine, what is timed minutes apart does not compare.
Everything is in processor time of the process, on one thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from snapfit.checkpoint.load import load
from snapfit.core.interpolate import Timing
from snapfit.core.operators import Operator
from snapfit.core.profile import Profile
from snapfit.hardware._live import Samples
from snapfit.hardware.cpu import CpuClock


def pass_of(folder: Path, tokens: int) -> Callable[[], None]:
    """One prefill of a checkpoint, as `generate` asks for it: a cache, and the last logits."""
    loaded = load(folder, dtype=torch.float32)
    ids_BT = torch.arange(1000, 1000 + tokens).unsqueeze(0)

    def run() -> None:
        with torch.inference_mode():
            loaded(ids_BT, use_cache=True, logits_to_keep=1)

    return run


class SideBySide:
    """Passes and operators, each in turn in every round, in an order that rotates."""

    def __init__(
        self, passes: Mapping[str, Callable[[], None]], operators: Sequence[Operator]
    ) -> None:
        """Time nothing yet."""
        self._passes, self._operators = passes, operators
        self._clock = CpuClock(least=0.02, most=0.03)
        self.milliseconds: dict[str, list[float]] = {name: [] for name in passes}
        self.microseconds: dict[Operator, list[float]] = {op: [] for op in operators}

    def round(self, number: int, *, keep: bool) -> None:
        """One pass of every model and a few calls of every operator."""
        names = list(self._passes)
        turn = number % len(names)
        share = -(-len(self._operators) // len(names))
        for place, name in enumerate(names[turn:] + names[:turn]):
            start = time.process_time()
            self._passes[name]()
            if keep:
                self.milliseconds[name].append(1e3 * (time.process_time() - start))
            for operator in self._operators[place * share : (place + 1) * share]:
                found = self._clock.samples(operator, "float32").estimate()
                if keep:
                    self.microseconds[operator].append(found.microseconds)

    def profile(self, like: Profile) -> Profile:
        """The medians of the operators' times."""
        timings = []
        for operator, times in self.microseconds.items():
            found = Samples(microseconds=times, how=f"{len(times)} rounds").estimate()
            timings.append(Timing.of(operator, found))
        return replace(like, timings=tuple(timings))
