"""Issue 3, point 4: every misaligned matrix of an unaligned model is found, and none after `align`.

Also the command itself, on its own checkpoints, as text, JSON and a page.
"""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path

import pytest

from snapfit import pipeline
from snapfit.cli.app import run
from snapfit.core.files import read_json
from snapfit.core.operators import Elementwise, Linear, Operator
from snapfit.core.options import Options
from snapfit.core.plan import Plan
from snapfit.core.space import Space
from snapfit.hardware import resolve_target
from snapfit.models.describe import describe, open_model
from snapfit.pipeline.diagnose import diagnose
from snapfit.pipeline.kernels import kernel_names
from snapfit.viz.diagnosis import rows_of

TARGET = "a100_sxm"  # wants multiples of 16; so are all sizes of the embedded model itself


@pytest.fixture(scope="module")
def compressed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model, unaligned and aligned: folders 'none' and 'round' in one."""
    folder = tmp_path_factory.mktemp("diagnose")
    for objective in ("none", "round"):
        options = Options(method="svd", objective=objective, ratio=0.3, work=folder / "work")
        pipeline.compress("embedded", folder / objective, options)
    return folder


def space() -> Space:
    return describe(open_model("embedded"), name="embedded").of_kind("rank")


def test_every_misaligned_matrix_is_found(compressed: Path) -> None:
    plan = Plan.from_json(read_json(compressed / "none" / "plan.json"))
    full = {group.name: group.full for group in space().groups}
    misaligned = {name for name, size in plan.sizes.items() if size % 16 and size < full[name]}
    assert len(misaligned) > len(plan.sizes) / 2  # the case is not an empty one
    found = diagnose(compressed / "none", TARGET)
    assert found.compressor == "snapfit"
    assert set(found.misaligned) == misaligned
    assert {m.name: m.size for m in found.misfits} == {n: plan.sizes[n] for n in misaligned}
    assert all(misfit.good % 16 == 0 for misfit in found.misfits)
    report = read_json(compressed / "none" / "report.json")
    assert {f"mod{n}": s for n, s in found.alignment.items()} == pytest.approx(report["alignment"])
    # Every product of a misaligned rank says why it is slow.
    slow = [line for line in found.lines if not line.suited]
    assert all(line.causes for line in slow if isinstance(line.operator, Linear))
    assert {line.label.rpartition(".")[2] for line in slow} == {"a", "b"}


def test_none_is_left_after_aligning(compressed: Path) -> None:
    found = diagnose(compressed / "round", TARGET)
    assert found.compressor == "snapfit"
    assert found.misfits == ()
    assert all(line.suited for line in found.lines)
    assert found.lost == 0
    assert [change for change in found.changes if change.reason == "alignment"] == []
    assert found.alignment == {8: 1.0, 16: 1.0}


def test_multiples_can_be_asked_for(compressed: Path) -> None:
    found = diagnose(compressed / "round", TARGET, align=48)
    assert set(found.misaligned) == {group.name for group in space().groups}  # 128 is none either
    assert found.rules == ("rank in multiples of 48 (--align 48)",)


def test_the_command_prints_a_table_and_writes_a_page(
    compressed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.html"
    arguments = ["diagnose", str(compressed / "none"), "--target", TARGET, "--html", str(page)]
    assert run(arguments) == 0
    text = capsys.readouterr().out
    found = diagnose(compressed / "none", TARGET)
    assert f"breaking a rule of the target: {len(found.misaligned)}" in text
    assert "what would help most" in text
    assert found.changes[0].text.partition(":")[0] in " ".join(text.split())
    long = [line for line in text.splitlines() if len(line) > 80 and str(compressed) not in line]
    assert [line for line in long if str(tmp_path) not in line] == []
    check = Page()
    check.feed(page.read_text())
    assert check.open == []
    assert check.fetched == []
    assert str(compressed / "none") in check.text
    assert check.rows >= len({line.label for line in found.lines if line.lost})


def test_the_command_answers_in_json(compressed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(compressed / "none")
    assert run(["diagnose", folder, "--target", TARGET, "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    expected = diagnose(folder, TARGET)
    assert data == json.loads(json.dumps(expected.to_json()))
    assert data["matrices"] == len(space().groups)
    assert {entry["name"] for entry in data["misaligned"]} == set(expected.misaligned)


@pytest.mark.parametrize(
    ("arguments", "words", "code"),
    [
        (["nowhere", "--target", TARGET], "no model folder 'nowhere'", 2),
        (["embedded", "--target", "a101"], "unknown target 'a101'", 2),
        (["embedded", "--target", TARGET, "--workload", "chat:1x2"], "prefill or decode", 2),
    ],
)
def test_bad_use_is_one_line(
    arguments: list[str], words: str, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["diagnose", *arguments]) == code
    error = capsys.readouterr().err
    assert words in error
    assert "Traceback" not in error


def test_kernels_are_watched() -> None:
    """On a CPU the profiler names torch's own operators; the way there is the same."""
    names = kernel_names(Linear(m=4, n=8, k=8), device="cpu", dtype="float32")
    assert any("mm" in name or "linear" in name for name in names)


def test_every_shape_has_its_own_kernels(compressed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An odd rank runs another kernel than an even one of the same module, a prompt than a step."""

    def named(operator: Operator, *, device: str, dtype: str) -> tuple[str, ...]:
        return (f"{device} {dtype} {operator}",)

    gpu = resolve_target(TARGET)
    monkeypatch.setattr("snapfit.pipeline.diagnose.resolve_target", lambda name: gpu)
    monkeypatch.setattr("snapfit.pipeline.kernels.kernel_names", named)
    found = diagnose(compressed / "none", "cuda", "prefill:1x64,decode:1x64")
    labels = {line.label for line in found.lines}
    assert len({line.operator for line in found.lines}) > len(labels)
    for line in found.lines:
        expected = (f"cuda float16 {line.operator}",)
        assert found.kernels[str(line.operator)] == expected
    for phase in ("prefill:1x64", "decode:1x64"):
        products = [
            line.operator
            for line in found.lines
            if line.phase == phase and not isinstance(line.operator, Elementwise)
        ]
        shown = sorted(row.kernels for row in rows_of(found, phase) if row.shape)
        assert shown == sorted(found.kernels[str(operator)] for operator in products)
    assert found.to_json()["kernels"].keys() == found.kernels.keys()


class Page(HTMLParser):
    """Tags that stay open, what is fetched, the text, and rows of tables."""

    VOID = frozenset({"meta", "br", "img", "link", "hr", "input"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.fetched: list[str] = []
        self.text = ""
        self.rows = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)
        self.rows += tag == "tr"
        self.fetched += [str(v) for name, v in attrs if name in {"src", "href"}]
        assert tag != "script"

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data
