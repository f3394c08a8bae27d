"""Compiled walk over one text: hashed n-grams, counts of characters, and the projection of the n-grams onto axes.

Rules:

* A text is UTF-8. A word is a run of bytes that are a to z, 0 to 9 or above 127; A to Z are folded to lower case on the way.
* Everything is computed text by text in float64 and in reading order, so a row never depends on its batch or on the machine.
* Scratch is as long as the text; the caller bounds that.
* The slow, obvious twin is in ``tests/support/naive_text.py``.
"""

from __future__ import annotations

import numba as nb
import numpy as np

BUCKET_BITS = 19
BUCKETS = 1 << BUCKET_BITS
GRAM = 4
"""Bytes of a character n-gram; the space between two words is one of them."""
SPREAD = 3
"""Axes onto which one n-gram is projected."""
GRAMS_A_BYTE = 2
"""Most n-grams that a text has for each of its bytes: one of characters, and two of words for every second byte."""
LONGEST_WORD = 40.0
MOST_PHRASES = 8.0
TEMPLATE_WORDS = 4
"""Words whose hash stands for the template of a text."""
TEMPLATE_HASHES = 3
"""Of a text: of its beginning, of its end, and of the run of words with the smallest hash (templates.py)."""
COUNTS = ("bytes", "words", "upper", "alphabetic", "digits", "symbols", "beyond_ascii", "phrases")

_BASIS = np.uint64(0xCBF29CE484222325)
_PRIME = np.uint64(0x100000001B3)
_MIX = np.uint64(0x9E3779B97F4A7C15)
_MIX2 = np.uint64(0xBF58476D1CE4E5B9)
_PAIR = np.uint64(0xD6E8FEB86659FD93)
_CHARACTERS = np.uint64(0xA0761D6478BD642F)
_SHIFT = np.uint64(64 - BUCKET_BITS)
_FIRST, _LAST = np.uint64(0x8EBC6AF09C88C6E3), np.uint64(0x589965CC75374CC3)
_32, _29, _16, _8 = np.uint64(32), np.uint64(29), np.uint64(16), np.uint64(8)
_SPACE = np.uint64(0x20)
_FOUR = np.uint64(0xFFFFFFFF)


@nb.njit(inline="always")
def _mixed(h):  # type: ignore[no-untyped-def]
    h = (h ^ (h >> _32)) * _MIX
    h = (h ^ (h >> _29)) * _MIX2
    return h ^ (h >> _32)


@nb.njit(inline="always")
def _is_symbol(c):  # type: ignore[no-untyped-def]
    """Whether a byte is punctuation that programs and markup have and sentences hardly have."""
    return c == 0x5C or c == 0x5F or c == 0x60 or 0x7B <= c <= 0x7E or 0x3C <= c <= 0x3E or c == 0x5B or c == 0x5D \
        or 0x23 <= c <= 0x26 or 0x28 <= c <= 0x2B or c == 0x2F or c == 0x3B or c == 0x5E or c == 0x40  # fmt: skip


@nb.njit(cache=True, nogil=True)
def walk_text(text, phrases, longest, found, words, counts, characters):  # type: ignore[no-untyped-def]
    """Hashed n-grams and counts of one text; returns how many n-grams and how many words there are.

    text (b,) uint8; phrases (p,) uint64, sorted hashes of up to `longest` words; found (≥ 2 b + 8,) uint32, buckets of the n-grams: words,
    pairs of words, four bytes; words (≥ b,) uint64, hash of each word; counts (len(COUNTS),) float64; characters (256,) int64.
    """
    counts[:] = 0.0
    characters[:] = 0
    n = w = 0
    h = _BASIS
    inside = False
    window = _SPACE
    seen = 1
    b = len(text)
    for i in range(b + 1):
        c = np.int64(text[i]) if i < b else np.int64(0x20)
        if i < b:
            characters[c] += 1
        upper = 0x41 <= c <= 0x5A
        if upper:
            counts[2] += 1
            c += 0x20
        letter = 0x61 <= c <= 0x7A
        digit = 0x30 <= c <= 0x39
        if letter or digit or c >= 0x80:
            counts[3] += letter
            counts[4] += digit
            counts[6] += c >= 0x80
            if not inside:
                inside = True
                h = _BASIS
            h = (h ^ np.uint64(c)) * _PRIME
            window = ((window << _8) | np.uint64(c)) & _FOUR
            seen += 1
        else:
            counts[5] += _is_symbol(c) if i < b else False
            if not inside:
                continue
            inside = False
            words[w] = h
            found[n] = np.uint32(_mixed(h) >> _SHIFT)
            n += 1
            if w > 0:
                found[n] = np.uint32(_mixed(words[w - 1] * _PAIR ^ h) >> _SHIFT)
                n += 1
            run = h
            for back in range(longest):
                if back > 0:
                    if w < back:
                        break
                    run = run * _PAIR ^ words[w - back]
                place = np.searchsorted(phrases, run)
                if place < len(phrases) and phrases[place] == run:
                    counts[7] += 1
                    break
            w += 1
            window = ((window << _8) | _SPACE) & _FOUR
            seen += 1
        if seen >= GRAM:
            found[n] = np.uint32(_mixed(window ^ _CHARACTERS) >> _SHIFT)
            n += 1
    counts[0] = b
    counts[1] = w
    return n, w


