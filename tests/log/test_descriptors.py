"""Protocol Buffers by a schema of the user's own, held against the library of Protocol Buffers, which no service of ours loads."""

from __future__ import annotations

import base64
import json
import math
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, timestamp_pb2, wrappers_pb2
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message
from hypothesis import given, settings
from hypothesis import strategies as st

from consumers.errors import BadRecord, WrongUse
from consumers.log.mappings import descriptors, mapping
from consumers.log.mappings.descriptors import MessageReader
from consumers.log.mappings.mapping import load, mapping_of
from consumers.log.mappings.records import Translator
from consumers.log.mappings.sources import Source

F = descriptor_pb2.FieldDescriptorProto
SCALARS = {
    "double": F.TYPE_DOUBLE, "float": F.TYPE_FLOAT, "int64": F.TYPE_INT64, "uint64": F.TYPE_UINT64, "int32": F.TYPE_INT32,
    "fixed64": F.TYPE_FIXED64, "fixed32": F.TYPE_FIXED32, "bool": F.TYPE_BOOL, "string": F.TYPE_STRING, "bytes": F.TYPE_BYTES,
    "uint32": F.TYPE_UINT32, "sfixed32": F.TYPE_SFIXED32, "sfixed64": F.TYPE_SFIXED64, "sint32": F.TYPE_SINT32,
    "sint64": F.TYPE_SINT64,
}  # fmt: skip


