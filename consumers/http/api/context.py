"""What the routes of the API stand on: the reader of each tenant, the operations, the keys.

Rules: the tenant is the caller's, never a parameter. A client that is named by its hash must be one of that tenant.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

from starlette.responses import Response

from consumers.errors import Missing, WrongUse
from consumers.http.api.parameters import AboutClient
from consumers.http.auth import KeyRing
from consumers.http.producer import LogProducer
from consumers.http.restriction_feed import DecisionFeed
from consumers.operators.audited_write import Actor, Subject
from consumers.operators.campaign_decisions import CampaignSubject
from consumers.operators.operate import Operations
from consumers.operators.views import Views
from consumers.readers.queries import Reader
from consumers.records import operator_entries

_KEPT_TENANTS = 256


@dataclass(slots=True)
class Api:
    """What the routes stand on.

    feed      restrictions in force, None without
    producer  None where this service does not write the log
    """

    reader: Reader
    operations: Operations
    keys: KeyRing
    feed: DecisionFeed | None = None
    producer: LogProducer | None = None
    views: Views = field(init=False)
    _of: OrderedDict[str, Reader] = field(default_factory=OrderedDict)

    def __post_init__(self) -> None:
        self.views = Views(self.operations)

    def read(self, tenant: str) -> Reader:
        """The reader of a tenant, with what it remembers."""
        found = self._of.get(tenant)
        if found is None:
            found = self._of[tenant] = self.reader.of(tenant)
            while len(self._of) > _KEPT_TENANTS:
                self._of.popitem(last=False)
        return found

    def subject(self, actor: Actor, about: AboutClient) -> Subject:
        """Whom it is about. A `client_key` must be that of a client of the tenant: raises Missing."""
        if about.client_id is not None:
            return self.operations.subject(actor.tenant, about.model_id, about.client_id)
        read, key = self.read(actor.tenant), about.client_key or ""
        everywhere = about.model_id == operator_entries.EVERY_MODEL
        for model in (
            (operator_entries.EVERY_MODEL, *(m.model_id for m in read.models())) if everywhere else (about.model_id,)
        ):
            client = read.named(model, key)
            if client is not None:
                return Subject(key, about.model_id, client)
        raise Missing("no such client")

    def campaign(self, actor: Actor, campaign_id: str, model_id: str) -> CampaignSubject:
        """A campaign with its accounts as they are now. Raises Missing, and WrongUse where another model was named."""
        found = self.read(actor.tenant).campaign(campaign_id)
        if found is None:
            raise Missing("no such campaign")
        if model_id not in (operator_entries.EVERY_MODEL, found.model_id):
            raise WrongUse("model_id: the campaign is about another model; leave it out")
        return CampaignSubject(found.campaign_id, found.model_id, tuple(m.client_key for m in found.members))

    def decided_campaign(self, actor: Actor, campaign_id: str, model_id: str) -> CampaignSubject:
        """A campaign that was decided about, which may be over by now. Raises Missing."""
        everywhere = model_id == operator_entries.EVERY_MODEL
        for one in self.read(actor.tenant).campaign_decisions():
            if one.campaign_id == campaign_id and (everywhere or one.model_id == model_id):
                try:
                    return self.campaign(actor, campaign_id, one.model_id)
                except Missing:
                    return CampaignSubject(campaign_id, one.model_id, ())
        raise Missing("no decision of an operator about this campaign")


def tell_revision(response: Response, api: Api, who: Actor, subject: Subject) -> None:
    """Say what the next change may rest on."""
    response.headers["ETag"] = f'"{api.operations.revision(who.tenant, subject)}"'
