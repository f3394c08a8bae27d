"""Open the adapters that the settings name: the secrets, the store, the query log, files that are read once.

Rules:
* An adapter is imported when its address asks for it.
* The caller closes what is opened here. It gets a context manager, or an object with `close`.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import re
import tempfile
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from consumers import config, paths
from consumers.errors import ConfigError, CorruptState, Refused, WrongUse
from consumers.keyring import Keyring
from consumers.secrets import Secrets
from consumers.store import JoinStore, OutboxAlert, Store
from consumers.store.sealed import RecordSealer, SealedStore, sealed_store
from detector.query import ClientKey

if TYPE_CHECKING:
    from consumers.http.producer import Write
    from consumers.ingest.dead_letters import DeadLetterShip
    from consumers.log import FileQueryLog, QueryLog
    from consumers.log.mappings.handed import Meeting
    from consumers.log.mappings.identity import Hash
    from consumers.log.mappings.mapped import Report
    from consumers.log.mappings.records import Translator
    from consumers.log.mappings.sources import Source
    from consumers.store.reseal import Reseal

log = logging.getLogger("querywarden.wiring")

FILE_SCHEME = "file://"
SAMPLE_S = 30.0
"""How long a topic is read for a sample of it."""
_TOPIC = re.compile(r"[A-Za-z0-9_-]+(?:\.(?!jsonl?$|ndjson$|csv$|parquet$|gz$|zst$|log$|txt$)[A-Za-z0-9_-]+)*")


# ------------------------------------------------------------------------------------------------------- secrets


def secrets_of(settings: config.Settings, store: Store) -> Secrets:
    """Load the secrets, create them where there are none, and check them against the store: others could read nothing in it."""
    secrets = Secrets.load(settings.secrets_path, create=True, tenant=settings.tenant)
    prepare(store, secrets)
    return secrets


def prepare(store: Store, secrets: Secrets) -> None:
    """Check the store's layout and secrets, and log what could not be checked."""
    store.prepare(secrets.key_id)
    for warning in warnings_of(store):
        log.warning(warning)


def warnings_of(store: Store) -> Sequence[str]:
    """What the store was not allowed to check of its server."""
    warnings: Sequence[str] = getattr(store, "warnings", ())
    return warnings


def replicas_of(store: Store) -> int | None:
    """Replicas that are connected to the store's server; None where they can't be counted."""
    count: int | None = getattr(store, "replicas", lambda: None)()
    return count


# --------------------------------------------------------------------------------------------------------- store


@contextlib.contextmanager
def open_store(settings: config.Settings) -> Iterator[Store]:
    """Open the store that `store.url` names; its records are sealed as `store.sealing` says."""
    url = settings.store_url
    scheme = url.partition(":")[0]
    store: Store
    if scheme == "sqlite":
        from consumers.store.embedded import EmbeddedStore

        path = _sqlite_path(url)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"store {path}: {error.strerror}") from error
        store = EmbeddedStore(path, decision_cells=settings.store.decision_cells)
    elif scheme in ("redis", "rediss", "redis+cluster", "rediss+cluster"):
        from consumers.store.redis import connect

        store = connect(
            url,
            timeout_s=settings.store.timeout_s,
            min_replicas=settings.store.min_replicas,
            decision_cells=settings.store.decision_cells,
        )
    else:
        raise WrongUse(f"store.url: unknown scheme {scheme!r} (sqlite, redis, rediss, redis+cluster)")
    try:
        yield sealed(settings, store)
    finally:
        store.close()


def sealed(settings: config.Settings, store: Store) -> Store:
    """The store, its records sealed with the keys of the secrets file."""
    return sealed_store(store, Keyring(settings.secrets_path), settings.store.sealing)


def resealing(store: Store, per_s: float) -> Reseal:
    """A pass that seals every record of an opened store under the newest keys."""
    from consumers.store.reseal import Reseal

    if not isinstance(store, SealedStore):
        raise TypeError("a store that seals nothing")
    return Reseal(store.beneath, store.sealer, per_s)


