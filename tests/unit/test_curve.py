"""Curves: monotone, finite, in a stated unit."""

from __future__ import annotations

import numpy as np
import pytest

from snapfit.core.curve import Curve


def curve(sizes: list[int], losses: list[float], unit: str = "nats") -> Curve:
    return Curve(sizes=np.array(sizes), losses=np.array(losses), unit=unit)


def test_rounding_noise_is_made_monotone() -> None:
    noisy = curve([1, 2, 3, 4], [3.0, 1.0, 1.0 + 1e-15, 0.0])
    assert np.all(np.diff(noisy.losses) <= 0)
    assert noisy.losses[0] == 3.0


def test_values_between_and_beyond() -> None:
    line = curve([2, 4], [1.0, 0.0])
    assert line.at([1, 2, 3, 4, 9]).tolist() == [1.0, 1.0, 0.5, 0.0, 0.0]


def test_scaling_states_the_new_unit() -> None:
    scaled = curve([1, 2], [1.0, 0.0], "output error").scaled(0.5, "nats")
    assert scaled.unit == "nats"
    assert scaled.losses.tolist() == [0.5, 0.0]


@pytest.mark.parametrize(
    ("sizes", "losses", "message"),
    [
        ([], [], "equal 1-D"),
        ([1, 2], [1.0], "equal 1-D"),
        ([2, 1], [1.0, 0.0], "strictly increasing"),
        ([1, 1], [1.0, 0.0], "strictly increasing"),
        ([1, 2], [np.nan, 0.0], "finite"),
        ([1, 2], [np.inf, 0.0], "finite"),
        ([1, 2], [1.0, -0.5], "non-negative"),
    ],
)
def test_malformed_curves_are_refused(sizes: list[int], losses: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        curve(sizes, losses)
