"""Which sizes of a group are legal: alignment rules, the break-even rank, and dense.

A rank r is the output axis of the first factor and the input axis of the second, so hardware
rules about either axis bind ranks too; the outer axes of the pair are the model's own and fixed.
Of a width or a number of heads, rules bind the features that are left of each matrix.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from snapfit.core.errors import UsageError
from snapfit.core.space import Group

RuleAxis = Literal["in", "out", "rank", "width", "heads"]
"""K of a product, N of a product, a rank, MLP channels, key-value heads (counted)."""


@dataclass(frozen=True, kw_only=True)
class AlignRule:
    """Sizes along `axis` should be multiples of `multiple`.

    Attributes:
        axis: what the rule is about.
        multiple: a positive integer.
        source: where the rule comes from, e.g. '--align 16' or a vendor's guide.
        measured: whether it was measured on the target, or taken from documents.
        penalty: time relative to an aligned size when the rule is broken; None if unknown, or if
            the stack refuses such sizes altogether.

    """

    axis: RuleAxis
    multiple: int
    source: str
    measured: bool = False
    penalty: float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.multiple, int) or self.multiple < 1:
            raise UsageError(
                f"alignment must be a positive integer, found {self.multiple!r} ({self.source})"
            )

    @property
    def binding(self) -> bool:
        """Whether the rule holds of unaligned plans too, as what a format can say does."""
        return False

    def step(self, group: Group) -> int:
        """The multiple that this rule asks of the group's size; 1 where it does not bind.

        Features come in units: where a unit of the size is 64 features of a head, a multiple of
        128 features is a multiple of 2 heads.
        """
        if group.kind == "rank":
            return self.multiple if self.axis in {"in", "out", "rank"} else 1
        if group.kind not in {"width", "kv_heads"}:
            return 1
        if self.axis in {"width", "heads"}:
            counted = {"width": "width", "heads": "kv_heads"}[self.axis]
            return self.multiple if group.kind == counted else 1
        # A rule about ranks, as '--align' gives, means every size that a kernel sees.
        axes = {"in", "out"} if self.axis == "rank" else {self.axis}
        units = [matrix.features // group.full for matrix in group.matrices if matrix.axis in axes]
        return math.lcm(*(self.multiple // math.gcd(self.multiple, unit) for unit in units))

    def allows(self, group: Group, sizes: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which of `sizes` (positive) satisfy the rule."""
        fits: NDArray[np.bool_] = sizes % self.step(group) == 0
        return fits

    def refuses(self, group: Group) -> str | None:  # noqa: ARG002 a device runs any size
        """Why the group cannot be served as it is, so that no plan can help; None if it can."""
        return None

    def plain(self) -> AlignRule:
        """What a plan or a profile keeps of the rule."""
        return self


def legal_sizes(group: Group, rules: tuple[AlignRule, ...]) -> NDArray[np.int64]:
    """Every size that satisfies every rule, sorted, (k,) int64; `group.full` is always last.

    Sizes of a rank group stop at the break-even rank: a larger pair costs more than the dense
    matrix and is never better. A group too small for a single rule is left with its full size;
    that is an answer, not an error. Size 0, where the group allows it, breaks no rule.

    Raises:
        UsageError: each rule alone leaves a size below full, but together they leave none; or a
            rule refuses even the full size.

    """
    if refused := list(filter(None, (rule.refuses(group) for rule in rules))):
        raise UsageError("; ".join(refused))
    limit = group.break_even
    sizes = np.arange(max(group.least, 1), limit + 1, dtype=np.int64)
    allowed = {rule: rule.allows(group, sizes) for rule in rules}
    together = np.logical_and.reduce([np.ones(len(sizes), dtype=np.bool_), *allowed.values()])
    if allowed and not together.any() and all(each.any() for each in allowed.values()):
        clash = " and ".join(
            f"multiples of {rule.multiple} ({rule.source})"
            for rule, each in allowed.items()
            if not each.all()
        )
        raise UsageError(
            f"{group.name}: no size up to {limit} satisfies {clash} at once; drop one of the rules"
        )
    removed = np.zeros(int(group.least == 0), dtype=np.int64)
    return np.concatenate([removed, sizes[together], [np.int64(group.full)]])
