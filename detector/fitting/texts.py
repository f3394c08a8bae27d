"""Fitting a text encoder: from the reference, honest traffic and generic texts to the weights of `detector.text.TextEncoder`.

The *domain discriminator* is a logistic regression on hashed n-grams. On one side stand texts of the model's domain, on the other texts of
three kinds: generic ones as they are, questions and orders about generic words, and the model's own texts with their rarer words
replaced by generic ones. The last kind keeps the frame of the domain; and the domain's texts are learned in the frames of foreign ones too
("translate into French: …"). So the discriminator looks at what a text is about and not at how it is put.

Texts with foreign words put in are recognised by trees on the marks of a row (`reworded_rows`). On the other side stand texts as they are
and texts whose words were dropped, moved or exchanged for words of the domain, as honest robustness tests do.

Rules:

* Honest texts train too, at most `MOST_OF_ONE` of a client, because a reference alone says too little about a domain.
* What is judged must not have trained: `FittedTexts.held_out` encodes each row with weights that were learned without its fold. All
  texts of a client are in one fold. Calibration uses these rows, the service the encoder that learned from all.
* Two texts that say the same are one.

It does not work on a domain as wide as the generic texts (free chat): its score then says little, and the levels, which are settled on
honest texts, say so.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from detector.fitting.discriminators import RewordedRows, train_linear
from detector.fitting.meanings import fit_meanings
from detector.text import AXES, Embedder, TextEncoder, digest, grams_of
from detector.text_kernels import BUCKETS

FOLDS = 4
MOST_OF_ONE = 200
MOST_TEXTS = 12_000
FEWEST_GENERIC, GENERIC_A_TEXT = 3000, 2
"""Generic texts that take part, at least, and for each text of the domain."""
FREQUENT = 0.01
"""Words in more of the domain's texts than this belong to its frame."""
FRAMED_TEXTS = 2400
"""Texts of the domain that stand in frames around foreign ones too, at most."""
REWORDED_TEXTS = 2400
"""Texts of the domain of which reworded ones are made, at most."""
LEAST_REWORDED, MOST_REWORDED = 0.05, 0.4
"""Shares of a text's words that are exchanged."""
UNSEEN_WEIGHT = 0.5
"""Weight of an n-gram that nobody has seen, in units of the mean weight of what only generic texts have."""

