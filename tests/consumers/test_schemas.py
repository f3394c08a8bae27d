"""What a reference is understood as: columns of all rows, classes of the labels, odd rows left out with their reason."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from consumers import fit
from consumers.classes import Answers, infer_answers
from consumers.errors import Refused
from consumers.log.files import FileLog
from consumers.log.references import RawReference, lines_of, read_reference, reference_batch
from consumers.schemas import Described, Understood, infer_schema, understand
from detector.baseline_file import pack_baseline, read_baseline
from detector.features import Column

MODEL = "loan"
Change = Callable[[int, dict[str, Any]], None]


def rows(n: int = 300, change: Change = lambda i, e: None) -> list[dict[str, Any]]:
    """Reference events with four columns and a binary answer; `change` gets each event with its number."""
    rng = np.random.default_rng(3)
    made = []
    for i in range(n):
        p = round(float(rng.uniform(0.01, 0.99)), 4)
        age, debt = int(rng.integers(18, 80)), round(float(rng.normal()), 3)
        event = {
            "model_id": MODEL,
            "features": {"age": age, "debt": debt, "country": str(rng.choice(["AT", "CH", "Germany"])), "ratio": p / 2},
            "prediction": {"label": int(p >= 0.5), "probabilities": [1 - p, p]},
        }
        change(i, event)
        made.append(event)
    return made


def raw(events: Sequence[dict[str, Any]]) -> RawReference:
    return read_reference([json.dumps(e).encode() for e in events], MODEL)


def understood(change: Change, n: int = 300) -> Understood:
    return understand(raw(rows(n, change)))


def column(found: Understood, name: str) -> Column:
    return next(c for c in found.schema.columns if c.name == name)


def told(found: Understood, name: str) -> Described:
    return next(c for c in found.columns if c.name == name)


# ------------------------------------------------------------------------------------------------- rows and columns


def test_a_column_that_only_the_first_row_has_is_an_extra() -> None:
    found = understood(lambda i, e: e["features"].update(debug=1.0) if i == 0 else None)
    assert [c.name for c in found.schema.columns] == ["age", "debt", "country", "ratio"]
    assert found.extras == (("debug", "only 1 of 300 rows have it"),)


def test_a_column_missing_from_the_first_row_is_found_with_its_missing_share() -> None:
    found = understood(lambda i, e: e["features"].pop("ratio") if i % 10 == 0 else None)
    assert [c.name for c in found.schema.columns] == ["age", "debt", "country", "ratio"]
    assert column(found, "ratio").missing == pytest.approx(0.1)
    assert column(found, "age").missing == 0


def test_null_and_nan_are_missing_values_of_their_column() -> None:
    def spoil(i: int, e: dict[str, Any]) -> None:
        if i % 10 < 3:
            e["features"]["ratio"] = None if i % 2 else float("nan")

    found = understood(spoil)
    assert column(found, "ratio").missing == pytest.approx(0.3)
    assert 0 <= column(found, "ratio").lower < column(found, "ratio").upper <= 0.5


def spoil_one(i: int, event: dict[str, Any], **change: Any) -> None:
    if i == 0:
        event.update(change)


@pytest.mark.parametrize(
    ("change", "reason", "detail"),
    [
        ({"features": [30, 0.1, "AT", 0.2]}, "wrong_type", "a list where most rows have an object"),
        ({"features": {"age": [30], "debt": 1.0, "country": "AT", "ratio": 0.1}}, "wrong_type", "column age holds a list"),
        ({"features": None, "embedding": [1.0]}, "unsupported_input", "embedding where most rows have features"),
        ({"features": None}, "missing_input", ""),
        ({"features": {"other": 1}}, "missing_column", "no column has a value"),
    ],
)  # fmt: skip
def test_the_odd_first_row_among_objects_is_left_out_with_its_reason(
    change: dict[str, Any], reason: str, detail: str
) -> None:
    reference = raw(rows(60, lambda i, e: spoil_one(i, e, **change)))
    schema = infer_schema(reference)
    assert [c.name for c in schema.columns] == ["age", "debt", "country", "ratio"]
    batch, refused = reference_batch(reference, schema)
    assert len(batch) == 59
    assert (refused.reasons, refused.lines) == ({reason: 1}, 60)
    assert (refused.examples[reason].place, refused.examples[reason].detail) == ("line 1", detail)


def test_a_row_of_another_length_is_left_out_and_a_nested_row_is_unwrapped() -> None:
    def listed(i: int, e: dict[str, Any]) -> None:
        values = list(e["features"].values())
        e["features"] = values[:3] if i == 0 else [values[:4]] if i == 1 else values

    reference = raw(rows(60, listed))
    schema = infer_schema(reference)
    assert (schema.named, schema.width) == (False, 4)
    assert [c.kind for c in schema.columns] == ["numeric", "numeric", "categorical", "numeric"]
    _, refused = reference_batch(reference, schema)
    assert refused.examples["wrong_dimension"].detail == "3 columns, not 4"


def test_nested_objects_give_dotted_names() -> None:
    found = understood(lambda i, e: e["features"].update(home={"city": "Wien" if i % 2 else "Graz", "size": {"m2": i}}))
    assert [c.name for c in found.schema.columns][-2:] == ["home.city", "home.size.m2"]
    assert column(found, "home.city").categories == ("Graz", "Wien")
    assert column(found, "home.size.m2").upper == 299


def test_parquet_columns_are_the_union_over_all_rows(tmp_path: Path) -> None:
    events = rows(80, lambda i, e: e["features"].update(ratio=None) if i < 8 else None)
    pq.write_table(pa.Table.from_pylist(events), tmp_path / "reference.parquet")
    reference = read_reference(lines_of(FileLog([str(tmp_path / "reference.parquet")])), MODEL)
    schema = infer_schema(reference)
    assert [c.name for c in schema.columns] == ["age", "debt", "country", "ratio"]
    assert schema.columns[3].missing == pytest.approx(0.1)
    assert reference.places[8] == "reference.parquet:9"


# ----------------------------------------------------------------------------------------------------------- kinds


def test_booleans_are_a_boolean_column() -> None:
    found = understood(lambda i, e: e["features"].update(vip=i % 3 == 0))
    vip = column(found, "vip")
    assert (vip.kind, vip.lower, vip.upper) == ("boolean", 0.0, 1.0)


def test_numbers_that_are_all_written_as_text_are_numbers_and_that_is_said() -> None:
    found = understood(lambda i, e: e["features"].update(debt=str(e["features"]["debt"])))
    assert column(found, "debt").kind == "numeric"
    assert "every value is text that reads as a number" in told(found, "debt").note


def test_text_with_leading_zeros_is_a_name() -> None:
    found = understood(lambda i, e: e["features"].update(branch=f"{i % 7:03d}"))
    assert column(found, "branch").categories == tuple(f"{k:03d}" for k in range(7))


def test_words_among_many_numbers_are_missing_values() -> None:
    found = understood(lambda i, e: e["features"].update(debt="unknown") if i % 5 == 0 else None)
    assert (column(found, "debt").kind, column(found, "debt").missing) == ("numeric", 0.2)
    assert told(found, "debt").note == "60 words count as missing"


@pytest.mark.parametrize("value", [1_772_442_000_123, 4_000_000_000_000_016])
def test_a_column_beyond_the_range_is_refused_by_name_and_can_be_ignored(value: int) -> None:
    events = rows(60, lambda i, e: e["features"].update(opened=value + i))
    with pytest.raises(Refused, match="column opened: 60 of 60 values are over 1e[+]12") as refused:
        understand(raw(events))
    declared = json.loads(str(refused.value).partition("with ")[2])
    found = understand(raw(events), declared)
    assert "opened" not in [c.name for c in found.schema.columns]
    assert found.extras == (("opened", "ignored, as declared"),)


def test_categories_are_shown_shortened() -> None:
    found = told(understood(lambda i, e: None), "country")
    assert sorted(found.examples) == ["AT", "CH", "Ge…"]


# --------------------------------------------------------------------------------------------------------- classes


def answers(change: Callable[[float, dict[str, Any]], None], n: int = 300) -> Answers:
    """Classes of a binary model; `change` gets P(1) and the prediction."""
    rng = np.random.default_rng(5)
    made: list[dict[str, Any]] = []
    for p in np.round(rng.beta(0.8, 2.0, n), 4):
        prediction: dict[str, Any] = {"label": int(p >= 0.5), "probabilities": [1 - float(p), float(p)]}
        change(float(p), prediction)
        made.append(prediction)
    return infer_answers(made)


@pytest.mark.parametrize("threshold", [0.1, 0.5, 0.9])
def test_a_decision_threshold_hides_no_class(threshold: float) -> None:
    found = answers(lambda p, a: a.update(label="yes" if p >= threshold else "no"))
    assert found.labels == ("no", "yes")
    said = next(line for line in found.said if line.startswith("label yes is given from"))
    assert float(said.split()[-2]) == pytest.approx(threshold, abs=0.02)


def test_labels_follow_their_probabilities_and_not_the_alphabet() -> None:
    assert answers(lambda p, a: a.update(label="bad" if p < 0.3 else "also bad")).labels == ("bad", "also bad")
    assert answers(lambda p, a: a.update(label=int(p < 0.5))).labels == ("1", "0")


def test_a_multi_class_model_with_costs_keeps_the_order_of_its_classes() -> None:
    rng = np.random.default_rng(7)
    names = ["zebra", "ape", "owl", "cat"]
    likely = rng.dirichlet([4, 1, 0.3, 1], 400)
    cost = np.array([0.2, 1.0, 5.0, 1.0])
    made = [{"label": names[int((p * cost).argmax())], "probabilities": p.tolist()} for p in likely]
    assert infer_answers(made).labels == tuple(names)
    logits = [{"label": a["label"], "logits": np.log(a["probabilities"]).tolist()} for a in made]
    assert infer_answers(logits).labels == tuple(names)


@pytest.mark.parametrize(
    ("labels", "expected"), [((False, True), ("false", "true")), ((0.0, 1.0), ("0", "1")), ((["no"], ["yes"]), ("no", "yes"))]
)  # fmt: skip
def test_labels_of_other_json_types_name_their_classes(labels: tuple[Any, Any], expected: tuple[str, str]) -> None:
    assert answers(lambda p, a: a.update(label=labels[p >= 0.5])).labels == expected


def test_one_probability_makes_two_classes_and_is_that_of_the_second() -> None:
    found = answers(lambda p, a: a.update(probabilities=[p], label="b" if p < 0.2 else "a"))
    assert found.labels == ("b", "a")
    assert "one probability is that of class a; it is read as 1 - p, p" in found.said
    flat = answers(lambda p, a: a.update(probabilities=p))
    assert flat.labels == ("0", "1")


def test_one_probability_of_the_given_label_is_refused_in_words() -> None:
    with pytest.raises(Refused, match="does not decide between the labels"):
        answers(lambda p, a: a.update(probabilities=[max(p, 1 - p)]))
    with pytest.raises(Refused, match="does not decide between the labels"):  # nor when hardly any answer is a 1
        answers(lambda p, a: a.update(probabilities=[max(p, 1 - p)], label=int(p > 0.9)))
    with pytest.raises(Refused, match="one probability and 3 labels"):
        answers(lambda p, a: a.update(probabilities=[p], label=int(3 * p)))


def test_classes_that_no_label_names_are_said() -> None:
    found = answers(lambda p, a: a.update(label="0", probabilities=[1 - p, p / 2, p / 2]))
    assert found.labels == ("0", "1", "2")
    assert "no row has a label for 2 of the 3 probabilities: they are called 1, 2" in found.said


def test_objects_of_probabilities_name_the_classes_without_any_label() -> None:
    """Also one that no label of the reference names, and the rows are read with their probabilities."""

    def as_objects(i: int, event: dict[str, Any]) -> None:
        low, high = event["prediction"]["probabilities"]
        event["prediction"] = {"probabilities": {"yes": high, "no": low}} | ({"label": "no"} if i == 0 else {})

    reference = raw(rows(60, as_objects))
    schema = infer_schema(reference)
    assert schema.labels == ("no", "yes")
    batch, refused = reference_batch(reference, schema)
    assert (len(batch), refused.total) == (60, 0)
    assert np.isfinite(batch.probabilities).all()


def test_labels_beyond_the_probabilities_are_said() -> None:
    found = answers(lambda p, a: a.update(label=["no", "ask", "yes"][int(2.99 * p)]))
    assert set(found.labels) < {"no", "ask", "yes"}
    assert any("belong to no probability" in line for line in found.said)


def test_a_reference_without_answers_is_refused() -> None:
    with pytest.raises(Refused, match="no row of the reference says what the model answered"):
        understand(raw(rows(60, lambda i, e: e.pop("prediction"))))


def test_lines_that_are_no_object_are_left_out_with_their_place() -> None:
    lines = io.BytesIO(b'{"features": [1]}\n[1]\nnonsense SECRET\n{"model_id": "other"}\n')
    found = read_reference(lines, MODEL)
    assert (len(found.events), found.elsewhere) == (1, 1)
    assert (found.refused.reasons, found.refused.examples["not_json"].place) == ({"not_json": 2}, "line 2")
    assert "SECRET" not in str(found.refused)


# ---------------------------------------------------------------------------------------- the same code as the log's


def mixed(i: int, event: dict[str, Any]) -> None:
    """Optional, boolean, nested and text columns, and one probability."""
    features = event["features"]
    features |= {"vip": i % 3 == 0, "home": {"m2": 20 + i % 50}, "debt": str(features["debt"])}
    if i % 10 < 3:
        features["ratio"] = None
    event["prediction"]["probabilities"] = event["prediction"]["probabilities"][1:]


def test_the_decoder_reads_what_was_understood() -> None:
    events = rows(60, mixed)
    reference = raw(events)
    schema = infer_schema(reference)
    batch, refused = reference_batch(reference, schema)
    assert (len(batch), refused.total) == (60, 0)
    by_name = dict(zip([c.name for c in schema.columns], batch.inputs.T, strict=True))
    assert by_name["vip"].tolist() == [float(i % 3 == 0) for i in range(60)]
    assert by_name["home.m2"].tolist() == [20.0 + i % 50 for i in range(60)]
    assert by_name["debt"].tolist() == [float(e["features"]["debt"]) for e in events]
    assert np.isnan(by_name["ratio"]).tolist() == [i % 10 < 3 for i in range(60)]
    given = [e["prediction"]["probabilities"][0] for e in events]
    np.testing.assert_allclose(batch.probabilities, np.column_stack([1 - np.array(given), given]), atol=1e-6)
    assert batch.labels.tolist() == [int(p >= 0.5) for p in given]


def test_a_fit_takes_optional_boolean_and_nested_columns_and_one_probability(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit, "SIMULATED_CLIENTS", 60)
    fitted = fit.fit(MODEL, [json.dumps(e).encode() for e in rows(300, mixed)], None, exposure=False)
    schema = fitted.baseline.map.schema
    assert [(c.name, c.kind, round(c.missing, 3)) for c in schema.columns] == [
        ("age", "numeric", 0), ("debt", "numeric", 0), ("country", "categorical", 0), ("ratio", "numeric", 0.3),
        ("vip", "boolean", 0), ("home.m2", "numeric", 0),
    ]  # fmt: skip
    again = read_baseline(pack_baseline(fitted.baseline))
    assert again.map.schema == schema


def test_simulated_clients_lack_what_the_reference_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit, "SIMULATED_CLIENTS", 60)
    reference = raw(rows(300, mixed))
    schema = infer_schema(reference)
    batch, _ = reference_batch(reference, schema)
    played = fit.simulated(batch, schema, np.random.default_rng(0))
    whole = fit.filled(batch, np.random.default_rng(0)).inputs  # what a rehearsal of thefts computes with
    assert np.isfinite(whole).all()
    assert set(whole[:, 3]) <= set(batch.inputs[:, 3])
    gone = np.isnan(played.inputs).mean(0)
    assert 0.2 < gone[3] < 0.4
    assert gone[[0, 1, 2, 4, 5]].max() == 0
