"""Which sizes of a group are legal: alignment rules, the break-even rank, and dense.

A rank r is the output axis of the first factor and the input axis of the second, so hardware
rules about either axis bind ranks too; the outer axes of the pair are the model's own and fixed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from snapfit.core.errors import UsageError
from snapfit.core.space import Axis, Group


@dataclass(frozen=True, kw_only=True)
class AlignRule:
    """Sizes along `axis` should be multiples of `multiple`.

    Attributes:
        axis: which axis of a matrix the rule is about.
        multiple: a positive integer.
        source: where the rule comes from, e.g. '--align 16' or a vendor's guide.
        measured: whether it was measured on the target, or taken from documents.

    """

    axis: Axis
    multiple: int
    source: str
    measured: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.multiple, int) or self.multiple < 1:
            raise UsageError(
                f"alignment must be a positive integer, found {self.multiple!r} ({self.source})"
            )

    def binds(self, group: Group) -> bool:
        """Whether the group's size lies along this rule's axis."""
        axes = {matrix.axis for matrix in group.matrices}
        return self.axis in axes or "rank" in axes


def legal_sizes(group: Group, rules: tuple[AlignRule, ...]) -> NDArray[np.int64]:
    """Every size that satisfies every rule, sorted, (k,) int64; `group.full` is always last.

    Sizes of a rank group stop at the break-even rank: a larger pair costs more than the dense
    matrix and is never better. Multiples combine by their least common multiple. A group too
    small for a single rule is left with its full size; that is an answer, not an error.

    Raises:
        UsageError: each rule alone leaves a size below full, but together they leave none.

    """
    bound = tuple(rule for rule in rules if rule.binds(group))
    step = math.lcm(*(rule.multiple for rule in bound))
    limit = group.break_even if group.kind == "rank" else group.full - 1
    if step > limit >= max((rule.multiple for rule in bound), default=1):
        clash = " and ".join(f"multiples of {rule.multiple} ({rule.source})" for rule in bound)
        raise UsageError(
            f"{group.name}: no size up to {limit} satisfies {clash} at once; drop one of the rules"
        )
    below = np.arange(step, limit + 1, step, dtype=np.int64)
    return np.append(below, np.int64(group.full))
