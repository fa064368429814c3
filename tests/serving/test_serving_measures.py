"""How greedy tokens are compared, and how runs are paired."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from snapfit.core.workload import Phase, Workload
from snapfit.evals.serving import Divergence, compare
from snapfit.evals.serving_time import PhaseTime, measure, summary, total_ratios


def next_is(successor: Callable[[int], int], runner_up: float = 0.0) -> Callable[[Tensor], Tensor]:
    """Logits of a model that prefers `successor(token)`, and likes 0 nearly as much."""

    def logits(ids_T: Tensor) -> Tensor:
        logits_TV = torch.zeros(len(ids_T), 20)
        logits_TV[:, 0] = runner_up
        for row, token in enumerate(ids_T.tolist()):
            logits_TV[row, successor(token)] = 1.0
        return logits_TV

    return logits


def test_equal_tokens_hold() -> None:
    parity = compare(next_is(lambda t: t + 1), [(3,), (5, 6)], [(4, 5, 6), (7, 8, 9)], 1e-3)
    assert parity.equal == parity.prompts == 2
    assert parity.holds


def test_the_first_difference_counts_and_ties_are_forgiven() -> None:
    found = [(4, 5), (4, 0, 9)]  # the second goes its own way after 4
    near = compare(next_is(lambda t: t + 1, runner_up=0.9995), [(3,), (3,)], found, 1e-3)
    assert near.divergences == (
        Divergence(prompt=1, position=1, expected=5, found=0, gap=pytest.approx(0.0005, abs=1e-6)),
    )
    assert near.holds
    far = compare(next_is(lambda t: t + 1, runner_up=0.5), [(3,), (3,)], found, 1e-3)
    assert not far.holds
    assert far.wrong[0].gap == pytest.approx(0.5)


def test_a_reference_that_is_not_finite_is_no_tie() -> None:
    def broken(ids_T: Tensor) -> Tensor:
        return torch.full((len(ids_T), 20), torch.nan)

    parity = compare(broken, [(3,)], [(4, 5)], 1e-3)
    assert not parity.holds
    assert (
        json.loads(json.dumps(parity.to_json(), allow_nan=False))["divergences"][0]["gap"] is None
    )


class Clock:
    """An engine that takes known times and remembers when it was asked."""

    def __init__(self, log: list[str], name: str, seconds: list[float]) -> None:
        self.log, self.name, self.seconds = log, name, seconds

    def prefill_seconds(self, batch: int, tokens: int) -> float:
        self.log.append(f"{self.name}:{batch}x{tokens}")
        return self.seconds.pop(0)

    def step_seconds(self, batch: int, tokens: int, steps: int) -> float:
        return self.prefill_seconds(batch, tokens) / 10


def test_runs_are_paired_alternate_and_the_first_is_left_out() -> None:
    log: list[str] = []
    ours = Clock(log, "a", [9.0, 1.0, 2.0, 3.0])
    theirs = Clock(log, "b", [9.0, 2.0, 2.0, 4.0])
    (time,) = measure(Workload.parse("prefill:2x8"), ours, theirs, pairs=3)
    assert log == ["b:2x8", "a:2x8", "a:2x8", "b:2x8", "b:2x8", "a:2x8", "a:2x8", "b:2x8"]
    assert time.seconds == (1.0, 2.0, 3.0)
    assert time.ratios == (0.5, 1.0, 0.75)
    assert summary(time.ratios) == {"median": 0.75, "lowest": 0.5, "highest": 1.0, "n": 3}
    assert time.tokens_per_second == 16 / 2.0


def test_a_workload_is_the_weighted_sum_of_its_phases() -> None:
    workload = Workload.parse("prefill:1x4,decode:1x4*30")
    ours = Clock([], "a", [9.0, 1.0, 9.0, 1.0])
    theirs = Clock([], "b", [9.0, 2.0, 9.0, 1.0])
    times = measure(workload, ours, theirs, pairs=1)
    assert times[1].seconds == (0.1,)
    assert total_ratios(times) == ((1 + 30 * 0.1) / (2 + 30 * 0.1),)
    alone = PhaseTime(phase=Phase(kind="prefill", batch=1, tokens=4), seconds=(1.0,))
    assert total_ratios([alone]) == ()
