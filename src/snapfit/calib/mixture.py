"""Several calibration sources with weights: 'wiki.txt*0.5+self*0.5'.

A weight follows every source, behind a '*', which can be neither in a file name on Windows nor in
the name of a data set, so that no source is mistaken for a mixture ('C:/a+b.txt' is one file, and
'NAME:CONFIG:SPLIT' one data set). A file whose name is the whole text goes first.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from snapfit.calib.sources.self_generated import is_self, prompts_of
from snapfit.core.errors import UsageError
from snapfit.core.files import digest_files, digest_json

_TERM = re.compile(r"(.+?)\*(\d+\.?\d*|\.\d+)(\+|$)")


MAX_WEIGHT = 1e9
"""Sums and products of weights stay finite."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """One source of a mixture.

    Attributes:
        spec: a file, a data set, 'self' or 'self:FILE'.
        weight: its share, relative to the others'.

    """

    spec: str
    weight: float


def parse_sources(spec: str) -> tuple[Part, ...]:
    """The sources of `spec`, in order; one of weight 1 where it is no mixture.

    Raises:
        UsageError: a source of a mixture has no weight, weight 0 or too large a one, or is named
            twice.

    """
    terms = list(_TERM.finditer(spec))
    whole = not terms or is_there(Path(spec)) or terms[0].start() != 0
    if whole:
        return (Part(spec=spec, weight=1.0),)
    if terms[-1].end() != len(spec) or terms[-1].group(3):
        raise UsageError(
            f"every source of {spec!r} needs a weight, e.g. {terms[0].group(1)}*0.5+self*0.5"
        )
    parts = tuple(Part(spec=term.group(1), weight=float(term.group(2))) for term in terms)
    for part in parts:
        if part.weight <= 0:
            raise UsageError(f"the weight of {part.spec} must be above 0; leave it out instead")
        if part.weight > MAX_WEIGHT:
            raise UsageError(f"the weight of {part.spec} must be at most {MAX_WEIGHT:g}")
    if len({part.spec for part in parts}) < len(parts):
        raise UsageError(f"{spec!r} names a source twice; add up its weights")
    return parts


def is_there(path: Path) -> bool:
    """Whether a file or folder has this name; a mixture can be longer than any name may be."""
    try:
        return path.exists()
    except OSError:
        return False


def shares(parts: tuple[Part, ...], windows: int) -> tuple[int, ...]:
    """Whole windows of every source, by weight (largest remainders), at least one each.

    Raises:
        UsageError: there are fewer windows than sources.

    """
    if windows < len(parts):
        raise UsageError(
            f"{windows} calibration windows are too few for {len(parts)} sources; ask for more "
            "--calib-tokens or a smaller --context"
        )
    # One window each is given; the rest goes where the weights want most.
    total = sum(part.weight for part in parts)
    wanted = [windows * part.weight / total for part in parts]
    counts = [max(1, int(want)) for want in wanted]
    while sum(counts) < windows:
        counts[_largest(want - count for want, count in zip(wanted, counts, strict=True))] += 1
    while sum(counts) > windows:
        excess = (
            count - want if count > 1 else -math.inf
            for want, count in zip(wanted, counts, strict=True)
        )
        counts[_largest(excess)] -= 1
    return tuple(counts)


def mixing_order(counts: tuple[int, ...]) -> list[tuple[int, int]]:
    """(source, window) in an order in which every prefix holds the sources by their shares."""
    places = [
        ((window + 0.5) / count, source, window)
        for source, count in enumerate(counts)
        for window in range(count)
    ]
    return [(source, window) for _, source, window in sorted(places)]


def content_name(spec: str) -> str:
    """What the windows depend on: files by their content, everything else by its name."""
    parts = parse_sources(spec)
    if len(parts) == 1:
        return _content(parts[0].spec)
    return digest_json([[_content(part.spec), part.weight] for part in parts])


def needs_tokenizer(spec: str, template: str) -> bool:
    """Whether the model's tokenizer is needed for `spec`."""
    plain = all(
        is_self(part.spec) and prompts_of(part.spec) is None for part in parse_sources(spec)
    )
    return not plain or template != "none"


def _content(spec: str) -> str:
    path = prompts_of(spec) or Path(spec)
    if not (is_there(path) and path.is_file()):
        return spec
    return f"{'self:' if is_self(spec) else ''}{digest_files([path])}"


def _largest(values: Iterable[float]) -> int:
    """Index of the largest value, of equal ones the first."""
    listed = list(values)
    return max(range(len(listed)), key=lambda index: (listed[index], -index))
