"""The slow, obvious twin of the text encoder: plain Python over words and windows, no arrays.

Written from what `detector.text` and `detector.text_kernels` promise: a word is a run of word bytes; the stream of characters is the words
with one space before, between and after them.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from itertools import pairwise

from detector.text import AXES, ELICITATION, MARKS, TextEncoder, as_bytes
from detector.text_kernels import BUCKET_BITS, GRAM, LONGEST_WORD, MOST_PHRASES, SPREAD, TEMPLATE_WORDS

_MASK = (1 << 64) - 1
_WORD = re.compile(rb"[a-z0-9\x80-\xff]+")
_SYMBOLS = frozenset(b"\\_`{|}~<=>[]#$%&()*+/;^@")


def mixed(h: int) -> int:
    h = (h ^ (h >> 32)) * 0x9E3779B97F4A7C15 & _MASK
    h = (h ^ (h >> 29)) * 0xBF58476D1CE4E5B9 & _MASK
    return h ^ (h >> 32)


def bucket(h: int) -> int:
    return mixed(h) >> (64 - BUCKET_BITS)


def fnv(word: bytes) -> int:
    h = 0xCBF29CE484222325
    for c in word:
        h = (h ^ c) * 0x100000001B3 & _MASK
    return h


def pair(first: int, second: int) -> int:
    return (first * 0xD6E8FEB86659FD93 & _MASK) ^ second


def grams(text: str) -> Counter[int]:
    """Buckets of the n-grams, with how often each comes."""
    words = _WORD.findall(bytes(as_bytes(text)).lower())
    hashes = [fnv(word) for word in words]
    found = Counter(map(bucket, hashes))
    found.update(bucket(pair(a, b)) for a, b in pairwise(hashes))
    stream = b"".join(b" " + word for word in words)
    if words:
        stream += b" "
    windows = (int.from_bytes(stream[i : i + GRAM], "big") for i in range(len(stream) - GRAM + 1))
    found.update(bucket(window ^ 0xA0761D6478BD642F) for window in windows)
    return found


def phrases(text: str) -> int:
    """How many words end a phrase of `ELICITATION`."""
    said = [bytes(w) for w in _WORD.findall(bytes(as_bytes(text)).lower())]
    known = [tuple(_WORD.findall(p.encode())) for p in ELICITATION]
    return sum(any(tuple(said[max(0, i + 1 - len(p)) : i + 1]) == p for p in known) for i in range(len(said)))


def row(encoder: TextEncoder, text: str) -> list[float]:
    raw = bytes(as_bytes(text))
    found = grams(text)
    n = sum(found.values())
    axes = [0.0] * AXES
    squares = score = unknown = 0.0
    for b, times in found.items():
        weight = float(encoder.rarity[b])
        unknown += times * (weight < 0)
        weight = abs(weight)
        squares += times * weight * weight
        score += times * float(encoder.domain[b])
        bits = mixed(b + 0xA0761D6478BD642F & _MASK)
        for k in range(SPREAD):
            part = bits >> 16 * k & 0xFFFF
            axes[(part & 0x7FFF) * AXES >> 15] += times * (-weight if part & 0x8000 else weight)
    axes = [a / math.sqrt(squares) for a in axes] if squares else axes
    words = _WORD.findall(raw.lower())
    size, alphabetic = len(raw), sum(65 <= c <= 90 or 97 <= c <= 122 for c in raw)
    entropy = -sum(c / size * math.log2(c / size) for c in Counter(raw).values())
    marks = {
        "length": math.log1p(size),
        "word_length": min(size / max(len(words), 1), LONGEST_WORD),
        "upper": sum(65 <= c <= 90 for c in raw) / max(alphabetic, 1),
        "digits": sum(48 <= c <= 57 for c in raw) / max(size, 1),
        "symbols": sum(c in _SYMBOLS for c in raw) / max(size, 1),
        "beyond_ascii": sum(c >= 128 for c in raw) / max(size, 1),
        "entropy": entropy,
        "repeated": (len(words) - len(set(words))) / max(len(words), 1),
        "unknown": unknown / max(n, 1),
        "elicitation": min(phrases(text), MOST_PHRASES),
        "domain": score / math.sqrt(max(n, 1)) + encoder.bias,
    }
    return [*axes, *(marks[name] for name in MARKS)]


def templates(text: str) -> list[int]:
    """Hashes of the first and the last words, and the smallest of all runs of as many words."""
    hashes = [fnv(word) for word in _WORD.findall(bytes(as_bytes(text)).lower())]
    runs = []
    for at in range(len(hashes) - TEMPLATE_WORDS + 1):
        run = 0xCBF29CE484222325
        for h in hashes[at : at + TEMPLATE_WORDS]:
            run = mixed(pair(run, h))
        runs.append(run)
    if not runs:
        return [0, 0, 0]
    ends = mixed(runs[0] ^ 0x8EBC6AF09C88C6E3), mixed(runs[-1] ^ 0x589965CC75374CC3)
    return [max(run >> 16, 1) for run in (*ends, min(runs))]
