"""The anatomy of an error: which step of a chain went wrong first, and what came of it.

A chain of n steps is right if n steps are, so an error rate e a step leaves (1 - e)^n of the
chains. Where the measured rate by position is flat, long chains fail because errors compound;
where it rises, the model loses the thread.

Shape: every list is by position, from step 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from snapfit.evals.procedural import Chain
from snapfit.evals.procedural_check import TraceCheck, check_trace


@dataclass(frozen=True, kw_only=True)
class Anatomy:
    """Errors of many chains.

    Attributes:
        chains: how many.
        reached: chains that were right up to the step before, by position.
        failed: of those, the chains whose first error is this step.
        overrun: chains whose first error is that they went on after their last step.
        corrected: chains with an error that was written rightly later.
        wrong: chains with an error.
        right: chains with the right answer.
        expected: right chains if every step failed with the overall rate, whatever its position.

    """

    chains: int
    reached: tuple[int, ...]
    failed: tuple[int, ...]
    overrun: int
    corrected: int
    wrong: int
    right: int
    expected: float

    @property
    def rate(self) -> float:
        """First errors a step that was reached."""
        return sum(self.failed) / max(1, sum(self.reached))


def anatomy(chains: Sequence[Chain], written: Sequence[str]) -> Anatomy:
    """Judge what was written after each chain's question, step by step."""
    checks = [check_trace(chain, text) for chain, text in zip(chains, written, strict=True)]
    longest = max((len(chain.steps) for chain in chains), default=0)
    reached, failed = [0] * longest, [0] * longest
    for chain, check in zip(chains, checks, strict=True):
        last = _last_reached(chain, check)
        for step in range(last):
            reached[step] += 1
        first = check.first_wrong_step
        if first is not None and first <= len(chain.steps):
            failed[first - 1] += 1
    rate = sum(failed) / max(1, sum(reached))
    return Anatomy(
        chains=len(chains),
        reached=tuple(reached),
        failed=tuple(failed),
        overrun=sum(
            (check.first_wrong_step or 0) > len(chain.steps)
            for chain, check in zip(chains, checks, strict=True)
        ),
        corrected=sum(check.corrected for check in checks),
        wrong=sum(check.first_wrong_step is not None for check in checks),
        right=sum(check.answer_right for check in checks),
        expected=sum((1 - rate) ** len(chain.steps) for chain in chains),
    )


def _last_reached(chain: Chain, check: TraceCheck) -> int:
    """Steps that were tried while all before them were right, the first wrong one included."""
    first = check.first_wrong_step
    return len(chain.steps) if first is None else min(first, len(chain.steps))
