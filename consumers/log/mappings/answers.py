"""Answers of models: one for each row of a request, as the prediction of a native event.

They are recognised by their keys: ``predictions`` of the V1 protocol, ``outputs`` of V2 (named tensors), ``data.ndarray`` and
``data.tensor`` of Seldon, ``choices`` of chat and completion, plain lists, and a single answer.

Rules:
* There are as many answers as rows, or none: where their numbers differ, no answer can be attributed to a row.
* The mapping says what kind of number an answer is. Where it leaves that open, the notation decides: a word, a boolean or a whole number
  is a label, a number with a fraction or a point is a value, numbers that add up to one are probabilities.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from consumers.log.mappings.shapes import columnar_rows, is_tensor, reshaped, seldon_table, single

_ANSWER_KEYS = ("predictions", "outputs", "output", "prediction", "result", "results", "data", "scores")


def answers_of(payload: Any, n: int) -> list[Any]:
    """The answer to each of n rows, as it was logged; None where there is none. Never more nor fewer than n."""
    found = _answers(payload, n)
    if found is None:
        found = [payload] if n == 1 else []
    return found if len(found) == n else [None] * n


def _answers(payload: Any, n: int) -> list[Any] | None:
    """Answers in the order of the rows; None: the payload is the answer to one row."""
    if isinstance(payload, list):
        if n == 1 and (len(payload) != 1 or _is_answer(payload)):
            return None
        return [single(one) if n > 1 else one for one in payload]
    if not isinstance(payload, dict):
        return None
    outputs = payload.get("outputs")
    if isinstance(outputs, list) and outputs and all(isinstance(t, dict) and is_tensor(t) for t in outputs):
        return _of_outputs(outputs)
    if isinstance(payload.get("choices"), list):
        return [_choice(payload["choices"])]
    for key in _ANSWER_KEYS:
        inner = payload.get(key)
        if key == "data" and isinstance(inner, dict):
            return seldon_table(inner)
        if isinstance(inner, dict) and key in ("predictions", "outputs"):
            return [row for _, row in columnar_rows(inner)] or None
        if isinstance(inner, list) and key != "scores":
            return _answers(inner, n) if len(inner) != n else list(inner)
        if inner is not None and not isinstance(inner, dict | list) and key != "data":
            return [inner]
    return None


def _is_answer(values: Sequence[Any]) -> bool:
    """Whether a list of one is an answer itself, not a list of answers."""
    return not isinstance(values[0], list | dict)


def _of_outputs(outputs: Sequence[Mapping[str, Any]]) -> list[Any] | None:
    """Answers of named output tensors: one alone is the answer; of several, names tell label and probabilities."""
    read = {str(tensor["name"]).lower(): reshaped(tensor["data"], tensor["shape"]) for tensor in outputs}
    tables = {name: table for name, table in read.items() if table is not None}
    if not tables:
        return None
    first = next(iter(tables.values()))
    label = next((t for name, t in tables.items() if any(w in name for w in ("label", "class"))), None)
    scores = next((t for name, t in tables.items() if "prob" in name), None)
    if len(tables) == 1 or (label is None and scores is None):
        return [single(row) for row in first]
    answers: list[Any] = []
    for i in range(len(first)):
        answer: dict[str, Any] = {}
        if label is not None and i < len(label):
            answer["label"] = single(label[i])
        if scores is not None and i < len(scores):
            answer["probabilities"] = scores[i]
        answers.append(answer)
    return answers


def _choice(choices: Sequence[Any]) -> Any:
    """The text of a chat or completion answer."""
    first = choices[0] if choices and isinstance(choices[0], dict) else {}
    message = first.get("message")
    text = message.get("content") if isinstance(message, dict) else first.get("text")
    return {"text": text} if isinstance(text, str) else None


# ------------------------------------------------------------------------------------------------------- predictions


def prediction_of(answer: Any, kind: str) -> dict[str, Any] | None:
    """The native prediction of one row's answer; None where there is none.

    Parameters
    ----------
    answer
        A word, a number, a list or an object.
    kind
        Of a mapping (`AnswerKind`).
    """
    if answer is None:
        return None
    if isinstance(answer, dict):
        known = {
            k: answer[k] for k in ("label", "probabilities", "logits", "value", "text") if answer.get(k) is not None
        }
        return known or _of_source(answer)
    if isinstance(answer, list) and len(answer) == 1 and kind in ("auto", "label", "value"):
        answer = answer[0]
    if isinstance(answer, dict):
        return prediction_of(answer, kind)
    if kind == "probabilities" and not isinstance(answer, list):
        return {"probabilities": [answer]} if isinstance(answer, int | float) else {"label": answer}
    if kind == "logits" and not isinstance(answer, list):
        return {"logits": [answer]}
    if kind == "text":
        return {"text": answer if isinstance(answer, str) else str(answer)}
    if kind != "auto":
        return {kind: answer}
    if isinstance(answer, list):
        return {"probabilities" if _adds_up(answer) else "logits": answer}
    return {"value" if isinstance(answer, float) else "label": answer}


_LABELS = ("predicted_label", "predicted_class", "class", "class_name", "predicted", "prediction")
_SCORES = ("probability", "scores", "score", "confidences", "proba", "predict_proba")


def _of_source(answer: Mapping[str, Any]) -> dict[str, Any] | None:
    """An answer in the words of a tool: what is called like a label, and what like scores; or names with a score each."""
    found: dict[str, Any] = {}
    label = next((answer[k] for k in _LABELS if isinstance(answer.get(k), str | int | float)), None)
    scores = next((answer[k] for k in _SCORES if isinstance(answer.get(k), list | dict | float | int)), None)
    if label is not None:
        found["label"] = label
    if scores is not None and not (label is not None and not isinstance(scores, list | dict)):
        found["probabilities"] = scores if isinstance(scores, list | dict) else [scores]
    if not found and answer and _adds_up(list(answer.values())):
        found["probabilities"] = dict(answer)
    return found or None


def _adds_up(values: Sequence[Any]) -> bool:
    """Whether numbers are the probabilities of classes."""
    numbers = [v for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
    if len(numbers) != len(values) or len(numbers) < 2:
        return False
    try:
        total = math.fsum(numbers)
    except (OverflowError, ValueError):
        return False
    return min(numbers) >= -1e-6 and abs(total - 1) < 1e-2
