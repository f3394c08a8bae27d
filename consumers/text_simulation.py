"""Simulate a query log of a model of texts: honest clients and extraction attacks around a reference, with the truth in a second file.

Rules: as in `simulate.py`, which does the same for numbers. A classifier's answers come from a built-in model that is fitted on the
reference's own answers; of a model that answers with texts they are texts of the reference's answers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from consumers.errors import InvalidInput, WrongUse
from consumers.log.texts import written_in
from consumers.simulate import (
    MOST_REFERENCE_ROWS,
    NOTE,
    START_S,
    answers_of,
    events_of,
    named_attacks,
    origins,
    stamp,
    truth_path,
    write_json,
    written,
)  # fmt: skip
from consumers.text_fitting import generic_texts
from detector.simulation.copies import Surrogate
from detector.simulation.domain import Domain
from detector.simulation.text_population import TextStream, in_time_order, text_population
from detector.simulation.texts import TEXT_THEFTS, TextPools
from detector.text import UNTRAINED

TEXT_ATTACKS = tuple(TEXT_THEFTS)
AnswerTexts = Callable[[Sequence[str], np.random.Generator], list[dict[str, Any]]]
"""The model: texts → their predictions as the log shows them."""


@dataclass(frozen=True, slots=True)
class TextReference:
    """A reference of texts: model id, texts, and what answers."""

    model_id: str
    texts: list[str]
    answer: AnswerTexts


def is_of_texts(path: Path) -> bool:
    """Whether the first event of a reference has a text and no columns. Raises WrongUse or InvalidInput like `read_text_reference`."""
    first = next(iter(events_of(path)), {})
    return not any(first.get(form) is not None for form in ("features", "embedding")) and written_in(first) is not None


def read_text_reference(path: Path) -> TextReference:
    """Texts and answers of at most 20,000 lines. Raises WrongUse when the file is missing, InvalidInput when unfit."""
    events = [event for event, _ in zip(events_of(path), range(MOST_REFERENCE_ROWS), strict=False)]
    said = [written_in(event) for event in events]
    texts = [one.text for one in said if one is not None]
    if len(texts) < len(events) or len(texts) < 50:
        raise InvalidInput(f"{path}: {len(texts)} of {len(events)} rows have a text; all must, and 50 are needed")
    predictions = [event["prediction"] for event in events]
    if isinstance(predictions[0].get("text"), str) or isinstance(predictions[0].get("embedding"), list):
        return TextReference(str(events[0].get("model_id", "model")), texts, _drawn(predictions))
    answers, labels = answers_of(path, predictions)
    rows = UNTRAINED.rows(texts)
    model = Surrogate(Domain.of(rows), np.random.default_rng(0), hidden=256).fit(rows, answers)

    def classify(asked: Sequence[str], rng: np.random.Generator) -> list[dict[str, Any]]:
        likely = np.round(model.predict(UNTRAINED.rows(asked)), 6)
        return [
            {"label": labels[k], "probabilities": p}
            for k, p in zip(likely.argmax(1).tolist(), likely.tolist(), strict=True)
        ]

    return TextReference(str(events[0].get("model_id", "model")), texts, classify)


def _drawn(predictions: Sequence[dict[str, Any]]) -> AnswerTexts:
    def answer(asked: Sequence[str], rng: np.random.Generator) -> list[dict[str, Any]]:
        return [predictions[i] for i in rng.integers(0, len(predictions), len(asked)).tolist()]

    return answer


def simulate_texts(
    reference_path: Path,
    out_path: Path,
    *,
    model_id: str | None = None,
    clients: int = 300,
    attacks: Sequence[str] = TEXT_ATTACKS,
    queries: tuple[int, int] = (400, 2000),
    seed: int = 0,
    linked: bool = False,
) -> dict[str, Any]:
    """Write a log of `clients` honest clients and one theft for each of `attacks`, and the truth beside it.

    The parameters are those of `simulate.simulate`; attacks are keys of TEXT_THEFTS, with or without a variant.

    Returns the truth as written. Raises WrongUse for a wrong call, InvalidInput for a file that is unfit.
    """
    thefts = named_attacks(attacks, TEXT_ATTACKS)
    if clients < 0 or (clients == 0 and not thefts):
        raise WrongUse("no clients and no attacks: nothing to simulate")
    reference = read_text_reference(reference_path)
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(reference.texts)).tolist()
    cut = round(0.7 * len(order))
    generic = [(g.word, g.text) for g in generic_texts()]
    pools = TextPools(
        [reference.texts[i] for i in order[:cut]],
        [reference.texts[i] for i in order[cut:]],
        [text for _, text in generic],
        generic,
    )
    streams = text_population(pools, rng, clients=clients, attacks=thefts, queries=queries, start_s=START_S)
    name = model_id or reference.model_id
    write_text_log(out_path, name, streams, reference.answer, rng, linked)
    truth = {"model_id": name, "seed": seed, "note": NOTE, "clients": truth_of_texts(streams)}
    write_json(truth_path(out_path), truth)
    return truth


def truth_of_texts(streams: Sequence[TextStream]) -> dict[str, dict[str, Any]]:
    """Client id → who it is: role, kind, variant, run, queries, attack_queries."""
    return {
        s.client: {
            "role": s.role, "kind": s.kind, "variant": s.variant, "run": s.run, "queries": len(s.texts),
            "attack_queries": int(s.is_attack.sum()),
        }
        for s in streams
    }  # fmt: skip


def write_text_log(
    path: Path, model_id: str, streams: Sequence[TextStream], answer: AnswerTexts, rng: np.random.Generator, linked: bool = False
) -> None:  # fmt: skip
    """Native events of a simulated log, by time; .jsonl, .jsonl.gz or .jsonl.zst. The file appears when it is whole."""
    metadata = origins(streams, rng) if linked else None
    log = in_time_order(streams)
    encode = msgspec.json.Encoder().encode
    with written(path) as sink:
        for first in range(0, len(log), 4096):
            part = log[first : first + 4096]
            texts = [streams[who].texts[place] for _, who, place in part]
            stamps = stamp(np.array([at for at, _, _ in part]))
            for i, prediction in enumerate(answer(texts, rng)):
                client = streams[part[i][1]].client
                event = {
                    "event_id": f"{model_id}-{first + i:08d}", "timestamp": stamps[i], "client_id": client, "model_id": model_id,
                    "text": texts[i], "prediction": prediction,
                }  # fmt: skip
                if metadata is not None:
                    event["metadata"] = metadata[client]
                sink.write(encode(event) + b"\n")


def write_text_reference(
    path: Path, model_id: str, texts: Sequence[str], predictions: Iterator[dict[str, Any]] | list[Any]
) -> None:
    """A reference file of texts: events without client, time and event id."""
    encode = msgspec.json.Encoder().encode
    with written(path) as sink:
        for text, prediction in zip(texts, predictions, strict=True):
            sink.write(encode({"model_id": model_id, "text": text, "prediction": prediction}) + b"\n")