def subject_reader(settings: config.Settings, secrets: Secrets) -> Callable[[OutboxAlert], ClientKey | None]:
    """What says of an alert, as it is stored, whose row it belongs to; None where it cannot be read."""
    from consumers.records.alert import stored_alert, subject_key

    sealer = RecordSealer(Keyring(settings.secrets_path), settings.store.sealing)

    def read(alert: OutboxAlert) -> ClientKey | None:
        try:
            return subject_key(stored_alert(sealer.opened_alert(alert), secrets), secrets)
        except (CorruptState, KeyError, TypeError):
            return None

    return read


def _sqlite_path(url: str) -> Path:
    """The file of a ``sqlite:///`` address. Raises WrongUse, ConfigError."""
    name = url.removeprefix("sqlite:///")
    if name == url or not name.strip("/"):
        raise WrongUse(
            "store.url: sqlite:///name.sqlite (in the working folder) or sqlite:////folder/name.sqlite is meant"
        )
    path = Path(name)
    if path.exists():
        paths.check_regular(path, "store")
    return path


@contextlib.contextmanager
def open_sqlite(settings: config.Settings, path: Path | None = None) -> Iterator[Store]:
    """Open the SQLite store in a file, sealed as `store.sealing` says; without one, a store that is gone afterwards.

    A store that one process uses alone and nobody reads later has one decision cell: there is nobody to share the work with.
    """
    from consumers.store.embedded import EmbeddedStore

    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="querywarden-"))
        cells = settings.store.decision_cells if path else 1
        store = EmbeddedStore(path or Path(folder) / "replay.sqlite", decision_cells=cells)
        stack.callback(store.close)
        yield store if path is None else sealed(settings, store)


def lets_strangers_in(settings: config.Settings) -> bool:
    """Whether the Redis server answers a client that gives neither name nor password. Raises Unavailable when it does not answer."""
    from consumers.store.redis import connect

    parts = urlsplit(settings.store_url)
    address = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
    stranger = connect(address, timeout_s=settings.store.timeout_s)
    try:
        stranger.cells()
    except Refused:
        return False
    finally:
        stranger.close()
    return True


# ----------------------------------------------------------------------------------------------------------- log


def on_kafka(settings: config.Settings) -> bool:
    """Whether the query log is in Kafka."""
    return settings.log.url.startswith("kafka:")


def kafka_connection(settings: config.Settings) -> dict[str, Any]:
    """Arguments of a Kafka client for the configured brokers. Raises ConfigError for a file of certificates that is none."""
    from consumers.log import kafka

    k = settings.kafka
    for name in ("ssl_cafile", "ssl_certfile", "ssl_keyfile"):
        if file := getattr(k, name):
            paths.check_regular(file, f"kafka.{name}")
    return kafka.connection(
        k.bootstrap_servers,
        security_protocol=k.security_protocol,
        sasl_mechanism=k.sasl_mechanism,
        sasl_username=k.sasl_username,
        sasl_password=k.sasl_password.get_secret_value() if k.sasl_password else None,
        ssl_cafile=k.ssl_cafile,
        ssl_certfile=k.ssl_certfile,
        ssl_keyfile=k.ssl_keyfile,
    )


def open_translator(settings: config.Settings, models: Collection[str] = ()) -> Translator | None:
    """Translate records by the mapping that `log.mapping` names; None where the log is native. models: see `translator_for`."""
    from consumers.log.mappings.records import translator_for

    return translator_for(settings.log.mapping, settings.kafka.topic, credential_hash(settings), models)


def credential_hash(settings: config.Settings) -> Hash:
    """Keyed hash of a credential; the secrets are loaded, or created, with the first."""

    @functools.cache
    def secrets() -> Secrets:
        return Secrets.load(settings.secrets_path, create=True, tenant=settings.tenant)

    return lambda credential: secrets().client_hash(settings.tenant, credential)


