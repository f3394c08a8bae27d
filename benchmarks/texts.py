"""Real sentences, their embedding, and how honest tools use a text model.

Rules of the file:

* Sentences are paragraphs of docstrings of installed packages; no package is imported for its data.
* An embedding is a latent semantic analysis of the sentences (Deerwester et al. 1990), rows of length 1.
* Nobody turns the numbers of an embedding: whoever explains, tests or varies a text changes *words*, and the service embeds what
  comes out. So the honest kinds that vary an item are played on the words here (`TextTools`), by other code than `honest.py`.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.pipeline import make_pipeline

from benchmarks.inside import inside
from detector.simulation.domain import Generate, HonestPools, Rows

TOPICS = ("stats", "signal", "optimize", "sparse", "interpolate", "spatial", "linalg")
AXES = 48

Words = list[str]


def sentences(package: str) -> Iterator[tuple[str, str]]:
    """(sub-package, paragraph of ten words or more) of the docstrings of an installed package."""
    root = inside(package)
    for path in sorted(root.rglob("*.py")):
        if "tests" in path.parts:
            continue
        topic = path.relative_to(root).parts[0]
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8", errors="ignore"))):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                for paragraph in (ast.get_docstring(node) or "").split("\n\n"):
                    words = re.findall(r"[a-z]{3,}", paragraph.lower())
                    if len(words) >= 10:
                        yield topic, " ".join(words)


def paragraphs(package: str) -> Iterator[tuple[str, str]]:
    """(sub-package, paragraph as it stands) of the docstrings of an installed package, without code and markup."""
    root = inside(package)
    for path in sorted(root.rglob("*.py")):
        if "tests" in path.parts:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8", errors="ignore"))):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                for paragraph in (ast.get_docstring(node) or "").split("\n\n"):
                    flat = " ".join(paragraph.split())
                    if not flat.startswith((">>>", "..")) and len(re.findall(r"[a-z]{3,}", flat)) >= 8:
                        yield path.relative_to(root).parts[0], flat


class Corpus:
    """Sentences, their topics and rows; others: sentences that are not of this corpus.

    rows     (n, AXES) of length 1, five decimals; labels (n,) index into `TOPICS`
    foreign  (f, AXES) of the others
    """

    def __init__(self, texts: Sequence[str], labels: Sequence[int], others: Sequence[str]) -> None:
        self.texts = list(texts)
        self.labels = np.array(labels)
        self._model: Any = make_pipeline(
            TfidfVectorizer(min_df=5, sublinear_tf=True), TruncatedSVD(AXES, random_state=0)
        )
        self._model.fit(self.texts)
        self.vocabulary: Sequence[str] = list(self._model[0].get_feature_names_out())
        self.rows = self.embed(self.texts)
        self.foreign = self.embed(others)
        self._text_of = {row.tobytes(): text for row, text in zip(self.rows, self.texts, strict=True)}

    def embed(self, texts: Sequence[str]) -> Rows:
        """(n, AXES); a text without a known word is the zero row, which a domain of unit rows emits as one fixed row."""
        raw = self._model.transform(texts)
        rows: Rows = (raw / np.maximum(np.linalg.norm(raw, axis=1, keepdims=True), 1e-9)).round(5)
        return rows

    def words(self, rows: Rows) -> list[Words]:
        """The sentences that these rows of the corpus are of."""
        return [self._text_of[row.tobytes()].split() for row in rows]


@cache
def corpus() -> Corpus:
    """What SciPy's docstrings say, by topic, and those of other packages."""
    known = dict.fromkeys((text, TOPICS.index(topic)) for topic, text in sentences("scipy") if topic in TOPICS)
    others = dict.fromkeys(text for package in ("matplotlib", "numpy") for _, text in sentences(package))
    return Corpus([text for text, _ in known], [topic for _, topic in known], list(others))


def played(rows: Rows) -> Mapping[str, Generate]:
    """How clients who own these rows of the corpus play the honest kinds that vary items."""
    return TextTools(corpus(), corpus().words(rows)).kinds


