"""What mixed plans measure: kept when the run is killed, corrected by, bounded; what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from mixed_jobs import job, options
from tiny_models import build

from snapfit.core.errors import Infeasible, UsageError
from snapfit.core.files import write_json
from snapfit.pipeline.mixed import MixedJob, decide_mixed
from snapfit.pipeline.pareto import front


class Killed(Exception):
    """The process ended."""


class Killer:
    """Counts the probes, and ends the run after some."""

    def __init__(self, after: int | None = None) -> None:
        self.after, self.current, self.probes = after, "", 0

    def stage(self, name: str, total: int) -> None:
        self.current = name

    def advance(self, done: int = 1) -> None:
        if self.current == "probe":
            self.probes += done
            if self.after is not None and self.probes >= self.after:
                raise Killed

    def note(self, text: str) -> None:
        pass


def test_a_run_that_was_killed_goes_on_where_it_stopped(tmp_path: Path) -> None:
    model, asked = build("llama", tmp_path / "m"), options(tmp_path / "w")
    whole = decide_mixed(job(model, replace(asked, work=tmp_path / "v")))
    killed = MixedJob(model=str(model), options=asked, progress=Killer(after=20))
    with pytest.raises(Killed):
        decide_mixed(killed)
    kept = {path: path.read_text() for path in (tmp_path / "w").glob("mixed-*/layer_*.json")}
    assert len(kept) == 1
    rest = decide_mixed(MixedJob(model=str(model), options=asked, progress=Killer()))
    assert all(path.read_text() == text for path, text in kept.items()), "measured again"
    assert rest == whole
    found = MixedJob(model=str(model), options=replace(asked, ratio=0.4), progress=Killer(after=0))
    assert decide_mixed(found).predicted["probes"] == whole.predicted["probes"]


def test_a_plan_that_predicts_badly_is_corrected(tmp_path: Path) -> None:
    model, asked = build("llama", tmp_path / "m"), options(tmp_path / "w", ratio=0.3)
    decide_mixed(job(model, asked))
    for path in (tmp_path / "w").glob("mixed-*/layer_*.json"):
        data = json.loads(path.read_text())
        for name, points in data["points"].items():
            # As if what is factored cost a fifth of what it does.
            if "_proj" in name:
                data["points"][name] = [[s, nats / 5, stderr] for s, nats, stderr in points]
        write_json(path, data)
    one = job(model, asked)
    known = decide_mixed(one).predicted
    assert known["loss.measured.first"] > 1.25 * known["loss.predicted.first"]
    factors = {key: f for key, f in known.items() if key.startswith("correction.factored")}
    assert factors
    assert all(factor > 2 for factor in factors.values())
    apart = known["loss.measured.corrected"] / known["loss.predicted.corrected"]
    assert 0.5 < apart < known["loss.measured.first"] / known["loss.predicted.first"]
    assert known["loss.measured"] <= known["loss.measured.first"]


def test_probes_of_a_large_model_are_bounded(
    tiny: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("snapfit.pipeline.mixed_probes.MOST", 20)
    one = job(tiny("qwen3_moe"), options(tmp_path))
    plan = decide_mixed(one)
    roles = {(group.kind, group.role) for group in one.space.groups}
    measured = {(g.kind, g.role) for g in one.space.groups if one.probed.points.get(g.name)}
    assert measured == roles
    assert 0 < plan.predicted["probes"] < len(one.space.groups)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"objective": "gac"}, "--objective gac starts from the sizes that one method"),
        ({"refit": True}, "--refit corrects the factors"),
        ({"probe": True}, "leave out --probe"),
        ({"ratio": None, "layers": 1}, "--layers counts layers"),
        ({"method": "kfac+svd"}, r"mixes kfac \(rank\), svd \(rank\)"),
        (
            {"method": "kfac+minitron+laco", "settings": {"merge": "2", "threshold": "-1"}},
            "laco merges layers",
        ),
        ({"method": "palu+minitron"}, "palu splits matrices"),
        ({"settings": {"part": "mlp"}}, "leave out the setting 'part'"),
        ({"settings": {"parts": "experts"}}, "leave out 'experts'"),
        ({"settings": {"colour": "red"}}, "no setting 'colour'; it has: damping"),
        ({"format": "decilm", "method": "kfac+minitron", "ratio": 0.99}, "no choice of legal"),
        ({"ratio": 0.999}, "no choice of legal sizes keeps within params=0.001"),
    ],
)
def test_what_cannot_be_asked(
    changes: dict[str, Any], words: str, tiny: Callable[[str], Path], tmp_path_factory: Any
) -> None:
    work = tmp_path_factory.getbasetemp() / "refused"
    with pytest.raises((UsageError, Infeasible), match=words):
        decide_mixed(job(tiny("llama"), options(work, **changes)))


def test_a_front_is_of_one_method(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="ranks or widths; mixed does not"):
        front(job(tiny("llama"), options(tmp_path)))
