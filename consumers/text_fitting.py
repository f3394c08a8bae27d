"""Fitting on texts: the shell's part of it. Texts of the reference and the traffic go in, an encoder and rows that may be judged come out.

Rules:

* Rows that set levels and null distributions are encoded by weights that did not learn from them (`fitting/texts.py`): those of the
  reference by text, those of the traffic by client.
* A rehearsal draws from texts of the reference and of the traffic. Of the traffic only those count that look like the reference's, and few
  of each client.
* The generic texts ship with the product (`consumers/data`, origin and licence beside them). Nothing is downloaded.
* Texts are kept in memory while `fit` runs and are not written into the baseline, which holds weights of hashed n-grams only.
"""

from __future__ import annotations

import dataclasses
import gzip
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from consumers.errors import Refused
from consumers.log.references import RawReference, ReferenceLine
from consumers.log.texts import written_in
from consumers.log.tolerant import UNREADABLE
from detector.features import Schema
from detector.fitting.discriminators import RewordedRows
from detector.fitting.texts import FOLDS, FittedTexts, GenericText, fit_texts, fold_of, foreign_texts
from detector.query import QueryBatch
from detector.simulation.text_population import TextStream, honest_texts, in_time_order
from detector.simulation.texts import TextPools
from detector.text import DOMAIN, ELICITATION_MARK, UNKNOWN, Embedder, digest
from detector.text_kernels import TEMPLATE_HASHES

TEXT_REHEARSED = (
    "free",
    "app",
    "batch_translation",
    "exam",
    "reseller",
    "editor",
    "evaluator",
    "tester",
    "robustness",
    "misrouted",
)
"""Honest kinds that bound what a client of the traffic may say about honest use."""
TEXT_STAND_INS = ("evaluator", "tester", "robustness", "misrouted")
"""Those that are odd by trade and may come later."""

POOLED_OF_ONE, POOLED_CLIENTS = 40, 2000
"""Texts of one client of the traffic that a rehearsal may draw from, so that nobody shapes it alone; and of how many clients."""
ALIKE = (DOMAIN, UNKNOWN, ELICITATION_MARK)
"""Columns in which such a text must not be rarer than one text of the reference in a hundred: thieves' texts are no honest tool's."""

_event = msgspec.json.Decoder(dict[str, Any])


def generic_texts() -> tuple[GenericText, ...]:
    """The generic corpus that ships."""
    packed = resources.files("consumers").joinpath("data", "generic-texts.txt.gz").read_bytes()
    lines = gzip.decompress(packed).decode("ascii").splitlines()
    return tuple(GenericText(*line.split("\t", 1)) for line in lines)


