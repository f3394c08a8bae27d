"""The task of serve that looks after the registry of canaries: now and then it records new lines in the audit log.

Rules: without a registry in the settings there is no task.
"""

from __future__ import annotations

import contextlib
import logging
import socket
from pathlib import Path

from consumers import config
from consumers.errors import QueryWardenError
from consumers.operators.audited_write import Actor
from consumers.operators.operate import Operations
from consumers.periodic import Periodic
from consumers.watermark.anchoring import anchor

log = logging.getLogger("querywarden.watermark")

ANCHORS = "watermark-anchors.json"


def record_canaries(settings: config.Settings, operations: Operations, actor: Actor, registry: Path) -> int:
    """Write what a registry gained into the audit log; the answer is how many lines. Raises Refused, CorruptState, Unavailable."""
    settings.state_path.mkdir(parents=True, exist_ok=True, mode=0o700)
    return anchor(
        registry, settings.state_path / ANCHORS, lambda action, about: operations.record(actor, action, about)
    )


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
