"""Output layers as linear combinations of layers of the original, and their JSON.

A layer that is dropped is in none of them; (i, 1.0) alone is layer i, untouched. LaCo
(arXiv 2402.11187) collapses layers l .. l+m into one by adding parameter differences,
theta_l + sum_k (theta_{l+k} - theta_l): coefficient 1 - m for l, 1 for the others.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

from snapfit.core.checked import real, shown, whole
from snapfit.core.errors import CorruptFile

MAX_LAYERS = 4096
"""More layers than this in a file are a mistake or an attack, never a model."""

Combination: TypeAlias = tuple[tuple[int, float], ...]
"""One output layer: (source layer, coefficient) of every parameter. The first source is the base:
what is no parameter (kind of attention, class of the MLP) is the base's."""


def is_untouched(layer: Combination) -> bool:
    """Whether an output layer is one layer of the original as it was."""
    return len(layer) == 1 and layer[0][1] == 1.0


def untouched(sources: Iterable[int]) -> tuple[Combination, ...]:
    """Output layers that are these layers of the original."""
    return tuple(((source, 1.0),) for source in sources)


def collapse(layers: Sequence[Combination], at: int, count: int) -> tuple[Combination, ...]:
    """LaCo's merge of the `count` output layers from `at` on into one.

    theta_at + sum_k (theta_{at+k} - theta_at), k = 1 .. count - 1; layers that are themselves
    merged are expanded, so that the result is again a combination of layers of the original.
    Sources whose coefficient becomes 0 stay listed only if they are the base.

    Raises:
        ValueError: fewer than two layers, or beyond the last (a caller's mistake).

    """
    if count < 2 or not 0 <= at <= len(layers) - count:
        raise ValueError(f"cannot merge {count} of {len(layers)} layers from {at}")
    # Every layer of the original is in one output layer only, so no source comes twice.
    first = [(source, (2 - count) * coefficient) for source, coefficient in layers[at]]
    rest = [pair for layer in layers[at + 1 : at + count] for pair in layer]
    merged = tuple((s, float(c)) for s, c in first + rest if c != 0 or s == first[0][0])
    return (*layers[:at], merged, *layers[at + count :])


def layer_json(layer: Combination) -> Any:
    """A plain integer for an untouched layer, else a list of pairs."""
    return layer[0][0] if is_untouched(layer) else [[source, c] for source, c in layer]


def read_layer(value: Any, what: str, layers: int = MAX_LAYERS) -> Combination:
    """Validate what `layer_json` writes, of a model of at most `layers` layers.

    Raises:
        CorruptFile: anything else; `what` says whose layer it is.

    """
    if not isinstance(value, list):
        return ((whole(value, what, 0, layers - 1), 1.0),)
    pairs = [pair for pair in value if isinstance(pair, list) and len(pair) == 2]
    if not value or len(pairs) != len(value):
        raise CorruptFile(f"{what} has a malformed entry: {shown(value)}")
    return tuple(
        (whole(source, what, 0, layers - 1), real(coefficient, f"{what}: a coefficient"))
        for source, coefficient in pairs
    )
