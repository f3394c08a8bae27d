"""What the store and the registry of canaries have to do with each other: new lines go into the audit log, an erased client out of it.

Rules: without a registry in the settings serve has no such task. Nothing is blanked before the audit log holds the lines.
"""

from __future__ import annotations

import contextlib
import logging
import socket
from collections.abc import Collection
from pathlib import Path

from consumers import config
from consumers.errors import QueryWardenError
from consumers.operators.audited_write import Actor
from consumers.operators.operate import Operations
from consumers.periodic import Periodic
from consumers.watermark.anchoring import anchor
from consumers.watermark.registry import forget

log = logging.getLogger("querywarden.watermark")

ANCHORS = "watermark-anchors.json"


def record_canaries(settings: config.Settings, operations: Operations, actor: Actor, registry: Path) -> int:
    """Write what a registry gained into the audit log; the answer is how many lines. Raises Refused, CorruptState, Unavailable."""
    settings.state_path.mkdir(parents=True, exist_ok=True, mode=0o700)
    return anchor(
        registry, settings.state_path / ANCHORS, lambda action, about: operations.record(actor, action, about)
    )


def forget_canaries(
    settings: config.Settings,
    operations: Operations,
    actor: Actor,
    registry: Path,
    client: str,
    models: Collection[str] | None = None,
) -> int:
    """Blank a client's sealed inputs in a registry, once the audit log holds its lines; the answer is how many there were.

    client  hash of its id; models: only inputs of these, None: of all

    Raises Refused, CorruptState, Unavailable.
    """
    record_canaries(settings, operations, actor, registry)
    removed = forget(registry, client, models)
    operations.record(actor, "watermark.forget", f"client:{client} records:{removed}")
    return removed


def start_canary_audit(settings: config.Settings, stack: contextlib.ExitStack, operations: Operations) -> None:
    """Record the canaries in a thread, where the settings name a registry; one that is not there yet is waited for."""
    if not settings.watermark.registry:
        return
    registry = Path(settings.watermark.registry)
    actor = Actor(f"serve@{socket.gethostname()}", "admin", settings.tenant)
    read_bytes = -1

    def turn() -> bool:
        nonlocal read_bytes
        try:
            size = registry.stat().st_size if registry.exists() else 0
            if size and size != read_bytes:
                record_canaries(settings, operations, actor, registry)
                read_bytes = size
        except (QueryWardenError, OSError) as error:
            log.error("canaries are not in the audit log yet", extra={"why": str(error)})
            return False
        return True

    audit = Periodic("canary-audit", turn, settings.watermark.audit_every_s)
    audit.start()
    stack.callback(audit.stop)
