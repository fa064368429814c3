"""Which operators a profile should hold for a model or a plan, the most valuable first.

First comes what the model is made of as it is, the largest work first; then the sizes that its
groups can have, ever more finely: a sweep that is cut short has every range, only coarsely, and a
profile is interpolated between its points.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from snapfit.core.candidates import AlignRule, legal_sizes
from snapfit.core.latency import Stopwatch
from snapfit.core.operators import Attention, Elementwise, Estimate, Launch, Linear, Operator
from snapfit.core.space import Group, Space
from snapfit.core.workload import Workload

POINTS = 17
"""Sizes of one group that are timed: its ends, and four halvings of what lies between."""

KINDS = frozenset({"rank", "width", "kv_heads"})
"""Kinds of groups whose sizes change the shapes of operators, not only their number."""


class Recorder:
    """A `Timer` that knows nothing and remembers what it was asked."""

    device = "recorder"

    def __init__(self, dtype: str) -> None:
        """Record operators of activations of `dtype`."""
        self.dtype = dtype
        self.asked: dict[Operator, None] = {}

    def time(self, operator: Operator) -> Estimate:
        """Note the operator; the answer has no meaning."""
        self.asked[operator] = None
        return Estimate(microseconds=1.0, spread=0.0, source="model", how="not timed")


def plan_operators(
    whole: Space,
    groups: Sequence[Group],
    sizes: Mapping[str, int],
    workload: Workload,
    *,
    dtype: str,
    shards: int = 1,
) -> tuple[Operator, ...]:
    """Operators of the model at a plan's sizes, and of the dense model to compare with.

    Args:
        whole: the unrestricted space.
        groups: what the plan decides.
        sizes: of these groups.
        workload: passes of the model.
        dtype: of activations.
        shards: devices that share every layer.

    Raises:
        SnapfitError: the space does not say what its operators are.

    """
    timer = Recorder(dtype)
    watch = Stopwatch(
        whole=whole, groups=tuple(groups), timer=timer, workload=workload, shards=shards
    )
    watch.latency(sizes)
    watch.latency({})
    return _by_work(timer.asked)


def model_operators(
    whole: Space,
    rules: tuple[AlignRule, ...],
    workload: Workload,
    *,
    dtype: str,
    shards: int = 1,
    points: int = POINTS,
) -> tuple[Operator, ...]:
    """Operators of the dense model, and of its groups at up to `points` of their legal sizes.

    Args:
        whole: the unrestricted space.
        rules: of the target.
        workload: passes of the model.
        dtype: of activations.
        shards: devices that share every layer.
        points: sizes of each group.

    Raises:
        SnapfitError: the space does not say what its operators are.
        UsageError: the rules leave a group no size.

    """
    groups = tuple(group for group in whole.groups if group.kind in KINDS)
    timer = Recorder(dtype)
    watch = Stopwatch(whole=whole, groups=groups, timer=timer, workload=workload, shards=shards)
    watch.latency({})
    wanted = dict.fromkeys(_by_work(timer.asked))
    distinct = {
        tuple((m.name.rpartition(".")[2], m.axis, m.start, m.rows, m.cols) for m in g.matrices): g
        for g in groups
    }
    legal = [(group, legal_sizes(group, rules)) for group in distinct.values()]
    rounds = [halvings(len(sizes), points) for _, sizes in legal]
    for level in range(max(map(len, rounds), default=0)):
        timer.asked.clear()
        for (group, sizes), levels in zip(legal, rounds, strict=True):
            if level < len(levels):
                watch.table(group, sizes[levels[level]])
        wanted |= dict.fromkeys(_by_work(timer.asked))
    return tuple(wanted)


def general_operators(workload: Workload) -> tuple[Operator, ...]:
    """Operators of no particular model: products, attention and passes of usual sizes."""
    features = (512, 1024, 2048, 4096, 8192)
    found: list[Operator] = [Launch()]
    for phase in workload.phases:
        found += [Linear(m=phase.rows, n=n, k=k) for n in features for k in features]
        found += [Elementwise(elements=phase.rows * n) for n in features]
        found += [
            Attention(
                batch=phase.batch,
                query=phase.query,
                context=phase.tokens,
                heads=heads,
                kv_heads=heads // share,
                head_dim=head_dim,
            )
            for heads in (8, 16, 32)
            for share in (1, 4)
            for head_dim in (64, 128)
        ]
    return tuple(dict.fromkeys(found))


def halvings(count: int, points: int) -> list[list[int]]:
    """Indices of a range of `count`, in rounds: both ends, the middle, the quarters, and so on.

    Together they are at most `points`, evenly spread.
    """
    seen: set[int] = set()
    rounds = []
    for spaced in _finer(min(count, points)):
        indices = [round(share * (count - 1)) for share in spaced]
        fresh = [index for index in dict.fromkeys(indices) if index not in seen]
        fresh = fresh[: points - len(seen)]
        if not fresh:
            break
        seen.update(fresh)
        rounds.append(fresh)
    return rounds


def _finer(points: int) -> Iterator[list[float]]:
    """Shares of a range: its ends, then the middles of what lies between."""
    yield [1.0, 0.0] if points > 1 else [1.0]
    parts = 2
    while parts < 2 * points:
        yield [part / parts for part in range(1, parts, 2)]
        parts *= 2


def _by_work(operators: Mapping[Operator, None]) -> tuple[Operator, ...]:
    """The largest first, the launch before all: about 40 operations take as long as a byte."""
    return tuple(
        sorted(
            operators,
            key=lambda op: (op.kind != "launch", -(op.flops + 40 * op.bytes(2)), str(op)),
        )
    )
