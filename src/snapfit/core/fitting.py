"""What of a space a checkpoint format can hold, before anything is solved.

`core.formats` says what a format can hold; here a space becomes one in which every plan fits.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from snapfit.core.candidates import AlignRule
from snapfit.core.errors import UsageError
from snapfit.core.formats import check_format, holds_absent, holds_size, kinds, ties
from snapfit.core.settings import LLAMA_LIKE
from snapfit.core.space import Group, Space


@dataclass(frozen=True, kw_only=True)
class FormatRule(AlignRule):
    """Sizes that a format's configuration can say.

    Attributes:
        name: of the format.
        space: of the model: its architecture and heads.

    """

    name: str
    space: Space

    @property
    def binding(self) -> bool:
        """A checkpoint cannot be written otherwise."""
        return True

    def step(self, group: Group) -> int:  # noqa: ARG002
        """A format asks for no multiple."""
        return 1

    def allows(self, group: Group, sizes: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which of `sizes` (positive) the format can hold."""
        held = [holds_size(self.name, group, size, self.space) for size in sizes.tolist()]
        return np.array(held, dtype=np.bool_)

    def plain(self) -> AlignRule:
        """Nothing that a plan could keep: the format is in its recipe."""
        return AlignRule(axis=self.axis, multiple=1, source=self.source)


def format_rules(name: str, space: Space) -> tuple[FormatRule, ...]:
    """What sizes must satisfy beside the rules of the target."""
    if all(group.kind in {"rank", "depth"} for group in space.groups):
        return ()
    return (
        FormatRule(axis="width", multiple=1, source=f"--format {name}", name=name, space=space),
    )


def for_format(name: str, space: Space) -> Space:
    """The groups that a format can hold, tied where it has one number for all layers.

    Raises:
        UsageError: it can hold none of them; says which formats can.

    """
    format_ = check_format(name)
    if format_ == "decilm" and space.architecture not in LLAMA_LIKE:
        raise UsageError(
            f"decilm holds Llama-like models only, not {space.architecture}; use factored"
        )
    held = tuple(group for group in space.groups if group.kind in kinds(format_))
    if not held:
        found = " and ".join(sorted({group.kind for group in space.groups}))
        raise UsageError(
            f"{format_} cannot hold what this method makes smaller ({found}); use --format "
            "factored or standalone, or folded to measure quality only"
        )
    if not holds_absent(format_):
        held = tuple(replace(g, least=max(g.least, int(g.kind != "depth"))) for g in held)
    fitted = replace(space, groups=held)
    return replace(fitted, ties=(*space.ties, *ties(format_, fitted)))
