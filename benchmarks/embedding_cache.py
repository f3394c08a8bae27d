"""Sentence embeddings that are kept on disk, so that a benchmark that embeds for half an hour can be stopped and goes on.

Rules of the file:

* Outside the repository, one file a victim and set of weights. It holds digests of texts and numbers, and no text.
* What is read back is what the embedder said, bit by bit: a run with the file gives the figures of one without.
* A record that was not written whole is dropped.
"""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from consumers.embeddings import EMBEDDED, IDENTITY, SentenceEmbedder

RECORD = np.dtype([("key", "V16"), ("embedding", "<f4", (EMBEDDED,))])
EVERY = 1000
"""Embeddings between two writes, and between two lines of progress."""


class CachedEmbedder:
    """Embeds as the service does, and remembers all of it, also over runs. asked: digests of the texts it was asked for."""

    identity = IDENTITY

    def __init__(self, file: Path) -> None:
        self.file, self._fresh, self.seconds, self.asked = file, list[bytes](), 0.0, set[bytes]()
        self._embedder = SentenceEmbedder(kept=1)
        file.parent.mkdir(parents=True, exist_ok=True)
        raw = file.read_bytes() if file.exists() else b""
        whole = len(raw) // RECORD.itemsize * RECORD.itemsize
        if whole < len(raw):
            file.write_bytes(raw[:whole])
        records = np.frombuffer(raw[:whole], RECORD)
        self._known = dict(zip((key.tobytes() for key in records["key"]), records["embedding"], strict=True))

    def embed(self, text: str) -> NDArray[np.float32]:
        key = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        self.asked.add(key)
        found = self._known.get(key)
        if found is None:
            began = time.process_time()
            found = self._known[key] = self._embedder.embed(text)
            self.seconds += time.process_time() - began
            self._fresh.append(key)
            if len(self._fresh) >= EVERY:
                self.write()
        return found

    def rows(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """(n, EMBEDDED)"""
        return np.array([self.embed(text) for text in texts], np.float64).reshape(-1, EMBEDDED)

    def write(self) -> None:
        """Bring to disk what is not there yet."""
        if not self._fresh:
            return
        records = np.empty(len(self._fresh), RECORD)
        for i, key in enumerate(self._fresh):
            records[i] = (np.void(key), self._known[key])
        with self.file.open("ab") as file:
            file.write(records.tobytes())
        print(f"{self.file.name}: {len(self._known):,} embeddings, {self.seconds:.0f} s", file=sys.stderr, flush=True)
        self._fresh.clear()
