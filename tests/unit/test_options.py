"""What may be asked of a job, and what a plan keeps of it."""

from __future__ import annotations

import json
from typing import Any, get_args

import pytest

from snapfit.core.errors import CorruptFile, UsageError
from snapfit.core.formats import Format
from snapfit.core.options import DEFAULT_RATIO, FORMATS, Options
from snapfit.core.stack import FORMATS as SERVED


def test_every_file_means_the_same_formats() -> None:
    assert set(FORMATS) == set(SERVED) == set(get_args(Format))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ratio": 1.0}, "from 0 to below 1; got 1.0"),
        ({"ratio": float("nan")}, "from 0 to below 1; got nan"),
        ({"ratio": 0.2, "layers": 3}, "give one of --ratio and --layers"),
        ({"ratio": 0.2, "budget": "kv=0.5"}, "give one of --ratio and --budget"),
        ({"layers": -1}, "0 or more; got -1"),
        ({"workload": "prefill"}, "no phase of a workload"),
        ({"format": "stok"}, "did you mean 'stock'"),
        ({"of": "all"}, "unknown of 'all'"),
        ({"objective": "curves"}, "did you mean 'curve'"),
        ({"score": "weight"}, "unknown score"),
        ({"calib_template": "chat"}, "unknown calib_template"),
        ({"require": "speed"}, "unknown require"),
        ({"context": 1}, "context is too small: 1"),
        ({"eval_windows": 0}, "eval_windows is too small: 0"),
        ({"calib_tokens": 100, "context": 512}, "less than one window of 512"),
        ({"probe": True, "objective": "gac"}, "--probe corrects loss curves"),
        ({"align": 0}, "between 1 and 4096; got 0"),
        ({"align": 8, "target": "cpu"}, "either --align or --target"),
        ({"seed": 1 << 63}, "seed is a whole number of at most 63 bits"),
        ({"seed": -(1 << 70)}, "seed is a whole number of at most 63 bits"),
    ],
)
def test_what_makes_no_sense_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Options(**changes)


def test_what_is_implied() -> None:
    assert Options().removed == DEFAULT_RATIO
    assert not Options().checks
    assert Options(require="keeps-reasoning").checks
    assert [Options(method=name).mixes for name in ("kfac", "mixed", "a+b")] == [False, True, True]


@pytest.mark.parametrize(
    "options",
    [
        Options(),
        Options(ratio=0, seed=7, settings={"damping": "0.1"}),
        Options(budget="latency=0.8", workload="decode:1x8", probe=True),
        Options(layers=2, method="shortgpt", format="stock"),
    ],
)
def test_a_recipe_makes_the_same_options_again(options: Options) -> None:
    recipe = json.loads(json.dumps(options.recipe()))
    assert Options(align=8, overwrite=True).with_recipe(recipe) == Options(
        **{**vars(options), "overwrite": True}
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": "0"}, "bad entry: seed"),
        ({"probe": 1}, "bad entry: probe"),
        ({"ratio": "0.2"}, "bad entry: ratio"),
        ({"set.x": 3}, "bad entry: set.x"),
        ({"work": "/tmp"}, "bad entry: work"),
        ({"seed": None}, "bad entry: seed"),
    ],
)
def test_a_recipe_from_a_stranger_is_not_believed(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CorruptFile, match=message):
        Options().with_recipe({**Options().recipe(), **changes})


def test_a_recipe_that_lacks_something_says_what() -> None:
    recipe = Options().recipe()
    del recipe["calib"]
    with pytest.raises(CorruptFile, match="lacks: calib"):
        Options().with_recipe(recipe)
