"""Mixed plans: choices of different kinds for the same weights compete in one knapsack.

Of every part of a decoder layer (its attention, its MLP) the matrices are factored, each by
itself, or the part is narrowed, or it is removed; or the whole layer is dropped, whose loss is not
the sum of both. A layer is one item of the knapsack (`snapfit.core.mixed_items`).

A mixed plan is a plan like any other: one size a group. Groups that do not apply stay at full
size, and the size 0 of both parts of a layer means that the layer is gone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from snapfit.core.errors import SnapfitError
from snapfit.core.space import Group, Matrix, Space

FACTORED, NARROWED, REMOVED, DROPPED = "factored", "narrowed", "removed", "dropped"
"""What becomes of weights that are not left alone."""


class MixedSpace(Space):
    """A space whose groups cover the same weights in several ways.

    Of all groups over one weight a plan makes at most one smaller, so what is saved adds up.
    """

    @property
    def dense_params(self) -> int:
        """Parameters that any group covers, each counted once."""
        return covered_params(self.groups)

    def params(self, sizes: dict[str, int]) -> int:
        """Parameters left of those that any group covers."""
        saved = sum(
            group.dense_params - group.params(sizes.get(group.name, group.full))
            for group in self.groups
        )
        return self.dense_params - saved

    def counted(self, sizes: Mapping[str, int]) -> tuple[Group, ...]:
        """Groups that together are the weights at `sizes`: of several over one weight, one."""
        return tuple(
            group
            for groups in by_layer(self).values()
            for part in parts_of(groups)
            for group in _standing_for(part, sizes)
        )


def covered_params(groups: Sequence[Group]) -> int:
    """Parameters of all matrices of `groups`; those that several groups share count once."""
    blocks: dict[str, set[tuple[int, int, int]]] = {}
    for group in groups:
        for matrix in group.matrices:
            stop = matrix.start + matrix.rows
            blocks.setdefault(matrix.name, set()).add((matrix.start, stop, matrix.cols))
    total = 0
    for found in blocks.values():
        last = 0
        for start, stop, cols in sorted(found):
            total += max(0, stop - max(start, last)) * cols
            last = max(last, stop)
    return total


def by_layer(space: Space) -> dict[int, list[Group]]:
    """Groups by decoder layer, in order."""
    layers: dict[int, list[Group]] = {}
    for group in space.groups:
        layers.setdefault(group.layer, []).append(group)
    return dict(sorted(layers.items()))


def parts_of(groups: Sequence[Group]) -> list[list[Group]]:
    """Groups of one layer that share weights, together; in the order of their first group."""
    parts: list[list[Group]] = []
    for group in groups:
        touching = [part for part in parts if any(_overlap(group, other) for other in part)]
        if not touching:
            parts.append([group])
            continue
        touching[0].append(group)
        for other in touching[1:]:
            touching[0].extend(other)
            parts.remove(other)
    return parts


def is_dropped(groups: Sequence[Group], sizes: Mapping[str, int]) -> bool:
    """Whether `sizes` leave nothing of a layer with these groups."""
    return all(
        any(sizes.get(group.name, group.full) == 0 for group in part) for part in parts_of(groups)
    )


def ways(space: Space, sizes: Mapping[str, int]) -> dict[str, str]:
    """What becomes of every group that is smaller than full: one of FACTORED, ... DROPPED."""
    found = {}
    for groups in by_layer(space).values():
        gone = is_dropped(groups, sizes)
        for group in groups:
            size = sizes[group.name]
            if size == group.full:
                continue
            if gone:
                found[group.name] = DROPPED
            elif group.kind == "rank":
                found[group.name] = FACTORED
            else:
                found[group.name] = NARROWED if size else REMOVED
    return found


def check_one_way(space: Space, sizes: Mapping[str, int]) -> None:
    """Refuse a stranger's sizes that make several groups over one weight smaller.

    Raises:
        SnapfitError: names two such groups.

    """
    for groups in by_layer(space).values():
        for part in parts_of(groups):
            smaller = [group for group in part if sizes[group.name] < group.full]
            whole = [group for group in smaller if group.kind != "rank"]
            if whole and len(smaller) > 1:
                other = next(group for group in smaller if group is not whole[0])
                raise SnapfitError(
                    f"the plan makes {whole[0].name} and {other.name} smaller, which are the same "
                    "weights; leave one of them at its full size"
                )


def reasons(space: Space, sizes: Mapping[str, int]) -> dict[str, str]:
    """A few words for every group."""
    done = ways(space, sizes)
    texts: dict[str, str] = {}
    for groups in by_layer(space).values():
        for part in parts_of(groups):
            way = next((done[group.name] for group in part if group.name in done), None)
            for group in part:
                if group.name in done:
                    texts[group.name] = _TEXTS[way or ""].format(
                        size=sizes[group.name], full=group.full
                    )
                elif way is None:
                    texts[group.name] = "full: whatever it would save is worth less than its loss"
                elif way == FACTORED and group.kind == "rank":
                    texts[group.name] = "dense, among factored matrices"
                else:
                    texts[group.name] = f"does not apply: {way}"
    return texts


def _standing_for(part: Sequence[Group], sizes: Mapping[str, int]) -> list[Group]:
    """The group that is narrowed, or else the rank groups where there are any."""
    whole = [group for group in part if group.kind != "rank"]
    narrowed = [group for group in whole if sizes.get(group.name, group.full) < group.full]
    if narrowed:
        return narrowed
    return [group for group in part if group.kind == "rank"] or whole


_TEXTS = {
    FACTORED: "factored: rank {size}",
    NARROWED: "narrowed: {size} of {full}",
    REMOVED: "removed from its layer",
    DROPPED: "the layer is dropped",
}


def _overlap(one: Group, other: Group) -> bool:
    return any(a.name == b.name and _rows_meet(a, b) for a in one.matrices for b in other.matrices)


def _rows_meet(one: Matrix, other: Matrix) -> bool:
    return one.start < other.start + other.rows and other.start < one.start + one.rows
