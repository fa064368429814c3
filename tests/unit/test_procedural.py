"""The procedural texts: reproducible, disjoint, exact; and the check that finds a first error."""

from __future__ import annotations

import random

import pytest

from snapfit.evals import procedural as text
from snapfit.evals.procedural import Chain, Step
from snapfit.evals.procedural_check import check_trace

CHAIN = Chain(7, (Step("+", 3), Step("-", 4), Step("+", 5)))
RIGHT = "<think> start 7 s1 + 3 = 0 s2 - 4 = 6 s3 + 5 = 1 </think> 1"


def test_a_chain_shows_its_steps_and_values():
    assert CHAIN.values == (0, 6, 1)
    assert CHAIN.answer == 1
    assert CHAIN.question == "start 7 s1 + 3 s2 - 4 s3 + 5 ?"
    assert CHAIN.completion == RIGHT
    assert CHAIN.text == f"{CHAIN.question} {RIGHT}"


def test_the_table_has_one_value_for_each_entity_and_relation():
    table = text.fact_table()
    keys = {(fact.entity, fact.relation) for fact in table}
    assert len(table) == len(keys) == text.ENTITIES * len(text.RELATIONS)
    assert all(fact.value in text.RELATIONS[fact.relation].split() for fact in table)


def test_every_word_of_every_text_is_one_distinct_token():
    words = text.vocabulary()
    assert len(set(words)) == len(words)
    rng = random.Random(0)
    lines = [*text.text_lines(0, 500), *(fact.text for fact in text.fact_table())]
    lines += [chain.second_look(rng) for chain in text.draw_chains(0, [24], 20)]
    assert {word for line in lines for word in line.split()} <= set(words)


def test_a_seed_names_a_data_set():
    assert text.draw_chains(3, range(1, 25), 2) == text.draw_chains(3, range(1, 25), 2)
    assert text.draw_chains(3, [8], 4) != text.draw_chains(4, [8], 4)
    assert list(text.text_lines(5, 20)) == list(text.text_lines(5, 20))


def test_training_and_held_out_chains_never_meet():
    trained = {c.question for c in text.draw_chains(0, [1, 2], 2000, "train")}
    held_out = {c.question for c in text.draw_chains(1, [1, 2], 500)}
    assert held_out
    assert not trained & held_out


@pytest.mark.parametrize("length", [0, text.MAX_STEPS + 1])
def test_a_length_out_of_range_is_refused(length):
    with pytest.raises(ValueError, match="1 to 24 steps"):
        text.draw_chain(random.Random(0), length)


def test_a_right_trace_is_exact():
    check = check_trace(CHAIN, f"{RIGHT} <eos> <pad>")
    assert check.exact
    assert check.answer_right
    assert check.first_wrong_step is None
    assert not check.corrected
    assert check.slips == 0
    assert [step.number for step in check.steps] == [1, 2, 3]


def test_one_slip_puts_all_later_steps_off_track_yet_they_are_sound():
    check = check_trace(CHAIN, "<think> start 7 s1 + 3 = 0 s2 - 4 = 5 s3 + 5 = 0 </think> 0")
    assert check.first_wrong_step == 2
    assert check.slips == 1
    assert [step.on_track for step in check.steps] == [True, False, False]
    assert not check.corrected
    assert not check.answer_right


@pytest.mark.parametrize(
    ("written", "first_wrong"),
    [
        ("<think> start 7 s1 + 4 = 1 s2 - 4 = 7 s3 + 5 = 2 </think> 2", 1),  # a wrong copy
        ("<think> start 7 s1 + 3 = 0 s3 + 5 = 5 </think> 5", 2),  # a step skipped
        ("<think> start 7 s1 + 3 = 0 </think> 0", 2),  # ended early
        ("<think> start 7 s1 + 3 = 0 s2 - 4 = 6 s3 +", 3),  # cut off
        ("</think> 1", 1),  # no thinking at all
        ("", 1),
    ],
)
def test_the_first_wrong_step_is_found(written, first_wrong):
    check = check_trace(CHAIN, written)
    assert check.first_wrong_step == first_wrong
    assert not check.exact


def test_a_right_answer_after_a_wrong_trace_is_not_exact():
    check = check_trace(CHAIN, "<think> start 7 s1 + 3 = 0 s2 - 4 = 5 s3 + 5 = 1 </think> 1")
    assert check.answer_right
    assert not check.exact
    assert check.slips == 2
    assert check.corrected  # the second slip undid the first


def test_a_second_look_is_a_correction():
    for seed in range(50):
        rng = random.Random(seed)
        chain = text.draw_chain(rng, 6)
        check = check_trace(chain, chain.second_look(rng))
        assert check.first_wrong_step is not None
        assert check.corrected
        assert check.answer_right
        assert check.slips == 1
        assert len(check.steps) == 12


def test_running_on_past_the_end_is_one_slip():
    check = check_trace(CHAIN, RIGHT.replace("</think>", "s4 + 1 = 2 s5 + 1 = 3 </think>"))
    assert check.first_wrong_step == 4
    assert check.slips == 1
    assert not check.exact
