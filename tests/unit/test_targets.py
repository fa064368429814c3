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
from snapfit.hardware import registry, resolve_target, target_names

PROFILE = Profile(
    device="some gpu",
    software="PyTorch 2.9",
    dtype="bfloat16",
    rules=(
        AlignRule(axis="in", multiple=8, source="sweep", measured=True),
        AlignRule(axis="rank", multiple=12, source="sweep", measured=True),
    ),
    timings=(Timing(m=1, n=64, k=64, microseconds=3.5, source="measured"),),
)


@pytest.mark.parametrize(("name", "multiple"), [("cpu", 1), ("a100_sxm", 16), ("h100_sxm", 8)])
def test_shipped_targets(name: str, multiple: int) -> None:
    profile = resolve_target(name)
    assert name in target_names()
    assert profile.device == name
    assert profile.rank_multiple == multiple
    assert all(rule.source for rule in profile.rules)
    assert profile.timings == (), "no timings are shipped, so none may be claimed"


@pytest.mark.parametrize("name", target_names())
def test_every_target_survives_json(name: str) -> None:
    profile = resolve_target(name)
    assert Profile.from_json(json.loads(json.dumps(profile.to_json()))) == profile


def test_saved_profile(tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    file.write_text(json.dumps(PROFILE.to_json()))
    assert resolve_target(str(file)) == PROFILE
    assert PROFILE.rank_multiple == 24


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
        ({"schema": 2}, "schema 2"),
        ({"schema": True}, "schema True"),
        ({"surprise": 1}, "unknown fields"),
        ({"device": 7}, "device must be a short text"),
        ({"device": "x" * 5000}, "device must be a short text"),
        ({"rules": {}}, "rules must be a list"),
        ({"rules": [1]}, "rule must be a table"),
        ({"rules__0__axis": "up"}, "axis 'up'"),
        ({"rules__0__multiple": 0}, "multiple must be a positive whole number"),
        ({"rules__0__multiple": 8.0}, "multiple must be a positive whole number"),
        ({"rules__0__multiple": True}, "multiple must be a positive whole number"),
        ({"rules__0__measured": "yes"}, "measured is true or false"),
        ({"timings__0__microseconds": 0}, "microseconds must be above 0"),
        ({"timings__0__microseconds": float("nan")}, "microseconds must be above 0"),
        ({"timings__0__microseconds": float("inf")}, "microseconds must be above 0"),
        ({"timings__0__source": "guess"}, "source 'guess'"),
        ({"timings__0__m": -1}, "m must be a positive whole number"),
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
    def find(name: str) -> Profile | None:
        return PROFILE if name == "their_gpu" else None


def test_entry_points_add_targets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "entry_points", lambda group: [_Point(_Theirs)])
    assert "their_gpu" in target_names()
    assert resolve_target("their_gpu") is PROFILE


def test_broken_entry_point_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "entry_points", lambda group: [_Point(None)])
    with pytest.raises(SnapfitError, match=r"'theirs' \(package\.module\) cannot be loaded"):
        target_names()
