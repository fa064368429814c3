"""Perplexity: which windows, which tokens are scored, the error, and what is refused."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from snapfit.core.errors import SnapfitError, UsageError
from snapfit.evals.perplexity import cut_windows, encode, perplexity, read_text, window_loss

VOCABULARY = 11


class Letters:
    """A tokenizer of one token a letter (a = 1, ...), that may put tokens before every text."""

    def __init__(self, prefix: list[int], suffix: list[int]) -> None:
        self._prefix, self._suffix = prefix, suffix

    def __call__(self, text: str, *, add_special_tokens: bool, **_: Any) -> dict[str, list[int]]:
        ids = [ord(letter) - ord("a") + 1 for letter in text]
        return {"input_ids": [*self._prefix, *ids, *self._suffix] if add_special_tokens else ids}


class Bigram(torch.nn.Module):
    """A model whose prediction depends on the last token only: its losses are known."""

    def __init__(self, logits_VV: torch.Tensor) -> None:
        super().__init__()
        self.table = torch.nn.Parameter(logits_VV)
        self.device, self.dtype = torch.device("cpu"), torch.float32

    def get_input_embeddings(self) -> SimpleNamespace:
        return SimpleNamespace(num_embeddings=len(self.table))

    def forward(self, input_ids: torch.Tensor, **_: Any) -> SimpleNamespace:
        return SimpleNamespace(logits=self.table[input_ids])


@pytest.fixture
def model() -> Bigram:
    return Bigram(torch.randn(VOCABULARY, VOCABULARY, generator=torch.Generator().manual_seed(0)))


TEXT = "abcdefghij" * 40


def expected(model: Bigram, windows: list[list[int]]) -> tuple[float, float]:
    """Perplexity and its error by the book."""
    log_VV = model.table.detach().double().log_softmax(-1)
    losses = [
        -sum(float(log_VV[a, b]) for a, b in itertools.pairwise(w)) / (len(w) - 1) for w in windows
    ]
    mean = sum(losses) / len(losses)
    variance = sum((loss - mean) ** 2 for loss in losses) / (len(losses) - 1)
    return math.exp(mean), math.exp(mean) * math.sqrt(variance / len(losses))


def test_value_error_and_count(model: Bigram) -> None:
    metric = perplexity(model, Letters([], []), TEXT, context=7, windows=3, source="letters")
    ids = [ord(letter) - ord("a") + 1 for letter in TEXT]
    # 400 tokens are 57 whole windows: the first, the middle and the last of them.
    value, stderr = expected(model, [ids[s : s + 7] for s in (0, 28 * 7, 56 * 7)])
    assert metric.value == pytest.approx(value, rel=1e-6)
    assert metric.stderr == pytest.approx(stderr, rel=1e-5)
    assert metric.n == 3 * 6
    assert metric.kind == "measured"
    assert metric.settings["text"] == "letters"
    assert metric.settings["windows"] == 3
    assert metric.settings["text_tokens"] == 400


def test_every_window_begins_with_what_the_tokenizer_puts_first(model: Bigram) -> None:
    tokenizer = Letters([0], [10])
    prefix, ids = encode(tokenizer, "abc")
    assert (prefix, ids) == ([0], [1, 2, 3])
    metric = perplexity(model, tokenizer, TEXT, context=8, windows=2)
    letters = [ord(letter) - ord("a") + 1 for letter in TEXT]
    value, _ = expected(model, [[0, *letters[:7]], [0, *letters[392:399]]])
    assert metric.value == pytest.approx(value, rel=1e-6)
    assert metric.n == 2 * 7


def test_one_window_has_no_error(model: Bigram) -> None:
    assert perplexity(model, Letters([], []), TEXT, context=50, windows=1).stderr is None


def test_long_windows_are_scored_in_pieces(model: Bigram) -> None:
    ids = torch.tensor([ord(letter) - ord("a") + 1 for letter in TEXT])
    whole = torch.nn.functional.cross_entropy(model.table[ids[:-1]], ids[1:])
    assert window_loss(model, ids) == pytest.approx(whole.item(), rel=1e-6)


def test_windows_never_overlap() -> None:
    cut_WT = cut_windows([], list(range(103)), context=10, windows=10)
    assert torch.unique(cut_WT).numel() == cut_WT.numel() == 100
    assert cut_WT[0, 0] == 0
    assert cut_WT[-1, -1] == 99


def test_windows_are_spread_evenly() -> None:
    cut_WT = cut_windows([], list(range(589 * 4)), context=4, windows=32)
    gaps = (cut_WT[:, 0] // 4).diff()
    assert set(gaps.tolist()) == {18, 19}
    assert cut_WT[-1, -1] == 589 * 4 - 1


def test_too_little_text(model: Bigram) -> None:
    with pytest.raises(SnapfitError, match=r"notes\.txt has 400 tokens; .* use 5 windows"):
        perplexity(model, Letters([], []), TEXT, context=80, windows=6, source="notes.txt")


def test_text_shorter_than_a_window(model: Bigram) -> None:
    with pytest.raises(SnapfitError, match="3 tokens; 1 windows of 80 need 80; use a longer text"):
        perplexity(model, Letters([], []), "abc", context=80, windows=1)


@pytest.mark.parametrize(
    ("context", "windows", "message"),
    [(1, 4, "context must be at least 2"), (8, 0, "windows must be at least 1")],
)
def test_settings_out_of_range(model: Bigram, context: int, windows: int, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        perplexity(model, Letters([], []), TEXT, context=context, windows=windows)


def test_tokens_that_the_model_does_not_know(model: Bigram) -> None:
    with pytest.raises(SnapfitError, match="token 26, the model knows only 11"):
        perplexity(model, Letters([], []), "az" * 50, context=8, windows=2)


def test_loss_that_is_not_finite(model: Bigram) -> None:
    with torch.no_grad():
        model.table[3] = float("nan")
    with pytest.raises(SnapfitError, match="not finite on window 1 of 2"):
        perplexity(model, Letters([], []), TEXT, context=8, windows=2)


def test_unreadable_text(tmp_path: Path) -> None:
    with pytest.raises(SnapfitError, match="no such file"):
        read_text(tmp_path / "none.txt")
    (tmp_path / "latin.txt").write_bytes("é".encode("latin-1"))
    with pytest.raises(SnapfitError, match=r"latin\.txt cannot be read as UTF-8"):
        read_text(tmp_path / "latin.txt")


def test_embedded_model_knows_its_text(tmp_path: Path) -> None:
    from snapfit.evals.procedural import text_lines
    from snapfit.pipeline.measure import measure_perplexity

    text = tmp_path / "held_out.txt"
    text.write_text("\n".join(text_lines(seed=5, count=300)))
    metric = measure_perplexity("embedded", text, context=128, windows=4)
    assert 1 < metric.value < 8, "an untrained model of 224 tokens would give 224"
    assert metric.settings["prefix_tokens"] == 1
