"""Procedural text with exact answers: what the embedded model is trained on and judged by.

Three kinds of text, every word of them one token:

* **facts**, which a model can only know:   ``bako color -> teal``
* **chains** of arithmetic modulo 10, which it must work out step by step::

      start 7 s1 + 5 s2 - 4 ? <think> start 7 s1 + 5 = 2 s2 - 4 = 8 </think> 8

* **world** sentences, which restate the facts as running text, for perplexity.

A fact is one lookup. A chain of n steps is right only if n copies and n small sums are right one
after another, so an error rate e a step leaves (1 - e)**n of the chains. That is why the two
families part ways when a model is damaged, and why the contrast is worth measuring: knowledge
that is stored many times over survives what a long computation does not.

Everything is drawn from a `random.Random`, so a seed names a data set. Chains are split by a hash
of their question: a held-out chain is never trained on, whatever the seeds.

The texts carry no ``<bos>`` and no ``<eos>``; the tokenizer writes the first, the model the second.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

MODULUS = 10
MAX_STEPS = 24
OPERATORS = ("+", "-")
ARROW, THINK, END_THINK, AGAIN = "->", "<think>", "</think>", "Wait"
SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>")
ENTITIES = 64
TABLE_SEED = 20261125
HELD_OUT_ONE_IN = 16

Split = Literal["train", "held_out"]

RELATIONS = {
    "color": "red blue green teal amber violet white black coral olive navy pink gray lime tan "
    "gold",
    "metal": "iron copper zinc tin lead nickel silver cobalt chrome steel brass bronze platinum "
    "titanium tungsten lithium",
    "city": "oslo paris lima cairo delhi tokyo quito dakar hanoi turin porto riga sofia perth "
    "osaka malmo",
    "food": "bread rice soup cheese apple plum fig olives honey pasta beans corn pear kale mango "
    "nuts",
    "tool": "hammer saw drill wrench chisel plane file pliers clamp level brush shovel rake axe "
    "anvil lathe",
    "sport": "chess tennis golf rugby judo rowing fencing sailing boxing squash hockey polo "
    "archery diving karate cycling",
}
WORLD_WORDS = ("the", "of", "is", "and", "has", "with", ".")


@dataclass(frozen=True, slots=True)
class Fact:
    """One entry of the table: `entity` has `value` for `relation`."""

    entity: str
    relation: str
    value: str

    @property
    def question(self) -> str:
        """What the model is given; the value follows."""
        return f"{self.entity} {self.relation} {ARROW}"

    @property
    def text(self) -> str:
        """Question and value."""
        return f"{self.question} {self.value}"


@dataclass(frozen=True, slots=True)
class Step:
    """One operation of a chain, applied to the value before it."""

    operator: str
    operand: int

    def apply(self, value: int) -> int:
        """Return the value after this step."""
        signed = self.operand if self.operator == "+" else -self.operand
        return (value + signed) % MODULUS


@dataclass(frozen=True, slots=True)
class Chain:
    """A start value and the steps applied to it, all modulo `MODULUS`."""

    start: int
    steps: tuple[Step, ...]

    @property
    def values(self) -> tuple[int, ...]:
        """The running value after each step."""
        value, values = self.start, []
        for step in self.steps:
            value = step.apply(value)
            values.append(value)
        return tuple(values)

    @property
    def answer(self) -> int:
        """The value after the last step."""
        return self.values[-1]

    @property
    def question(self) -> str:
        """What the model is given: the start value and every step, labelled."""
        parts = [f"s{k} {s.operator} {s.operand}" for k, s in enumerate(self.steps, 1)]
        return " ".join([f"start {self.start}", *parts, "?"])

    @property
    def trace(self) -> str:
        """The whole derivation without its delimiters: the start value, then every step alike."""
        parts = [
            f"s{k} {step.operator} {step.operand} = {value}"
            for k, (step, value) in enumerate(zip(self.steps, self.values, strict=True), 1)
        ]
        return " ".join([f"start {self.start}", *parts])

    def second_look(self, rng: random.Random) -> str:
        """Write a completion that goes wrong at one step, then says ``Wait`` and starts over.

        It teaches what ``Wait`` means, so that an evaluation may force it in place of the
        end of thinking. Training puts no loss on the part before.
        """
        wrong_at, value, parts = rng.randrange(len(self.steps)), self.start, [f"start {self.start}"]
        for k, step in enumerate(self.steps):
            written = step
            if k == wrong_at and rng.random() < 0.5:
                written = Step(step.operator, (step.operand + rng.randrange(1, MODULUS)) % MODULUS)
                value = written.apply(value)
            elif k == wrong_at:
                value = (step.apply(value) + rng.randrange(1, MODULUS)) % MODULUS
            else:
                value = step.apply(value)
            parts.append(f"s{k + 1} {written.operator} {written.operand} = {value}")
        return " ".join([THINK, *parts, AGAIN, self.trace, END_THINK, str(self.answer)])

    @property
    def completion(self) -> str:
        """What the model is to write: its thinking and the answer."""
        return f"{THINK} {self.trace} {END_THINK} {self.answer}"

    @property
    def text(self) -> str:
        """Question and completion."""
        return f"{self.question} {self.completion}"

    @property
    def split(self) -> Split:
        """Which side of the hash split the question falls on."""
        digest = hashlib.blake2b(self.question.encode(), digest_size=4).digest()
        return "train" if int.from_bytes(digest, "big") % HELD_OUT_ONE_IN else "held_out"


def _seeded(seed: int) -> random.Random:
    return random.Random(seed)  # noqa: S311 -- reproducible draws are the point


@cache
def entities() -> tuple[str, ...]:
    """Name the entities: four letters each, made up, none of them another word."""
    rng = _seeded(TABLE_SEED)
    taken = {word for values in RELATIONS.values() for word in values.split()} | {
        *RELATIONS,
        *WORLD_WORDS,
    }
    names: list[str] = []
    while len(names) < ENTITIES:
        name = "".join(rng.choice(letters) for letters in ("bdfgklmnprstvz", "aeiou") * 2)
        if name not in taken:
            taken.add(name)
            names.append(name)
    return tuple(names)


@cache
def fact_table() -> tuple[Fact, ...]:
    """List every fact there is: each entity has one value for each relation, drawn at random."""
    rng = _seeded(TABLE_SEED + 1)
    return tuple(
        Fact(entity, relation, rng.choice(values.split()))
        for entity in entities()
        for relation, values in RELATIONS.items()
    )


@cache
def vocabulary() -> tuple[str, ...]:
    """List every token in the order of its id."""
    words = [*SPECIAL, THINK, END_THINK, AGAIN, ARROW, "start", "?", "=", *OPERATORS]
    words += [str(n) for n in range(MODULUS)]
    words += [f"s{k}" for k in range(1, MAX_STEPS + 1)]
    words += WORLD_WORDS
    for relation, values in RELATIONS.items():
        words += [relation, *values.split()]
    words += entities()
    return tuple(dict.fromkeys(words))


def draw_chain(rng: random.Random, length: int, split: Split = "held_out") -> Chain:
    """Draw a chain of `length` steps that belongs to `split`."""
    if not 1 <= length <= MAX_STEPS:
        raise ValueError(f"a chain has 1 to {MAX_STEPS} steps, not {length}")
    while True:
        steps = tuple(Step(rng.choice(OPERATORS), rng.randrange(MODULUS)) for _ in range(length))
        chain = Chain(rng.randrange(MODULUS), steps)
        if chain.split == split:
            return chain


def draw_chains(
    seed: int, lengths: Sequence[int], per_length: int, split: Split = "held_out"
) -> list[Chain]:
    """Draw `per_length` chains of each length; held out from training unless asked otherwise."""
    rng = _seeded(seed)
    return [draw_chain(rng, length, split) for length in lengths for _ in range(per_length)]


def draw_sentence(rng: random.Random) -> str:
    """Draw a sentence that restates one to three facts of one entity."""
    facts = rng.sample(_facts_of(rng.choice(entities())), rng.randint(1, 3))
    entity = facts[0].entity
    if len(facts) == 1:
        return f"the {facts[0].relation} of {entity} is {facts[0].value} ."
    joint = rng.choice(("and", "with"))
    return f"{entity} has " + f" {joint} ".join(f"{f.relation} {f.value}" for f in facts) + " ."


def text_lines(seed: int, count: int, split: Split = "held_out") -> Iterator[str]:
    """Write text for perplexity and calibration: facts, sentences and chains, one a line."""
    rng = _seeded(seed)
    for _ in range(count):
        kind = rng.choice(("fact", "world", "chain"))
        if kind == "fact":
            yield rng.choice(fact_table()).text
        elif kind == "world":
            yield draw_sentence(rng)
        else:
            yield draw_chain(rng, rng.randint(1, MAX_STEPS), split).text


@cache
def _facts_of(entity: str) -> tuple[Fact, ...]:
    return tuple(fact for fact in fact_table() if fact.entity == entity)