def schema() -> descriptor_pb2.FileDescriptorProto:
    """Every scalar once and repeated, an enum, a message, a map, a oneof, an optional field, a timestamp, a wrapper."""
    file = descriptor_pb2.FileDescriptorProto(name="own/query.proto", package="own", syntax="proto3")
    file.dependency.extend(["google/protobuf/timestamp.proto", "google/protobuf/wrappers.proto"])
    said = file.enum_type.add(name="Said")
    for number, name in enumerate(("UNSAID", "NO", "YES")):
        said.value.add(name=name, number=number)
    query = file.message_type.add(name="Query")
    number = 0

    def add(name: str, kind: int, label: int = F.LABEL_OPTIONAL, **more: Any) -> Any:
        nonlocal number
        number += 1
        return query.field.add(name=name, number=number, type=kind, label=label, **more)

    for name, kind in SCALARS.items():
        add(f"a_{name}", kind)
        add(f"many_{name}", kind, F.LABEL_REPEATED)
    add("said", F.TYPE_ENUM, type_name=".own.Said")
    add("all_said", F.TYPE_ENUM, F.LABEL_REPEATED, type_name=".own.Said")
    point = query.nested_type.add(name="Point")
    point.field.add(name="x", number=1, type=F.TYPE_DOUBLE, label=F.LABEL_OPTIONAL)
    point.field.add(name="within", number=2, type=F.TYPE_MESSAGE, label=F.LABEL_OPTIONAL, type_name=".own.Query.Point")
    add("point", F.TYPE_MESSAGE, type_name=".own.Query.Point")
    add("points", F.TYPE_MESSAGE, F.LABEL_REPEATED, type_name=".own.Query.Point")
    entry = query.nested_type.add(name="NamedEntry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, type=F.TYPE_STRING, label=F.LABEL_OPTIONAL)
    entry.field.add(name="value", number=2, type=F.TYPE_DOUBLE, label=F.LABEL_OPTIONAL)
    add("named", F.TYPE_MESSAGE, F.LABEL_REPEATED, type_name=".own.Query.NamedEntry")
    query.oneof_decl.add(name="either")
    add("one", F.TYPE_INT32, oneof_index=0)
    add("other", F.TYPE_STRING, oneof_index=0)
    query.oneof_decl.add(name="_maybe")
    add("maybe", F.TYPE_DOUBLE, oneof_index=1, proto3_optional=True)
    add("at", F.TYPE_MESSAGE, type_name=".google.protobuf.Timestamp")
    add("wrapped", F.TYPE_MESSAGE, type_name=".google.protobuf.DoubleValue")
    return file


FILE = schema()
POOL = descriptor_pool.DescriptorPool()
SET = descriptor_pb2.FileDescriptorSet()
for module in (timestamp_pb2, wrappers_pb2):
    imported = descriptor_pb2.FileDescriptorProto()
    module.DESCRIPTOR.CopyToProto(imported)
    SET.file.append(imported)
    POOL.Add(imported)
SET.file.append(FILE)
POOL.Add(FILE)
Query: Any = message_factory.GetMessageClass(POOL.FindMessageTypeByName("own.Query"))
OURS = MessageReader(SET.SerializeToString(), "own.Query")


def plain(message: Message) -> Any:
    """The slow twin: what the library says is in a message."""
    kind = message.DESCRIPTOR.full_name
    if kind == "google.protobuf.Timestamp":
        return message.seconds * 10**9 + message.nanos
    found: dict[str, Any] = {}
    for one in message.DESCRIPTOR.fields:
        value = getattr(message, one.name)
        if one.message_type is not None and one.message_type.GetOptions().map_entry:
            found[one.name] = dict(value)
        elif one.is_repeated:
            found[one.name] = [_plain_value(one, each) for each in value]
        elif not one.has_presence or message.HasField(one.name):
            found[one.name] = _plain_value(one, value)
    return found["value"] if kind == "google.protobuf.DoubleValue" else found


def _plain_value(one: FieldDescriptor, value: Any) -> Any:
    if one.message_type is not None:
        return plain(value)
    if one.enum_type is not None:
        named = one.enum_type.values_by_number.get(value)
        return value if named is None else named.name
    return value


def same(a: Any, b: Any) -> bool:
    """Equal, and of the same types; NaN is NaN."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, float) and isinstance(b, float) and math.isnan(a):
        return math.isnan(b)
    return type(a) is type(b) and a == b


VALUES: dict[str, st.SearchStrategy[Any]] = {
    "double": st.floats(), "float": st.floats(width=32), "bool": st.booleans(), "string": st.text(max_size=8),
    "bytes": st.binary(max_size=8), "int64": st.integers(-(2**63), 2**63 - 1), "uint64": st.integers(0, 2**64 - 1),
    "int32": st.integers(-(2**31), 2**31 - 1), "uint32": st.integers(0, 2**32 - 1),
}  # fmt: skip
VALUES |= {
    "fixed64": VALUES["uint64"],
    "fixed32": VALUES["uint32"],
    "sfixed32": VALUES["int32"],
    "sfixed64": VALUES["int64"],
}
VALUES |= {"sint32": VALUES["int32"], "sint64": VALUES["int64"]}


@st.composite
def messages(draw: st.DrawFn) -> Any:
    made = Query()
    for name, values in VALUES.items():
        if draw(st.booleans()):
            setattr(made, f"a_{name}", draw(values))
        getattr(made, f"many_{name}").extend(draw(st.lists(values, max_size=3)))
    made.said = draw(st.integers(-1, 4))
    made.all_said.extend(draw(st.lists(st.integers(0, 3), max_size=3)))
    point = made.point
    for _ in range(draw(st.integers(0, 3))):
        point.x, point = draw(st.floats()), point.within
    for x in draw(st.lists(st.floats(), max_size=2)):
        made.points.add(x=x)
    made.named.update(draw(st.dictionaries(st.text(max_size=3), st.floats(), max_size=3)))
    if draw(st.booleans()):
        made.one = draw(VALUES["int32"])
    if draw(st.booleans()):
        made.other = draw(st.text(max_size=3))
    if draw(st.booleans()):
        made.maybe = draw(st.floats())
        made.wrapped.value = draw(st.floats())
        made.at.seconds, made.at.nanos = draw(st.integers(0, 4 * 10**9)), draw(st.integers(0, 10**9 - 1))
    return made


@given(messages())
@settings(max_examples=150, deadline=None)
def test_a_message_is_what_the_library_reads(made: Any) -> None:
    value = made.SerializeToString()
    if not value:
        with pytest.raises(ValueError, match="no field"):
            OURS.record(value)
        return
    assert same(OURS.record(value), plain(made))


@given(messages(), messages())
@settings(max_examples=50, deadline=None)
def test_two_messages_end_to_end_are_one(first: Any, second: Any) -> None:
    """As the language says: later values, longer lists, messages together."""
    value = first.SerializeToString() + second.SerializeToString()
    if value:
        assert same(OURS.record(value), plain(Query.FromString(value)))


@given(messages(), st.data())
@settings(max_examples=300, deadline=None)
def test_spoilt_bytes_are_refused_or_read_as_the_library_reads_them(made: Any, data: st.DataObject) -> None:
    value = bytearray(made.SerializeToString() or b"\x08\x01")
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(value) - 1))
        value[at : at + 1] = data.draw(st.binary(max_size=3))
        if not value:
            value += b"\x00"
    try:
        ours: Any = OURS.record(bytes(value))
    except ValueError:
        return
    try:
        theirs = Query.FromString(bytes(value))
    except DecodeError:
        pytest.fail("the library refuses it")
    assert same(ours, plain(theirs))


def own(framing: str = "none", schemas: dict[str, bytes] | None = None, message: str = "own.Query") -> Translator:
    given = {"*": SET.SerializeToString()} if schemas is None else schemas
    content = {
        "name": "own", "client": {"paths": [{"path": "a_string"}]}, "time": {"paths": ["at"], "unit": "ns"},
        "input": {"paths": ["many_double"], "form": "row"}, "answer": {"paths": ["said"]},
        "read": {
            "format": "protobuf", "framing": framing, "message": message,
            "schemas": {name: base64.b64encode(blob).decode() for name, blob in given.items()},
        },
    }  # fmt: skip
    return Translator(mapping_of(content, "own"), str)


def record() -> bytes:
    made = Query(a_string="acme", many_double=[0.5, 0.0], said=2)
    made.at.seconds = 1_774_000_800
    return bytes(made.SerializeToString())


def test_a_mapping_names_the_message_of_a_descriptor_set() -> None:
    (event,) = map(json.loads, own().events(record(), Source()))
    assert (event["client_id"], event["timestamp"]) == ("acme", "2026-03-20T10:00:00Z")
    assert (event["features"], event["prediction"]) == ([0.5, 0.0], {"label": "YES"})


FRAME = b"\x00\x00\x00\x00\x07"


def test_message_indexes_of_a_registry_choose_the_message() -> None:
    first = own("schema-registry", {"7": SET.SerializeToString()}, "")
    for indexes in (b"\x00", b"\x02\x00"):  # the short form, and a list of one
        (event,) = map(json.loads, first.events(FRAME + indexes + record(), Source()))
        assert event["client_id"] == "acme"
    reader = MessageReader(SET.SerializeToString())
    point = Query.DESCRIPTOR.nested_types_by_name["Point"]
    value = message_factory.GetMessageClass(point)(x=2.5).SerializeToString()
    assert reader.framed(b"\x04\x00\x00" + value) == {"x": 2.5}
    for hostile in (
        b"",
        b"\x80",
        b"\x02",
        b"\x02\x0a",
        b"\x04\x00\x0a",
        b"\x01",
        b"\xc8\x01" + b"\x00" * 100,
        b"\xff" * 12,
    ):
        with pytest.raises(ValueError, match=r"index|message type|64 bits"):
            reader.framed(hostile + value)


def test_what_is_no_message_is_a_dead_letter_and_nothing_else() -> None:
    by = own("schema-registry", {"7": SET.SerializeToString()})
    good = record()
    hostile = [good[:n] for n in range(len(good)) if not _readable(good[:n])]
    assert len(hostile) > len(good) // 2
    hostile += [b"", b"\x0b", b"\x3b" + good, good + b"\x07", b"\xff" * 40]
    hostile += [b"\x92\x01\x02\xff\xfe", b"\xf8\xff\x03\x01"]  # no UTF-8; a field that the schema does not know, alone
    deep = b"\x0a\x00"
    for _ in range(60):
        deep = b"\x12" + _length(deep) + deep
    hostile.append(_tagged("point", deep))
    for value in hostile:
        with pytest.raises(BadRecord) as refused:
            list(by.events(FRAME + b"\x00" + value, Source()))
        assert refused.value.reason == "framed"
    for framed in (b"\x00\x00\x00\x00\x08\x00" + good, b"\x01" + FRAME[1:] + b"\x00" + good, FRAME, b"{}"):
        with pytest.raises(BadRecord):
            list(by.events(framed, Source()))


def _readable(value: bytes) -> bool:
    try:
        return bool(value) and bool(Query.FromString(value))
    except DecodeError:
        return False


def _length(value: bytes) -> bytes:
    found, n = b"", len(value)
    while n > 0x7F:
        found, n = found + bytes([n & 0x7F | 0x80]), n >> 7
    return found + bytes([n])


def _tagged(name: str, value: bytes) -> bytes:
    number = Query.DESCRIPTOR.fields_by_name[name].number
    return _length_of(number << 3 | 2) + _length(value) + value


def _length_of(tag: int) -> bytes:
    return bytes([tag & 0x7F | 0x80, tag >> 7]) if tag > 0x7F else bytes([tag])


def test_no_count_that_costs_nothing_to_state_is_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(descriptors, "MOST_VALUES", 1000)
    with pytest.raises(ValueError, match="more than"):
        OURS.record(_tagged("many_bool", b"\x01" * 1001))
    with pytest.raises(ValueError, match="more than"):
        OURS.record(_tagged("points", b"") * 1001)
    assert len(OURS.record(_tagged("many_bool", b"\x01" * 900))["many_bool"]) == 900


@pytest.mark.parametrize(
    ("blob", "message", "said"),
    [
        (b"", "", "no descriptor set"),
        (b"\xff\xff", "", "cut off"),
        (b"not a set", "", "is no descriptor set"),
        (SET.SerializeToString(), "own.Nothing", "no message own.Nothing"),
        (descriptor_pb2.FileDescriptorSet(file=[FILE]).SerializeToString(), "", "--include_imports"),
    ],
)
def test_a_schema_that_is_none_is_refused_in_one_line(blob: bytes, message: str, said: str) -> None:
    with pytest.raises(WrongUse, match=said) as refused:
        own(schemas={"*": blob}, message=message)
    assert "\n" not in str(refused.value)


AVRO = {
    "type": "record",
    "name": "Query",
    "fields": [{"name": "who", "type": "string"}, {"name": "x", "type": "double"}],
}


def test_a_folder_holds_the_schemas_by_their_ids(tmp_path: Path) -> None:
    (tmp_path / "schemas").mkdir()
    (tmp_path / "schemas" / "7.avsc").write_text(json.dumps(AVRO))
    (tmp_path / "schemas" / "9.desc").write_bytes(SET.SerializeToString())
    (tmp_path / "schemas" / "notes.desc").write_bytes(b"not by id")
    made = {}
    for kind, more in (("avro", ""), ("protobuf", 'message = "own.Query"\n')):
        text = f'name = "{kind}"\n[read]\nformat = "{kind}"\nframing = "schema-registry"\nschemas = "schemas"\n{more}'
        (tmp_path / f"{kind}.toml").write_text(text + '[input]\npaths = ["many_double", "x"]\nform = "row"\n')
        found = load(str(tmp_path / f"{kind}.toml"))
        assert found is not None
        made[kind] = list(found.read.schemas)
    assert made == {"avro": ["7"], "protobuf": ["9"]}
    (tmp_path / "one.toml").write_text(
        'name = "one"\n[read]\nformat = "protobuf"\ndescriptors = "schemas/9.desc"\nmessage = "own.Query"\n'
        '[client]\npaths = [{ path = "a_string" }]\n[input]\npaths = ["many_double"]\nform = "row"\n'
    )
    one = load(str(tmp_path / "one.toml"))
    assert one is not None
    (event,) = map(json.loads, Translator(one, str).events(record(), Source()))
    assert event["features"] == [0.5, 0.0]
    for spoilt in ('schemas = "nowhere"', 'descriptors = "nowhere.desc"'):
        (tmp_path / "bad.toml").write_text(f'name = "bad"\n[read]\nformat = "protobuf"\n{spoilt}\n')
        with pytest.raises(WrongUse, match="nowhere"):
            load(str(tmp_path / "bad.toml"))
    assert mapping.SCHEMA_FILES.keys() == {"avro", "protobuf"}
