"""A target: a device, what runs on it, and how long operators take there."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from snapfit.core.candidates import AlignRule
from snapfit.core.errors import UsageError
from snapfit.core.operators import Timer
from snapfit.core.shares import check_space, combined_multiple
from snapfit.core.space import Space
from snapfit.core.stack import QUANTS, Stack


@dataclass(frozen=True, kw_only=True)
class Target:
    """Where a model will run.

    Attributes:
        name: as the user wrote it, the stack included.
        device: the device's own name, e.g. 'h100_sxm' or 'cpu'.
        dtype: of the weights that rules and times are about, e.g. 'float16'.
        rules: of the device and of the stack, each with its source.
        timer: says how long operators take on one device; None if only the rules are known.
        stack: what runs there.
        software: versions that the rules and times were found with.
        times: how its times are known, in a few words, such as 'measured here, when
            asked'; empty without a timer.
        notes: what the user should know, e.g. that an extra is not installed.
        capability: CUDA compute capability as 10 x major + minor; None if it has none, or it is
            not known.

    """

    name: str
    device: str
    dtype: str
    rules: tuple[AlignRule, ...]
    timer: Timer | None = None
    stack: Stack = field(default_factory=Stack)
    software: str = ""
    times: str = ""
    notes: tuple[str, ...] = ()
    capability: int | None = None

    @property
    def rank_multiple(self) -> int:
        """The multiple that suits every rule about ranks, whatever matrix they are of."""
        return combined_multiple(self.rules)

    @property
    def formats(self) -> tuple[str, ...]:
        """Formats of a checkpoint that can be served there, the most general first."""
        return (self.stack.format,) if self.stack.format else self.stack.formats

    def with_stack(self, stack: Stack) -> Target:
        """This device with something running on it; its rules then bind a device's share.

        Raises:
            UsageError: the device does not run those kernels.

        """
        if stack.quant is not None and self.capability is not None:
            lowest, highest = QUANTS[stack.quant].capabilities
            if not lowest <= self.capability <= highest:
                needed = f"{_version(lowest)}" + (" or higher" if highest > 900 else "")
                if lowest < highest < 900:
                    needed += f" to {_version(highest)}"
                raise UsageError(
                    f"quant={stack.quant} does not run on {self.device}: its compute capability is "
                    f"{_version(self.capability)}, needed is {needed}"
                )
        return replace(
            self,
            name=f"{self.name}{stack}",
            rules=stack.share(self.rules) + stack.rules,
            stack=stack,
        )

    def check(self, space: Space) -> None:
        """Refuse a model that cannot be served there however it is compressed.

        Raises:
            UsageError: names every clashing rule with its source.

        """
        check_space(space, self.rules)


def _version(capability: int) -> str:
    return f"{capability // 10}.{capability % 10}"
