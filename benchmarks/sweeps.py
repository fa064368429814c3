"""The sweeps of `full_stack.py`, and what their times say about multiples and cliffs.

A size whose largest power of two is p lies between two multiples of 2p, p below and p above it.
Its time over the mean of theirs says what it costs to be a multiple of p only; the median over all
such sizes, with the error of that median, says whether multiples of 2p win. This compares
neighbours only, so that neither slopes nor cliffs are taken for tiers.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from snapfit.core.operators import Attention, Elementwise, Estimate, Linear, Operator, Timer

POWERS = (1, 2, 4, 8, 16, 32)
CLIFF = 0.05
"""A jump in time is a cliff if it exceeds the growth of the size by this share, and the noise."""

SIGMAS = 2.0
LEAST = 4
"""Sizes that a verdict needs."""


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """One size that varies, all others held.

    Attributes:
        name: e.g. 'GEMM K'.
        axis: the letter of the size.
        sizes: increasing.
        operator: of a size.
        fixed: the others, in words.

    """

    name: str
    axis: str
    sizes: tuple[int, ...]
    operator: Callable[[int], Operator]
    fixed: str


@dataclass(frozen=True, kw_only=True)
class Tier:
    """What being a multiple of `power` only costs, beside multiples of twice that.

    Attributes:
        power: of two.
        cost: relative, 0.1 is 10% more time.
        noise: two standard errors of it.
        count: sizes that it is the median of.

    """

    power: int
    cost: float
    noise: float
    count: int

    @property
    def wins(self) -> bool:
        """Whether multiples of twice the power take less time by more than the noise."""
        return self.count >= LEAST and self.cost > self.noise and self.cost > 0.01


Times = Mapping[int, Estimate]
"""By size."""

Passes = list[dict[str, dict[int, Estimate]]]
"""By the name of a sweep, once a pass."""


def sweeps(*, large: bool) -> tuple[Sweep, ...]:
    """Those of the paper; `large` for a GPU, otherwise shapes that a CPU does in milliseconds."""
    m, n, k = (512, 4096, 4096) if large else (128, 576, 576)
    reach = 52 if large else 32
    batch, tokens, heads = (4, 2048, 32) if large else (1, 256, 4)
    vector = 4096 if large else 2048
    wide = 8192 if large else 2048
    squares = tuple(2**i for i in range(6, 14 if large else 11))

    def fine(first: int, last: int) -> tuple[int, ...]:
        # Half of all sizes are odd: where time is short, a quarter of these will do.
        return tuple(s for s in range(first, last + 1) if large or s % 2 == 0 or s % 4 == 1)

    def near(middle: int) -> tuple[int, ...]:
        return fine(middle - reach, middle + reach)

    def attention(d: int) -> Operator:
        return Attention(
            batch=batch, query=tokens, context=tokens, heads=heads, kv_heads=heads, head_dim=d,
            causal=False,
        )  # fmt: skip

    return (
        Sweep(
            name="SDPA", axis="d", sizes=fine(48, 160 if large else 112), operator=attention,
            fixed=f"B {batch}, S {tokens}, H {heads}",
        ),
        Sweep(
            name="GEMM K", axis="K", sizes=near(k), operator=lambda s: Linear(m=m, n=n, k=s),
            fixed=f"M {m}, N {n}",
        ),
        Sweep(
            name="GEMM N", axis="N", sizes=near(n), operator=lambda s: Linear(m=m, n=s, k=k),
            fixed=f"M {m}, K {k}",
        ),
        Sweep(
            name="GEMM M", axis="M", sizes=near(m), operator=lambda s: Linear(m=s, n=n, k=k),
            fixed=f"N {n}, K {k}",
        ),
        Sweep(
            name="GEMM N, wide", axis="N", sizes=tuple(range(wide // 16, wide + 1, wide // 64)),
            operator=lambda s: Linear(m=2 * m, n=s, k=k), fixed=f"M {2 * m}, K {k}",
        ),
        Sweep(
            name="GEMV K", axis="K", sizes=near(vector),
            operator=lambda s: Linear(m=1, n=vector, k=s), fixed=f"M 1, N {vector}",
        ),
        Sweep(
            name="GEMV N", axis="N", sizes=near(vector),
            operator=lambda s: Linear(m=1, n=s, k=vector), fixed=f"M 1, K {vector}",
        ),
        Sweep(
            name="throughput", axis="M=N=K", sizes=squares,
            operator=lambda s: Linear(m=s, n=s, k=s), fixed="",
        ),
        Sweep(
            name="bandwidth", axis="elements",
            sizes=tuple(2**i for i in range(12, 29 if large else 26)),
            operator=lambda s: Elementwise(elements=s), fixed="",
        ),
    )  # fmt: skip


def run(
    timers: Iterable[Timer],
    asked: Sequence[Sweep],
    *,
    seconds: float,
    tell: Callable[[int, int], None],
) -> Passes:
    """Times of every sweep, pass after pass, until the time is over; the first pass is finished.

    Neighbouring sizes are timed one soon after another, so that what else the machine does falls
    on both; passes go up and down in turn.

    Args:
        timers: a fresh one a pass, for timers remember.
        asked: what to time.
        seconds: no pass begins, or goes on, after these.
        tell: told after every operator how many of its pass are done.

    """
    passes: Passes = []
    total = sum(len(sweep.sizes) for sweep in asked)
    began = time.monotonic()
    for timer in timers:
        found: dict[str, dict[int, Estimate]] = {sweep.name: {} for sweep in asked}
        passes.append(found)
        step = 1 if len(passes) % 2 else -1
        done = 0
        for group in itertools.zip_longest(*(sweep.sizes[::step] for sweep in asked)):
            for sweep, size in zip(asked, group, strict=True):
                if len(passes) > 1 and time.monotonic() - began > seconds:
                    return passes
                if size is not None:
                    found[sweep.name][size] = timer.time(sweep.operator(size))
                    done += 1
                    tell(done, total)
        if time.monotonic() - began > seconds:
            break
    return passes


def best(passes: Passes, name: str) -> Times:
    """The fastest pass's median of every size: what else runs only adds.

    The spread is at least the distance to the next faster pass.
    """
    joined: dict[int, list[Estimate]] = {}
    for found in passes:
        for size, estimate in found[name].items():
            joined.setdefault(size, []).append(estimate)
    times = {}
    for size, estimates in joined.items():
        first, *rest = sorted(estimates, key=lambda estimate: estimate.microseconds)
        gap = rest[0].microseconds / first.microseconds - 1 if rest else 0.0
        times[size] = replace(first, spread=max(first.spread, gap))
    return times


def tiers(passes: Passes, name: str) -> list[Tier]:
    """What each power of two costs, from sizes that both neighbours were timed of in one pass."""
    found = []
    for power in POWERS:
        ratios: dict[int, list[float]] = {}
        for times in (one[name] for one in passes):
            for size, own in times.items():
                below, above = times.get(size - power), times.get(size + power)
                if size & -size == power and below is not None and above is not None:
                    mean = (below.microseconds + above.microseconds) / 2
                    ratios.setdefault(size, []).append(own.microseconds / mean)
        if ratios:
            each = np.array([np.median(of) for of in ratios.values()])
            middle = float(np.median(each))
            width = 1.4826 * float(np.median(np.abs(each - middle)))
            # A median's standard error is 1.2533 times that of a mean.
            noise = SIGMAS * 1.2533 * width / math.sqrt(len(each))
            found.append(Tier(power=power, cost=middle - 1, noise=noise, count=len(each)))
    return found


def wanted_multiple(found: Sequence[Tier]) -> int:
    """The smallest multiple above which no larger one wins; 1 if none does."""
    return max((2 * tier.power for tier in found if tier.wins), default=1)


@dataclass(frozen=True, kw_only=True)
class Cliff:
    """A jump between two neighbouring sizes: `rise` is the time's growth beyond the size's."""

    below: int
    above: int
    rise: float


def cliffs(times: Times, *, step: int = 1) -> list[Cliff]:
    """Jumps between neighbouring multiples of `step`, the highest first.

    What one odd size costs is a tier, not a cliff, so a sweep of tiers is read at its multiples.
    """
    sizes = sorted(size for size in times if size % step == 0)
    found = []
    for below, above in itertools.pairwise(sizes):
        a, b = times[below], times[above]
        rise = b.microseconds / a.microseconds - above / below
        if rise > max(CLIFF, SIGMAS * math.hypot(a.spread, b.spread)):
            found.append(Cliff(below=below, above=above, rise=rise))
    return sorted(found, key=lambda cliff: -cliff.rise)