@dataclass(frozen=True, slots=True)
class LearnedTexts:
    """What was learned of texts.

    schema  with the encoder and the bounds of its columns; texts: identity of an input → its text; reference: all texts of it
    pools   for each fold, texts of honest clients that its encoder did not learn from; a rehearsal draws from them
    """

    schema: Schema
    fitted: FittedTexts
    texts: Mapping[int, str]
    reference: Sequence[str]
    generic: Sequence[GenericText]
    pools: Sequence[Sequence[str]]

    def held_out(self, batch: QueryBatch, by_client: bool) -> QueryBatch:
        """The batch with rows of the encoders that did not learn from them: by client, or by text."""
        inputs = batch.inputs.copy()
        clients = [fold_of(client) for client in batch.clients]
        known = [i for i, salt in enumerate(batch.salt.tolist()) if salt in self.texts]
        texts = [self.texts[int(batch.salt[i])] for i in known]
        folds = [clients[batch.who[i]] if by_client else fold_of(text) for i, text in zip(known, texts, strict=True)]
        if known:
            inputs[known] = self.fitted.held_out(texts, np.array(folds, np.int64))
        return dataclasses.replace(batch, inputs=inputs)

    def reworded_rows(self, reference: QueryBatch) -> RewordedRows:
        """What the measure of reworded texts learns from, with the folds of the reference's rows."""
        return self.fitted.reworded_rows([self.texts.get(salt, "") for salt in reference.salt.tolist()])

    def simulated(
        self, reference: QueryBatch, kinds: Sequence[str], rng: np.random.Generator, most: int | None = None
    ) -> QueryBatch:
        """A simulated honest client for each kind, of at most `most` queries, out of texts that its encoder did not learn from.

        Its answers are those of reference rows drawn at random: they say nothing.
        """
        foreign = [text for text in foreign_texts(self.reference, self.generic, rng) if text][
            :: max(1, len(self.generic) // 1000)
        ]
        words = [(g.word, g.text) for g in self.generic]
        by_fold = [pool or self.reference for pool in self.pools]
        streams: list[TextStream] = []
        folds = []
        for i, (kind, child) in enumerate(zip(kinds, rng.spawn(len(kinds)), strict=True)):
            pool = by_fold[i % FOLDS]
            streams.append(honest_texts(kind, TextPools(pool, pool, foreign, words), child, most=most))
            folds.append(i % FOLDS)
        return self._batch(streams, folds, reference, rng)

    def _batch(
        self, streams: Sequence[TextStream], folds: Sequence[int], reference: QueryBatch, rng: np.random.Generator
    ) -> QueryBatch:
        log = in_time_order(streams)
        texts = [streams[who].texts[place] for _, who, place in log]
        who = np.array([w for _, w, _ in log], np.int32)
        rows = self.fitted.held_out(texts, np.array(folds, np.int64)[who])
        n = len(texts)
        answers = rng.integers(0, len(reference), n)
        return QueryBatch(
            [s.client for s in streams], who, rows, reference.labels[answers], reference.probabilities[answers],
            reference.values[answers], np.array([round(at * 1000) for at, _, _ in log], np.int64), np.ones(n, np.float32), np.arange(n),
            np.zeros(n, np.uint8), np.array([digest(text) for text in texts], np.uint64),
            np.zeros((n, TEMPLATE_HASHES), np.uint64),
        )  # fmt: skip


def learn_texts(
    raw: RawReference,
    schema: Schema,
    traffic: Sequence[ReferenceLine],
    model_id: str,
    excluded: frozenset[str],
    rng: np.random.Generator,
    embedder: Embedder | None = None,
) -> LearnedTexts:
    """Fit the encoder of a schema of texts, on the reference and on those clients of the traffic that are presumed honest."""
    texts: dict[int, str] = {}
    reference: dict[int, str] = {}
    for event in raw.events:
        found = written_in(event)
        if found is not None:
            texts[found.digest] = reference[found.digest] = found.text
    asked: list[tuple[str, str]] = []
    for event in _events(traffic, model_id):
        found, client = written_in(event), event.get("client_id")
        if found is not None:
            texts[found.digest] = found.text
            if client is not None and str(client) not in excluded:
                asked.append((str(client), found.text))
    listed = list(reference.values())
    if not listed:
        raise Refused("the reference holds no text that can be read: its inputs must be `text` or `messages`")
    generic = generic_texts()
    fitted = fit_texts(listed, asked, generic, rng, embedder)
    rows = fitted.held_out(listed, np.array([fold_of(text) for text in listed], np.int64))
    pools = _pools(fitted, listed, rows, asked)
    return LearnedTexts(_bounded(schema, fitted, rows), fitted, texts, listed, generic, pools)


def _pools(
    fitted: FittedTexts, reference: Sequence[str], rows: NDArray[np.float64], asked: Iterable[tuple[str, str]]
) -> list[list[str]]:
    """Texts from which a rehearsal draws, by fold: those of the reference, and those of the traffic that look like them.

    A tool that asks about everything cannot ask more than its pool holds. With the reference alone, larger tools of the traffic would
    be beyond the rehearsal, and taken for thieves. rows: of the reference, held out; asked: (client, text) of the traffic.
    """
    pools: list[dict[int, str]] = [{} for _ in range(FOLDS)]
    for text in reference:
        pools[fold_of(text)][digest(text)] = text
    of_one: dict[str, dict[int, str]] = defaultdict(dict)
    for client, text in asked:
        if len(of_one[client]) < POOLED_OF_ONE:
            of_one[client][digest(text)] = text
    most = np.quantile(rows[:, ALIKE], 0.99, axis=0)
    for client in sorted(of_one, key=digest)[:POOLED_CLIENTS]:
        k, texts = fold_of(client), list(of_one[client].items())
        encoded = fitted.held_out([text for _, text in texts], np.full(len(texts), k))
        alike = np.flatnonzero(np.all(encoded[:, ALIKE] <= most, axis=1)).tolist()
        pools[k] |= dict(texts[i] for i in alike)
    return [list(pool.values()) for pool in pools]


def _bounded(schema: Schema, fitted: FittedTexts, rows: NDArray[np.float64]) -> Schema:
    lows, highs = rows.min(0).tolist(), rows.max(0).tolist()
    columns = tuple(
        dataclasses.replace(column, lower=low, upper=high)
        for column, low, high in zip(schema.columns, lows, highs, strict=True)
    )
    return dataclasses.replace(schema, columns=columns, encoder=fitted.encoder)


def _events(lines: Iterable[ReferenceLine], model_id: str) -> Iterable[dict[str, Any]]:
    for line in lines:
        try:
            event = _event.decode(line.value)
        except (*UNREADABLE, ValueError):
            continue  # the decoder of the log says why
        if event.get("model_id") == model_id:
            yield event