@nb.njit(cache=True, nogil=True)
def hash_phrase(text, words):  # type: ignore[no-untyped-def]
    """Hash of a phrase as `walk_text` meets it: of its words, from the last to the first. text (b,) uint8; words (≥ b,) uint64."""
    w = 0
    h = _BASIS
    inside = False
    for i in range(len(text) + 1):
        c = np.int64(text[i]) if i < len(text) else np.int64(0x20)
        if 0x41 <= c <= 0x5A:
            c += 0x20
        if 0x61 <= c <= 0x7A or 0x30 <= c <= 0x39 or c >= 0x80:
            if not inside:
                inside = True
                h = _BASIS
            h = (h ^ np.uint64(c)) * _PRIME
        elif inside:
            inside = False
            words[w] = h
            w += 1
    run = words[w - 1]
    for back in range(1, w):
        run = run * _PAIR ^ words[w - 1 - back]
    return run


@nb.njit(cache=True, nogil=True)
def weigh_grams(found, n, rarity, domain, axes):  # type: ignore[no-untyped-def]
    """Sums over the first n n-grams: axes (a,) float64 are filled with their projection, divided by its length without signs.

    found (≥ n,) uint32 buckets; rarity (BUCKETS,) float32, the weight of a bucket in the projection, negative where the reference never
    had it; domain (BUCKETS,) float32, weights of the domain discriminator. Returns the discriminator's sum and how many are unknown.

    An n-gram goes to `SPREAD` axes with signs that follow from its bucket: a sparse random projection (Achlioptas 2003; Li, Hastie &
    Church, KDD 2006) of the weighted n-grams.
    """
    a = len(axes)
    axes[:] = 0.0
    total = 0.0
    score = 0.0
    unknown = 0
    for i in range(n):
        bucket = found[i]
        weight = np.float64(rarity[bucket])
        if weight < 0.0:
            unknown += 1
            weight = -weight
        score += domain[bucket]
        total += weight * weight
        bits = _mixed(np.uint64(bucket) + _CHARACTERS)
        for _ in range(SPREAD):
            place = np.int64((bits & np.uint64(0x7FFF)) * np.uint64(a) >> np.uint64(15))
            if bits & np.uint64(0x8000):
                axes[place] -= weight
            else:
                axes[place] += weight
            bits >>= np.uint64(16)
    if total > 0.0:
        length = np.sqrt(total)
        for j in range(a):
            axes[j] /= length
    return score, unknown


@nb.njit(cache=True, nogil=True)
def repeated_words(words, w, slots):  # type: ignore[no-untyped-def]
    """How many of the first w words came before. words (≥ w,) uint64; slots (a power of two > w,) uint64, scratch."""
    slots[:] = np.uint64(0)
    mask = np.uint64(len(slots) - 1)
    again = 0
    for i in range(w):
        h = words[i] | np.uint64(1)
        at = _mixed(h) & mask
        while slots[at] != np.uint64(0) and slots[at] != h:
            at = (at + np.uint64(1)) & mask
        if slots[at] == h:
            again += 1
        slots[at] = h
    return again


@nb.njit(cache=True, nogil=True)
def hash_templates(words, w, out):  # type: ignore[no-untyped-def]
    """48-bit hashes that texts of one template share: of the first and the last words, and the smallest of a run of words; 0: too short.

    words (≥ w,) uint64, hash of each word; out (TEMPLATE_HASHES,) uint64.
    """
    out[:] = np.uint64(0)
    smallest = ~np.uint64(0)
    for i in range(w - TEMPLATE_WORDS + 1):
        run = _BASIS
        for j in range(TEMPLATE_WORDS):
            run = _mixed(run * _PAIR ^ words[i + j])
        if i == 0:
            out[0] = max(_mixed(run ^ _FIRST) >> _16, np.uint64(1))
        if i == w - TEMPLATE_WORDS:
            out[1] = max(_mixed(run ^ _LAST) >> _16, np.uint64(1))
        smallest = min(smallest, run)
        out[2] = max(smallest >> _16, np.uint64(1))


@nb.njit(cache=True, nogil=True)
def encode_text(text, phrases, longest, rarity, domain, bias, out, axes, templates):  # type: ignore[no-untyped-def]
    """The row of one text: `axes` axes, then the marks in the order of `text.MARKS`; and its templates, as of `hash_templates`.

    text (b,) uint8; phrases, rarity, domain as above; bias of the discriminator; out (axes + 11,) float64.
    """
    b = len(text)
    found = np.empty(GRAMS_A_BYTE * b + 8, np.uint32)
    words = np.empty(b + 1, np.uint64)
    counts = np.empty(len(COUNTS), np.float64)
    characters = np.empty(256, np.int64)
    n, w = walk_text(text, phrases, longest, found, words, counts, characters)
    hash_templates(words, w, templates)
    score, unknown = weigh_grams(found, n, rarity, domain, out[:axes])
    size = 2
    while size <= 2 * w:
        size *= 2
    again = repeated_words(words, w, np.empty(size, np.uint64))
    entropy = 0.0
    for c in range(256):
        if characters[c] > 0:
            share = characters[c] / b
            entropy -= share * np.log2(share)
    whole = max(b, 1)
    marks = out[axes:]
    marks[0] = np.log1p(b)
    marks[1] = min(b / max(w, 1), LONGEST_WORD)
    marks[2] = counts[2] / max(counts[3], 1.0)
    marks[3] = counts[4] / whole
    marks[4] = counts[5] / whole
    marks[5] = counts[6] / whole
    marks[6] = entropy
    marks[7] = again / max(w, 1)
    marks[8] = unknown / max(n, 1)
    marks[9] = min(counts[7], MOST_PHRASES)
    marks[10] = score / np.sqrt(max(n, 1)) + bias


@nb.njit(cache=True, nogil=True)
def foreign_mass(x, domain, length, out):  # type: ignore[no-untyped-def]
    """Score of the domain discriminator times the square root of a text's bytes, (n,): a mean has become a sum.

    x (n, d) float64 rows; domain, length: columns of the score and of log(1 + bytes).
    """
    for i in range(x.shape[0]):
        out[i] = x[i, domain] * np.sqrt(np.exp(x[i, length]))
