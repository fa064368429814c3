"""ASVD's sensitivity search by perplexity: its figures, and that it is kept."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from snapfit.core.progress import Silent
from snapfit.evals.sensitivity import SensitivityProbe
from snapfit.pipeline import Options, compress
from snapfit.pipeline.decide import PROBE_TOKENS
from snapfit.pipeline.job import Job
from snapfit.pipeline.windows import first_windows


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


def test_only_tokens_that_count_are_predicted(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    options = Options(method="asvd", calib_tokens=256, context=32, work=tmp_path / "w")
    job = Job(model=str(tiny("llama")), options=options, progress=Silent())
    tokens, store, group = job.tokens, job.store, job.space.groups[5]
    mask_BT = torch.zeros_like(tokens.ids_BT, dtype=torch.bool)
    mask_BT[1:, 1:12] = True
    vars(job)["tokens"] = replace(tokens, mask_BT=mask_BT)
    ids_BT, read_BT = first_windows(job, 3)
    assert torch.equal(ids_BT, tokens.ids_BT[1:4]), "the first has nothing that counts"

    def probe(name: str, ids_BT: torch.Tensor, mask_BT: torch.Tensor | None) -> float:
        return SensitivityProbe(
            model=job.dense_model(),
            ids_BT=ids_BT,
            factors=lambda group, rank: store.factors(group.layer, group.name, rank),
            groups={group.name: group},
            memo=tmp_path / name,
            mask_BT=mask_BT,
        )(group.name, 8)

    assert probe("a", ids_BT, read_BT) == pytest.approx(probe("b", ids_BT[:, :12], None), rel=1e-5)
    assert probe("c", ids_BT, None) != pytest.approx(probe("a", ids_BT, read_BT), rel=1e-3)
