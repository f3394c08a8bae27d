"""A mapping: says where in the records of a foreign log each part of a native event is. Read from TOML and checked.

Rules:
* A mapping is a frozen value without behaviour; `records.py` translates by it. Unknown keys are refused, so that a misspelt key is not
  silently ignored.
* Where several paths are given, the first one that leads to a value is used.
* A *preset* is a mapping file of this package (`presets/`), chosen by its name. The name ``native`` means: no mapping.
"""

from __future__ import annotations

import base64
import tomllib
from collections.abc import Callable, Mapping
from importlib import resources
from pathlib import Path as FilePath
from typing import Annotated, Any, Literal, get_args

import msgspec

from consumers import paths as files
from consumers.errors import Refused, WrongUse
from consumers.log.halves import Role
from consumers.log.mappings import paths
from consumers.log.mappings.avro import AvroReader
from consumers.log.mappings.descriptors import MessageReader

NATIVE = "native"
PRESETS = (
    "native", "kserve", "seldon", "litellm", "sagemaker", "vertex", "azureml", "databricks", "bentoml", "apisix", "kong", "envoy-ai",
    "hiddenlayer", "otel-genai", "openinference", "csv",
)  # fmt: skip
MOST_FILE_BYTES = 1 << 20
MOST_SCHEMAS = 1_000
SCHEMA_FILES = {"avro": ".avsc", "protobuf": ".desc"}

Format = Literal["json", "csv", "otlp", "avro", "protobuf"]
Framing = Literal["none", "schema-registry"]
Envelope = Literal["none", "cloudevents"]
ClientKind = Literal["id", "credential", "ip"]
TimeUnit = Literal["auto", "rfc3339", "s", "ms", "us", "ns"]
InputForm = Literal["auto", "row", "rows", "columns", "embedding", "text", "messages"]
AnswerKind = Literal["auto", "label", "probabilities", "logits", "value", "text"]
Meeting = Literal["partition", "store"]
Encoding = Literal["auto", "json", "csv", "base64"]
Paths = tuple[str, ...]
Words = tuple[str | int | float | bool, ...]


class _Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    pass


class ReadSpec(_Part, frozen=True):
    """How the bytes of a record become items, each of which is one query (or one half of it).

    framing   what stands before the value: the five bytes of a schema registry
    envelope  ``cloudevents``: attributes in Kafka headers (``ce_…``, ``ce-…`` or bare names) or in the JSON object, payload as ``data``
    each      path of the items, when a record holds several; empty: the record is the item, or each element of a list
    columns   names of the cells of a CSV line; empty: the first line of a file says them
    schemas   id in the registry, or ``*`` for every record → schema: of Avro as JSON, of Protocol Buffers a descriptor set in base64. In a
              file also the name of a folder with ``ID.avsc`` or ``ID.desc``
    message   of Protocol Buffers: name of the message type; empty: the first of the schema's file, or what the frame names
    """

    format: Format = "json"
    framing: Framing = "none"
    envelope: Envelope = "none"
    each: str = ""
    columns: tuple[str, ...] = ()
    delimiter: Annotated[str, msgspec.Meta(min_length=1, max_length=1)] = ","
    schemas: dict[str, str] = {}
    message: str = ""


class RecognitionSpec(_Part, frozen=True):
    """What tells a log of this source. have: paths that all lead to a value; equal: path → one of these values."""

    have: Paths = ()
    equal: dict[str, Words] = {}


class Condition(_Part, frozen=True):
    """Which items count. equal: path → one of these values; have: these lead somewhere; lack: these do not."""

    equal: dict[str, Words] = {}
    have: Paths = ()
    lack: Paths = ()


class JoinSpec(_Part, frozen=True):
    """Request and response in records of their own. id: paths of what both have in common; request, response: which is which.

    response_id  the same paths in the response, where it has other names for them
    input     the half that holds the input: ``response`` where the request is the record of a gateway, which knows who asked and when
    most      halves that wait at once in a partition, file or join cell; the oldest is given up first
    within_s  how long one waits, by the log's own time
    through   where halves meet: in the partition that holds both, or, wherever they are, in the ``store``
    cells     join cells that the store has for it, among which the halves are divided by their id
    """

    id: Paths
    request: Condition
    response: Condition
    response_id: Paths = ()
    input: Role = "request"
    most: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] = 10_000
    within_s: Annotated[int, msgspec.Meta(ge=1, le=86_400)] = 600
    through: Meeting = "partition"
    cells: Annotated[int, msgspec.Meta(ge=1, le=256)] = 1


class ClientPlace(_Part, frozen=True):
    """One place where a client may stand.

    kind  ``id``: a name that may be stored; ``credential``: an API key or a value of Authorization, replaced by a keyed hash;
          ``ip``: an address, IPv6 cut to its /64
    """

    path: str
    kind: ClientKind = "id"


