"""Targets: what is shipped, what a file may say, and how a wrong name is answered."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from snapfit.core.candidates import AlignRule
from snapfit.core.errors import CorruptFile, SnapfitError, UsageError
from snapfit.core.profile import Profile, Timing
from snapfit.core.target import Target
from snapfit.hardware import registry, resolve_target, target_names

PROFILE = Profile(
    device="some gpu",
    software="PyTorch 2.9",
    dtype="bfloat16",
    rules=(
        AlignRule(axis="in", multiple=8, source="sweep", measured=True, penalty=1.5),
        AlignRule(axis="rank", multiple=12, source="sweep", measured=True),
    ),
    timings=(
        Timing(kind="linear", shape=(1, 64, 64), microseconds=3.5, spread=0.1, source="measured"),
    ),
)


@pytest.mark.parametrize(("name", "multiple"), [("cpu", 1), ("a100_sxm", 16), ("h100_sxm", 8)])
def test_shipped_targets(name: str, multiple: int) -> None:
    target = resolve_target(name)
    assert name in target_names()
    assert (target.name, target.device) == (name, name)
    assert target.rank_multiple == multiple
    assert all(rule.source for rule in target.rules)


def test_names_are_unique() -> None:
    assert len(set(target_names())) == len(target_names())


def test_kinds_fill_in_what_others_leave_open(monkeypatch: pytest.MonkeyPatch) -> None:
    rules = Target(
        name="g", device="g", dtype="float16", rules=PROFILE.rules, capability=90, notes=("a",)
    )
    times = Target(
        name="g",
        device="g",
        dtype="float16",
        rules=(),
        timer=PROFILE,
        times="1 measured",
        software="v1",
        notes=("b", "a"),
    )
    monkeypatch.setattr(registry, "target_kinds", lambda: {"r": _Kind(rules), "t": _Kind(times)})
    found = resolve_target("g,tp=2")
    assert found.timer is PROFILE
    assert (found.times, found.software, found.capability) == ("1 measured", "v1", 90)
    assert found.notes == ("a", "b")
    assert [rule.plain() for rule in found.rules[:2]] == list(PROFILE.rules)


def test_saved_profile(tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    file.write_text(json.dumps(PROFILE.to_json()))
    target = resolve_target(str(file))
    assert target.timer == PROFILE
    assert target.rules == PROFILE.rules
    assert target.device == "some gpu"
    assert target.times == "1 measured"
    assert target.rank_multiple == 24


def test_saved_profile_with_a_stack(tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    file.write_text(json.dumps(PROFILE.to_json()))
    target = resolve_target(f"{file},quant=gguf,engine=llama.cpp")
    assert target.rank_multiple == 96
    assert target.name == f"{file},quant=gguf,engine=llama.cpp"
    assert "factored" not in target.formats
    assert resolve_target(f"{file},engine=vllm,format=stock").formats == ("stock",)


def test_profile_of_rules_only_has_no_timer(tmp_path: Path) -> None:
    file = tmp_path / "rules.json"
    file.write_text(json.dumps({**PROFILE.to_json(), "timings": []}))
    target = resolve_target(str(file))
    assert target.timer is None
    assert resolve_target(str(file), dtype="fp16").dtype == "float16"


def test_profile_is_of_one_data_type(tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    file.write_text(json.dumps(PROFILE.to_json()))
    assert resolve_target(str(file), dtype="bf16").timer == PROFILE
    with pytest.raises(UsageError, match="holds times in bfloat16 only, not in 'float16'"):
        resolve_target(str(file), dtype="fp16")


@pytest.mark.parametrize(("quant", "runs"), [("machete", False), ("marlin", True)])
def test_kernels_need_a_capability(quant: str, runs: bool) -> None:
    text = f"a100_sxm,quant={quant}"
    if runs:
        assert resolve_target(text).rank_multiple == 128
        return
    with pytest.raises(UsageError, match=r"does not run on a100_sxm: .* is 8\.0, needed is 9\.0$"):
        resolve_target(text)


def test_nvfp4_needs_blackwell() -> None:
    with pytest.raises(UsageError, match=r"is 9\.0, needed is 10\.0 to 12\.9"):
        resolve_target("h100_sxm,quant=nvfp4")


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(SnapfitError, match=r"no such file: .*none\.json"):
        resolve_target(str(tmp_path / "none.json"))


@pytest.mark.parametrize("name", ["h100", "H100_SXM", "a100-sxm"])
def test_unknown_name_is_answered_with_the_nearest(name: str) -> None:
    with pytest.raises(UsageError, match=r"did you mean '[ah]100_sxm'\? choose from: .*cpu"):
        resolve_target(name)


def test_far_name_gets_the_list_only() -> None:
    with pytest.raises(UsageError, match="unknown target 'zzz'; choose from") as caught:
        resolve_target("zzz")
    assert "did you mean" not in str(caught.value)


def changed(**changes: Any) -> dict[str, Any]:
    """The profile as JSON with some values replaced, by dotted path."""
    data = copy.deepcopy(PROFILE.to_json())
    for path, value in changes.items():
        *parents, leaf = path.split("__")
        place: Any = data
        for parent in parents:
            place = place[int(parent)] if parent.isdigit() else place[parent]
        place[leaf] = value
    return data


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema": 1}, "schema 1"),
        ({"schema": True}, "schema True"),
        ({"surprise": 1}, "unknown fields"),
        ({"device": 7}, "device must be a short line"),
        ({"device": "x" * 5000}, "device must be a short line"),
        ({"device": "gpu\x1b[2J"}, "device must be a short line"),
        ({"rules__0__source": "a\nb"}, "source must be a short line"),
        ({"rules": {}}, "rules must be a list"),
        ({"rules": [1]}, "rule must be a table"),
        ({"rules__0__axis": "up"}, "axis 'up'"),
        ({"rules__0__multiple": 0}, "multiple must be a positive whole number"),
        ({"rules__0__multiple": 8.0}, "multiple must be a positive whole number"),
        ({"rules__0__multiple": True}, "multiple must be a positive whole number"),
        ({"rules__0__measured": "yes"}, "measured is true or false"),
        ({"timings__0__microseconds": 0}, "microseconds must be above 0"),
        ({"timings__0__microseconds": float("nan")}, "microseconds must be a number"),
        ({"timings__0__microseconds": float("inf")}, "microseconds must be a number"),
        ({"timings__0__source": "guess"}, "source 'guess'"),
        ({"timings__0__shape": [-1, 64, 64]}, "m must be a positive whole number"),
    ],
)
def test_damaged_profile_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CorruptFile, match=message):
        Profile.from_json(changed(**changes))


def test_profile_without_a_field_is_refused(tmp_path: Path) -> None:
    data = PROFILE.to_json()
    del data["rules"]
    file = tmp_path / "short.json"
    file.write_text(json.dumps(data))
    with pytest.raises(CorruptFile, match=r"short\.json: profile lacks: rules"):
        resolve_target(str(file))


class _Point:
    name, value = "theirs", "package.module"

    def __init__(self, kind: Any) -> None:
        self._kind = kind

    def load(self) -> Any:
        if self._kind is None:
            raise ImportError("no module named package")
        return self._kind


class _Theirs:
    @staticmethod
    def names() -> tuple[str, ...]:
        return ("their_gpu",)

    @staticmethod
    def find(name: str) -> Target | None:
        return THEIRS if name == "their_gpu" else None


THEIRS = Target(name="their_gpu", device="their_gpu", dtype="float16", rules=PROFILE.rules)


class _Kind:
    def __init__(self, target: Target) -> None:
        self._target = target

    def names(self) -> tuple[str, ...]:
        return (self._target.name,)

    def find(self, name: str) -> Target | None:
        return self._target if name == self._target.name else None


def test_entry_points_add_targets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "entry_points", lambda group: [_Point(_Theirs)])
    assert "their_gpu" in target_names()
    assert resolve_target("their_gpu") == THEIRS
    assert resolve_target("their_gpu,quant=fp8").rank_multiple == 48


def test_broken_entry_point_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "entry_points", lambda group: [_Point(None)])
    with pytest.raises(SnapfitError, match=r"'theirs' \(package\.module\) cannot be loaded"):
        target_names()
