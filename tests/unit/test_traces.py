"""Traces: Self-BLEU as nltk has it, habits by rule, errors by step, and a judge on request."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snapfit.core.errors import CorruptFile, SnapfitError, UsageError
from snapfit.evals.procedural import Chain, Step, draw_chains
from snapfit.evals.traces.behaviours import count_behaviours
from snapfit.evals.traces.chains import anatomy
from snapfit.evals.traces.judge import judged_behaviours
from snapfit.evals.traces.self_bleu import self_bleu
from snapfit.evals.traces.text import sentences, words
from snapfit.pipeline.traces import Judge, analyse

DATA = Path(__file__).parents[3] / "shared" / "data" / "traces"


def nltk_self_bleu(parts: list[list[str]]) -> float:
    """The definition: each sentence against all others, by nltk with smoothing method 4."""
    bleu = pytest.importorskip("nltk.translate.bleu_score", reason="nltk is not installed")
    smooth = bleu.SmoothingFunction().method4
    scores = [
        bleu.sentence_bleu(parts[:i] + parts[i + 1 :], part, smoothing_function=smooth)
        for i, part in enumerate(parts)
    ]
    return float(sum(scores) / len(scores))


@settings(max_examples=150)
@given(st.lists(st.lists(st.sampled_from("abcd"), min_size=1, max_size=9), min_size=2, max_size=6))
@pytest.mark.filterwarnings("ignore")
def test_self_bleu_is_nltk_s(parts: list[list[str]]) -> None:
    assert self_bleu(parts) == pytest.approx(nltk_self_bleu(parts), abs=1e-9)


@pytest.mark.skipif(not DATA.is_dir(), reason="../shared/data/traces is not there")
@pytest.mark.filterwarnings("ignore")
def test_self_bleu_of_published_traces_is_nltk_s() -> None:
    """Whole traces; nltk is quadratic, so it is asked for their first 120 sentences."""
    lines = (DATA / "s1.1-7B_aime24.jsonl").read_text().splitlines()
    traces = [json.loads(line)["resps"][0][0] for line in lines]
    assert len(traces) == 2
    for trace in traces:
        text = trace if isinstance(trace, str) else trace[0]
        parts = sentences(text)[:120]
        assert len(parts) > 50
        assert self_bleu(parts) == pytest.approx(nltk_self_bleu(parts), abs=1e-6)


def test_self_bleu_tells_repetition() -> None:
    varied = sentences("The cat sat down. A dog ran off quickly. Nobody saw any of it happen.")
    same = sentences("So we add two and two. " * 5)
    assert self_bleu(same) == pytest.approx(1.0)
    assert self_bleu(varied) < 0.2
    assert self_bleu(varied[:1]) == 0.0


def test_sentences_end_where_they_end() -> None:
    found = sentences("Pi is 3.14, e.g. here. Is it?\nYes!  \n\n...\nno end")
    assert [" ".join(part) for part in found] == [
        "pi is 3 . 14 , e . g .",
        "here .",
        "is it ?",
        "yes !",
        "no end",
    ]
    assert words("A-b 2x.") == ["a", "-", "b", "2x", "."]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Let me check this. 2 + 2 = 4.", (1, 0, 0)),
        ("Let's verify: plugging it back gives 4.\nDouble-checking, fine.", (2, 0, 0)),
        ("Wait, that is wrong. Let me try another approach.", (0, 2, 0)),
        ("Hmm. Actually, no. Alternatively, add them.", (0, 2, 0)),
        ("First, we need to find x. Next, solve. Step 3 is easy.", (0, 0, 3)),
        ("The waiter awaits. It factually is so. A firsthand plan.", (0, 0, 0)),
        ("", (0, 0, 0)),
    ],
)
def test_habits_are_counted_by_sentence(text: str, expected: tuple[int, int, int]) -> None:
    assert tuple(count_behaviours(text).values()) == expected


CHAIN = Chain(7, (Step("+", 3), Step("-", 4), Step("+", 5)))
RIGHT = "<think> start 7 s1 + 3 = 0 s2 - 4 = 6 s3 + 5 = 1 </think> 1"
SECOND_WRONG = "<think> start 7 s1 + 3 = 0 s2 - 4 = 5 s3 + 5 = 0 </think> 0"
CORRECTED = (
    "<think> start 7 s1 + 3 = 0 s2 - 4 = 5 s3 + 5 = 0 Wait "
    "start 7 s1 + 3 = 0 s2 - 4 = 6 s3 + 5 = 1 </think> 1"
)
TOO_FAR = "<think> start 7 s1 + 3 = 0 s2 - 4 = 6 s3 + 5 = 1 s4 + 1 = 2 </think> 2"
TORN = "<think> start 7 s1 + 3 = 0 </think> 0"


def test_the_anatomy_of_errors_by_step() -> None:
    written = [RIGHT, SECOND_WRONG, CORRECTED, TOO_FAR, TORN]
    found = anatomy([CHAIN] * 5, written)
    assert found.chains == 5
    # Two are wrong at step 2; the torn one never writes step 2, which is its first error.
    assert found.reached == (5, 5, 2)
    assert found.failed == (0, 3, 0)
    assert (found.overrun, found.wrong, found.right, found.corrected) == (1, 4, 2, 1)
    assert found.rate == pytest.approx(3 / 12)
    assert found.expected == pytest.approx(5 * (1 - 3 / 12) ** 3)


def test_an_even_error_rate_compounds_as_expected() -> None:
    chains = draw_chains(0, [4, 12], 10)
    perfect = anatomy(chains, [chain.completion for chain in chains])
    assert (perfect.right, perfect.wrong, perfect.rate) == (20, 0, 0.0)
    assert perfect.expected == 20
    assert perfect.reached == (20,) * 4 + (10,) * 8
    nothing = anatomy(chains, [""] * 20)
    assert (nothing.right, nothing.rate, nothing.expected) == (0, 1.0, 0.0)
    assert nothing.failed[0] == 20


@contextmanager
def judge_server(*answers: str | int) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A chat server that says these in turn, numbers being error statuses, the last for good."""
    asked: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """Say nothing."""

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            said = answers[min(len(asked), len(answers) - 1)]
            asked.append({**body, "path": self.path, "key": self.headers.get("Authorization")})
            message = {"choices": [{"message": {"content": said}}]}
            data = json.dumps(message).encode()
            self.send_response(said if isinstance(said, int) else 200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


COUNTS = 'Here: {"verification": 2, "backtracking": 1, "sub-goals": 0}'


def test_a_judge_is_asked_as_openai_is() -> None:
    with judge_server(COUNTS) as (url, asked):
        found = judged_behaviours("some {trace}", url=url, model="m", key="secret")
    assert found == {"verification": 2, "backtracking": 1, "sub-goals": 0}
    (call,) = asked
    assert (call["path"], call["model"], call["temperature"]) == ("/v1/chat/completions", "m", 0)
    assert call["key"] == "Bearer secret"
    assert "some {trace}" in call["messages"][0]["content"]


def test_a_judge_that_fails_is_asked_again_and_then_reported() -> None:
    with judge_server(500, "I cannot say", COUNTS) as (url, asked):
        assert judged_behaviours("t", url=url, model="m", wait=0.01)["verification"] == 2
        assert len(asked) == 3
    with (
        judge_server('{"verification": 2}') as (url, asked),
        pytest.raises(SnapfitError, match="failed 3 times, last with: KeyError"),
    ):
        judged_behaviours("t", url=url, model="m", wait=0.01)
    with (
        judge_server(401) as (url, asked),
        pytest.raises(SnapfitError, match=r"refuses the request \(401\)"),
    ):
        judged_behaviours("t", url=url, model="m", wait=0.01)
    assert len(asked) == 1
    with pytest.raises(UsageError, match="no address of a server"):
        judged_behaviours("t", url="localhost", model="m")


def test_a_file_of_traces_is_read_in_every_known_shape(tmp_path: Path) -> None:
    rows = [
        {"resps": [["Wait. No."]]},
        {"code": ["Let me check.", "First, add."]},
        {"text": "Let me verify it."},
        {"thinking": "nothing at all"},
    ]
    path = tmp_path / "mine.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    with judge_server(COUNTS) as (url, asked):
        found = analyse(path, judge=Judge(url=url, model="m"), page=tmp_path / "page.html")
    (row,) = found["rows"]
    assert (row["model"], row["traces"], len(asked)) == ("mine", 5, 5)
    assert row["behaviours"] == {"verification": 0.4, "backtracking": 0.2, "sub-goals": 0.2}
    assert row["judged"] == {"verification": 2.0, "backtracking": 1.0, "sub-goals": 0.0}
    page = (tmp_path / "page.html").read_text()
    assert "Traces of mine.jsonl" in page
    assert "<script" not in page


def test_files_without_traces_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    with pytest.raises(SnapfitError, match="no traces at"):
        analyse(path)
    path.write_text("")
    with pytest.raises(SnapfitError, match="holds no traces"):
        analyse(path)
    for line in (
        b"no json",
        b"[1]",
        b'{"other": "x"}',
        b'{"text": {"a": "b"}}',
        b'{"text": 5}',
        b"\xff",
    ):
        path.write_bytes(b'{"text": "x"}\n' + line + b"\n")
        with pytest.raises(CorruptFile, match=r"a\.jsonl, line 2 holds no trace"):
            analyse(path)