class ClientSpec(_Part, frozen=True):
    """Who asks: the first of the places that holds something; otherwise the client `unattributed`, or nobody."""

    paths: tuple[ClientPlace, ...] = ()
    unattributed: bool = True


class TimeSpec(_Part, frozen=True):
    """Event time. utc: a time without an offset is UTC."""

    paths: Paths = ()
    unit: TimeUnit = "auto"
    utc: bool = False


class TextSpec(_Part, frozen=True):
    """A value that is taken as it is. constant: where no path leads to one."""

    paths: Paths = ()
    constant: str = ""


class NumberSpec(_Part, frozen=True):
    """A number. words: what stands for it (``success = 200``); constant: where no path leads to one."""

    paths: Paths = ()
    words: dict[str, float] = {}
    constant: float | None = None


class InputSpec(_Part, frozen=True):
    """The rows that a query asks about.

    form     ``auto``: payloads of inference protocols, by their shape; ``row``, ``rows``: lists or objects as they are; ``columns``:
             fields of the item itself; ``embedding``, ``text``, ``messages``: one each
    columns  names of the fields (form ``columns``; ``*``: all the others), or of the places of a list or CSV row
    without  fields that are no columns
    """

    paths: Paths = ()
    form: InputForm = "auto"
    encoding: Encoding = "auto"
    columns: tuple[str, ...] = ()
    without: tuple[str, ...] = ()


class AnswerSpec(_Part, frozen=True):
    """What the model answered, for each row. kind ``auto``: a word, a boolean or a whole number is a label, a number with a fraction a
    value, numbers that add up to one are probabilities.

    label, probabilities  paths within one row's answer, when it is an object of the source's own
    """

    paths: Paths = ()
    kind: AnswerKind = "auto"
    encoding: Encoding = "auto"
    label: Paths = ()
    probabilities: Paths = ()


class LinkSpec(_Part, frozen=True):
    """Where accounts come from (docs/formats.md, "Metadata")."""

    org: Paths = ()
    session: Paths = ()
    ip: Paths = ()
    asn: Paths = ()
    ja4: Paths = ()


class UsageSpec(_Part, frozen=True):
    """Where the tokens of a query and its answers stand (docs/formats.md, `usage`)."""

    total_tokens: Paths = ()
    input_tokens: Paths = ()
    output_tokens: Paths = ()


class LogMapping(_Part, frozen=True):
    """One mapping. http: paths of HTTP headers that the log holds (``$http.NAME`` reads them)."""

    name: Annotated[str, msgspec.Meta(pattern="^[A-Za-z0-9._-]{1,64}$")]
    title: str = ""
    read: ReadSpec = ReadSpec()
    recognise: RecognitionSpec = RecognitionSpec()
    keep: Condition = Condition()
    join: JoinSpec | None = None
    http: Paths = ()
    client: ClientSpec = ClientSpec()
    time: TimeSpec = TimeSpec()
    model: TextSpec = TextSpec()
    version: TextSpec = TextSpec()
    id: TextSpec = TextSpec()
    status: NumberSpec = NumberSpec()
    fraction: NumberSpec = NumberSpec()
    input: InputSpec = InputSpec()
    answer: AnswerSpec = AnswerSpec()
    metadata: LinkSpec = LinkSpec()
    usage: UsageSpec = UsageSpec()


def mapping_of(content: Mapping[str, Any], where: str) -> LogMapping:
    """Check the content of a mapping file.

    Parameters
    ----------
    content
        As TOML gives it.
    where
        Name of the file, for the message.

    Raises
    ------
    WrongUse
        In one line, for an unknown key, a wrong value or a text that is no path.
    """
    try:
        mapping = msgspec.convert(content, LogMapping)
    except msgspec.ValidationError as error:
        raise WrongUse(f"mapping {where}: {error}") from None
    for text in _paths_of(msgspec.to_builtins(mapping)):
        paths.parse(text)
    if mapping.join is not None and len(mapping.join.response_id) not in (0, len(mapping.join.id)):
        raise WrongUse(f"mapping {where}: join.response_id must name as many paths as join.id, in the same order")
    if mapping.join is not None and mapping.join.through == "partition" and mapping.join.cells > 1:
        raise WrongUse(f'mapping {where}: join.cells are for join.through = "store"')
    _check_schemas(mapping.read, where)
    if mapping.read.columns and mapping.read.format != "csv":
        raise WrongUse(f'mapping {where}: read.columns are for read.format = "csv"')
    return mapping


