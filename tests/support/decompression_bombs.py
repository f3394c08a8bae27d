"""Decompression bombs: a batch that the broker takes and that unpacks to far more than a reader may allow."""

from __future__ import annotations

import gzip
import io

import lz4.frame  # type: ignore[import-untyped]
import pytest
import snappy  # type: ignore[import-untyped]
import zstandard
from kafka.record import default_records
from support.kafka_producer import produce


def record_of_zeros(size: int) -> tuple[bytes, bytes]:
    """What stands before and after the value in a batch's only record, when the value has `size` bytes."""

    def varint(number: int) -> bytes:
        out, number = bytearray(), number << 1
        while number >= 0x80:
            out.append(number & 0x7F | 0x80)
            number >>= 7
        return bytes([*out, number])

    inner = b"\0\0\0\x01" + varint(size)  # attributes, time, offset, no key
    return varint(len(inner) + size + 1) + inner, b"\0"


def bomb(codec: str, size: int) -> bytes:
    """A well-formed record of `size` zero bytes, compressed a block at a time."""
    before, after = record_of_zeros(size)
    if codec == "snappy":
        return bytes(snappy.compress(before + bytes(size) + after))
    blocks = [before, *[bytes(1 << 20)] * (size >> 20), after]
    if codec == "lz4":
        packer = lz4.frame.LZ4FrameCompressor(block_linked=False)
        return b"".join([packer.begin(), *map(packer.compress, blocks), packer.flush()])
    out = io.BytesIO()
    with (
        gzip.GzipFile(fileobj=out, mode="wb", compresslevel=1)
        if codec == "gzip"
        else zstandard.ZstdCompressor().stream_writer(out, closefd=False)
    ) as stream:
        for block in blocks:
            stream.write(block)
    return out.getvalue()


def produce_bomb(bootstrap: str, topic: str, codec: str, size: int, monkeypatch: pytest.MonkeyPatch) -> int:
    """Send one batch that decompresses to `size` bytes; the broker takes it. Returns its compressed size."""
    packed = bomb(codec, size)
    with monkeypatch.context() as patch:
        patch.setattr(default_records, f"{codec}_encode", lambda *_, **__: packed)
        # The library compresses only when that makes the batch smaller.
        produce(bootstrap, topic, [bytes(len(packed) + 1)], compression=codec)
    return len(packed)
