"""Drift along a trace: nothing between a model and itself, and the definition between two."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import LAYERS, build, sample_ids

from snapfit.checkpoint.load import load
from snapfit.evals.traces.drift import by_position, drift

IDS = tuple(sample_ids(1, 24)[0].tolist())


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return load(build("llama", tmp_path_factory.mktemp("base")))


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder: Path = tmp_path_factory.mktemp("other")
    return load(build("llama", folder, seed=1, num_hidden_layers=LAYERS - 1))


def test_a_model_does_not_drift_from_itself(base: Any) -> None:
    found = drift(base, base, IDS)
    assert found.divergence_T.shape == (24,)
    assert found.cosine_LT.shape == (LAYERS + 1, 24)
    assert np.abs(found.divergence_T).max() == 0
    assert found.cosine_LT == pytest.approx(np.ones((LAYERS + 1, 24)))


def test_divergence_is_that_of_the_next_token_s_distributions(base: Any, other: Any) -> None:
    found = drift(base, other, IDS)
    with torch.no_grad():
        ids = torch.tensor([IDS])
        p_TV = torch.softmax(base(ids).logits[0].double(), -1)
        q_TV = torch.softmax(other(ids).logits[0].double(), -1)
    expected = (p_TV * (p_TV / q_TV).log()).sum(-1).numpy()
    assert expected.min() > 0.01
    assert found.divergence_T == pytest.approx(expected, rel=1e-4)
    reverse = drift(other, base, IDS)
    assert not np.allclose(reverse.divergence_T, found.divergence_T, rtol=0.01)


def test_states_are_compared_at_the_same_fraction_of_the_depth(base: Any, other: Any) -> None:
    found = drift(base, other, IDS)
    with torch.no_grad():
        ids = torch.tensor([IDS])
        mine = base(ids, output_hidden_states=True).hidden_states
        theirs = other(ids, output_hidden_states=True).hidden_states
    assert found.cosine_LT.shape == (LAYERS, 24)  # embedding and two layers
    # Of four states 0, 1.5 and 3; halves go to the even one.
    for level, of_base in enumerate((0, 2, 3)):
        a_TD, b_TD = (x[0].double().numpy() for x in (mine[of_base], theirs[level]))
        norms = np.linalg.norm(a_TD, axis=1) * np.linalg.norm(b_TD, axis=1)
        assert found.cosine_LT[level] == pytest.approx((a_TD * b_TD).sum(1) / norms, rel=1e-6)


def test_drift_depends_on_what_was_read_before(base: Any, other: Any) -> None:
    whole = drift(base, other, IDS)
    part = drift(base, other, IDS[:10])
    assert part.divergence_T == pytest.approx(whole.divergence_T[:10], rel=1e-4)
    later = drift(base, other, IDS[10:])
    assert not np.allclose(later.divergence_T, whole.divergence_T[10:], rtol=0.01)


def test_positions_are_averaged_in_equal_parts() -> None:
    mean, error = by_position([np.array([1.0, 1, 2, 2]), np.array([3.0, 3, 3, 4, 4, 4])], 2)
    assert mean.tolist() == [2.0, 3.0]
    # Two traces, 1 and 3, then 2 and 4: a deviation of root 2 over root 2.
    assert error == pytest.approx([1.0, 1.0])


def test_a_single_trace_has_no_spread_and_short_ones_are_left_out() -> None:
    mean, error = by_position([np.arange(4.0), np.array([9.0])], 4)
    assert mean.tolist() == [0.0, 1.0, 2.0, 3.0]
    assert np.isnan(error).all()
    assert np.isnan(by_position([np.array([9.0])], 2)[0]).all()