def _check_schemas(read: ReadSpec, where: str) -> None:
    """Raises WrongUse for schemas that are none, or that the format does not need."""
    if bool(read.schemas) != (read.format in SCHEMA_FILES):
        raise WrongUse(
            f'mapping {where}: read.schemas are for read.format = "avro" and "protobuf", which need them (or read.descriptors)'
        )
    if read.message and read.format != "protobuf":
        raise WrongUse(f'mapping {where}: read.message is for read.format = "protobuf"')
    for name, schema in read.schemas.items():
        try:
            schema_reader(read, schema)
        except ValueError as error:
            kind = "schema of Avro" if read.format == "avro" else "descriptor set of Protocol Buffers"
            raise WrongUse(f"mapping {where}: read.schemas.{name} is no {kind}: {error}") from None


def schema_reader(read: ReadSpec, schema: str) -> Callable[[bytes], Any]:
    """What reads records of one schema. Raises ValueError for a schema that is none."""
    if read.format == "avro":
        return AvroReader(schema).record
    reader = MessageReader(base64.b64decode(schema, validate=True), read.message)
    return reader.record if read.framing == "none" else reader.framed


def with_schema_files(content: Mapping[str, Any], folder: FilePath) -> Mapping[str, Any]:
    """The content of a mapping file with the schemas in place of the files that it names, relative to the mapping's folder.

    Raises Refused, WrongUse where there are none.
    """
    read = content.get("read")
    if not isinstance(read, dict):
        return content
    inline = dict(read)
    named, descriptors = read.get("schemas"), inline.pop("descriptors", None)
    if isinstance(named, str):
        suffix = SCHEMA_FILES.get(str(read.get("format")), "")
        found = sorted(path for path in (folder / named).glob(f"*{suffix}") if suffix and path.stem.isdecimal())
        if not found:
            raise WrongUse(f"read.schemas: {folder / named} is no folder with files ID{suffix or '.avsc or ID.desc'}")
        if len(found) > MOST_SCHEMAS:
            raise WrongUse(f"read.schemas: {folder / named} has more than {MOST_SCHEMAS:,} files")
        inline["schemas"] = {path.stem: _schema_text(path) for path in found}
    if isinstance(descriptors, str):
        inline["schemas"] = {**inline.get("schemas", {}), "*": _schema_text(folder / descriptors)}
    return {**content, "read": inline}


def _schema_text(path: FilePath) -> str:
    if path.suffix == SCHEMA_FILES["avro"]:
        return files.read_text(path, "schema", MOST_FILE_BYTES)
    return base64.b64encode(files.read(path, "descriptor set", MOST_FILE_BYTES)).decode()


def preset(name: str) -> LogMapping:
    """The preset of a name. Raises WrongUse when there is none."""
    if name not in PRESETS or name == NATIVE:
        raise WrongUse(f"no preset {name!r}: there are {', '.join(PRESETS)}")
    text = resources.files("consumers.log.mappings").joinpath("presets", f"{name}.toml").read_text("utf-8")
    return mapping_of(tomllib.loads(text), name)


def presets() -> list[LogMapping]:
    """Every preset, in the order of `PRESETS`."""
    return [preset(name) for name in PRESETS if name != NATIVE]


def load(name: str) -> LogMapping | None:
    """The mapping of a preset's name or of a file; None for the native format.

    Raises
    ------
    WrongUse
        In one line, for what is neither, and for a file that is no mapping.
    """
    if name == NATIVE:
        return None
    if name in PRESETS:
        return preset(name)
    if not FilePath(name).exists():
        raise WrongUse(f"log.mapping: {name!r} is neither a file nor a preset ({', '.join(PRESETS)})")
    try:
        content = tomllib.loads(files.read_text(name, "mapping", MOST_FILE_BYTES))
        return mapping_of(with_schema_files(content, FilePath(name).parent), name)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise WrongUse(f"mapping {name}: {error}") from None
    except Refused as error:
        raise WrongUse(str(error)) from None


def for_topic(setting: str | Mapping[str, str], topic: str) -> LogMapping | None:
    """The mapping that the setting `log.mapping` gives a topic. A topic that a table does not name is native."""
    return load(setting if isinstance(setting, str) else setting.get(topic, NATIVE))


def _paths_of(value: Any, key: str = "") -> list[str]:
    """Every text of a mapping that must be a path."""
    if isinstance(value, dict):
        found = [text for name, inner in value.items() for text in _paths_of(inner, name)]
        return found + list(value) if key == "equal" else found
    if key in _PATH_KEYS:
        return [value] if isinstance(value, str) and value else _texts(value)
    if isinstance(value, list):
        return [text for inner in value for text in _paths_of(inner)]
    return []


def _texts(value: Any) -> list[str]:
    return [text for one in value for text in ([one] if isinstance(one, str) else _paths_of(one))]


_PATH_KEYS = frozenset(
    (
        "paths",
        "path",
        "id",
        "response_id",
        "each",
        "have",
        "lack",
        "http",
        "label",
        "probabilities",
        "org",
        "session",
        "ip",
        "asn",
        "ja4",
    )
)
ANSWER_KINDS: tuple[str, ...] = get_args(AnswerKind)
