"""Token sources: what is read, how windows are cut, and what goes wrong with which message."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from safetensors.torch import save_file
from tiny_models import VOCABULARY, build, tiny_tokenizer
from transformers import AutoModelForCausalLM

from snapfit.calib.token_file import read_windows, save_windows
from snapfit.calib.tokens import load_tokens
from snapfit.core.errors import CorruptFile, SnapfitError, UsageError


def no_model():
    raise AssertionError("the model was loaded for nothing")


def load(spec, **changes):
    settings = {
        "tokenizer": tiny_tokenizer(),
        "model_loader": no_model,
        "vocab_size": VOCABULARY,
        "count": 12,
        "context": 4,
        "seed": 0,
    }
    return load_tokens(str(spec), **{**settings, **changes})


def words(*numbers):
    return " ".join(f"w{number}" for number in numbers)


def test_windows_are_contiguous_and_evenly_spread_over_a_text(tmp_path):
    (tmp_path / "a.txt").write_text(words(*range(4, 26)))
    tokens = load(tmp_path / "a.txt")
    assert tokens.ids_BT.tolist() == [[4, 5, 6, 7], [13, 14, 15, 16], [22, 23, 24, 25]]
    assert (tokens.seen, tokens.used, tokens.truncated, tokens.requested) == (22, 12, 10, 12)
    assert tokens.notes == ()
    assert tokens.ids_BT.dtype == torch.int64


def test_a_text_of_exactly_one_window(tmp_path):
    (tmp_path / "a.txt").write_text(words(4, 5, 6, 7))
    tokens = load(tmp_path / "a.txt", count=4)
    assert tokens.ids_BT.tolist() == [[4, 5, 6, 7]]
    assert tokens.truncated == 0


def test_less_text_than_asked_for_is_said(tmp_path):
    (tmp_path / "a.txt").write_text(words(*range(4, 14)))
    tokens = load(tmp_path / "a.txt", count=400)
    assert tokens.used == 8
    assert "has 10 tokens only, 400 were asked for" in tokens.notes[0]


def test_the_digest_depends_on_ids_and_context(tmp_path):
    (tmp_path / "a.txt").write_text(words(*range(4, 28)))
    digests = {load(tmp_path / "a.txt", count=24, context=context).digest for context in (4, 6, 8)}
    assert len(digests) == 3
    assert load(tmp_path / "a.txt").digest == load(tmp_path / "a.txt").digest


def test_jsonl_rows_are_joined_by_the_end_token(tmp_path):
    rows = [
        {"text": words(4, 5)},
        {"question": words(6), "answer": words(7)},
        {"id": 3, "problem": words(8), "solution": words(9)},
        {"messages": [{"role": "user", "content": words(10)}, {"role": "a", "content": words(11)}]},
    ]
    (tmp_path / "a.jsonl").write_text("\n\n".join(json.dumps(row) for row in rows))
    tokens = load(tmp_path / "a.jsonl", count=11, context=11)
    assert tokens.ids_BT.tolist() == [[4, 5, 2, 6, 7, 2, 8, 9, 2, 10, 11]]


def test_messages_go_through_the_chat_template(tmp_path):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}<s> {{ m.content }} {% endfor %}"
    row = {"messages": [{"role": "user", "content": words(10)}]}
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    tokens = load(tmp_path / "a.jsonl", count=2, context=2, tokenizer=tokenizer)
    assert tokens.ids_BT.tolist() == [[1, 10]]


@pytest.mark.parametrize(
    ("name", "content", "kind", "message"),
    [
        ("a.txt", b"", SnapfitError, "a.txt is empty"),
        ("a.txt", b" \n", SnapfitError, "a.txt is empty"),
        ("a.txt", b"\xff\xfe\xff", CorruptFile, "not UTF-8"),
        ("a.txt", b"w4 w5 w6", SnapfitError, "has 3 tokens, less than one window of 4"),
        ("a.jsonl", b"", SnapfitError, "a.jsonl is empty"),
        ("a.jsonl", b'{"text": "w4"}\n{"te', CorruptFile, "a.jsonl:2: not JSON"),
        ("a.jsonl", b"[1]", CorruptFile, "a.jsonl:1: expected an object, found list"),
        ("a.jsonl", b'{"prompt": "w4", "id": 3}', SnapfitError, "it has prompt, id"),
        ("a.jsonl", b'{"messages": [{"role": "user"}]}', SnapfitError, "'role' and a text"),
        ("a.jsonl", b'{"messages": [{"content": "w4"}]}', SnapfitError, "'role' and a text"),
        ("a.jsonl", b'{"messages": [{"role": 5, "content": "w4"}]}', SnapfitError, "'role' and"),
        ("a.jsonl", b'\xff{"text": "w4"}', CorruptFile, "not UTF-8"),
        ("a.jsonl", b'{"text": "w4 \\uD800"}', CorruptFile, "a.jsonl:1: a text holds half of a"),
        ("a.jsonl", b'{"text": "w4", "n": ' + b"1" * 5000 + b"}", CorruptFile, "jsonl:1: not JSON"),
        ("a.jsonl", b"[" * 100_000, CorruptFile, "a.jsonl:1: not JSON"),
    ],
)
def test_bad_files(name, content, kind, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(kind, match=message):
        load(tmp_path / name)


def test_a_missing_file_and_a_folder(tmp_path):
    for name in ("gone.txt", "gone.jsonl", "gone", f"{'g' * 300}.txt"):
        with pytest.raises(SnapfitError, match=f"no such calibration file: .*{name}"):
            load(tmp_path / name)
    with pytest.raises(SnapfitError, match="is a folder"):
        load(tmp_path)


def test_a_missing_tokenizer_says_what_to_do(tmp_path):
    (tmp_path / "a.txt").write_text(words(4))
    with pytest.raises(SnapfitError, match=r"no tokenizer.*--calib self"):
        load(tmp_path / "a.txt", tokenizer=None)


def test_ids_outside_the_embedding_table(tmp_path):
    (tmp_path / "a.txt").write_text(words(*range(4, 30)))
    with pytest.raises(SnapfitError, match=r"token id 29 .* 20 embeddings; the tokenizer has 64"):
        load(tmp_path / "a.txt", vocab_size=20)
    assert load(tmp_path / "a.txt", vocab_size=30).used == 12  # a larger tokenizer alone is fine


@pytest.mark.parametrize(("count", "context"), [(12, 1), (12, 0), (3, 4), (-1, 4)])
def test_sizes_that_make_no_sense(count, context):
    with pytest.raises(UsageError):
        load("self", count=count, context=context)


def test_a_data_set_is_streamed_by_name_config_and_split(monkeypatch):
    import datasets

    asked = []

    def load_dataset(name, config, *, split, streaming):
        asked.append((name, config, split, streaming))
        return ({"text": text} for text in ["", *[words(4, 5, 6)] * 1000])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    for spec in ("some/set", "some/set:test", "some/set:small:test", "some/set::test"):
        tokens = load(spec)
        assert tokens.used == 12
        assert tokens.seen < 150  # it stopped reading
    assert asked == [
        ("some/set", None, "train", True),
        ("some/set", None, "test", True),
        ("some/set", "small", "test", True),
        ("some/set", None, "test", True),
    ]


def test_a_data_set_that_cannot_be_loaded(monkeypatch):
    import datasets

    def load_dataset(*_args, **_named):
        raise ConnectionError("offline\nsecond line")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(SnapfitError, match=r"cannot be loaded: offline$"):
        load("some/set")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(SnapfitError, match="pip install"):
        load("some/set")
    with pytest.raises(UsageError, match="NAME"):
        load("a:b:c:d")


def generator(folder, **changes):
    build("llama", folder, **changes)
    return lambda: AutoModelForCausalLM.from_pretrained(folder).eval()


def test_own_generations_are_seeded_and_need_no_tokenizer(tmp_path):
    loader = generator(tmp_path)
    settings = {"tokenizer": None, "model_loader": loader, "count": 48, "context": 8}
    one, two = (load("self", seed=3, **settings) for _ in range(2))
    assert one.ids_BT.shape == (6, 8)
    assert torch.equal(one.ids_BT, two.ids_BT)
    assert not torch.equal(one.ids_BT, load("self", seed=4, **settings).ids_BT)
    assert (one.ids_BT[:, 0] == 1).all()


def test_own_generations_follow_the_model_and_restart_after_the_end(tmp_path):
    loader = generator(tmp_path)
    tokens = load("self", tokenizer=None, model_loader=loader, count=64 * 64, context=64)
    ids_BT = tokens.ids_BT
    followers = ids_BT[:, 1:][ids_BT[:, :-1] == 2]
    assert len(followers) > 5
    assert (followers == 1).all()
    with torch.no_grad():
        logits_BTV = loader()(ids_BT).logits
    free_BT = ids_BT[:, :-1] != 2
    chosen = torch.nn.functional.cross_entropy(logits_BTV[:, :-1][free_BT], ids_BT[:, 1:][free_BT])
    probabilities = logits_BTV[:, :-1][free_BT].softmax(-1)
    entropy = -(probabilities * probabilities.log()).sum(-1).mean()
    assert abs(float(chosen - entropy)) < 0.06


def test_a_model_that_cannot_start_or_is_broken(tmp_path):
    nameless = generator(tmp_path / "a", bos_token_id=None, eos_token_id=None)
    with pytest.raises(SnapfitError, match="no BOS or EOS"):
        load("self", model_loader=nameless)
    with pytest.raises(SnapfitError, match="exceeds the model's context of 128"):
        load("self", model_loader=generator(tmp_path / "b"), count=200, context=200)

    def broken():
        model = generator(tmp_path / "c")()
        model.lm_head.weight.data.fill_(float("nan"))
        return model

    with pytest.raises(SnapfitError, match="logits hold NaN"):
        load("self", model_loader=broken)


def test_windows_survive_a_round_trip_to_disk(tmp_path):
    (tmp_path / "a.txt").write_text(words(*range(4, 14)))
    tokens = load(tmp_path / "a.txt", count=400)
    save_windows(tmp_path / "tokens.safetensors", tokens)
    again = read_windows(tmp_path / "tokens.safetensors")
    assert torch.equal(again.ids_BT, tokens.ids_BT)
    assert again.digest == tokens.digest
    assert (again.source, again.requested, again.seen) == (tokens.source, 400, 10)
    assert again.notes == tokens.notes


@pytest.mark.parametrize(
    ("ids", "facts"),
    [
        (torch.zeros(2, 2), '{"source": "a", "requested": 4, "seen": 4, "notes": []}'),
        (torch.zeros(4, dtype=torch.int64), '{"source": "a", "requested": 4, "seen": 4}'),
        (torch.zeros(2, 2, dtype=torch.int64), "[]"),
        (torch.zeros(2, 2, dtype=torch.int64), '{"source": "a"}'),
        (torch.zeros(2, 2, dtype=torch.int64), "{"),
    ],
)
def test_a_strange_window_file_is_refused(ids, facts, tmp_path):
    path = tmp_path / "tokens.safetensors"
    save_file({"ids": ids}, path, metadata={"facts": facts})
    with pytest.raises(CorruptFile, match="holds no calibration tokens"):
        read_windows(path)


def test_a_missing_and_a_damaged_window_file(tmp_path):
    path = tmp_path / "tokens.safetensors"
    with pytest.raises(SnapfitError, match="no such file"):
        read_windows(path)
    path.write_bytes(b"nonsense")
    with pytest.raises(CorruptFile, match="delete it"):
        read_windows(path)
