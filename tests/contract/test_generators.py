"""Every generator: the same greedy text, budgets to the token, one sample whatever the batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from completions_server import fails, hangs, says, serving
from tiny_models import build, tiny_tokenizer

from snapfit.checkpoint.load import load
from snapfit.core.errors import SnapfitError, UsageError
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
    requests = [Request(prompt=prompt, **options) for prompt in PROMPTS]
    return list(generator.generate(requests))


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


def test_samples_follow_their_seed_and_not_their_batch(generator: Generator) -> None:
    def sample(*rows: int, seed: int = 5, tokens: int = 10) -> list[tuple[int, ...]]:
        requests = [
            Request(prompt=PROMPTS[row], max_tokens=tokens, temperature=1.0, seed=seed + row)
            for row in rows
        ]
        return [found.ids for found in generator.generate(requests)]

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
    for found in TransformersGenerator(model, eos=frozenset(), batch=500).generate(requests):
        counts[found.ids[0]] += 1
    spread = (expected * (1 - expected) / draws).sqrt()
    assert float(((counts / draws - expected).abs() / (spread + 1e-9)).max()) < 4.5


def test_a_prompt_beyond_the_context_is_refused(model: Any) -> None:
    with pytest.raises(SnapfitError, match="exceed the model's context of 128"):
        list(TransformersGenerator(model, eos=EOS).generate([Request(prompt=(1,), max_tokens=128)]))


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
        ],
        ids=["errors", "garbage"],
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
        with pytest.raises(SnapfitError, match=r"refuses the request \(404\)"):
            self.serve(model, [fails(404)])

    def test_a_server_that_overshoots_is_not_trusted(self, model: Any) -> None:
        much = {"choices": [{"text": "w9 w9"}], "usage": {"completion_tokens": 6}}
        with pytest.raises(SnapfitError, match="generated 6 tokens where 5 were allowed"):
            self.serve(model, [says(much)])

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
    generate: Callable[..., Iterator[Generation]] = generator.generate
    assert list(generate([])) == []
    assert generator.chunk >= 1
