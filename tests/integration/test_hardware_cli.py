"""`snapfit time` and `profile`: what they answer, and what they leave on disk."""

from __future__ import annotations

import csv
import functools
import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from done import Done
from tiny_models import build

from snapfit.core.candidates import AlignRule
from snapfit.core.operators import Attention, Elementwise, Launch, Linear, Operator
from snapfit.core.profile import Profile, Timing
from snapfit.hardware import cpu

RULES = (
    AlignRule(axis="in", multiple=16, source="a sweep", measured=True, penalty=2.0),
    AlignRule(axis="out", multiple=16, source="a sweep", measured=True, penalty=2.0),
)
WORK = ["--workload", "prefill:1x16"]


def timing(operator: Operator, microseconds: float) -> Timing:
    return Timing(
        kind=operator.kind,
        shape=operator.shape,
        microseconds=microseconds,
        spread=0.02,
        source="measured",
        how="3 x 200 runs",
    )


@pytest.fixture
def gpu(tmp_path: Path) -> Path:
    """A profile that covers the tiny model's shapes, a point for every factor of two."""
    sizes = (1, 4, 16, 64, 256)
    timings = [
        timing(Linear(m=m, n=n, k=k), 1 + m * n * k / 1e4)
        for m in (1, 16, 32)
        for n in sizes
        for k in sizes
    ]
    timings += [timing(Elementwise(elements=4**power), 1.0 + 4**power / 1e3) for power in range(9)]
    timings += [timing(Elementwise(elements=4**power, ops=2), 2.0 + power) for power in range(9)]
    timings += [
        timing(Attention(batch=1, query=16, context=16, heads=h, kv_heads=g, head_dim=16), 5.0)
        for h, g in ((4, 2), (2, 1))
    ]
    timings.append(timing(Launch(), 1.0))
    file = tmp_path / "gpu.json"
    made = Profile(
        device="gpu", software="v1", dtype="float16", rules=RULES, timings=tuple(timings)
    )
    file.write_text(json.dumps(made.to_json()))
    return file


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("llama", tmp_path_factory.mktemp("llama"))


# -- time ---------------------------------------------------------------------------------------


def test_time_of_one_product_beside_a_good_one(cli: Callable[..., Done], gpu: Path) -> None:
    done = cli("time", "linear", 16, 64, 63, "--target", gpu)
    assert done.code == 0, done.err
    assert "model" in done.out
    assert "nearest good shape: linear M 16 N 64 K 64: 7.554 us (measured)" in done.out
    assert max(map(len, done.out.splitlines())) <= 80
    found = cli("time", "linear", 16, 64, 63, "--target", gpu, "--json").json
    (row,) = found["times"]
    assert row["shape"] == {"m": 16, "n": 64, "k": 63}
    assert row["source"] == "model"
    good = found["nearest_good"]
    assert good["source"] == "measured"
    assert good["ratio"] == pytest.approx(row["microseconds"] / good["microseconds"])
    assert good["ratio"] > 1.5, "an odd K pays the rule's penalty"


def test_time_of_a_good_shape(cli: Callable[..., Done], gpu: Path) -> None:
    found = cli("time", "linear", 16, 64, 64, "--target", gpu, "--json").json
    assert found["nearest_good"]["ratio"] is None
    (row,) = found["times"]
    assert row["how"] == "3 x 200 runs"
    assert row["tflops"] == pytest.approx(2 * 16 * 64 * 64 / row["microseconds"] / 1e6)


def test_times_of_other_kernels_are_said_to_be(cli: Callable[..., Done], gpu: Path) -> None:
    ask = ["time", "linear", 16, 64, 64, "--target"]
    told = "times are of float16 products, not of the kernels of quant=fp8"
    assert told in " ".join(cli(*ask, f"{gpu},quant=fp8").out.split())
    assert told in cli(*ask, f"{gpu},quant=fp8", "--json").json["notes"][0]
    assert cli(*ask, gpu, "--json").json["notes"] == []


def test_a_sweep_as_csv(cli: Callable[..., Done], gpu: Path) -> None:
    done = cli("time", "linear", 16, 64, 1, "--target", gpu, "--sweep", "k=48:64:8", "--csv")
    rows = list(csv.DictReader(io.StringIO(done.out)))
    assert [row["k"] for row in rows] == ["48", "56", "64"]
    assert [row["source"] for row in rows] == ["model", "model", "measured"]
    assert float(rows[-1]["microseconds"]) == pytest.approx(1 + 16 * 64 * 64 / 1e4)


def test_attention_and_its_decode(cli: Callable[..., Done], gpu: Path) -> None:
    done = cli("time", "attention", 1, 16, 4, 2, 16, "--target", gpu)
    assert "prefill on" in done.out
    assert "measured" in done.out
    unknown = cli("time", "attention", 1, 16, 4, 2, 16, "--decode", "--target", gpu)
    assert unknown.code == 1
    assert "times nothing near attention B 1 Q 1 S 16" in unknown.err


