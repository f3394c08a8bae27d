"""The text encoder: turns a text into a row of numbers, so that everything behind it treats a text like any other input.

A row has `AXES` axes (a sparse random projection of hashed words, pairs of words and groups of four bytes), marks (length, script, digits,
code, entropy, repetition, unknown n-grams, elicitation phrases) and the score of the *domain discriminator*: a linear model of the n-grams
that tells texts of the model's own domain from others. `fitting/texts.py` learns the weights from the reference and honest traffic.
With sentence embeddings (`Meaning`) the axes are theirs, and the score has a part of them. The embedder comes in: nothing is loaded here.

Rules:

* A row depends on the text and the encoder alone: not on the batch, and not on the machine beyond the last bits of a logarithm. What
  identifies a text is its `digest`, never its row.
* Bounded work: of a long text the first and the last `HALF_BYTES` bytes are read. The digest covers all of it.
* `TEXT_VERSION` rises with every change of the rows; an encoder of another version is refused.

It does not work where the words do not differ: a thief that asks the model's own questions writes texts of its domain. A thief that knows
the phrases of `ELICITATION` avoids them.
"""

from __future__ import annotations

import functools
import hashlib
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from detector.errors import CorruptBaseline
from detector.text_kernels import (
    BUCKETS,
    COUNTS,
    GRAMS_A_BYTE,
    TEMPLATE_HASHES,
    encode_text,
    foreign_mass,
    hash_phrase,
    walk_text,
)

TEXT_VERSION = 2
AXES = 36
HALF_BYTES = 8192
MARKS = (
    "length", "word_length", "upper", "digits", "symbols", "beyond_ascii", "entropy", "repeated", "unknown", "elicitation", "domain",
)  # fmt: skip
"""Columns of a row behind its axes."""
TEXT_COLUMNS = (*(f"axis{j}" for j in range(AXES)), *MARKS)
"""Names of the columns of a row."""
WIDTH = len(TEXT_COLUMNS)
DOMAIN, UNKNOWN, ELICITATION_MARK, LENGTH = (
    TEXT_COLUMNS.index(n) for n in ("domain", "unknown", "elicitation", "length")
)

ELICITATION = (
    "step by step", "chain of thought", "your reasoning", "reasoning steps", "reasoning trace", "reasoning process", "show your work",
    "show your working", "think out loud", "think aloud", "think carefully", "thought process", "inner monologue", "internal monologue",
    "internal reasoning", "hidden reasoning", "scratchpad", "before answering", "before you answer", "explain every step",
    "explain each step", "explain your answer", "explain how you", "intermediate steps", "intermediate results", "working memory",
    "system prompt", "system message", "hidden instructions", "your instructions", "initial instructions", "previous instructions",
    "debug mode", "developer mode", "verbatim", "confidence score", "confidence scores", "log probabilities", "logprobs",
    "probability of each", "rationale", "justify your answer", "let s think",
)  # fmt: skip
"""Phrases that ask for more than an answer: reasoning, instructions, probabilities."""
_LONGEST = 3


def normalised(text: str) -> str:
    """A text as it is compared and encoded: compatibility forms folded (NFKC), lower case, white space collapsed.

    >>> normalised("  Hello   WORLD ")
    'hello world'
    """
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    return " ".join(text.lower().split())


def digest(text: str) -> int:
    """64 bits that identify a text, however it is capitalised and spaced; never 0.

    >>> digest("Hello world") == digest("hello  world")
    True
    """
    hashed = hashlib.blake2b(normalised(text).encode("utf-8", "surrogatepass"), digest_size=8)
    return int.from_bytes(hashed.digest(), "little") or 1


def as_bytes(text: str) -> NDArray[np.uint8]:
    """What of a text is read: UTF-8, of a long one its first and last `HALF_BYTES` bytes."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text).lower()
    raw = text.encode("utf-8", "surrogatepass")
    if len(raw) > 2 * HALF_BYTES:
        raw = raw[:HALF_BYTES] + b" " + raw[-HALF_BYTES:]
    return np.frombuffer(raw, np.uint8)


@functools.cache
def _phrases() -> NDArray[np.uint64]:
    """Hashes of the phrases, in order. Made with the first text: a service without text models loads no kernel for it."""
    scratch = np.empty(64, np.uint64)
    return np.sort(np.array([hash_phrase(as_bytes(phrase), scratch) for phrase in ELICITATION], np.uint64))


def grams_of(text: str) -> NDArray[np.uint32]:
    """Buckets of a text's n-grams, in reading order, with repetitions, (n,)."""
    raw = as_bytes(text)
    found = np.empty(GRAMS_A_BYTE * len(raw) + 8, np.uint32)
    n, _ = walk_text(
        raw, np.empty(0, np.uint64), 0, found, np.empty(len(raw) + 1, np.uint64), np.empty(len(COUNTS)), np.empty(256, np.int64)
    )  # fmt: skip
    return found[:n]


class Embedder(Protocol):
    """What turns a text into a sentence embedding: numbers that are near to each other where texts mean the same.

    identity  names the weights; embed never depends on what it was asked before
    """

    @property
    def identity(self) -> str: ...

    def embed(self, text: str) -> NDArray[np.float32]: ...


@dataclass(frozen=True, slots=True)
class Unbound:
    """Stands for an embedder that nobody gave: a baseline that names one can be read and compared, but encodes no text."""

    identity: str

    def embed(self, text: str) -> NDArray[np.float32]:
        raise CorruptBaseline(f"the baseline needs sentence embeddings {self.identity}, and none were given")


