"""Several calibration sources: what is a mixture, and how windows are shared out."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapfit.calib.mixture import (
    Part,
    content_name,
    mixing_order,
    needs_tokenizer,
    parse_sources,
    shares,
)
from snapfit.core.errors import UsageError


@pytest.mark.parametrize(
    "spec",
    [
        "self",
        "a.txt",
        "some/set:small:test",
        "C:\\a+b.txt",
        "a+b.txt",
        "self:C:\\p.jsonl",
        "a*b.txt",
    ],
)
def test_one_source_is_no_mixture(spec):
    assert parse_sources(spec) == (Part(spec=spec, weight=1.0),)


@pytest.mark.parametrize(
    ("spec", "parts"),
    [
        ("a.txt*0.5+self*0.5", [("a.txt", 0.5), ("self", 0.5)]),
        (
            "some/set:small:test*2+self:p.jsonl*.5",
            [("some/set:small:test", 2), ("self:p.jsonl", 0.5)],
        ),
        ("C:\\a+b.txt*3+c++.txt*1", [("C:\\a+b.txt", 3), ("c++.txt", 1)]),
        ("a.txt*1", [("a.txt", 1)]),
        pytest.param(
            "+".join(f"{name * 100}*1" for name in "abc"),
            [(name * 100, 1) for name in "abc"],
            id="longer than a file name may be",
        ),
    ],
)
def test_a_mixture_has_a_weight_a_source(spec, parts):
    assert [(part.spec, part.weight) for part in parse_sources(spec)] == parts


def test_a_file_of_that_very_name_goes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a*0.5+b*0.5").write_text("x")
    assert parse_sources("a*0.5+b*0.5")[0].spec == "a*0.5+b*0.5"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("a.txt*0.5+self", "every source .* needs a weight"),
        ("a.txt*0.5+", "every source .* needs a weight"),
        ("a.txt*0+self*1", "weight of a.txt must be above 0"),
        pytest.param("a*1+b*" + "9" * 400, "weight of b must be at most 1e", id="infinite"),
        ("a.txt*1+a.txt*2", "names a source twice"),
    ],
)
def test_malformed_mixtures(spec, message):
    with pytest.raises(UsageError, match=message):
        parse_sources(spec)


@given(
    st.lists(st.floats(0.01, 100), min_size=1, max_size=5).flatmap(
        lambda weights: st.tuples(st.just(weights), st.integers(len(weights), 200))
    )
)
def test_windows_are_shared_out_by_weight(case):
    weights, windows = case
    parts = tuple(Part(spec=str(i), weight=w) for i, w in enumerate(weights))
    counts = shares(parts, windows)
    assert sum(counts) == windows
    assert min(counts) >= 1
    wanted = [windows * weight / sum(weights) for weight in weights]
    if min(wanted) >= 1:
        assert all(abs(count - want) < 1 + 1e-9 for count, want in zip(counts, wanted, strict=True))


def test_more_sources_than_windows():
    with pytest.raises(UsageError, match="1 calibration windows are too few for 2 sources"):
        shares(parse_sources("a*1+b*1"), 1)


@given(st.lists(st.integers(1, 20), min_size=1, max_size=4))
def test_every_prefix_holds_the_sources_by_their_shares(counts):
    order = mixing_order(tuple(counts))
    assert sorted(order) == [(s, w) for s, count in enumerate(counts) for w in range(count)]
    for length in range(1, len(order) + 1):
        for source, count in enumerate(counts):
            have = sum(s == source for s, _ in order[:length])
            assert abs(have - length * count / sum(counts)) <= len(counts)


def test_files_are_named_by_their_content(tmp_path):
    first, second = tmp_path / "a" / "p.jsonl", tmp_path / "b" / "p.jsonl"
    for path in (first, second):
        path.parent.mkdir()
        path.write_text(json.dumps({"prompt": "w4"}))
    assert content_name(str(first)) == content_name(str(second)) != str(first)
    assert content_name(f"self:{first}") == content_name(f"self:{second}")
    assert content_name(f"self:{first}") != content_name(str(first))
    mixed = content_name(f"{first}*1+self*1")
    assert mixed == content_name(f"{second}*1+self*1") != content_name(f"{first}*2+self*1")
    second.write_text(json.dumps({"prompt": "w5"}))
    assert content_name(f"{second}*1+self*1") != mixed
    assert content_name("self") == "self"
    assert content_name("a" * 300) == "a" * 300, "longer than a file name may be"


def test_only_a_models_monologue_needs_no_tokenizer():
    assert not needs_tokenizer("self", "none")
    assert needs_tokenizer("self", "thinking")
    assert needs_tokenizer("self:p.jsonl", "none")
    assert needs_tokenizer("self*1+a.txt*1", "none")