def open_log(
    settings: config.Settings,
    stack: contextlib.ExitStack,
    models: Collection[str],
    report: Report,
    store: JoinStore | None = None,
) -> tuple[QueryLog, DeadLetterShip | None]:
    """Open the query log that `log.url` names, and the topic of refused records; both are closed with the stack.

    store: where halves meet of a join that says so.
    A log of another tool is read through its mapping (`open_translator`); report: see `MappedLog`. A log in a file has no such topic.
    """
    log: QueryLog
    if not on_kafka(settings):
        log = _open_file(settings)
        translator = open_translator(settings, models)
        if translator is not None:
            from consumers.log.mappings.mapped import MappedLog

            log = MappedLog(log, translator, report)
        stack.callback(log.close)
        return log, None
    from consumers.log.dead_letter_topic import DeadLetterTopic
    from consumers.log.kafka import KafkaLog
    from consumers.log.mappings.records import translators_for
    from consumers.log.mappings.topics import MappedTopics, check_partitions
    from consumers.log.topics import ensure_topics, require_topics

    meeting = None if store is None else _meeting(settings, store)
    k, brokers, hashed = settings.kafka, kafka_connection(settings), credential_hash(settings)
    require_topics(brokers, k.query_topics, "kafka.topics" if k.topics else "kafka.topic", wait=k.wait_for_topic)
    ensure_topics(brokers, [k.dead_letter_topic, k.alerts_topic])
    translators = translators_for(settings.log.mapping, k.query_topics, hashed, models)
    log = KafkaLog(
        brokers,
        topics=k.query_topics,
        group_id=k.group_id,
        start=k.start,
        group_instance_id=k.group_instance_id,
        max_poll_records=k.max_poll_records,
        session_timeout_ms=k.session_timeout_ms,
        heartbeat_interval_ms=k.heartbeat_interval_ms,
        max_poll_interval_ms=k.max_poll_interval_ms,
        headers=bool(translators),
    )
    if translators:
        check_partitions(translators, log.partitions)
        log = MappedTopics(log, translators, report, meeting)
    stack.callback(log.close)
    letters = DeadLetterTopic(brokers, k.dead_letter_topic)
    stack.callback(letters.close)
    return log, letters


def _meeting(settings: config.Settings, store: JoinStore) -> Meeting:
    """Where halves meet, and how they are sealed there."""
    from consumers.log.mappings.handed import Meeting

    secrets = Secrets.load(settings.secrets_path, create=True, tenant=settings.tenant)
    seal = functools.partial(secrets.seal_bytes, tenant=settings.tenant)
    return Meeting(store, seal, functools.partial(secrets.unseal_bytes, tenant=settings.tenant))


def _open_file(settings: config.Settings) -> QueryLog:
    """The file that `log.url` names, followed as it grows. Raises WrongUse."""
    url = settings.log.url
    if not url.startswith(FILE_SCHEME):
        raise WrongUse(f"log.url: {config.masked(url)!r} is neither kafka: nor file:///path.jsonl")
    from consumers.log.followed import FollowedFile

    return FollowedFile(url.removeprefix(FILE_SCHEME))


def open_writer(settings: config.Settings, stack: contextlib.ExitStack) -> Write:
    """What appends to the query log, until the stack is closed: the HTTP service is a producer where `http.bridge` says so."""
    from consumers.log.writers import FileWriter, KafkaWriter

    url = settings.log.url
    writer: FileWriter | KafkaWriter
    if url.startswith(FILE_SCHEME):
        writer = FileWriter(Path(url.removeprefix(FILE_SCHEME)))
    else:
        if settings.kafka.topic not in settings.kafka.query_topics:
            raise WrongUse(
                f"kafka.topic: {settings.kafka.topic} is none of kafka.topics, so that nobody would read what http.bridge writes to it"
            )
        writer = KafkaWriter(kafka_connection(settings), settings.kafka.topic)
    stack.callback(writer.close)
    return writer.write


def offsets_at(settings: config.Settings, cells: Sequence[str], start: str) -> Mapping[str, int | None]:
    """Offset of each partition at a time, as a store keeps it. start: earliest, latest or an RFC 3339 time."""
    from consumers.log import kafka

    found = kafka.offsets_at(kafka_connection(settings), list(cells), start)
    return stored_offsets(settings, found)