@dataclass(frozen=True, slots=True, eq=False)
class Meaning:
    """What a row takes from a sentence embedding of e numbers: axes in place of those of hashed n-grams, and a part of the domain score.

    center (e,), axes (e, AXES - 1) float32  principal axes of the reference's embeddings; the last axis is the length of what they lack
    domain (e,) float32  weights of a second domain discriminator; `bias` is added
    """

    embedder: Embedder
    center: NDArray[np.float32]
    axes: NDArray[np.float32]
    domain: NDArray[np.float32]
    bias: float

    def apply(self, text: str, row: NDArray[np.float64]) -> None:
        """Write the axes of a text into its row, and add to its domain score: both scores are log odds."""
        found = self.embedder.embed(text).astype(np.float64)
        apart = found - self.center
        # sums and no matrix products: those round by how an array lies in memory, and a row must not depend on that
        along = (self.axes * apart[:, None]).sum(0)
        row[: AXES - 1] = along
        row[AXES - 1] = np.sqrt(max(float((apart * apart).sum() - (along * along).sum()), 0.0))
        row[DOMAIN] += float((found * self.domain).sum()) + self.bias

    @property
    def arrays(self) -> dict[str, NDArray[np.float32]]:
        return {"center": self.center, "axes": self.axes, "domain": self.domain}

    def check(self) -> None:
        """Raise CorruptBaseline unless shapes fit and numbers are finite."""
        e = len(self.center)
        shapes = {"center": (e,), "axes": (e, AXES - 1), "domain": (e,)}
        for name, array in self.arrays.items():
            if array.shape != shapes[name] or array.dtype != np.float32 or not np.isfinite(array).all():
                raise CorruptBaseline(
                    "the weights of sentence embeddings have another shape or type, or are not finite"
                )
        if not np.isfinite(self.bias):
            raise CorruptBaseline("the bias of sentence embeddings is not finite")


@dataclass(frozen=True, slots=True, eq=False)
class TextEncoder:
    """The weights of the n-grams; buckets are hashes.

    rarity  (BUCKETS,) float32, weight in the projection; negative: neither the reference nor honest traffic ever had it
    domain  (BUCKETS,) float32, weights of the domain discriminator, the larger the more foreign; `bias` is added
    meaning  what comes from sentence embeddings, None without
    """

    rarity: NDArray[np.float32]
    domain: NDArray[np.float32]
    bias: float
    meaning: Meaning | None = None

    @property
    def identity(self) -> str:
        """A digest of everything that a row depends on."""
        hashed = hashlib.sha256(repr((TEXT_VERSION, AXES, self.bias)).encode())
        hashed.update(self.rarity.tobytes())
        hashed.update(self.domain.tobytes())
        if self.meaning is not None:
            hashed.update(repr((self.meaning.embedder.identity, self.meaning.bias)).encode())
            for array in self.meaning.arrays.values():
                hashed.update(np.ascontiguousarray(array).tobytes())
        return hashed.hexdigest()[:16]

    def check(self) -> None:
        """Raise CorruptBaseline unless the weights are what the kernels trust them to be."""
        for array in (self.rarity, self.domain):
            if array.shape != (BUCKETS,) or array.dtype != np.float32 or not np.isfinite(array).all():
                raise CorruptBaseline("the weights of the text encoder have another shape or type, or are not finite")
        if not np.isfinite(self.bias):
            raise CorruptBaseline("the bias of the text encoder is not finite")
        if self.meaning is not None:
            self.meaning.check()

    def row(self, text: str) -> NDArray[np.float64]:
        """The row of a text, (WIDTH,). It never fails; an empty text has a row of zeros but for its bias."""
        return self.read(text)[0]

    def read(self, text: str) -> tuple[NDArray[np.float64], NDArray[np.uint64]]:
        """The row of a text, (WIDTH,), and its templates, (TEMPLATE_HASHES,) as of `text_kernels.hash_templates`."""
        out, templates = np.empty(WIDTH), np.empty(TEMPLATE_HASHES, np.uint64)
        encode_text(as_bytes(text), _phrases(), _LONGEST, self.rarity, self.domain, self.bias, out, AXES, templates)
        if self.meaning is not None:
            self.meaning.apply(text, out)
        return out, templates

    def rows(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """The rows of some texts, (n, WIDTH)."""
        return np.array([self.row(text) for text in texts]).reshape(-1, WIDTH)


TEXT_MEASURES = {"part": DOMAIN, "step": ELICITATION_MARK, "lattice": UNKNOWN}
"""Measures that are columns of a text's row, whose columns do not depend on each other, are moved by no step and lie on no lattice.
``mix`` is no column either, but how foreign a text is as a whole; ``jitter`` are trees of their own, trained on texts."""


def text_measures(rows: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    """What is odd about texts by their rows (n, WIDTH): measure → (n,), the larger the odder.

    ``mix`` is the discriminator's score times the square root of the text's length: few foreign words in a short text are no evidence,
    a long text that is foreign from end to end is more of it than its mean says.
    """
    found = {measure: rows[:, column] for measure, column in TEXT_MEASURES.items()}
    found["mix"] = np.empty(len(rows))
    foreign_mass(np.ascontiguousarray(rows), DOMAIN, LENGTH, found["mix"])
    return found


UNTRAINED = TextEncoder(np.ones(BUCKETS, np.float32), np.zeros(BUCKETS, np.float32), 0.0)
"""An encoder that has learned nothing: it shows whether texts can be read, before there is a baseline."""
