"""The words and numbers of a diagnosis, for the terminal and the page alike.

A time shows where it comes from wherever it is printed: measured ones stand as they are, '=' is
read from a table, '~' is modelled.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from snapfit.core.causes import StackLayer
from snapfit.core.diagnosis import Diagnosis, Line, PhaseTime
from snapfit.core.operators import Attention, Estimate, Linear, Operator, Source

MARKS: Mapping[Source, str] = {"measured": "", "table": "=", "model": "~"}
WORDS: Mapping[Source, str] = {"measured": "measured", "table": "from a table", "model": "modelled"}


def by_layer(lines: Iterable[Line]) -> dict[StackLayer, float]:
    """Microseconds lost by the layer of the stack that the first cause of each line names."""
    lost: dict[StackLayer, float] = {}
    for line in lines:
        if line.lost and line.causes:
            layer = line.causes[0].layer
            lost[layer] = lost.get(layer, 0.0) + line.lost
    return lost


def total_text(phase: PhaseTime) -> str:
    """The time of a phase with its sources: '12.3 ms (98% modelled, 2% from a table)'."""
    return f"{phase.microseconds / 1000:.4g} ms ({sources_text(phase)})"


def sources_text(phase: PhaseTime) -> str:
    """Where the time of a phase comes from, the largest share first."""
    shares = sorted(phase.shares.items(), key=lambda share: -share[1])
    if len(shares) == 1:
        shown = WORDS[shares[0][0]]
    else:
        shown = ", ".join(f"{_share(share)} {WORDS[source]}" for source, share in shares)
    return shown + (f", without {phase.unknown} operators" if phase.unknown else "")


def _share(share: float) -> str:
    """Rounded, but neither to nothing nor to all."""
    return "<1%" if share < 0.005 else ">99%" if share > 0.995 else f"{share:.0%}"


def lost_text(phase: PhaseTime) -> str:
    """What misalignment costs in a phase: '1.234 ms, 9.8%'."""
    if not phase.lost:
        return "nothing"
    return f"{milliseconds(phase.lost)} ms, {phase.lost / phase.microseconds:.1%}"


def lost_sources(diagnosis: Diagnosis, phase: PhaseTime) -> str:
    """Where the times come from that this is the difference of."""
    lines = [line for line in diagnosis.lines if line.phase == phase.phase and line.lost]
    return ", ".join(WORDS[source] for source in sources(lines))


def legend(diagnosis: Diagnosis) -> str:
    """What the marks that occur mean."""
    found = sources(diagnosis.lines)
    return ", ".join(f"{MARKS[source] or 'no mark'}: {WORDS[source]}" for source in found)


def shape_text(operator: Operator) -> str:
    """A product's N x K, or an attention's heads and their features."""
    if isinstance(operator, Linear):
        return f"{operator.n}x{operator.k}"
    if isinstance(operator, Attention):
        return f"{operator.heads}/{operator.kv_heads} d{operator.head_dim}"
    return ""


def sources(lines: Iterable[Line]) -> list[Source]:
    """Where the times of lines come from, the surest first."""
    found = {e.source for line in lines for e in (line.now, line.then) if e}
    return [source for source in MARKS if source in found]


def worst(lines: Iterable[Line]) -> str:
    """The mark of a sum: it is known as well as the least sure of its parts."""
    found = sources(lines)
    return MARKS[found[-1]] if found else ""


def milliseconds(microseconds: float) -> str:
    """With three decimals, or that it is less than they show."""
    return "<0.001" if microseconds < 1 else f"{microseconds / 1000:.3f}"


def count_text(count: float) -> str:
    """A whole number as one; experts run a fraction of the time."""
    return f"{count:.0f}" if abs(count - round(count)) < 0.005 else f"{count:.2f}"


def time_text(estimate: Estimate | None) -> str:
    """Microseconds of one run with the mark of their source; '' if nobody knows."""
    return "" if estimate is None else f"{MARKS[estimate.source]}{estimate.microseconds:.1f}"


def how_text(estimate: Estimate) -> str:
    """How a time was found, and how sure it is."""
    return f"{WORDS[estimate.source]} ±{estimate.spread:.0%}: {estimate.how}"