_WORDS = re.compile(r"\w+")
_FRAMES = (
    "what is {word}?", "what does {word} mean?", "explain {word} in simple words", "write a short text about {word}",
    "tell me about {word}", "give me an example of {word}", "how does {word} work?", "is it true that {text}?",
    "translate into french: {text}", "summarise: {text}", "why {text}?", "list ten facts about {word}",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class GenericText:
    """A word and a sentence or definition with it, of no domain."""

    word: str
    text: str


@dataclass(frozen=True, slots=True)
class FittedTexts:
    """The encoder that learned from everything, and one for each fold that learned from the others.

    rows, changed, fold  texts as they are and reworded ones, as of `RewordedRows`
    """

    encoder: TextEncoder
    folds: tuple[TextEncoder, ...]
    rows: NDArray[np.float64]
    changed: NDArray[np.bool_]
    fold: NDArray[np.int64]

    def reworded_rows(self, reference: Sequence[str]) -> RewordedRows:
        """What the trees for reworded texts learn from; reference: the texts of its rows."""
        return RewordedRows(
            self.rows, self.changed, self.fold, np.array([fold_of(text) for text in reference], np.int64), AXES
        )

    def held_out(self, texts: Sequence[str], fold: NDArray[np.int64]) -> NDArray[np.float64]:
        """Rows (n, WIDTH), each by the encoder that did not see its fold."""
        return np.array([self.folds[k].row(text) for text, k in zip(texts, fold.tolist(), strict=True)])


def fold_of(name: str) -> int:
    """The fold of a client, or of a text of the reference.

    >>> 0 <= fold_of("acct-1") < FOLDS
    True
    """
    return digest(name) % FOLDS


def fit_texts(
    reference: Sequence[str],
    traffic: Iterable[tuple[str, str]],
    generic: Sequence[GenericText],
    rng: np.random.Generator,
    embedder: Embedder | None = None,
) -> FittedTexts:
    """Learn the weights of the n-grams.

    Parameters
    ----------
    reference : sequence of str
        Texts of the model's domain.
    traffic : iterable of (client, text)
        Presumably honest.
    generic : sequence of GenericText
        Of no domain; the stand-in for foreign texts.
    rng : Generator
        The same state gives the same encoder.
    embedder : Embedder or None
        Sentence embeddings that rows take axes and a part of the domain score from; None: hashed n-grams alone.
    """
    domain, fold = _domain_texts(reference, traffic, rng)
    enough = max(FEWEST_GENERIC, GENERIC_A_TEXT * len(domain))
    generic = [generic[i] for i in np.sort(rng.permutation(len(generic))[:enough]).tolist()]
    foreign = foreign_texts(domain, generic, rng)
    foreign_fold = rng.permutation(len(foreign)) % FOLDS
    framed, framed_fold = _framed(domain, fold, rng)
    own, frames, other = ([_distinct(text) for text in texts] for texts in (domain, framed, foreign))
    folds = []
    for k in range(FOLDS):
        kept = np.flatnonzero(fold != k).tolist()
        others = np.flatnonzero(foreign_fold != k).tolist()
        put = np.flatnonzero(framed_fold != k).tolist()
        folds.append(_encoder([own[i] for i in kept], [frames[i] for i in put], [other[i] for i in others]))
    whole = _encoder(own, frames, other)
    if embedder is not None:
        mine = [*domain, *framed], np.concatenate([fold, framed_fold])
        meanings = fit_meanings(embedder, mine, (foreign, foreign_fold), FOLDS, rng)
        *folds, whole = (replace(e, meaning=m) for e, m in zip((*folds, whole), meanings, strict=True))
    rows, changed, of = _reworded(domain, fold, generic, folds, rng)
    return FittedTexts(whole, tuple(folds), rows, changed, of)


def foreign_texts(domain: Sequence[str], generic: Sequence[GenericText], rng: np.random.Generator) -> list[str]:
    """Rehearsed foreign texts: generic ones, frames around generic words, and the domain's frames around generic words."""
    plain = [g.text for g in generic]
    framed = [
        _FRAMES[k].format(word=g.word, text=g.text)
        for g, k in zip(generic, rng.integers(0, len(_FRAMES), len(generic)).tolist(), strict=True)
    ]
    pool = [word for g in generic for word in _WORDS.findall(g.text.lower()) if len(word) > 3]
    frequency = Counter(word for text in domain for word in set(_WORDS.findall(text.lower())))
    frame = {word for word, n in frequency.items() if n > max(2, FREQUENT * len(domain))}

    def swapped(text: str) -> str:
        def other(found: re.Match[str]) -> str:
            word = found.group()
            return word if word.lower() in frame else pool[int(rng.integers(len(pool)))]

        return _WORDS.sub(other, text)

    picks = rng.integers(0, len(domain), min(len(generic), max(len(domain), 1000)))
    return [*plain, *framed, *(swapped(domain[i]) for i in picks.tolist())]


def exchange(text: str, share: float, words: Sequence[str], rng: np.random.Generator) -> str:
    """A text with this share of its words exchanged for others.

    >>> exchange("one two", 1.0, ["three"], np.random.default_rng(0))
    'three three'
    """
    return " ".join(words[int(rng.integers(len(words)))] if rng.random() < share else word for word in text.split())


def disturb(text: str, share: float, words: Sequence[str], rng: np.random.Generator) -> str:
    """A text as a robustness test makes it: this share of its words is lost, swapped with the next, or exchanged for one of the domain."""
    out: list[str] = []
    for word in text.split():
        how = int(rng.integers(3)) if rng.random() < share else -1
        if how == 1 and out:
            out.insert(len(out) - 1, word)
        elif how != 0:
            out.append(words[int(rng.integers(len(words)))] if how == 2 else word)
    return " ".join(out)


def _reworded(
    domain: Sequence[str], fold: NDArray[np.int64], generic: Sequence[GenericText], encoders: Sequence[TextEncoder],
    rng: np.random.Generator,
) -> tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.int64]]:  # fmt: skip
    """Rows of texts as they are, disturbed and reworded, by the encoder that did not see their fold; which are reworded; their folds."""
    foreign = [word for g in generic for word in (g.word, *(w for w in _WORDS.findall(g.text.lower()) if len(w) > 3))]
    chosen = np.sort(rng.permutation(len(domain))[:REWORDED_TEXTS])
    rows, changed, of = [], [], []
    for k, encoder in enumerate(encoders):
        texts = [domain[i] for i in chosen[fold[chosen] == k].tolist()]
        own = " ".join(texts).split() or [""]
        shares = rng.uniform(LEAST_REWORDED, MOST_REWORDED, (2, len(texts))).tolist()
        made = [
            *texts, *texts,
            *(disturb(text, share, own, rng) for text, share in zip(texts, shares[0], strict=True)),
            *(exchange(text, share, foreign, rng) for text, share in zip(texts, shares[1], strict=True)),
        ]  # fmt: skip
        rows.append(encoder.rows(made))
        changed.append(np.repeat([False, True], [3 * len(texts), len(texts)]))
        of.append(np.full(len(made), k, np.int64))
    return np.concatenate(rows), np.concatenate(changed), np.concatenate(of)