def stored_offsets(settings: config.Settings, offsets: Mapping[str, int]) -> dict[str, int | None]:
    """The numbers that a store keeps for offsets of cells of the log: through a mapping, records have rows."""
    from consumers.log.halves import ROW_BITS
    from consumers.log.mappings.mapping import for_topic
    from consumers.log.mappings.topics import topic_of

    topics = {cell: topic_of(cell) if on_kafka(settings) else settings.kafka.topic for cell in offsets}
    mapped = {topic for topic in set(topics.values()) if for_topic(settings.log.mapping, topic) is not None}
    return {cell: offset << ROW_BITS if topics[cell] in mapped else offset for cell, offset in offsets.items()}


# --------------------------------------------------------------------------------------------------------- files


def open_files(names: Sequence[str], resumable: bool = False, translator: Translator | None = None) -> FileQueryLog:
    """Files of the query log, read from their beginning; ``-`` is standard input.

    resumable   their bytes are remembered
    translator  they are read through its mapping
    """
    from consumers.log.files import FileLog

    log = FileLog(list(names), resumable=resumable)
    if translator is None:
        return log
    from consumers.log.mappings.mapped import MappedFiles

    return MappedFiles(log, translator)


def sample(settings: config.Settings, name: str, most: int) -> list[tuple[bytes, Source]]:
    """The first records of a file, of standard input (``-``) or of a topic (``kafka:TOPIC``, or a bare name that is no file).

    No offset of the topic is committed. Raises WrongUse, Refused.
    """
    from consumers.log.mappings.sources import source_of

    topic = name.removeprefix("kafka:") if name.startswith("kafka:") else ""
    if not topic and name != "-" and not Path(name).exists() and _TOPIC.fullmatch(name):
        topic = name
    source = _open_topic(settings, topic) if topic else open_files([name])
    found: list[tuple[bytes, Source]] = []
    deadline_s = time.monotonic() + SAMPLE_S
    sought: set[str] = set()
    with contextlib.closing(source):
        while len(found) < most:
            poll = source.poll(0.5, min(most - len(found), 2000))
            for cell in poll.assigned:
                source.seek(cell, None)
                sought.add(cell)
            for records in poll.batches:
                found += [(value, source_of(records, i)) for i, value in enumerate(records.values)]
            ended = sought and not poll.batches and not poll.assigned
            if ended and all(source.position(cell) >= end for cell, end in source.ends().items() if cell in sought):
                break
            if topic and time.monotonic() > deadline_s:
                break
    return found[:most]


def _open_topic(settings: config.Settings, topic: str) -> QueryLog:
    """A topic from its beginning, in a group of its own that leaves no offset behind."""
    from consumers.log import kafka, topics

    brokers = kafka_connection(settings)
    if topics.missing(brokers, [topic]):
        raise WrongUse(f"{topic}: no such file, and no such topic at {settings.kafka.bootstrap_servers}")
    group = f"querywarden-inspect-{uuid.uuid4().hex[:8]}"
    return kafka.KafkaLog(brokers, topics=[topic], group_id=group, start="earliest", headers=True)


def open_reference(path: Path, translator: Translator | None) -> FileQueryLog:
    """The file of a reference: read through the mapping unless it is in the native format."""
    return open_files([str(path)], translator=None if translator is None or _is_native(path) else translator)


def _is_native(path: Path) -> bool:
    """Whether the first line of a file has an input and a prediction under their native names."""
    from consumers.log.mappings.recognition import is_native

    if not path.is_file():
        return False
    first = next(file_lines(path), b"")
    return is_native(first)


def file_lines(path: Path) -> Iterator[bytes]:
    """The records of a file, packed or not, as the service would read them."""
    source = open_files([str(path)])
    try:
        while not source.finished:
            poll = source.poll(0.0, 5000)
            for cell in poll.assigned:
                source.seek(cell, None)
            for records in poll.batches:
                yield from records.values
    finally:
        source.close()
