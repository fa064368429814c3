"""ASVD's sensitivity search by perplexity: its figures, and that it is kept."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from snapfit.core.progress import Silent
from snapfit.pipeline import Options, compress
from snapfit.pipeline.decide import PROBE_TOKENS
from snapfit.pipeline.job import Job


@pytest.mark.parametrize("architecture", ["llama", "mixtral"])
def test_perplexities_are_those_of_the_model_with_one_matrix_truncated(
    architecture: str, tiny: Callable[[str], Path], tmp_path: Path
) -> None:
    options = Options(
        method="asvd", objective="none", calib_tokens=256, context=32, work=tmp_path / "w"
    )
    report = compress(str(tiny(architecture)), tmp_path / "out", options)
    assert report["ratio"]["linear"] >= 0.2
    memo = next((tmp_path / "w").glob("ordered-*/sensitivity-*.json"))
    known = json.loads(memo.read_text())
    job = Job(model=str(tiny(architecture)), options=options, progress=Silent())
    assert {key.rpartition("@")[0] for key in known} == {g.name for g in job.space.groups}

    group = job.space.groups[5]
    key = next(key for key in known if key.startswith(f"{group.name}@"))
    a, b = job.store.factors(group.layer, group.name, int(key.rpartition("@")[2]))
    model = job.dense_model()
    with torch.no_grad():
        model.get_parameter(f"{group.name}.weight").copy_(b @ a)
        windows = job.tokens.ids_BT[: PROBE_TOKENS // 32]
        losses = [float(model(input_ids=w[None], labels=w[None]).loss) for w in windows]
    assert known[key] == pytest.approx(math.exp(sum(losses) / len(losses)), rel=1e-5)
