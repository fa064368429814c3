"""Reports: plain numbers for scripts, details for people."""

from __future__ import annotations

import json
import math
import sys

import pytest

from snapfit.core.report import Metric, Report, environment


def test_plain_numbers_with_details_beside_them() -> None:
    perplexity = Metric(
        value=42.4, unit="", kind="measured", stderr=0.6, n=32, settings={"context": 512}
    )
    entries = {
        "params.dense": 100,
        "params.compressed": 80,
        "ratio.linear": 0.2,
        "loss.predicted": Metric(value=0.3, unit="nats", kind="predicted"),
        "perplexity.compressed": perplexity,
        "method": "kfac",
    }
    data = Report(entries=entries, environment={"python": "3"}).to_json()
    assert data["params"] == {"dense": 100, "compressed": 80}
    assert data["perplexity"]["compressed"] == 42.4
    assert data["method"] == "kfac"
    assert data["details"]["perplexity.compressed"] == {
        "unit": "",
        "kind": "measured",
        "stderr": 0.6,
        "n": 32,
        "settings": {"context": 512},
    }
    assert data["details"]["loss.predicted"]["kind"] == "predicted"
    assert "params.dense" not in data["details"]
    assert data["environment"] == {"python": "3"}


def test_infinity_becomes_null_and_is_told() -> None:
    entries = {
        "perplexity.compressed": Metric(
            value=math.inf, unit="", kind="measured", stderr=math.nan, n=2
        ),
        "ratio.model": math.nan,
    }
    data = Report(entries=entries, environment={}).to_json()
    assert data["perplexity"]["compressed"] is None
    assert data["details"]["perplexity.compressed"]["not_finite"] == "inf"
    assert data["details"]["ratio.model"] == {"not_finite": "nan"}
    assert json.loads(json.dumps(data, allow_nan=False)) == data


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a", "a.b"], "shorter name already holds"),
        (["a.b", "a"], "reported twice, or names a table"),
        (["a..b"], "cannot name"),
        ([""], "cannot name"),
        (["details.x"], "cannot name"),
        (["environment"], "cannot name"),
    ],
)
def test_names_that_clash_are_refused(names: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Report(entries=dict.fromkeys(names, 1), environment={}).to_json()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "guessed"}, "measured or predicted"),
        ({"stderr": -1.0}, "standard error"),
        ({"n": 0}, "at least one sample"),
    ],
)
def test_malformed_metrics_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Metric(**({"value": 1.0, "unit": "", "kind": "measured"} | changes))  # type: ignore[arg-type]


def test_environment_is_plain_data() -> None:
    found = environment()
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert isinstance(found["numpy"], str)
    assert json.loads(json.dumps(found)) == found
