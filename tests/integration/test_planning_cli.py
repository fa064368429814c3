"""`snapfit plan` by time, its fronts, and the staircase of one group."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from done import Done
from tiny_models import build

from snapfit.core.candidates import AlignRule
from snapfit.core.interpolate import Timing
from snapfit.core.operators import Attention, Elementwise, Launch, Linear, Operator
from snapfit.core.profile import Profile

RULE = AlignRule(axis="rank", multiple=4, source="a sweep", measured=True, penalty=2.0)
WORK = ["--workload", "prefill:1x16"]


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("llama", tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="session")
def calibration(tmp_path_factory: pytest.TempPathFactory) -> list[object]:
    """Options that every plan shares, so that the statistics are collected once."""
    folder = tmp_path_factory.mktemp("calibration")
    file = folder / "words.txt"
    file.write_text(" ".join(f"w{4 + (7 * i + i * i // 5) % 60}" for i in range(600)))
    small = ["--calib-tokens", 256, "--context", 32]
    return ["--calib", file, "--work", folder / "work", *small]


def timing(operator: Operator, microseconds: float) -> Timing:
    return Timing(
        kind=operator.kind,
        shape=operator.shape,
        microseconds=microseconds,
        spread=0.0,
        source="measured",
        how="made up",
    )


def profile_file(folder: Path, *, launch: float) -> Path:
    """A device whose products cost what they compute, and a launch."""
    sizes = (1, 4, 16, 64, 256)
    timings = [
        timing(Linear(m=m, n=n, k=k), launch + m * n * k / 1e3)
        for m in (1, 16)
        for n in sizes
        for k in sizes
    ]
    timings += [
        timing(Elementwise(elements=4**power, ops=ops), ops * launch + 4**power / 1e6)
        for power in range(9)
        for ops in (1, 2)
    ]
    attention = Attention(batch=1, query=16, context=16, heads=4, kv_heads=2, head_dim=8)
    timings += [timing(attention, launch + 0.5), timing(Launch(), launch)]
    made = Profile(
        device="toy", software="v1", dtype="float32", rules=(RULE,), timings=tuple(timings)
    )
    file = folder / "toy.json"
    file.write_text(json.dumps(made.to_json()))
    return file


@pytest.fixture(scope="session")
def device(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return profile_file(tmp_path_factory.mktemp("device"), launch=0.01)


# -- plans --------------------------------------------------------------------------------------


def test_a_plan_by_latency(
    cli: Callable[..., Done], tmp_path: Path, model: Path, calibration: list[object], device: Path
) -> None:
    file = tmp_path / "plan.json"
    asked = ["plan", model, "-o", file, "--target", device, *WORK, *calibration]
    done = cli(*asked, "--budget", "latency=0.9")
    assert done.code == 0, done.err
    assert max(map(len, done.out.splitlines())) <= 80
    plan = json.loads(file.read_text())
    assert plan["budget"]["keep.latency"] == 0.9
    assert 0.8 < plan["predicted"]["latency.share"] <= 0.9
    assert plan["predicted"]["latency.workload"] == "prefill:1x16"
    assert plan["predicted"]["latency.device"] == "toy"
    both = cli(*asked, "--budget", "latency=0.9,params=0.7", "--overwrite", "--json")
    assert both.code == 0, both.err
    assert both.json["predicted"]["latency.share"] <= 0.9
    assert both.json["predicted"]["params"] <= both.json["budget"]["params"]
    assert both.json["predicted"]["loss"] > plan["predicted"]["loss"]


def test_budgets_that_cannot_be_met(
    cli: Callable[..., Done], tmp_path: Path, model: Path, calibration: list[object], device: Path
) -> None:
    asked = ["plan", model, "-o", tmp_path / "plan.json", *WORK, *calibration]
    kv = cli(*asked, "--target", device, "--budget", "params=0.8,kv=0.5")
    assert kv.code == 2
    assert "--budget kv cannot be met" in kv.err
    assert "removes heads or layers" in kv.err
    slow = profile_file(tmp_path, launch=1e4)
    launch = cli(*asked, "--target", slow, "--budget", "latency=0.8")
    assert launch.code == 1
    assert "for prefill:1x16 no size that may be chosen is faster than dense on toy" in launch.err
    live = cli(*asked, "--target", "cpu", "--budget", "latency=0.8")
    assert live.code == 2
    assert "snapfit profile --target cpu --for" in live.err
    untimed = cli(*asked, "--budget", "latency=0.8")
    assert untimed.code == 2
    assert "needs a target that knows times" in untimed.err
    assert not (tmp_path / "plan.json").exists()


def test_a_live_device_is_not_asked_for_times_of_a_plan_by_parameters(
    cli: Callable[..., Done],
    tmp_path: Path,
    model: Path,
    calibration: list[object],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("nothing is to be measured")

    monkeypatch.setattr("snapfit.hardware.cpu.CpuClock.samples", refuse)
    done = cli("plan", model, "-o", tmp_path / "p.json", "--target", "cpu", *calibration, "--json")
    assert done.code == 0, done.err
    assert "latency.us" not in done.json["predicted"]


# -- fronts -------------------------------------------------------------------------------------


def test_fronts_of_a_plan(
    cli: Callable[..., Done], tmp_path: Path, model: Path, calibration: list[object], device: Path
) -> None:
    asked = ["plan", model, "--target", device, "--ratio", 0.3, *WORK, *calibration]
    for suffix in ("html", "png", "json"):
        front = tmp_path / f"front.{suffix}"
        done = cli(*asked, "-o", tmp_path / f"{suffix}.json", "--pareto", front, "--json")
        assert done.code == 0, done.err
        assert done.json["pareto"] == str(front)
        assert front.stat().st_size > 1000
    found = json.loads((tmp_path / "front.json").read_text())
    labels = [mark["label"] for mark in found["marks"]]
    assert labels == ["dense", "unaligned", "rounded", "GAC", "curve"]
    marks = dict(zip(labels, found["marks"], strict=True))
    assert marks["curve"]["loss"] <= min(marks["GAC"]["loss"], marks["rounded"]["loss"])
    assert all(mark["params"] <= 0.7 for mark in found["marks"][1:])
    for name in ("params", "latency"):
        points = found["fronts"][name]
        assert len(points) > 4
        assert [p["loss"] for p in points] == sorted(p["loss"] for p in points)
    again = cli(*asked, "-o", tmp_path / "other.json", "--pareto", tmp_path / "front.json")
    assert again.code == 1
    assert "front.json already exists" in again.err
    wrong = cli(*asked, "-o", tmp_path / "other.json", "--pareto", tmp_path / "front.pdf")
    assert wrong.code == 2
    assert "--pareto writes .html, .png, .json; got 'front.pdf'" in wrong.err
    assert not (tmp_path / "other.json").exists()


def test_no_front_of_layers(cli: Callable[..., Done], tmp_path: Path, model: Path) -> None:
    file = tmp_path / "front.json"
    asked = ["plan", model, "-o", tmp_path / "p.json", "--method", "magnitude", "--layers", 1]
    done = cli(*asked, "--pareto", file, "--work", tmp_path / "work")
    assert done.code == 2
    assert "choose ranks or widths; magnitude does not" in done.err
    assert not file.exists()


# -- staircases ---------------------------------------------------------------------------------


def test_the_staircase_of_a_group(
    cli: Callable[..., Done], tmp_path: Path, model: Path, device: Path
) -> None:
    name = "model.layers.0.mlp.down_proj"
    asked = ["time", "group", model, name, "--target", device, *WORK]
    done = cli(*asked, "--plot", tmp_path / "stairs.png")
    assert done.code == 0, done.err
    assert (tmp_path / "stairs.png").read_bytes().startswith(b"\x89PNG")
    assert f"{name} on toy, prefill:1x16" in done.out
    assert "32 (dense)" in done.out
    assert max(map(len, done.out.splitlines())) <= 80
    found = cli(*asked, "--json").json
    sizes = [row["size"] for row in found["times"]]
    assert sizes == [4, 8, 12, 16, 32]
    chosen = [row["microseconds"] for row in found["times"] if row["candidate"]]
    assert chosen == sorted(chosen)
    rows = list(csv.DictReader(io.StringIO(cli(*asked, "--csv").out)))
    assert [int(row["size"]) for row in rows] == sizes
    assert float(rows[0]["microseconds"]) == pytest.approx(found["times"][0]["microseconds"])


def test_the_staircase_of_a_width_from_shapes_alone(
    cli: Callable[..., Done], tmp_path: Path, model: Path, device: Path
) -> None:
    config = tmp_path / "config.json"
    config.write_text((model / "config.json").read_text())
    done = cli("time", "group", config, "model.layers.1.mlp", "--target", device, *WORK, "--json")
    assert done.code == 0, done.err
    assert done.json["kind"] == "width"
    assert done.json["times"][-1]["size"] == 48


def test_wrong_groups(cli: Callable[..., Done], tmp_path: Path, model: Path, device: Path) -> None:
    asked = ["time", "group", model, "model.layers.0.mlp.down", "--target", device]
    done = cli(*asked, *WORK)
    assert done.code == 2
    assert "did you mean 'model.layers.0.mlp.down_proj'?" in done.err
    plot = cli(*asked, "--plot", tmp_path / "a.pdf")
    assert plot.code == 2
    assert "--plot writes .svg or .png; got 'a.pdf'" in plot.err


def test_a_plan_that_is_smaller_but_not_faster_says_so(
    cli: Callable[..., Done], tmp_path: Path
) -> None:
    for module in ("aiconfigurator_core", "pyarrow"):
        pytest.importorskip(module, reason="the extra 'hardware' is not installed")
    small = ["--calib-tokens", 1024, "--context", 128, "--work", tmp_path / "work"]
    plan = ["plan", "embedded", "-o", tmp_path / "plan.json", "--ratio", 0.2, *small]
    done = cli(*plan, "--target", "a100_sxm")
    assert done.code == 0
    share = json.loads((tmp_path / "plan.json").read_text())["predicted"]["latency.share"]
    assert share > 1, "two launches in place of one, on a model of this size"
    assert f"predicted to take {share:.3f} of the dense model's time" in done.err