class TextTools:
    """Clients who change words; texts are those that they own."""

    def __init__(self, known: Corpus, texts: Sequence[Words]) -> None:
        self.known = known
        self.texts = texts
        self.kinds: dict[str, Generate] = {
            "what_if": self.what_if,
            "qa_edge": self.qa_edge,
            "explainer": self.explainer,
            "robustness": self.robustness,
            "shifted": self.shifted,
            "entity_stream": self.entity_stream,
        }

    def what_if(self, pools: HonestPools, n: int, rng: np.random.Generator) -> Rows:
        """One word of a text after the other, each replaced by some others."""
        out: list[Words] = []
        while len(out) < n:
            text = self._one(rng)
            for place in rng.permutation(len(text))[: int(rng.integers(1, 5))]:
                others = self._some_words(int(rng.integers(5, 21)), rng)
                out += [[*text[:place], word, *text[place + 1 :]] for word in others]
        return self._emit(pools, out[:n])

    def qa_edge(self, pools: HonestPools, n: int, rng: np.random.Generator) -> Rows:
        """Nothing, one word, a word again and again, a torn text, two texts in one, a heap of words; some of them twice."""
        out: list[Words] = []
        for _ in range(n):
            text = self._one(rng)
            form = int(rng.integers(8))
            if out and rng.random() < 0.15:
                out.append(out[int(rng.integers(len(out)))])
            elif form == 0:
                out.append([] if rng.random() < 0.3 else self._some_words(1, rng))
            elif form == 1:
                out.append(self._some_words(1, rng) * int(rng.integers(2, 50)))
            elif form == 2:
                out.append(text[: int(rng.integers(1, 5))])
            elif form == 3:
                out.append([*text, *self._one(rng)])
            elif form == 4:
                out.append(self._some_words(int(rng.integers(2, 30)), rng))
            else:
                out.append(text)
        return self._emit(pools, out)

    def explainer(self, pools: HonestPools, n: int, rng: np.random.Generator) -> Rows:
        """LIME for text (Ribeiro et al., KDD 2016): some items, words left out at random."""
        out: list[Words] = []
        block = max(60, n // int(rng.integers(1, 9)))
        while len(out) < n:
            text = self._one(rng)
            out.append(text)
            for _ in range(block - 1):
                gone = rng.choice(len(text), size=int(rng.integers(1, len(text) + 1)), replace=False)
                out.append([word for i, word in enumerate(text) if i not in gone])
        return self._emit(pools, out[:n])

    def robustness(self, pools: HonestPools, n: int, rng: np.random.Generator) -> Rows:
        """Turned, lost, doubled and foreign words: mostly in a whole test set at one strength after the other, else text by text."""
        copies = int(rng.integers(3, 15))
        texts = [self._one(rng) for _ in range(-(-n // copies))]
        strengths = np.linspace(0.0, rng.choice([0.1, 0.2, 0.4]), copies)
        if rng.random() < 0.75:
            out = [self._noisy(text, strength, rng) for strength in strengths for text in texts]
        else:
            out = [self._noisy(text, strength, rng) for text in texts for strength in strengths]
        return self._emit(pools, out[:n])

    def _noisy(self, text: Words, strength: float, rng: np.random.Generator) -> Words:
        """A text of which each word is changed with this probability."""
        out: Words = []
        for word in text:
            change = int(rng.integers(4)) if rng.random() < strength else -1
            if change == 0:
                out.append(word[::-1])
            elif change == 2:
                out += [word, word]
            elif change == 3:
                out += self._some_words(1, rng)
            elif change == -1:
                out.append(word)
        return out

    def shifted(self, pools: HonestPools, n: int, rng: np.random.Generator) -> Rows:
        """Another population: texts from one end of a random direction, with a jargon of their own."""
        picks = rng.integers(0, len(self.texts), size=2 * n)
        direction = rng.normal(size=pools.domain.width)
        keep = rng.permutation(np.argsort(pools.pool[picks] @ direction)[:n])
        jargon = self._some_words(int(rng.integers(1, 4)), rng)
        return self._emit(pools, [[*self.texts[i], *jargon] for i in picks[keep]])

    def entity_stream(self, pools: HonestPools, n: int, rng: np.random.Generator) -> Rows:
        """A few texts that are edited: a word in, a word out, now and then begun again."""
        homes = [self._one(rng) for _ in range(int(rng.integers(2, 9)))]
        now, out = [list(home) for home in homes], []
        for _ in range(n):
            k = int(rng.integers(len(now)))
            if rng.random() < 0.05:
                now[k] = list(homes[k])
            else:
                now[k][int(rng.integers(len(now[k])))] = self._some_words(1, rng)[0]
            out.append(list(now[k]))
        return self._emit(pools, out)

    def _one(self, rng: np.random.Generator) -> Words:
        return self.texts[int(rng.integers(len(self.texts)))]

    def _some_words(self, count: int, rng: np.random.Generator) -> Words:
        return [self.known.vocabulary[i] for i in rng.integers(0, len(self.known.vocabulary), size=count)]

    def _emit(self, pools: HonestPools, texts: Sequence[Words]) -> Rows:
        return pools.domain.emit(self.known.embed([" ".join(words) for words in texts]))
