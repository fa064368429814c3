"""Depth methods on every architecture: valid schedules, sizes, resuming, and `snapfit layers`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import ALL, LAYERS, build, loaded

from snapfit.cli.app import run
from snapfit.core.errors import SnapfitError, UsageError
from snapfit.core.options import Options
from snapfit.core.progress import Silent
from snapfit.core.schedule import Schedule, layer_of
from snapfit.methods.base import DepthMethod
from snapfit.methods.registry import load_method
from snapfit.pipeline.depth import depth_choice, depth_space, left, schedule_of
from snapfit.pipeline.job import Job
from snapfit.pipeline.layers import depth_methods, informed, layer_scores

SETTINGS = {"laco": {"merge": "2", "threshold": "-1"}, "selection": {"layers": "2,0"}}
SOME = ("qwen3", "gemma3_text", "qwen3_moe", "gpt_neox")
WITH_PARTS = tuple(name for name in depth_methods() if name not in {"laco", "gromov"})


class Killed(Silent):
    """Stops a job after some steps of a stage."""

    def __init__(self, stage: str, steps: int) -> None:
        self.named, self.left, self.name = stage, steps, ""

    def stage(self, name: str, total: int) -> None:
        self.name = name

    def advance(self, done: int = 1) -> None:
        if self.name == self.named:
            self.left -= done
            if self.left <= 0:
                raise KeyboardInterrupt


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("depth-work")


def job_for(folder: Path, work: Path, method: str, progress: Any = None, **settings: str) -> Job:
    options = Options(
        method=method,
        calib_tokens=192,
        context=32,
        work=work,
        settings={**SETTINGS.get(method, {}), **settings},
    )
    return Job(model=str(folder), options=options, progress=progress or Silent())


def test_the_methods_of_the_issue_are_there() -> None:
    published = {"shortgpt", "reverse-order", "laco", "gromov"}
    baselines = {"magnitude", "taylor", "perplexity", "random", "selection"}
    assert set(depth_methods()) == published | baselines
    for name in depth_methods():
        method = load_method(name)
        assert isinstance(method, DepthMethod)
        assert method.kind == "depth"
        assert len((type(method).__doc__ or "").split()) > 20
        assert method.unit


@pytest.mark.parametrize(
    ("name", "architecture"),
    [
        (name, architecture)
        for name in depth_methods()
        for architecture in (ALL if load_method(name).reads_tokens else SOME)
    ],
)
def test_every_size_of_a_schedule_is_a_model(
    name: str, architecture: str, tiny: Callable[[str], Path], work: Path
) -> None:
    job = job_for(tiny(architecture), work, name)
    schedule = schedule_of(job)
    assert Schedule.from_json(json.loads(json.dumps(schedule.to_json()))) == schedule
    assert schedule.full == LAYERS
    unequal = name == "laco" and architecture == "qwen3_moe"
    assert schedule.reachable == ((3,) if unequal else (3, 2, 1))
    assert len(schedule.scores) == (0 if name in {"laco", "selection"} else LAYERS)

    space = depth_space(job.space, schedule)
    (group,) = space.groups
    _, model = loaded(tiny(architecture))
    layers = list(model.get_submodule(group.name).children())
    weights = [
        sum(m.rows * m.cols for m in group.matrices if layer_of(m.name) == index)
        for index in range(LAYERS)
    ]
    for weight, layer in zip(weights, layers, strict=True):
        assert 0 < weight <= sum(p.numel() for p in layer.parameters())
    for size in schedule.reachable:
        depth = schedule.at(size)
        assert len(depth.layers) == size
        assert group.params(size) == sum(weights[source] for source in depth.sources)
        choice = depth_choice(space, schedule, size)
        assert choice.params == group.params(size)
        assert choice.loss == schedule.losses[size]
    with pytest.raises(SnapfitError, match="it can remove: 0"):
        depth_choice(space, schedule, 0)


@pytest.mark.parametrize("architecture", SOME)
@pytest.mark.parametrize("part", ["attention", "mlp"])
@pytest.mark.parametrize("name", WITH_PARTS)
def test_parts_are_removed_alone(
    name: str, part: str, architecture: str, tiny: Callable[[str], Path], work: Path
) -> None:
    job = job_for(tiny(architecture), work, name, part=part)
    schedule = schedule_of(job)
    (group,) = depth_space(job.space, schedule).groups
    _, model = loaded(tiny(architecture))
    for size in schedule.reachable:
        depth = schedule.at(size)
        assert len(depth.layers) == LAYERS
        assert len(depth.removed) == LAYERS - size
        for module in depth.removed:
            assert part[:3] in module
            model.get_submodule(module)
    assert group.params(LAYERS) == group.dense_params
    gone = {layer_of(module) for module in schedule.at(1).removed}
    kept = [m for m in group.matrices if layer_of(m.name) not in gone]
    assert group.params(1) == left(group, schedule.at(1)) == sum(m.rows * m.cols for m in kept) > 0


def test_what_cannot_be_removed_alone_is_refused(tiny: Callable[[str], Path], work: Path) -> None:
    with pytest.raises(SnapfitError, match="no module of their own for the mlp"):
        schedule_of(job_for(tiny("opt"), work, "magnitude", part="mlp"))
    for name in ("laco", "gromov"):
        with pytest.raises(UsageError, match="has no setting 'part'"):
            load_method(name, {"part": "mlp"})
    with pytest.raises(UsageError, match="unknown part 'mpl'; did you mean 'mlp'"):
        load_method("shortgpt", {"part": "mpl"})
    with pytest.raises(SnapfitError, match="svd does not remove layers"):
        schedule_of(job_for(tiny("llama"), work, "svd"))


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        ("selection", {"layers": "a"}, "--set layers=12,13"),
        ("selection", {"layers": "1,7"}, "names layer 7; the model has 0 to 2"),
        ("selection", {"layers": "1,1"}, "names a layer twice"),
        ("selection", {"layers": "0,1,2"}, "names all 3 layers"),
        ("laco", {"merge": "4"}, "cannot merge 4 of the layers 0 to 2"),
        ("laco", {"merge": "1"}, "at least 2; got 1"),
        ("laco", {"threshold": "1.5"}, "threshold is a cosine"),
        ("perplexity", {"samples": "0"}, "samples must be at least 1"),
        ("magnitude", {"power": "3"}, "power must be 1 or 2"),
    ],
)
def test_settings_that_cannot_be(
    method: str, settings: dict[str, str], message: str, tiny: Callable[[str], Path], work: Path
) -> None:
    with pytest.raises(UsageError, match=message):
        schedule_of(job_for(tiny("llama"), work, method, **settings))


@pytest.mark.parametrize("name", ["magnitude", "taylor"])
def test_first_and_last_layers_can_be_kept(
    name: str, tiny: Callable[[str], Path], work: Path
) -> None:
    kept = schedule_of(job_for(tiny("qwen3"), work, name, keep_first="1", keep_last="1"))
    assert kept.turns == (None, 1, None)
    assert kept.reachable == (3, 2)
    assert kept.scores == schedule_of(job_for(tiny("qwen3"), work, name)).scores
    nothing = schedule_of(job_for(tiny("qwen3"), work, name, keep_first="2", keep_last="2"))
    assert nothing.reachable == (3,)
    with pytest.raises(UsageError, match="count layers"):
        load_method(name, {"keep_first": "-1"})


def test_random_depends_on_the_seed_alone(tmp_path: Path) -> None:
    folder = build("llama", tmp_path / "model", num_hidden_layers=8)
    seeds = (0, 0, 1)
    turns = []
    for number, seed in enumerate(seeds):
        options = Options(method="random", seed=seed, work=tmp_path / str(number))
        job = Job(model=str(folder), options=options, progress=Silent())
        turns.append(schedule_of(job).turns)
    assert turns[0] == turns[1] != turns[2]


@pytest.mark.parametrize(
    ("method", "stage", "file"),
    [("perplexity", "perplexity", "losses.json"), ("shortgpt", "layers", "hidden_002.safetensors")],
)
def test_a_killed_job_resumes(
    method: str,
    stage: str,
    file: str,
    tiny: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = schedule_of(job_for(tiny("qwen3"), tmp_path / "whole", method))
    with pytest.raises(KeyboardInterrupt):
        schedule_of(job_for(tiny("qwen3"), tmp_path / "killed", method, Killed(stage, 2)))
    (state,) = (tmp_path / "killed").glob("schedule-*/state")
    assert (state / file).exists()
    if method == "perplexity":
        assert set(json.loads((state / file).read_text())) == {"0", "1"}

    from snapfit.methods import _passes, perplexity
    from snapfit.nn.stream import LayerStream

    counts = {"losses": 0, "layers": 0}

    def loss(*given: Any) -> float:
        counts["losses"] += 1
        return _passes.text_loss(*given)

    run_layer = LayerStream.run_layer

    def counted(*given: Any) -> torch.Tensor:
        counts["layers"] += 1
        return run_layer(*given)

    monkeypatch.setattr(perplexity, "text_loss", loss)
    monkeypatch.setattr(LayerStream, "run_layer", counted)
    assert schedule_of(job_for(tiny("qwen3"), tmp_path / "killed", method)) == whole
    assert counts["losses" if method == "perplexity" else "layers"] == (
        2 if method == "perplexity" else 1
    )
    assert not state.exists()


def test_all_methods_side_by_side(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    folder = build("llama", tmp_path / "model", num_hidden_layers=6)
    common = ["layers", folder, "--work", tmp_path / "w", "--calib-tokens", 128, "--context", 32]
    assert run([str(a) for a in (*common, "--png", tmp_path / "a.png")]) == 0
    shown = capsys.readouterr().out
    for name in informed():
        assert name.partition("-")[0] in shown
    assert all(len(line) <= 80 for line in shown.splitlines()[:-1])
    assert (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"
    assert run([str(a) for a in (*common, "--html", tmp_path / "a.html", "--json")]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["methods"]["shortgpt"]["turns"].count(None) == 1
    assert report["methods"]["laco"]["scores"] == []
    page = (tmp_path / "a.html").read_text()
    assert "<svg" in page
    assert f"{report['methods']['shortgpt']['scores'][0]:.4g}" in page
    assert run([str(a) for a in (*common, "--png", tmp_path / "a.png")]) == 1
    assert "already exists" in capsys.readouterr().err
    assert run([str(a) for a in (*common, "--methods", "kfac")]) == 2
    assert "kfac does not remove layers" in capsys.readouterr().err


def test_a_method_that_does_not_suit_the_model_is_left_out(
    tiny: Callable[[str], Path], work: Path
) -> None:
    class Notes(Silent):
        said: tuple[str, ...] = ()

        def note(self, text: str) -> None:
            self.said = (*self.said, text)

    notes = Notes()
    options = Options(calib_tokens=192, context=32, work=work)
    schedules = layer_scores(str(tiny("llama")), options, progress=notes)
    assert set(schedules) == set(informed()) - {"laco"}
    assert any(text.startswith("laco is left out: laco cannot merge 4") for text in notes.said)
    with pytest.raises(UsageError, match="cannot merge 4"):
        layer_scores(str(tiny("llama")), options, ("laco",))
