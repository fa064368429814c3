"""The model card says what was done, and strangers' names cannot write it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from snapfit.checkpoint.card import model_card, write_card
from snapfit.core.candidates import AlignRule
from snapfit.core.layout import Block, ModuleLayout
from snapfit.core.plan import Plan
from snapfit.core.structure import Structure


def plan(**changes: Any) -> Plan:
    settings: dict[str, Any] = {
        "model": "HuggingFaceTB/SmolLM2-135M-Instruct",
        "revision": "0" * 16,
        "architecture": "llama",
        "method": "kfac",
        "objective": "curve",
        "sizes": {"a": 16},
        "budget": {"of": "linear", "ratio": 0.2},
        "predicted": {"loss": 0.3, "unit": "nats"},
        "rules": (AlignRule(axis="rank", multiple=16, source="--align 16"),),
        "version": "0.1.0",
        **changes,
    }
    return Plan(**settings)


def structure(count: int) -> Structure:
    layout = ModuleLayout(inputs=8, blocks=(Block(rows=8, rank=2),))
    return Structure(modules={f"m{index}": layout for index in range(count)})


REPORT = {
    "params": {"dense": 134_515_008, "compressed": 113_000_000},
    "ratio": {"linear": 0.2, "model": 0.1599},
    "alignment": {"mod8": 1.0, "mod16": 1.0},
    "loss": {"predicted": 0.3123},
    "perplexity": {"dense": 31.52, "compressed": None},
    "details": {
        "loss.predicted": {"unit": "nats", "kind": "predicted", "stderr": None, "n": None},
        "perplexity.dense": {"unit": "", "kind": "measured", "stderr": 0.41, "n": 16352},
    },
}


def test_front_matter_and_figures() -> None:
    card = model_card("small", plan=plan(), report=REPORT, structure=structure(210))
    matter = card.split("---\n")[1].splitlines()
    assert matter[0] == 'base_model: "HuggingFaceTB/SmolLM2-135M-Instruct"'
    assert "library_name: transformers" in matter
    assert "- snapfit" in matter
    assert "| parameters before | 134,515,008 | counted |" in card
    assert "| share of compressible parameters removed | 20.0% | counted |" in card
    assert "| increase of the loss (nats) | 0.3123 | predicted |" in card
    assert "| perplexity before | 31.52 ± 0.41 | measured, n = 16,352 |" in card
    assert "perplexity after" not in card
    assert "multiples of 16 along rank (--align 16)" in card
    assert "210 linear layers" in card
    assert "import snapfit" in card
    assert 'snapfit.load("small")' in card


def test_a_local_base_is_named_without_its_path(tmp_path: Path) -> None:
    mine = plan(model=str(tmp_path / "mine"))
    card = model_card("small", plan=mine, report={}, structure=structure(1))
    assert "mine, made smaller" in card
    assert str(tmp_path) not in card
    assert "base_model:" not in card
    assert "## Figures" not in card


def test_names_cannot_write_the_card() -> None:
    evil = "x](http://evil)\n---\n<script>{{ 7 * 7 }}"
    rule = AlignRule(axis="rank", multiple=2, source="a|b\n# heading <b>")
    made = plan(model=evil, rules=(rule,))
    card = model_card(evil, plan=made, report=REPORT, structure=structure(1))
    assert "<" not in card.replace("(rank)", "")
    assert "49" not in card
    assert "\n# heading" not in card
    assert "](http" not in card


def test_the_card_is_written_beside_the_weights(tmp_path: Path) -> None:
    write_card(tmp_path, name="small", plan=plan(), report=REPORT, structure=structure(2))
    text = (tmp_path / "README.md").read_text()
    assert "# small\n" in text
    assert "2 linear layers are replaced by pairs of low-rank factors." in text


@pytest.mark.parametrize(
    ("name", "present", "missing"),
    [
        ("stock", "a plain transformers checkpoint", "snapfit.load"),
        ("folded", "neither smaller nor faster", "snapfit.load"),
        ("standalone", "trust_remote_code=True", "pip install snapfit"),
        ("decilm", "which vLLM reads natively", "snapfit.load"),
        ("factored", "pip install snapfit", "trust_remote_code"),
    ],
)
def test_the_card_says_how_its_format_loads(name: str, present: str, missing: str) -> None:
    dropped = Structure(layers=(((0, 1.0),), ((2, 1.0),)), absent={"model.layers.1.mlp": "mlp"})
    card = model_card("small", plan=plan(), report={}, structure=dropped, format_name=name)
    assert "1 layers have lost their attention or MLP; 2 layers are left." in card
    assert present in card
    assert missing not in card
    assert "- low-rank" not in card
