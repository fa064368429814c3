"""What a kind of target is. To add one, add a file beside this one, or an entry point.

The file (or what an entry point of the group 'snapfit.hardware' names) has the two functions of
`TargetKind`. It should import nothing heavy at the top, and `find` should read and measure nothing
yet: listing targets asks every kind. The timer does that when it is first asked.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from snapfit.core.operators import Timer
from snapfit.core.target import Target


@runtime_checkable
class DtypeTimer(Timer, Protocol):
    """A timer that can answer for other data types."""

    def with_dtype(self, dtype: str) -> Timer:
        """The same device's timer for weights and activations of `dtype`, a name of torch.

        Raises:
            UsageError: it knows nothing of that type; names those that it knows.

        """


class TargetKind(Protocol):
    """One kind of target: a module with these functions.

    Several kinds may know one device, one its rules and another its times: what the first of them
    leaves open the next ones fill in.
    """

    def names(self) -> tuple[str, ...]:
        """Devices that can be asked for by name here, on this machine."""

    def find(self, name: str) -> Target | None:
        """The bare device called `name`, or None if it is none of this kind's.

        Raises:
            SnapfitError: it is this kind's, and cannot be had; says why.

        """
