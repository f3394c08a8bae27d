"""Rows of a Parquet file as native events: one JSON object per row, with the columns as keys and missing values left out.

Rules: rows become JSON so that there is one decoder, one set of reason codes and one size limit for every log.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, BinaryIO

import msgspec

from consumers.errors import InvalidInput
from consumers.log.lines import KEPT_BYTES

PARQUET_ROWS = 512


class ParquetRows:
    """The rows of one file, each as the bytes of a JSON object. Raises InvalidInput for a damaged file."""

    def __init__(self, raw: BinaryIO, name: str) -> None:
        import pyarrow  # heavy, and most logs are not Parquet
        import pyarrow.parquet

        self._name = name
        self._damage = (pyarrow.ArrowException, OSError, ValueError)
        try:
            file = pyarrow.parquet.ParquetFile(raw, pre_buffer=False)
            self._total = max(file.metadata.num_rows, 1)
            self._batches = file.iter_batches(batch_size=PARQUET_ROWS)
        except self._damage as error:
            raise InvalidInput(f"{name}: not a readable Parquet file ({_first_line(error)})") from error
        self._seen = 0
        self._ready: list[bytes] = []

    @property
    def fraction(self) -> float:
        return float(self._seen / self._total)

    def take(self, n: int) -> list[bytes]:
        if not self._ready:
            try:
                batch = next(self._batches, None)
                rows = [] if batch is None else _plain_times(batch).to_pylist(maps_as_pydicts="lossy")
            except self._damage as error:
                raise InvalidInput(f"{self._name}: damaged Parquet file ({_first_line(error)})") from error
            self._ready = [_event(row)[:KEPT_BYTES] for row in rows]
        taken, self._ready = self._ready[:n], self._ready[n:]
        self._seen += len(taken)
        return taken


def _plain_times(batch: Any) -> Any:
    """Timestamps of any unit and zone as microseconds UTC: what Python's datetime holds."""
    import pyarrow as pa

    for i, column in enumerate(batch.schema):
        if pa.types.is_timestamp(column.type):
            batch = batch.set_column(i, column.name, batch.column(i).cast(pa.timestamp("us", tz="UTC"), safe=False))
    return batch


def _event(row: dict[str, Any]) -> bytes:
    stripped = _without_nulls(row)
    event = msgspec.json.encode(stripped)
    if b"null" in event:
        # msgspec writes NaN as null. The decoder must see the NaN, to refuse it under its own name.
        event = json.dumps(stripped, default=str).encode()
    return event


def _without_nulls(value: Any) -> Any:
    """Without keys that have no value: in a table every row has every column."""
    if isinstance(value, dict):
        return {key: _without_nulls(inner) for key, inner in value.items() if inner is not None}
    if isinstance(value, list):
        return [_without_nulls(inner) for inner in value] if value and isinstance(value[0], dict) else value
    if isinstance(value, datetime):
        return (value if value.tzinfo else value.replace(tzinfo=UTC)).isoformat()
    if isinstance(value, Decimal):
        return float(value)
    return value


def _first_line(error: BaseException) -> str:
    return str(error).split("\n", 1)[0]
