"""The text encoder: turns a text into a row of numbers, so that everything behind it treats a text like any other input.

A row has `AXES` axes (a sparse random projection of hashed words, pairs of words and groups of four bytes), marks (length, script, digits,
code, entropy, repetition, unknown n-grams, elicitation phrases) and the score of the *domain discriminator*: a linear model of the n-grams
that tells texts of the model's own domain from others. `fitting/texts.py` learns the weights from the reference and honest traffic.

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

import numpy as np
from numpy.typing import NDArray

from detector.errors import CorruptBaseline
from detector.text_kernels import BUCKETS, COUNTS, GRAMS_A_BYTE, encode_text, hash_phrase, walk_text

TEXT_VERSION = 1
AXES = 36
HALF_BYTES = 8192
MARKS = (
    "length", "word_length", "upper", "digits", "symbols", "beyond_ascii", "entropy", "repeated", "unknown", "elicitation", "domain",
)  # fmt: skip
"""Columns of a row behind its axes."""
TEXT_COLUMNS = (*(f"axis{j}" for j in range(AXES)), *MARKS)
"""Names of the columns of a row."""
WIDTH = len(TEXT_COLUMNS)
DOMAIN, UNKNOWN, ELICITATION_MARK = (TEXT_COLUMNS.index(name) for name in ("domain", "unknown", "elicitation"))

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


@dataclass(frozen=True, slots=True, eq=False)
class TextEncoder:
    """The weights of the n-grams; buckets are hashes.

    rarity  (BUCKETS,) float32, weight in the projection; negative: neither the reference nor honest traffic ever had it
    domain  (BUCKETS,) float32, weights of the domain discriminator, the larger the more foreign; `bias` is added
    """

    rarity: NDArray[np.float32]
    domain: NDArray[np.float32]
    bias: float

    @property
    def identity(self) -> str:
        """A digest of everything that a row depends on."""
        hashed = hashlib.sha256(repr((TEXT_VERSION, AXES, self.bias)).encode())
        hashed.update(self.rarity.tobytes())
        hashed.update(self.domain.tobytes())
        return hashed.hexdigest()[:16]

    def check(self) -> None:
        """Raise CorruptBaseline unless the weights are what the kernels trust them to be."""
        for array in (self.rarity, self.domain):
            if array.shape != (BUCKETS,) or array.dtype != np.float32 or not np.isfinite(array).all():
                raise CorruptBaseline("the weights of the text encoder have another shape or type, or are not finite")
        if not np.isfinite(self.bias):
            raise CorruptBaseline("the bias of the text encoder is not finite")

    def row(self, text: str) -> NDArray[np.float64]:
        """The row of a text, (WIDTH,). It never fails; an empty text has a row of zeros but for its bias."""
        out = np.empty(WIDTH)
        encode_text(as_bytes(text), _phrases(), _LONGEST, self.rarity, self.domain, self.bias, out, AXES)
        return out

    def rows(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """The rows of some texts, (n, WIDTH)."""
        return np.array([self.row(text) for text in texts]).reshape(-1, WIDTH)


UNTRAINED = TextEncoder(np.ones(BUCKETS, np.float32), np.zeros(BUCKETS, np.float32), 0.0)
"""An encoder that has learned nothing: it shows whether texts can be read, before there is a baseline."""
