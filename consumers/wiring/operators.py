"""Build what operators' commands work on: the store with its secrets, the operations that change it, the queries that read it.

Rules: a user with access to the store and the secrets file is an administrator. The audit log records the user name on this machine.
"""

from __future__ import annotations

import contextlib
import getpass
import socket
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from consumers import config
from consumers.baselines import load_baselines
from consumers.operators.audit import Mirror
from consumers.operators.audited_write import Actor
from consumers.operators.baseline_switch import BaselineSwitch
from consumers.operators.indicators import IndicatorImports
from consumers.operators.operate import Operations
from consumers.readers.gateways import Modes
from consumers.readers.queries import Reader
from consumers.records.baselines_in_force import BaselinesInForce
from consumers.secrets import Secrets
from consumers.store import Store
from consumers.wiring.adapters import open_store, secrets_of
from detector.baseline import Baseline


class Opened(NamedTuple):
    """A store that is open for an operator, with what works on it."""

    store: Store
    secrets: Secrets
    reader: Reader
    operations: Operations
    actor: Actor


@contextlib.contextmanager
def open_for_operator(settings: config.Settings) -> Iterator[Opened]:
    """Open the store for the user of this machine."""
    with open_store(settings) as store:
        secrets = secrets_of(settings, store)
        reader = Reader(store, secrets, settings.tenant)
        yield Opened(store, secrets, reader, operations_of(settings, store, secrets), user_of(settings))


@contextlib.contextmanager
def open_reader(settings: config.Settings, baselines: Mapping[str, Baseline]) -> Iterator[Reader]:
    """Open the store to look at clients, with the baselines that explain them and the modes that gateways have."""
    with open_store(settings) as store:
        secrets = secrets_of(settings, store)
        yield Reader(store, secrets, settings.tenant, baselines=baselines, modes=modes_of(settings))


def baselines_in_force(settings: config.Settings, store: Store, secrets: Secrets) -> BaselinesInForce:
    """The baselines by which the service assesses clients now: those that the store names, otherwise those of the settings."""
    configured = load_baselines(settings.baselines) if settings.baselines else {}
    found = BaselinesInForce(configured, dict(configured), secrets, settings.tenant)
    found.refresh(store)
    return found


def modes_of(settings: config.Settings) -> Modes:
    """Enforcement modes as readers know them."""
    return Modes(settings.mode, dict(settings.modes))


def operations_of(settings: config.Settings, store: Store, secrets: Secrets) -> Operations:
    """What operators may change, with the copy of the audit log that this machine keeps."""
    http = settings.http
    return Operations(
        store, secrets, mirror=mirror_of(settings), longest_s=http.longest_decision_s,
        confirm_above=http.confirm_campaigns_above, env=http.key_env,
    )  # fmt: skip


def baseline_switch_of(settings: config.Settings, store: Store, secrets: Secrets) -> BaselineSwitch:
    """What operators may do with the baselines of a model."""
    return BaselineSwitch(store, secrets, mirror=mirror_of(settings))


def indicator_imports_of(settings: config.Settings, store: Store, secrets: Secrets) -> IndicatorImports:
    """What operators may do with the indicators of peers."""
    return IndicatorImports(store, secrets, mirror=mirror_of(settings))


def user_of(settings: config.Settings) -> Actor:
    """The user of this machine, as an administrator of the tenant."""
    return Actor(user_name(), "admin", settings.tenant)


def user_name() -> str:
    """The user of this machine, and the machine."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = "unknown"
    return f"{user}@{socket.gethostname()}"


def mirror_of(settings: config.Settings) -> Mirror:
    """This machine's copy of the audit log."""
    return Mirror(settings.state_path / "audit.jsonl")
