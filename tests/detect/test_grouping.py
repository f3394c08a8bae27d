"""Groups and the campaigns that they are: a name goes to a group that has members."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from consumers.detect.grouping import Grouping, Survey
from consumers.records.decision import RowSummary, campaign_key
from consumers.secrets import Secrets
from detector.campaigns import Group
from detector.query import ClientKey


def test_a_group_in_which_nobody_is_named_takes_no_campaign_s_name(secrets: Secrets) -> None:
    """The campaign was known by two addresses. Behind the first are now four usual accounts, behind the second sixteen odd ones too."""
    keys = [ClientKey("t", "m", f"{i:032x}") for i in range(20)]
    links = [["ip:a", "ip:b"] if i < 4 else ["ip:b"] for i in range(20)]
    clients = {
        key: RowSummary(client_id=key.client, size_p_value=0.3 if i < 4 else 0.01, links=links[i])
        for i, key in enumerate(keys)
    }
    known = campaign_key("t", "m", "known")
    standing: Any = {known: SimpleNamespace(links=("ip:a", "ip:b"))}
    groups = [Group(("ip:a",), tuple(keys[:4])), Group(("ip:b",), tuple(keys))]
    (found,) = Grouping({}, secrets)._known("t", "m", groups, Survey(clients, standing))
    assert found.key == known, "the operator's decision on it goes on"
    assert found.named == tuple(keys[4:])