def test_the_cpu_is_measured(cli: Callable[..., Done], monkeypatch: pytest.MonkeyPatch) -> None:
    quick = functools.partial(cpu.CpuClock, 1 << 14, least=0.001, most=0.01)
    monkeypatch.setattr(cpu, "CpuClock", quick)
    found = cli("time", "attention", 1, 8, 4, 2, 8, "--dtype", "bf16", "--json").json
    assert found["dtype"] == "bfloat16"
    (row,) = found["times"]
    assert row["source"] == "measured"
    assert "flash backend" in row["how"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["linear", 0, 8, 8], 2, "m must be a positive whole number"),
        (["attention", 1, 8, 5, 2, 8], 2, "5 heads cannot share 2"),
        (["linear", 8, 8, 8, "--sweep", "k=9"], 2, "--sweep takes SIZE=FROM:TO:STEP"),
        (["linear", 8, 8, 8, "--sweep", "q=9:10"], 2, "'q' is none of the sizes m, n, k"),
        (["linear", 8, 8, 8, "--sweep", "k=9:8"], 2, "needs 1 <= FROM <= TO"),
        (["linear", 8, 8, 8, "--sweep", "k=1:1000000"], 2, "at most 100000 shapes"),
        (["linear", 8, 8, 8, "--dtype", "fp64"], 2, "not in 'fp64'"),
        (["linear", 8, 8, 8, "--target", "cuda"], 1, "no CUDA device"),
    ],
)
def test_wrong_questions(
    cli: Callable[..., Done],
    arguments: list[object],
    code: int,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("snapfit.hardware.cuda.shutil.which", lambda name: None)
    done = cli("time", *arguments)
    assert done.code == code, done.err
    assert message in done.err
    assert done.out == ""


# -- profile ------------------------------------------------------------------------------------


def test_profile_of_a_model(cli: Callable[..., Done], gpu: Path, model: Path) -> None:
    output = gpu.with_name("made.json")
    done = cli("profile", "--for", model, "--target", gpu, "-o", output, *WORK, "--json")
    assert done.code == 0, done.err
    made = Profile.from_json(json.loads(output.read_text()))
    assert done.json["timed"]["linear"] == sum(t.kind == "linear" for t in made.timings)
    assert done.json["left_out"] == 0
    assert {t.source for t in made.timings} <= {"measured", "model"}
    assert made.rules == RULES
    assert not output.with_name("made.json.partial").exists()
    again = cli("profile", "--for", model, "--target", gpu, "-o", output, *WORK)
    assert again.code == 1
    assert "already exists" in again.err


@pytest.mark.parametrize("name", ["made", "made.txt", "a,tp=2.json"])
def test_a_profile_gets_a_name_that_can_be_a_target(
    cli: Callable[..., Done], gpu: Path, tmp_path: Path, name: str
) -> None:
    done = cli("profile", "--target", gpu, "-o", tmp_path / name, *WORK)
    assert done.code == 2
    assert "ends in .json and has no comma" in done.err
    assert list(tmp_path.iterdir()) == [gpu]


def test_profile_stops_in_time_and_goes_on(
    cli: Callable[..., Done], gpu: Path, model: Path
) -> None:
    output = gpu.with_name("made.json")
    ask = ["profile", "--for", model, "--target", gpu, "-o", output, *WORK, "--json"]
    partial = output.with_name("made.json.partial")
    stopped = cli(*ask, "--minutes", 1e-9)
    assert stopped.code == 1
    assert "no time" in stopped.err
    whole = cli(*ask)
    assert whole.code == 0, whole.err
    kept = json.loads(output.read_text())
    partial.write_text(json.dumps({**kept, "timings": kept["timings"][:5]}))
    resumed = cli(*ask)
    assert resumed.code == 0, resumed.err
    assert json.loads(output.read_text()) == kept
    assert not partial.exists()


def test_profile_of_shapes_without_weights(
    cli: Callable[..., Done], gpu: Path, model: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "shapes"
    folder.mkdir()
    (folder / "config.json").write_text((model / "config.json").read_text())
    outputs = []
    for number, subject in enumerate((model, folder, folder / "config.json")):
        output = tmp_path / f"{number}.json"
        done = cli("profile", "--for", subject, "--target", gpu, "-o", output, *WORK)
        assert done.code == 0, done.err
        outputs.append(json.loads(output.read_text()))
    assert outputs[0] == outputs[1] == outputs[2]


def test_a_model_that_the_stack_refuses(
    cli: Callable[..., Done], gpu: Path, model: Path, tmp_path: Path
) -> None:
    done = cli("profile", "--for", model, "--target", f"{gpu},tp=3", "-o", tmp_path / "p.json")
    assert done.code == 2
    assert "refused by: tp=3" in done.err
    assert not (tmp_path / "p.json").exists()
