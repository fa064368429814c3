"""The model card says what was done, and strangers' names cannot write it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from snapfit.checkpoint.card import model_card, write_card
from snapfit.core.candidates import AlignRule
from snapfit.core.plan import Plan


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
    card = model_card("small", plan=plan(), report=REPORT, changed=210)
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
    card = model_card("small", plan=plan(model=str(tmp_path / "mine")), report={}, changed=1)
    assert "mine, made smaller" in card
    assert str(tmp_path) not in card
    assert "base_model:" not in card
    assert "## Figures" not in card


def test_names_cannot_write_the_card() -> None:
    evil = "x](http://evil)\n---\n<script>{{ 7 * 7 }}"
    rule = AlignRule(axis="rank", multiple=2, source="a|b\n# heading <b>")
    card = model_card(evil, plan=plan(model=evil, rules=(rule,)), report=REPORT, changed=1)
    assert "<" not in card.replace("(rank)", "")
    assert "49" not in card
    assert "\n# heading" not in card
    assert "](http" not in card


def test_the_card_counts_the_layers_of_its_folder(tmp_path: Path) -> None:
    config = {"quantization_config": {"modules": {"a": {}, "b": {}}}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    write_card(tmp_path, name="small", plan=plan(), report=REPORT)
    text = (tmp_path / "README.md").read_text()
    assert "# small\n" in text
    assert "2 linear layers" in text
