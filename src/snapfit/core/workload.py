"""What a model will be used for: how many tokens go through it, in which way.

    prefill:1x1024,decode:8x2048*0.5

is one prompt of 1,024 tokens, and half a step that adds a token to each of 8 sequences of 2,048.
`*` and a number weigh a phase: the time of a workload is the weighted sum over its phases, so
`prefill:1x512,decode:1x512*200` is the time of answering one prompt with 200 tokens.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal, cast, get_args

from snapfit.core.errors import UsageError

PhaseKind = Literal["prefill", "decode"]

DEFAULT_WORKLOAD = "prefill:1x1024"
"""One prompt of 1,024 tokens."""

MAX_TOKENS = 1 << 24
"""Most tokens of a phase: more is a mistake."""

_PHASE = re.compile(r"([a-z]+):(\d{1,18})[xX](\d{1,18})(?:\*([0-9.eE+-]+))?")


@dataclass(frozen=True, kw_only=True)
class Phase:
    """One forward pass.

    Attributes:
        kind: 'prefill' reads whole prompts, 'decode' adds one token to every sequence.
        batch: sequences.
        tokens: prefill: tokens of a prompt; decode: tokens of the sequence so far, the new one
            included.
        weight: how many such passes the workload has; may be a fraction.

    """

    kind: PhaseKind
    batch: int
    tokens: int
    weight: float = 1.0

    @property
    def rows(self) -> int:
        """Tokens that go through every linear layer at once: the M of its product."""
        return self.batch * (self.tokens if self.kind == "prefill" else 1)

    @property
    def query(self) -> int:
        """New tokens of a sequence."""
        return self.tokens if self.kind == "prefill" else 1

    def __str__(self) -> str:
        weight = "" if self.weight == 1 else f"*{self.weight:g}"
        return f"{self.kind}:{self.batch}x{self.tokens}{weight}"


@dataclass(frozen=True, kw_only=True)
class Workload:
    """Phases whose weighted times are added.

    Attributes:
        phases: at least one, no two of one kind, batch and length.

    """

    phases: tuple[Phase, ...]

    @classmethod
    def parse(cls, text: str) -> Workload:
        """Read `kind:BATCHxTOKENS[*WEIGHT]`, several separated by commas.

        Raises:
            UsageError: says which phase is wrong and what one looks like.

        """
        phases = tuple(_phase(part.strip()) for part in text.split(","))
        seen: set[tuple[str, int, int]] = set()
        for phase in phases:
            key = (phase.kind, phase.batch, phase.tokens)
            if key in seen:
                raise UsageError(
                    f"workload {text!r} has {phase.kind}:{phase.batch}x{phase.tokens} twice; "
                    "give it once, with a weight such as *2"
                )
            seen.add(key)
        return cls(phases=phases)

    def __str__(self) -> str:
        return ",".join(map(str, self.phases))


def _phase(text: str) -> Phase:
    match = _PHASE.fullmatch(text)
    if match is None:
        raise UsageError(
            f"{text!r} is no phase of a workload; one looks like prefill:1x1024 or "
            "decode:8x2048*0.5 (kind:BATCHxTOKENS*WEIGHT)"
        )
    kind, batch, tokens = match[1], int(match[2]), int(match[3])
    if kind not in get_args(PhaseKind):
        raise UsageError(f"{text!r}: a phase is prefill or decode, found {kind!r}")
    if batch < 1 or tokens < 1 or batch * tokens > MAX_TOKENS:
        raise UsageError(f"{text!r}: a phase has from 1 to {MAX_TOKENS} tokens")
    try:
        weight = float(match[4] or 1)
    except ValueError:
        weight = math.nan
    if not 0 < weight < math.inf:
        raise UsageError(f"{text!r}: the weight must be a number above 0, found {match[4]!r}")
    return Phase(kind=cast("PhaseKind", kind), batch=batch, tokens=tokens, weight=weight)
