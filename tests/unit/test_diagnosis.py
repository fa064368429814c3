"""Rules of the diagnosis: causes, totals, changes; with timers whose law is known."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from headers import SHAPES, llama, write

from snapfit.core.candidates import AlignRule
from snapfit.core.causes import gpu_causes, tier
from snapfit.core.diagnosis import Diagnosis
from snapfit.core.errors import SnapfitError
from snapfit.core.findings import diagnosed
from snapfit.core.operators import (
    Attention,
    Elementwise,
    Estimate,
    Launch,
    Linear,
    Operator,
    Source,
)
from snapfit.core.progress import Silent
from snapfit.core.target import Target
from snapfit.core.workload import Workload
from snapfit.models.footprint import read_footprint
from snapfit.viz.diagnosis import by_module

RULES = tuple(AlignRule(axis=axis, multiple=16, source="test") for axis in ("in", "out", "rank"))
DOWN = "mlp.down_proj"


@dataclass
class FakeTimer:
    """A product takes its multiplications in ns, three times that where N or K is odd."""

    source: Source = "model"
    spread: float = 0.0
    wave: int = 0
    refused: tuple[type, ...] = ()
    device: str = "fake"
    dtype: str = "float16"
    asked: list[Operator] = field(default_factory=list)

    def time(self, operator: Operator) -> Estimate:
        self.asked.append(operator)
        if isinstance(operator, self.refused):
            raise SnapfitError(f"nothing near {operator}")
        if isinstance(operator, Launch):
            raise SnapfitError("no launch")
        if isinstance(operator, Linear):
            n = -(-operator.n // self.wave) * self.wave if self.wave else operator.n
            odd = operator.n % 2 or operator.k % 2
            time = operator.m * n * operator.k / 1000 * (3 if odd else 1)
        else:
            time = operator.flops / 1000
        return Estimate(microseconds=time, spread=self.spread, source=self.source, how="by law")


def target(timer: FakeTimer | None, rules: tuple[AlignRule, ...] = RULES) -> Target:
    return Target(
        name="fake", device="fake", dtype="float16", rules=rules, timer=timer, capability=80
    )


def pair(name: str, rank: int) -> dict[str, tuple[int, ...]]:
    rows, cols = SHAPES[name]
    return {f"{name}.BLinear.weight": (rank, cols), f"{name}.ALinear.weight": (rows, rank)}


def factored(
    folder: Path, timer: FakeTimer | None, workload: str = "prefill:1x8", **tensors: object
) -> Diagnosis:
    footprint = read_footprint(write(folder, llama({DOWN: pair(DOWN, 33)}) | tensors))  # type: ignore[arg-type]
    return diagnosed(footprint, target(timer), Workload.parse(workload), Silent())


def test_lost_time_is_what_the_nearest_good_shape_saves(tmp_path: Path) -> None:
    found = factored(tmp_path / "m", FakeTimer(), "prefill:1x32")
    # Rank 33 -> 32 in both factors of both layers: m (3 x 33 - 32) (160 + 64) each.
    lost = 2 * 32 * (3 * 33 - 32) * (160 + 64) / 1000
    assert found.lost == pytest.approx(lost)
    assert found.phases[0].shares == {"model": 1.0}
    (change,) = found.changes
    assert change.text.startswith("mlp.down_proj rank 33 -> 32 in 2 layers: -0.961 ms")
    assert change.saved == pytest.approx(lost)
    first = found.lines[0]
    assert {line.label for line in found.lines if line.lost} == {
        "mlp.down_proj.BLinear",
        "mlp.down_proj.ALinear",
    }
    assert first.label == "mlp.down_proj.BLinear"
    assert first.layers == (0, 1)
    assert [cause.short for cause in first.causes] == ["align-1 kernel"]
    assert [(m.name, m.size, m.good) for m in found.misfits] == [
        (f"model.layers.{layer}.mlp.down_proj", 33, 32) for layer in range(2)
    ]


def test_phases_are_weighted(tmp_path: Path) -> None:
    once = factored(tmp_path / "m", FakeTimer(), "prefill:1x8")
    both = factored(tmp_path / "m", FakeTimer(), "prefill:1x8*0.5,decode:1x8*4")
    decode = next(phase for phase in both.phases if phase.phase.startswith("decode"))
    assert both.lost == pytest.approx(0.5 * once.lost + 4 * decode.lost)
    assert both.changes[0].saved == pytest.approx(both.lost)
    assert decode.lost == pytest.approx(once.lost / 8)


def test_measured_differences_within_the_noise_are_no_loss(tmp_path: Path) -> None:
    assert factored(tmp_path / "m", FakeTimer("measured", spread=0.1)).lost > 0
    found = factored(tmp_path / "m", FakeTimer("measured", spread=0.9))
    assert found.lost == 0
    assert found.changes == ()
    assert len(found.misfits) == 2  # the sizes break the rule all the same


def test_a_target_of_rules_only_gives_tiers_and_says_so(tmp_path: Path) -> None:
    found = factored(tmp_path / "m", None)
    assert found.phases == ()
    assert any("no times: tiers only" in note for note in found.notes)
    assert [change.text for change in found.changes] == ["mlp.down_proj rank 33 -> 32 in 2 layers"]
    data = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert data["microseconds"] is None
    assert {entry["time"] for entry in data["operators"] if entry["kind"] == "linear"} == {None}
    assert {e["tier"] for e in data["operators"] if e["label"].startswith(DOWN)} == {1}


def test_operators_without_a_time_are_counted_out_and_told(tmp_path: Path) -> None:
    whole = factored(tmp_path / "m", FakeTimer())
    found = factored(tmp_path / "m", FakeTimer(refused=(Attention,)))
    spent = sum(line.microseconds for line in whole.lines if line.label == "attention")
    assert found.microseconds == pytest.approx(whole.microseconds - spent)
    assert found.phases[0].unknown == 1
    shown = {row.label: row.spent for row in by_module(found, "prefill:1x8")}
    assert shown["attention"] == ""
    assert shown["lm_head"].startswith("~")
    assert any("1 operators have no time" in note for note in found.notes)


def test_a_wave_is_found_where_times_are_modelled(tmp_path: Path) -> None:
    wide = {
        f"model.layers.{layer}.mlp.{name}.weight": shape
        for layer in range(2)
        for name, shape in {
            "gate_proj": (1040, 64),
            "up_proj": (1040, 64),
            "down_proj": (64, 1040),
        }.items()
    }
    tensors = llama() | wide
    footprint = read_footprint(write(tmp_path / "m", tensors))
    timer = FakeTimer(wave=1024)
    found = diagnosed(footprint, target(timer), Workload.parse("prefill:1x8"), Silent())
    assert found.misfits == ()
    assert found.lost == 0
    (change,) = found.changes
    assert (change.what, change.reason) == ("width", "wave")
    assert dict(change.steps) == {("1040", "1024"): 2}
    # Gate and up save a wave each, down only the work of 16 channels.
    saved = 2 * 8 * (2 * 1024 * 64 + 1024 * 16) / 1000
    assert change.saved == pytest.approx(saved)
    gate = next(line for line in found.lines if line.label == "mlp.gate_proj")
    assert [cause.layer for cause in gate.causes] == ["hardware"]
    # A live device is not swept for waves: every shape would have to be measured.
    timer = FakeTimer("measured", wave=1024)
    found = diagnosed(footprint, target(timer), Workload.parse("prefill:1x8"), Silent())
    assert found.changes == ()
    assert not any(getattr(operator, "n", 0) == 1024 for operator in timer.asked)


def test_a_vocabulary_is_padded_up(tmp_path: Path) -> None:
    names = ("lm_head.weight", "model.embed_tokens.weight")
    found = factored(tmp_path / "m", FakeTimer(), **dict.fromkeys(names, (97, 64)))
    texts = [change.text for change in found.changes]
    assert any(text.startswith("lm_head vocabulary 97 -> 112: -") for text in texts)


@pytest.mark.parametrize(
    ("operator", "layer", "short"),
    [
        (Linear(m=512, n=4096, k=4001), "library", "align-1 kernel"),
        (Linear(m=512, n=4002, k=4096), "library", "align-2 kernel"),
        (Linear(m=512, n=4004, k=4096), "library", "align-2 kernel"),
        (Linear(m=512, n=4096, k=4008), "hardware", "sectors"),
        (Linear(m=1, n=4096, k=4001), "hardware", "sectors"),
    ],
)
def test_causes_of_products(operator: Linear, layer: str, short: str) -> None:
    (cause,) = gpu_causes(operator, itemsize=2, suited=False)
    assert (cause.layer, cause.short) == (layer, short)
    assert "GAC" in cause.source
    assert gpu_causes(operator, itemsize=2, suited=True) == ()


def test_four_byte_weights_load_half_as_many_at_once() -> None:
    product = Linear(m=512, n=4096, k=4004)
    assert gpu_causes(product, itemsize=2, suited=False)[0].short == "align-2 kernel"
    assert gpu_causes(product, itemsize=4, suited=False)[0].short == "sectors"


@pytest.mark.parametrize(
    ("size", "shorts"),
    [
        (64, []),
        (72, ["template 96"]),
        (107, ["padded heads", "template 128"]),
        (127, ["padded heads"]),  # padded to 128, which is a template
        (128, []),
        (200, ["template 224"]),
    ],
)
def test_causes_of_attention(size: int, shorts: list[str]) -> None:
    operator = Attention(batch=1, query=8, context=8, heads=4, kv_heads=2, head_dim=size)
    causes = gpu_causes(operator, itemsize=2, suited=True)
    assert [cause.short for cause in causes] == shorts
    assert {cause.layer for cause in causes} <= {"framework"}


def test_tiers() -> None:
    assert [tier(Linear(m=3, n=n, k=32)) for n in (31, 30, 28, 24, 48)] == [1, 2, 2, 8, 16]
    assert tier(Elementwise(elements=7)) is None
