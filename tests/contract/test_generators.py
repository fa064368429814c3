"""Every generator: the same greedy text, budgets to the token, one sample whatever the batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from completions_server import fails, hangs, once_all_are_in_flight, says, sends, serving
from tiny_models import build, tiny_tokenizer

from snapfit.checkpoint.load import load
from snapfit.core.errors import SnapfitError, UsageError
from snapfit.evals.generators import openai_server
from snapfit.evals.generators.base import Generation, Generator, Request, finished
from snapfit.evals.generators.hf import TransformersGenerator
from snapfit.evals.generators.openai_server import ServerGenerator

EOS = frozenset({2})
PROMPTS = ((1, 9, 17, 5), (1, 20), (1, 33, 8, 8, 8, 41, 12), (1, 6, 60))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # vLLM has no attention on the CPU for smaller heads.
    return build("llama", tmp_path_factory.mktemp("llama"), head_dim=32)


@pytest.fixture(scope="module")
def model(folder: Path) -> Any:
    return load(folder)


@pytest.fixture(scope="module", params=["hf", "openai", "openai-text", "vllm"])
def generator(request: pytest.FixtureRequest, folder: Path, model: Any) -> Iterator[Generator]:
    hf = TransformersGenerator(model, eos=EOS, batch=3)
    tokenizer = tiny_tokenizer()
    if request.param == "hf":
        yield hf
    elif request.param == "vllm":
        pytest.importorskip("vllm", reason="vLLM is not installed")
        from snapfit.evals.generators.vllm_engine import VllmGenerator

        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # one process starts, not two
            yield VllmGenerator(
                folder, eos=EOS, decode=tokenizer.decode, dtype="float32", max_model_len=64
            )
    else:
        with serving(hf, tokenizer, with_ids=request.param == "openai") as url:
            yield ask_server(url)


def ask_server(url: str, **options: Any) -> ServerGenerator:
    tokenizer = tiny_tokenizer()
    return ServerGenerator(
        url,
        model="tiny",
        encode=lambda text: tokenizer.encode(text, add_special_tokens=False),
        decode=tokenizer.decode,
        eos=EOS,
        **options,
    )


@torch.no_grad()
def greedy(model: Any, prompt: tuple[int, ...], count: int) -> tuple[int, ...]:
    """The largest logit, again and again, without a cache."""
    ids = list(prompt)
    for _ in range(count):
        ids.append(int(model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
        if ids[-1] in EOS:
            break
    return tuple(ids[len(prompt) :])


def ask(generator: Generator, **options: Any) -> list[Generation]:
    return in_order(generator, [Request(prompt=prompt, **options) for prompt in PROMPTS])


def in_order(generator: Generator, requests: Sequence[Request]) -> list[Generation]:
    """One answer for every request, in the requests' order."""
    found = dict(generator.generate(requests))
    assert sorted(found) == list(range(len(requests)))
    return [found[at] for at in range(len(requests))]


def test_greedy_text_is_the_model_s(generator: Generator, model: Any) -> None:
    for prompt, found in zip(PROMPTS, ask(generator, max_tokens=12), strict=True):
        expected = greedy(model, prompt, 12)
        assert found.ids == tuple(token for token in expected if token not in EOS)
        assert found.ended == ("eos" if expected[-1] in EOS else "length")


@pytest.mark.parametrize("budget", [0, 1, 2, 7])
def test_no_more_than_the_budget_is_generated(generator: Generator, budget: int) -> None:
    long = ask(generator, max_tokens=12)
    for short, whole in zip(ask(generator, max_tokens=budget), long, strict=True):
        assert len(short.ids) <= budget
        assert short.ids == whole.ids[:budget]
        assert short.ended == "length" or len(whole.ids) < budget


def test_a_stop_sequence_ends_and_is_left_out(generator: Generator) -> None:
    free = ask(generator, max_tokens=12)
    chosen = free[0].ids[4]
    first = free[0].ids.index(chosen)
    found = ask(generator, max_tokens=12, stop=((chosen,),))[0]
    assert found.ids == free[0].ids[:first]
    assert found.ended == "stop"


def test_stop_sequences_of_several_tokens(generator: Generator) -> None:
    free = ask(generator, max_tokens=12)[2].ids
    assert len(free) > 6
    pair = free[3:5]
    first = next(i for i in range(len(free)) if free[i : i + 2] == pair)
    found = ask(generator, max_tokens=12, stop=(pair,))[2]
    assert found.ids == free[:first]
    assert found.ended == "stop"


