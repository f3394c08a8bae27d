"""Serve writes what the registry of canaries gained into the audit log by itself."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest
from support.servers import wait_until

from consumers import config
from consumers.watermark.keys import WatermarkKey
from consumers.watermark.marks import Flip
from consumers.watermark.registry import Registry, Sealed
from consumers.wiring import adapters
from consumers.wiring.operators import operations_of
from consumers.wiring.watermark import start_canary_audit

CLIENT = "a" * 32


def test_serve_records_canaries_as_they_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "canaries.jsonl"
    monkeypatch.setenv("QUERYWARDEN_STATE_DIR", str(tmp_path))
    monkeypatch.setenv("QUERYWARDEN_WATERMARK__REGISTRY", str(path))
    monkeypatch.setenv("QUERYWARDEN_WATERMARK__AUDIT_EVERY_S", "1")
    settings = config.load(None)
    with contextlib.ExitStack() as stack:
        store = stack.enter_context(adapters.open_store(settings))
        secrets = adapters.secrets_of(settings, store)

        def recorded() -> list[str]:
            rows = [json.loads(row) for _, row in store.audit_rows(0, 100)]
            return [row["object"] for row in rows if row["action"] == "watermark.canaries"]

        start_canary_audit(settings, stack, operations_of(settings, store, secrets))
        registry = Registry(path, WatermarkKey.draw())
        registry.register(CLIENT, "m", "1" * 32, Sealed([1], [Flip(1, 1, 0)]), treated=True)
        wait_until(lambda: len(recorded()) == 1, what="the first row")
        registry.register(CLIENT, "m", "2" * 32, Sealed([2], [Flip(1, 1, 0)]), treated=True)
        wait_until(lambda: len(recorded()) == 2, what="the second row")
        assert f"{CLIENT}=1" in recorded()[1]
        registry.close()
