"""Output layers as combinations of the original's: merges, and JSON written by strangers."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from snapfit.core.combination import (
    MAX_LAYERS,
    Combination,
    collapse,
    is_untouched,
    layer_json,
    read_layer,
    untouched,
)
from snapfit.core.errors import CorruptFile


def combined(layers: tuple[Combination, ...], theta_LP: np.ndarray) -> np.ndarray:
    return np.stack([sum(c * theta_LP[s] for s, c in mix) for mix in layers])


def test_a_merge_adds_the_differences_to_the_first_layer() -> None:
    theta_LP = np.random.default_rng(0).normal(size=(5, 4))
    once = collapse(untouched(range(5)), 1, 3)
    expected = theta_LP[1] + (theta_LP[2] - theta_LP[1]) + (theta_LP[3] - theta_LP[1])
    np.testing.assert_allclose(
        combined(once, theta_LP), np.stack([theta_LP[0], expected, theta_LP[4]])
    )
    overwritten = theta_LP[3]  # what subtracting the running sum leaves
    assert not np.allclose(combined(once, theta_LP)[1], overwritten)


def test_merges_compose() -> None:
    theta_LP = np.random.default_rng(1).normal(size=(6, 4))
    once = collapse(untouched(range(6)), 3, 3)
    twice = collapse(once, 1, 3)
    middle = combined(once, theta_LP)
    expected = middle[1] + (middle[2] - middle[1]) + (middle[3] - middle[1])
    np.testing.assert_allclose(combined(twice, theta_LP), np.stack([theta_LP[0], expected]))
    assert twice[1][0][0] == 1, "the first layer stays the base"


def test_two_layers_merged_leave_the_second_in_the_place_of_the_first() -> None:
    ((base, *rest),) = collapse(untouched(range(2)), 0, 2)
    assert base == (0, 0.0)
    assert rest == [(1, 1.0)]


@pytest.mark.parametrize(("at", "count"), [(0, 1), (3, 3), (-1, 2), (4, 2)])
def test_a_merge_beyond_the_layers_is_refused(at: int, count: int) -> None:
    with pytest.raises(ValueError, match="cannot merge"):
        collapse(untouched(range(5)), at, count)


def test_json_says_untouched_layers_by_their_number() -> None:
    layers = collapse(untouched(range(4)), 1, 3)
    written = json.loads(json.dumps([layer_json(layer) for layer in layers]))
    assert written == [0, [[1, -1.0], [2, 1.0], [3, 1.0]]]
    assert tuple(read_layer(value, "layers") for value in written) == layers
    assert [is_untouched(layer) for layer in layers] == [True, False]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (-1, "from 0 to 4095, found -1"),
        (MAX_LAYERS, "from 0 to 4095, found 4096"),
        (1.0, "must be a whole number"),
        (True, "must be a whole number"),
        (None, "must be a whole number"),
        ([], "malformed entry"),
        ([3], "malformed entry"),
        ([[3]], "malformed entry"),
        ([[3, 1.0, 2]], "malformed entry"),
        ([["3", 1.0]], "must be a whole number"),
        ([[3, "1.5"]], "a coefficient must be a finite number, found '1.5'"),
        ([[3, True]], "a coefficient must be a finite number, found True"),
        ([[3, float("nan")]], "a coefficient must be a finite number"),
        ([[3, 10**400]], "a coefficient must be a finite number"),
    ],
)
def test_a_layer_from_a_stranger_is_not_believed(value: Any, message: str) -> None:
    with pytest.raises(CorruptFile, match=message):
        read_layer(value, "layers")