def test_vllm_itself_stops_at_a_sequence_with_a_special_token(generator: Generator) -> None:
    """Its text hides special tokens if it may, and then s1's delimiter would never be seen."""
    if generator.backend != "vllm":
        pytest.skip("the others look at tokens or ask for the whole text")
    run: Callable[[list[Request]], list[tuple[int, ...]]] = generator._run  # type: ignore[attr-defined]
    for seed in range(99):
        request = Request(prompt=PROMPTS[0], max_tokens=30, temperature=1.0, seed=seed)
        (ids,) = run([request])
        special = [at for at, token in enumerate(ids[:20]) if token in {0, 1, 3}]
        if special:
            break
    pair = ids[special[0] : special[0] + 2]
    (stopped,) = run([replace(request, stop=(pair,))])
    assert stopped == ids[: special[0] + 2]


def test_samples_follow_their_seed_and_not_their_batch(generator: Generator) -> None:
    def sample(*rows: int, seed: int = 5, tokens: int = 10) -> list[tuple[int, ...]]:
        requests = [
            Request(prompt=PROMPTS[row], max_tokens=tokens, temperature=1.0, seed=seed + row)
            for row in rows
        ]
        return [found.ids for found in in_order(generator, requests)]

    together = sample(0, 1, 2, 3)
    assert together == sample(0) + sample(1) + sample(2) + sample(3)
    assert together != sample(0, 1, 2, 3, seed=99)
    assert [ids[:4] for ids in together] == sample(0, 1, 2, 3, tokens=4)


def test_sampling_is_from_the_model_s_distribution(model: Any) -> None:
    """Gumbel noise is a way to sample: frequencies must be the softmax's."""
    prompt, draws, temperature = PROMPTS[0], 4000, 1.5
    with torch.no_grad():
        logits = model(torch.tensor([prompt])).logits[0, -1]
    expected = torch.softmax(logits / temperature, -1)
    requests = [
        Request(prompt=prompt, max_tokens=1, temperature=temperature, seed=seed)
        for seed in range(draws)
    ]
    counts = torch.zeros(len(expected))
    for _, found in TransformersGenerator(model, eos=frozenset(), batch=500).generate(requests):
        counts[found.ids[0]] += 1
    spread = (expected * (1 - expected) / draws).sqrt()
    assert float(((counts / draws - expected).abs() / (spread + 1e-9)).max()) < 4.5


def test_a_prompt_beyond_the_context_is_refused(model: Any) -> None:
    with pytest.raises(SnapfitError, match="exceed the model's context of 128"):
        list(TransformersGenerator(model, eos=EOS).generate([Request(prompt=(1,), max_tokens=128)]))


def test_settings_that_a_checkpoint_recommends_are_left_out(model: Any) -> None:
    """vLLM and servers know nothing of them, and `generate` would apply them silently."""
    model.generation_config.repetition_penalty = 5.0
    model.generation_config.no_repeat_ngram_size = 1
    try:
        found = ask(TransformersGenerator(model, eos=EOS), max_tokens=12)
        assert model.generation_config.repetition_penalty == 5.0
    finally:
        model.generation_config.repetition_penalty = None
        model.generation_config.no_repeat_ngram_size = None
    for prompt, one in zip(PROMPTS, found, strict=True):
        assert one.ids == tuple(t for t in greedy(model, prompt, 12) if t not in EOS)


