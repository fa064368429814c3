"""Two phases within a budget: exact to the token, and one run serves all smaller budgets."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted import EOS, Scripted, dialogue, ids_of, task

from snapfit.checkpoint.load import load, load_tokenizer
from snapfit.core.errors import SnapfitError, UsageError
from snapfit.evals.dialogue import Dialogue, find_delimiters
from snapfit.evals.generators.base import Generator
from snapfit.evals.generators.hf import TransformersGenerator
from snapfit.evals.recall import recall
from snapfit.evals.records import Answer, Thought
from snapfit.evals.tasks import embedded
from snapfit.evals.tasks.base import Task
from snapfit.evals.thinking import Sampling, answer, check_context, think, within
from snapfit.models.source import open_model

ENDS = ("w5", "w5 w6", "w5 w5", "")
"""Delimiters of one token and of several, one that overlaps itself, and none."""


def thoughts_of(
    sampling: Sampling, generator: Generator, talk: Dialogue, asked: Task
) -> list[Thought]:
    wanted = [(problem, s) for s in range(sampling.samples) for problem in asked.problems]
    found = think(asked, wanted, sampling=sampling, dialogue=talk, generator=generator)
    thoughts = {(thought.problem, thought.sample): thought for thought in found}
    return [thoughts[problem.id, s] for problem, s in wanted]


def run(
    sampling: Sampling, generator: Generator, talk: Dialogue, asked: Task
) -> tuple[list[Thought], list[Answer]]:
    thoughts = thoughts_of(sampling, generator, talk, asked)
    problems = {problem.id: problem for problem in asked.problems}
    wanted = [(problems[t.problem], t, sampling.budgets) for t in thoughts]
    found = answer(asked, wanted, sampling=sampling, dialogue=talk, generator=generator)
    return thoughts, list(found)


def test_each_extension_is_drawn_with_a_seed_of_its_own() -> None:
    generator, sampling = Scripted(3), Sampling(budgets=(24,), samples=1, extend=3)
    thoughts_of(sampling, generator, dialogue(end="w5", again="w7"), task(1))
    seeds = [request.seed for request in generator.asked]
    assert len(seeds) > 1
    assert seeds == list(range(seeds[0], seeds[0] + len(seeds)))


def without_time(answers: list[Answer]) -> list[Answer]:
    ordered = sorted(answers, key=lambda a: (a.problem, a.sample, a.budget))
    return [replace(found, seconds=0.0) for found in ordered]


@settings(max_examples=40)
@given(
    salt=st.integers(0, 10**6),
    end=st.sampled_from(ENDS),
    again=st.sampled_from(["w7", "w7 w8", "w5"]),
    extend=st.integers(0, 3),
    largest=st.integers(2, 24),
    temperature=st.sampled_from([0.0, 1.0]),
)
def test_one_run_serves_every_smaller_budget(
    salt: int, end: str, again: str, extend: int, largest: int, temperature: float
) -> None:
    """Thinking, cuts and answers are those of a run of their own with each budget."""
    talk, asked = dialogue(end=end, again=again), task(1)
    budgets = tuple(range(1, largest + 1))
    sampling = Sampling(
        budgets=budgets, samples=1, extend=extend, temperature=temperature, answer_tokens=4
    )
    (whole,), answers = run(sampling, Scripted(salt), talk, asked)
    assert len(whole.ids) <= largest
    for budget in budgets:
        alone = replace(sampling, budgets=(budget,))
        (own,), found = run(alone, Scripted(salt), talk, asked)
        assert len(own.ids) <= budget
        assert within(whole, budget, talk.stop) == within(own, budget, talk.stop)
        shared = [one for one in answers if one.budget == budget]
        assert without_time(shared) == without_time(found)


@settings(max_examples=40)
@given(salt=st.integers(0, 10**6), extend=st.integers(0, 3), budget=st.integers(1, 30))
def test_no_request_asks_for_more_than_is_left(salt: int, extend: int, budget: int) -> None:
    generator, talk = Scripted(salt), dialogue(again="w7 w8")
    sampling = Sampling(budgets=(budget,), samples=2, extend=extend)
    thoughts = thoughts_of(sampling, generator, talk, task())
    prompts = {thought.prompt for thought in thoughts}
    for request in generator.asked:
        prompt = next(p for p in prompts if request.prompt[: len(p)] == p)
        assert len(request.prompt) - len(prompt) + request.max_tokens == budget
    for thought in thoughts:
        assert len(thought.ids) <= budget
        assert len(thought.waits) <= extend
        if len(thought.waits) < extend:
            assert thought.ended == "length"


def test_wait_takes_the_place_of_the_end_and_uses_what_is_left() -> None:
    talk, wait = dialogue(again="w7 w8"), ids_of("w7 w8")
    asked, seen = task(8), 0
    plain = thoughts_of(Sampling(budgets=(40,), samples=1), Scripted(), talk, asked)
    longer = thoughts_of(Sampling(budgets=(40,), samples=1, extend=1), Scripted(), talk, asked)
    for short, long in zip(plain, longer, strict=True):
        if short.ended == "length":
            assert long.ids == short.ids
            continue
        seen += 1
        place = len(short.ids)
        assert long.waits == (place,)
        assert long.ids[: place + 2] == (short.ids + wait)[:40]
        assert talk.stop[0][0] not in long.ids
    assert seen > 3


def test_wait_that_no_longer_fits_is_torn_and_thinking_is_cut() -> None:
    talk, asked = dialogue(again="w7 w8 w9"), task(1)
    salt, place = next(
        (salt, len(found.ids))
        for salt in range(99)
        for found in thoughts_of(Sampling(budgets=(40,), samples=1), Scripted(salt), talk, asked)
        if found.ended == "stop" and len(found.ids) > 2
    )
    sampling = Sampling(budgets=(place + 2,), samples=1, extend=1)
    (found,) = thoughts_of(sampling, Scripted(salt), talk, asked)
    assert (found.ids[place:], found.ended) == (ids_of("w7 w8"), "length")
    assert within(found, place + 2, talk.stop) == (found.ids, True)


def test_the_two_phases_as_the_model_reads_them() -> None:
    generator, talk, asked = Scripted(), dialogue(), task(6)
    sampling = Sampling(budgets=(6,), samples=1, answer_tokens=3)
    thoughts = thoughts_of(sampling, generator, talk, asked)
    generator.asked.clear()
    problems = {problem.id: problem for problem in asked.problems}
    wanted = [(problems[t.problem], t, (6,)) for t in thoughts]
    found = list(answer(asked, wanted, sampling=sampling, dialogue=talk, generator=generator))
    assert {one.cut for one in found} == {True, False}
    for thought, one, request in zip(thoughts, found, generator.asked, strict=True):
        problem = problems[thought.problem]
        assert thought.prompt == ids_of(f"{problem.question} w21")
        closing = "w5 w20" if one.cut or thought.ended == "eos" else "w5"
        assert request.prompt == thought.prompt + thought.ids + ids_of(closing)
        assert request.max_tokens == 3
        assert one.correct == (one.answer == "w7")


def test_a_failure_in_a_chunk_keeps_the_thoughts_before_it() -> None:
    kept = []
    sampling = Sampling(budgets=(9,), samples=1)
    wanted = [(problem, 0) for problem in task(4).problems]
    thinking = think(
        task(4), wanted, sampling=sampling, dialogue=dialogue(), generator=Scripted(fail_after=3)
    )
    with pytest.raises(SnapfitError, match="failed for good"):
        kept.extend(thinking)
    assert [thought.problem for thought in kept] == ["p0", "p1", "p2"]


def test_samples_have_seeds_of_their_own_that_every_model_shares() -> None:
    sampling = Sampling(budgets=(9,), seeds=(7, 11), samples=6)
    seeds = {
        (problem, sample): sampling.seed("t", problem, sample, "think")
        for problem in ("a", "b")
        for sample in range(6)
    }
    assert len(set(seeds.values())) == 12
    assert all(0 <= seed < 2**31 for seed in seeds.values())
    assert seeds["a", 0] == replace(sampling, budgets=(5,)).seed("t", "a", 0, "think")
    assert seeds["a", 0] != sampling.seed("t", "a", 0, "answer")


def test_what_the_context_cannot_hold_is_refused_before_it_is_asked() -> None:
    sampling = Sampling(budgets=(8, 16), answer_tokens=4)
    # Three words of the longest prompt, two that close thinking.
    check_context(task(), sampling=sampling, dialogue=dialogue(), context=3 + 16 + 2 + 4)
    check_context(task(), sampling=sampling, dialogue=dialogue(), context=None)
    with pytest.raises(UsageError, match="give at most --budgets 15"):
        check_context(task(), sampling=sampling, dialogue=dialogue(), context=24)
    with pytest.raises(UsageError, match="fewer --answer-tokens"):
        check_context(task(), sampling=sampling, dialogue=dialogue(), context=9)


def test_recall_thinks_nothing() -> None:
    generator = Scripted()
    (found,) = recall(task(1), task(1).problems, dialogue=dialogue(), generator=generator, tokens=2)
    assert (found.budget, found.thinking, found.sample) == (0, 0, 0)
    (request,) = generator.asked
    assert (request.prompt, request.max_tokens) == (ids_of("w30 w40"), 2)
    assert request.temperature == 0


@pytest.fixture(scope="module")
def embedded_model() -> tuple[TransformersGenerator, Dialogue]:
    path = open_model("embedded").path
    tokenizer = load_tokenizer(path)
    generator = TransformersGenerator(load(path), eos=frozenset({EOS}), batch=8)
    return generator, Dialogue(tokenizer, find_delimiters(tokenizer))


@pytest.mark.parametrize(("temperature", "extend"), [(0.0, 0), (1.0, 1)])
def test_a_real_model_s_prefixes_are_runs(
    embedded_model: tuple[TransformersGenerator, Dialogue], temperature: float, extend: int
) -> None:
    generator, talk = embedded_model
    asked = embedded.load("long", limit=3, seed=0)
    sampling = Sampling(
        budgets=(16, 47, 150), samples=1, extend=extend, temperature=temperature, answer_tokens=4
    )
    whole, answers = run(sampling, generator, talk, asked)
    assert {one.cut for one in answers} == {True, False}
    for budget in (16, 47):
        own, found = run(replace(sampling, budgets=(budget,)), generator, talk, asked)
        assert [within(t, budget, talk.stop) for t in whole] == [
            within(t, budget, talk.stop) for t in own
        ]
        shared = [one for one in answers if one.budget == budget]
        assert without_time(shared) == without_time(found)
