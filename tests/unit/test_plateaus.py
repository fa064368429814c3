"""Right edges: what is worth having of a staircase."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from timers import WaveTimer, llama

from snapfit.core.latency import Stopwatch
from snapfit.core.plateaus import candidates, right_edges
from snapfit.core.workload import Workload

times_of = st.lists(st.integers(0, 50), min_size=1, max_size=40).map(
    lambda values: np.array(values, dtype=np.int64)
)


def test_a_staircase() -> None:
    times = np.array([5, 5, 5, 7, 7, 6, 9, 9])
    assert right_edges(times).tolist() == [2, 5, 7]


def test_nothing_beats_a_full_size_that_is_fastest() -> None:
    assert right_edges(np.array([9, 8, 7, 3])).tolist() == [3]


@given(times_of)
def test_no_candidate_is_as_slow_as_a_larger_size(times: np.ndarray) -> None:
    edges = right_edges(times)
    assert edges[-1] == len(times) - 1
    assert np.all(np.diff(times[edges]) > 0)
    for index in range(len(times)):
        beaten = bool(np.any(times[index + 1 :] <= times[index]))
        assert (index in edges) != beaten


@given(st.integers(0, 2**32 - 1))
def test_noise_makes_no_steps_on_a_plateau(seed: int) -> None:
    rng = np.random.default_rng(seed)
    spread = 0.02
    true = np.repeat([10_000, 14_000, 20_000], 30)
    seen = np.round(true * (1 + spread * rng.uniform(-0.7, 0.7, len(true)))).astype(np.int64)
    edges = right_edges(seen, np.full(len(true), spread))
    # A step a plateau, each at its right edge.
    assert edges.tolist() == [29, 59, 89]


def test_a_slope_is_thinned_not_flattened() -> None:
    """On a smooth slope every size is within the noise of the next; that is no plateau."""
    times = np.arange(1000, 2000)
    edges = right_edges(times, np.full(1000, 0.01))
    assert times[edges[0]] <= 1000 * 1.02
    steps = times[edges][1:] / times[edges][:-1]
    assert np.all((steps > 1.01) & (steps < 1.02))
    assert len(right_edges(times)) == 1000


def test_candidates_of_a_group_on_a_target() -> None:
    space = llama(1)
    group = space.groups[5]  # up_proj, 640 x 256
    watch = Stopwatch(
        whole=space,
        groups=space.groups,
        timer=WaveTimer(),
        workload=Workload.parse("prefill:1x512"),
    )
    sizes = np.append(np.arange(8, 183, 8), 256)
    kept = candidates(watch, group, sizes)
    table = dict(zip(sizes.tolist(), watch.table(group, sizes).tolist(), strict=True))
    assert kept[-1] == 256
    # 8 tiles a wave, 8 of them over the tokens: the first factor steps at every 64, the second
    # rises with the rank, so that no size between is a plateau of its own ...
    assert [table[int(size)] for size in kept] == sorted({table[int(size)] for size in kept})
    # ... until the pair is as slow as the dense matrix, at ranks above it.
    assert table[int(kept[-2])] < table[256]
    assert all(table[size] >= table[256] for size in table if kept[-2] < size < 256)