class TestServer:
    """What goes wrong on the other side."""

    def serve(self, model: Any, misdeeds: list[Any], **options: Any) -> list[Generation]:
        hf = TransformersGenerator(model, eos=EOS)
        with serving(hf, tiny_tokenizer(), misdeeds=misdeeds) as url:
            asked = ask_server(url, first_wait=0.01, parallel=1, **options)
            return ask(asked, max_tokens=5)

    @pytest.mark.parametrize(
        "misdeeds",
        [
            [fails(500), fails(503), fails(429)],
            [says("no json"), says({"choices": []}), says([1]), says({"choices": [{"text": 5}]})],
            [sends(b"no http\r\n\r\n"), sends(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{}")],
            [sends(b"HTTP/1.1 500 Oh\r\nContent-Length: 9\r\n\r\n{}")],
        ],
        ids=["errors", "garbage", "broken off", "broken off after an error"],
    )
    def test_passing_failures_are_tried_again(self, model: Any, misdeeds: list[Any]) -> None:
        assert [f.ids for f in self.serve(model, misdeeds)] == [
            f.ids for f in self.serve(model, [])
        ]

    def test_a_server_that_is_late_is_asked_again(self, model: Any) -> None:
        found = self.serve(model, [hangs(1.5)], timeout=0.5)
        assert [f.ids for f in found] == [f.ids for f in self.serve(model, [])]

    def test_a_server_that_stays_broken_is_reported(self, model: Any) -> None:
        with pytest.raises(SnapfitError, match=r"failed 3 times, last with: status 500"):
            self.serve(model, [fails(500)] * 9, attempts=3)

    def test_a_wrong_request_is_not_repeated(self, model: Any) -> None:
        with pytest.raises(SnapfitError, match=r"refuses the request \(404\): .*status 404\"}$"):
            self.serve(model, [fails(404)])

    def test_a_server_that_overshoots_is_not_trusted(self, model: Any) -> None:
        much = {"choices": [{"text": "w9 w9"}], "usage": {"completion_tokens": 6}}
        with pytest.raises(SnapfitError, match="generated 6 tokens where 5 were allowed"):
            self.serve(model, [says(much)])

    def test_what_others_answered_is_not_lost_with_a_request_that_failed(self, model: Any) -> None:
        hf = TransformersGenerator(model, eos=EOS)
        kept: list[tuple[int, Generation]] = []
        requests = [Request(prompt=prompt, max_tokens=5) for prompt in PROMPTS]
        others = [lambda _: False] * (len(PROMPTS) - 1)
        misdeeds = once_all_are_in_flight(fails(400), *others)
        with serving(hf, tiny_tokenizer(), misdeeds=misdeeds) as url:
            asked = ask_server(url, parallel=len(PROMPTS))
            with pytest.raises(SnapfitError, match=r"refuses the request \(400\)"):
                kept.extend(asked.generate(requests))
        assert len(kept) == len(PROMPTS) - 1
        expected = [found.ids for found in ask(hf, max_tokens=5)]
        assert all(found.ids == expected[at] for at, found in kept)

    @pytest.mark.parametrize(
        ("reason", "ended"), [("</think>", "stop"), (128009, "eos"), (None, "eos")]
    )
    def test_what_ended_an_answer_without_token_ids(
        self, model: Any, reason: object, ended: str
    ) -> None:
        choice = {"text": "w9", "finish_reason": "stop", "stop_reason": reason}
        assert self.serve(model, [says({"choices": [choice]})])[0].ended == ended

    def test_what_a_checkpoint_recommends_is_switched_off(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Left unsaid, `vllm serve` takes it from generation_config.json."""
        sent: list[dict[str, Any]] = []

        def post(_url: str, body: dict[str, Any], **_: Any) -> Any:
            sent.append(body)
            return {"choices": [{"text": "w9", "finish_reason": "length"}]}

        monkeypatch.setattr(openai_server, "post", post)
        request = Request(prompt=(1,), max_tokens=1, temperature=0.5, seed=3)
        list(ask_server("http://localhost:1/v1").generate([request]))
        (body,) = sent
        neutral = {"top_p": 1.0, "top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}
        assert neutral.items() <= body.items()
        assert (body["temperature"], body["seed"]) == (0.5, 3)
        assert body["presence_penalty"] == body["frequency_penalty"] == 0.0

    def test_an_address_is_an_address(self) -> None:
        with pytest.raises(UsageError, match="no address of a server"):
            ask_server("localhost:8000")


@pytest.mark.parametrize(
    ("ids", "limit", "expected"),
    [
        ((5, 6, 7), 9, ((5, 6, 7), "length")),
        ((5, 6, 7), 2, ((5, 6), "length")),
        ((5, 2, 7), 9, ((5,), "eos")),
        ((5, 8, 9, 7), 9, ((5,), "stop")),
        ((8, 5, 9), 9, ((8, 5, 9), "length")),
        ((8, 9), 1, ((8,), "length")),
        ((), 3, ((), "length")),
    ],
)
def test_what_ends_generated_tokens(
    ids: tuple[int, ...], limit: int, expected: tuple[tuple[int, ...], str]
) -> None:
    request = Request(prompt=(1,), max_tokens=limit, stop=((8, 9),))
    assert finished(ids, request, EOS) == expected


def test_generators_share_one_protocol(generator: Generator) -> None:
    generate: Callable[..., Iterator[tuple[int, Generation]]] = generator.generate
    assert list(generate([])) == []
    assert generator.chunk >= 1
