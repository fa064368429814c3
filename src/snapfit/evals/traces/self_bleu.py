"""Self-BLEU: how much the sentences of one trace repeat each other (arXiv 1802.01886).

Every sentence is scored by BLEU against all others as references; the mean is the trace's. It is
nltk's `sentence_bleu` with smoothing method 4 (Chen and Cherry, 2014), number by number, but not
its quadratic work: of the reference counts only the largest of the others matters, and the two
largest of every n-gram over all sentences give that for each of them. A trace of a thousand
sentences takes a second instead of an hour.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence

ORDERS = 4
K = 5
"""Of smoothing method 4, as in nltk."""

Sentence = Sequence[str]


def self_bleu(sentences: Sequence[Sentence]) -> float:
    """Mean BLEU-4 of every sentence against all others, 0 to 1; 0 for fewer than two."""
    if len(sentences) < 2:
        return 0.0
    counts = [[_ngrams(sentence, order) for sentence in sentences] for order in _orders()]
    largest = [_two_largest(of_order) for of_order in counts]
    lengths = sorted(len(sentence) for sentence in sentences)
    scores = []
    for index, sentence in enumerate(sentences):
        precisions = []
        for of_order, tops in zip(counts, largest, strict=True):
            own = of_order[index]
            matched = sum(min(count, _others(tops[gram], count)) for gram, count in own.items())
            precisions.append((matched, max(1, own.total())))
        scores.append(_bleu(precisions, len(sentence), _closest(lengths, len(sentence))))
    return math.fsum(scores) / len(scores)


def _orders() -> range:
    return range(1, ORDERS + 1)


def _ngrams(sentence: Sentence, order: int) -> Counter[tuple[str, ...]]:
    return Counter(
        tuple(sentence[start : start + order]) for start in range(len(sentence) - order + 1)
    )


def _two_largest(
    counts: Sequence[Counter[tuple[str, ...]]],
) -> dict[tuple[str, ...], tuple[int, int]]:
    """The largest and the second largest count of every n-gram over all sentences."""
    tops: dict[tuple[str, ...], tuple[int, int]] = {}
    for of_sentence in counts:
        for gram, count in of_sentence.items():
            first, second = tops.get(gram, (0, 0))
            tops[gram] = (count, first) if count > first else (first, max(second, count))
    return tops


def _others(top: tuple[int, int], own: int) -> int:
    """The largest count in any other sentence than one that has `own`."""
    return top[1] if own == top[0] else top[0]


def _closest(lengths: Sequence[int], own: int) -> int:
    """Of the other sentences' lengths the closest to `own`, of two the smaller.

    Args:
        lengths: of all sentences, sorted.
        own: one of them.

    """
    place = bisect_left(lengths, own)
    rest = [*lengths[max(0, place - 1) : place], *lengths[place + 1 : place + 2]]
    return min(rest, key=lambda length: (abs(length - own), length))


def _bleu(precisions: Sequence[tuple[int, int]], length: int, reference: int) -> float:
    if precisions[0][0] == 0:
        return 0.0
    values, missing = [], 1
    for matched, total in precisions:
        if matched == 0 and length > 1:
            values.append(math.log(length) / (2**missing * K) / total)
            missing += 1
        else:
            values.append(matched / total)
    mean = math.fsum(math.log(value) / ORDERS for value in values if value > 0)
    brevity = 1.0 if length > reference else math.exp(1 - reference / length)
    return brevity * math.exp(mean)