def _domain_texts(
    reference: Sequence[str], traffic: Iterable[tuple[str, str]], rng: np.random.Generator
) -> tuple[list[str], NDArray[np.int64]]:
    """Different texts of the domain, and the fold of each."""
    found: dict[int, tuple[str, int]] = {}
    for text in reference:
        found.setdefault(digest(text), (text, fold_of(text)))
    count: Counter[str] = Counter()
    for client, text in traffic:
        if count[client] < MOST_OF_ONE:
            key = digest(text)
            count[client] += key not in found
            found.setdefault(key, (text, fold_of(client)))
    listed = list(found.values())
    chosen = np.sort(rng.permutation(len(listed))[:MOST_TEXTS]).tolist()
    return [listed[i][0] for i in chosen], np.array([listed[i][1] for i in chosen], np.int64)


def _distinct(text: str) -> NDArray[np.int64]:
    return np.unique(grams_of(text)).astype(np.int64)


def _framed(
    domain: Sequence[str], fold: NDArray[np.int64], rng: np.random.Generator
) -> tuple[list[str], NDArray[np.int64]]:
    """Texts of the domain in the frames that foreign ones get, and their folds."""
    frames = [frame for frame in _FRAMES if "{text}" in frame]
    chosen = np.sort(rng.permutation(len(domain))[:FRAMED_TEXTS])
    picks = rng.integers(0, len(frames), len(chosen)).tolist()
    return [frames[k].format(text=domain[i]) for i, k in zip(chosen.tolist(), picks, strict=True)], fold[chosen]


def _encoder(
    own: Sequence[NDArray[np.int64]], framed: Sequence[NDArray[np.int64]], foreign: Sequence[NDArray[np.int64]]
) -> TextEncoder:
    """Learn weights from sets of n-grams. framed: of the domain for the discriminator, but not known words of it."""
    in_own = np.bincount(np.concatenate(own), minlength=BUCKETS)
    in_foreign = np.bincount(np.concatenate(foreign), minlength=BUCKETS)
    rarity = np.log((1.0 + len(own)) / (1.0 + in_own)) + 0.1
    weights, bias = train_linear(
        [*own, *framed, *foreign], np.repeat([0, 1], [len(own) + len(framed), len(foreign)]), BUCKETS
    )
    only_foreign = (in_own == 0) & (in_foreign > 0)
    unseen = (in_own == 0) & (in_foreign == 0)
    weights[unseen] = UNSEEN_WEIGHT * weights[only_foreign].mean() if only_foreign.any() else 0.0
    return TextEncoder(np.where(in_own > 0, rarity, -rarity).astype(np.float32), weights.astype(np.float32), bias)
