"""Answers of a model as values, and their places in the JSON of requests and responses.

Three shapes are known:

* one answer: ``{"features" | "embedding" | "text" | "messages" | "input" | "prompt": …}`` → ``{"label", "probabilities", "logits",
  "value", "text"}``, directly or under ``"prediction"``: the field names of the query log;
* a batch: ``{"instances" | "inputs": [...]}`` → ``{"predictions": [...]}``, each an object as above, a list of probabilities, or a label;
* chat completions: ``{"messages" | "prompt": …}`` → ``{"choices": [{"message": {"content", "reasoning_content"}} | {"text"}]}``.

Rules: an unknown shape is None, never a guess. Other fields of an answer stay as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

SINGLE_INPUTS = ("features", "embedding", "text", "messages", "input", "prompt")
BATCH_INPUTS = ("instances", "inputs")
REASONING = ("reasoning", "reasoning_content", "thinking", "rationale", "explanation")
"""Fields that hold a model's reasoning text."""

Label = int | str


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer; None where the model does not say it. probabilities: in the order of the model's classes."""

    label: Label | None = None
    probabilities: tuple[float, ...] | None = None
    value: float | None = None
    text: str | None = None

    @property
    def top(self) -> int | None:
        """Index of the likeliest class."""
        p = self.probabilities
        return None if p is None else max(range(len(p)), key=p.__getitem__)


@dataclass(slots=True)
class Place:
    """One answer inside a response's JSON.

    Attributes
    ----------
    holder, key
        The container and where in it the answer stands.
    fields
        The object that holds named fields, None where the answer is a bare list or label.
    text_field
        Name of the field with the text.
    """

    holder: Any
    key: Any
    fields: dict[str, Any] | None = None
    text_field: str = "text"
    answer: Answer = field(default_factory=Answer)

    def write(self, answer: Answer, *, hide_logits: bool, hide_reasoning: bool) -> None:
        """Put an answer in the place of the old one."""
        fields = self.fields
        if fields is None:
            bare = answer.probabilities if answer.probabilities is not None else answer.label
            self.holder[self.key] = list(bare) if isinstance(bare, tuple) else bare
            return
        for name, value in (("label", answer.label), ("value", answer.value), (self.text_field, answer.text)):
            if name in fields and value is not None:
                fields[name] = value
        if "probabilities" in fields:
            if answer.probabilities is None:
                del fields["probabilities"]
                fields.setdefault("label", answer.label)
            else:
                fields["probabilities"] = list(answer.probabilities)
        if hide_logits:
            fields.pop("logits", None)
            fields.pop("logprobs", None)
            if isinstance(self.holder, dict):
                self.holder.pop("logprobs", None)
        if hide_reasoning:
            for name in REASONING:
                fields.pop(name, None)


def inputs_of(request: Any, name: str = "") -> list[Any] | None:
    """The inputs of a request, one for each answer that is expected; None for an unknown shape.

    name: the field that the model reads. Without it there must be one known field and no other: a second one may be a decoy, chosen to be
    looked at in place of what the model answers.
    """
    if not isinstance(request, dict):
        return None
    found = [name] if name in request else [] if name else [n for n in (*BATCH_INPUTS, *SINGLE_INPUTS) if n in request]
    if len(found) != 1:
        return None
    value = request[found[0]]
    return list(value) if found[0] in BATCH_INPUTS and isinstance(value, list) else [value]


def places_of(response: Any) -> list[Place] | None:
    """The answers of a response; None for an unknown shape."""
    if not isinstance(response, dict):
        return None
    if isinstance(batch := response.get("predictions"), list):
        places = [_place(batch, i) for i in range(len(batch))]
    elif isinstance(choices := response.get("choices"), list):
        places = [_choice(choice) for choice in choices]
    elif isinstance(response.get("prediction"), dict):
        places = [_place(response, "prediction")]
    else:
        places = [_fields(None, None, response)]
    return None if None in places or not places else [place for place in places if place is not None]


def _place(holder: Any, key: Any) -> Place | None:
    value = holder[key]
    if isinstance(value, dict):
        return _fields(holder, key, value)
    if (probabilities := _numbers(value)) is not None:
        return Place(holder, key, answer=Answer(None, probabilities))
    return Place(holder, key, answer=Answer(value)) if _is_label(value) else None


def _fields(holder: Any, key: Any, fields: dict[str, Any], text_field: str = "text") -> Place | None:
    answer = answer_of(fields, text_field)
    return None if answer is None else Place(holder, key, fields, text_field, answer)


def answer_of(fields: Mapping[str, Any], text_field: str = "text") -> Answer | None:
    """The answer in an object with the query log's field names; None where there is none."""
    label, value, text = fields.get("label"), fields.get("value"), fields.get(text_field)
    answer = Answer(
        label if _is_label(label) else None,
        _numbers(fields.get("probabilities")),
        float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None,
        text if isinstance(text, str) else None,
    )
    return None if answer == Answer() else answer


def _choice(choice: Any) -> Place | None:
    if not isinstance(choice, dict):
        return None
    if isinstance(message := choice.get("message"), dict):
        return _fields(choice, "message", message, "content")
    return _fields(None, None, choice)


def _numbers(value: Any) -> tuple[float, ...] | None:
    if not isinstance(value, list) or not value:
        return None
    if not all(isinstance(x, int | float) and not isinstance(x, bool) for x in value):
        return None
    return tuple(float(x) for x in value)


def _is_label(value: Any) -> bool:
    return isinstance(value, int | str) and not isinstance(value, bool)
