"""The operations on the baselines of a model: add a shadow, promote it, roll back, drop the one beside.

Rules:
* Each operation is one atomic step (`audited_write`): which baseline is live is one entry, so all processes follow the same one.
* A shadow reads the log as the live baseline does: same columns, categories, classes and, for texts, the same encoder. Another form of
  the input is another model id.
* Promote and roll back are refused while a profile cell lacks what one of the two should have folded: a switch loses nothing.
* Decisions stay. A client is assessed on the baseline that is live when it asks next; its row says which that was.
* The files are stored with the entry. The entry is dropped, and with it the files, only where the settings name the live baseline.

Errors: `WrongUse` for a file that does not fit, `Missing` and `Conflict` for the stored state, `Unavailable`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from consumers.errors import Conflict, Missing, WrongUse
from consumers.operators.audited_write import Actor, AuditedWriter, Plan
from consumers.records.baselines_in_force import (
    FILE_KIND,
    KIND,
    CellFolded,
    StoredBaselines,
    file_entry,
    file_key,
    folded_cells,
)
from consumers.records.operator_entries import packed
from consumers.store import Entry
from detector.baseline import Baseline


@dataclass(slots=True)
class BaselineSwitch(AuditedWriter):
    """What may be done with the baselines of a model, on one store."""

    def shadow(self, actor: Actor, live: tuple[Baseline, bytes], shadow: tuple[Baseline, bytes]) -> StoredBaselines:
        """Add a shadow beside the live baseline; each with the bytes of its file. Raises Conflict, WrongUse."""
        (old, old_blob), (new, new_blob) = live, shadow
        check_fits(old, new)
        starts = {cell: self.store.shards(cell, []).offset for cell in self.store.cells()}

        def plan() -> Plan[StoredBaselines]:
            before = self.of(actor.tenant, old.model_id)
            if before is not None and before.beside:
                raise Conflict(f"model {old.model_id} has two baselines already: promote, roll back or drop first")
            if before is not None and before.live != old.id:
                raise Conflict(f"baseline {before.live} of model {old.model_id} is live, not {old.id}")
            made = StoredBaselines(old.model_id, old.id, new.id, False, starts, actor.name, int(self.now_s()))
            files = [
                file_entry(actor.tenant, one, blob, self.secrets) for one, blob in ((old, old_blob), (new, new_blob))
            ]
            return Plan(made, _about(made), before, [*files, _entry(actor.tenant, made)])

        return self._apply(actor, "baseline.shadow", plan, StoredBaselines, None, (old.id, new.id))

    def promote(self, actor: Actor, model: str) -> StoredBaselines:
        """Make the shadow live; the earlier one stays beside it. Raises Missing, Conflict."""
        return self._switch(actor, model, "promote")

    def roll_back(self, actor: Actor, model: str) -> StoredBaselines:
        """Make the earlier one live again; the promoted one is a shadow again. Raises Missing, Conflict."""
        return self._switch(actor, model, "rollback")

    def drop(self, actor: Actor, model: str, configured: str) -> StoredBaselines:
        """Drop the baseline beside the live one. configured: id of the baseline of the settings; where it is live, the entry goes too.

        Raises Missing.
        """

        def plan() -> Plan[StoredBaselines]:
            before = self._needed(actor.tenant, model)
            made = replace(before, beside="", promoted=False, starts={}, actor=actor.name, at_s=int(self.now_s()))
            drops = [(actor.tenant, FILE_KIND, file_key(model, before.beside))] if before.beside else []
            if before.live == configured:
                drops += [(actor.tenant, FILE_KIND, file_key(model, before.live)), (actor.tenant, KIND, model)]
                return Plan(made, _about(before), before, drops=drops)
            if not before.beside:
                raise Conflict(
                    f"the settings name baseline {configured} of model {model}, and {before.live} is live: "
                    "put the live one's file there first (baseline status --out)"
                )
            return Plan(made, _about(before), before, [_entry(actor.tenant, made)], drops)

        return self._apply(actor, "baseline.drop", plan, StoredBaselines, None, (model, configured))

    def of(self, tenant: str, model: str) -> StoredBaselines | None:
        """What the operator cell says of a model's baselines."""
        return self._entry(KIND, model, tenant, StoredBaselines)

    def cells(self, tenant: str, stored: StoredBaselines) -> list[CellFolded]:
        """How far each profile cell is folded for both baselines."""
        return folded_cells(self.store, self.secrets, tenant, stored)

    def _needed(self, tenant: str, model: str) -> StoredBaselines:
        stored = self.of(tenant, model)
        if stored is None:
            raise Missing(f"model {model} has no second baseline: begin with `querywarden baseline shadow FILE`")
        return stored

    def _switch(self, actor: Actor, model: str, how: str) -> StoredBaselines:
        promoting = how == "promote"

        def plan() -> Plan[StoredBaselines]:
            before = self._needed(actor.tenant, model)
            if not before.beside or before.promoted is promoting:
                what = "shadow" if promoting else "earlier baseline"
                raise Missing(f"model {model} has no {what} beside baseline {before.live}")
            if torn := [cell for cell in self.cells(actor.tenant, before) if not cell.whole]:
                names = ", ".join(cell.cell for cell in torn[:5])
                raise Conflict(
                    f"{len(torn)} profile cells are not folded for both baselines ({names}): an ingest process does not follow; "
                    "nothing was changed"
                )
            made = replace(
                before,
                live=before.beside,
                beside=before.live,
                promoted=promoting,
                actor=actor.name,
                at_s=int(self.now_s()),
            )
            return Plan(made, _about(made), before, [_entry(actor.tenant, made)])

        return self._apply(actor, f"baseline.{how}", plan, StoredBaselines, None, model)


def check_fits(live: Baseline, shadow: Baseline) -> None:
    """Raises WrongUse where a shadow cannot read the log as the live baseline does."""
    if shadow.model_id != live.model_id:
        raise WrongUse(f"the file is a baseline of model {shadow.model_id}, not of {live.model_id}")
    if shadow.id == live.id:
        raise WrongUse(f"baseline {live.id} of model {live.model_id} is live already")
    one, other = live.map.schema, shadow.map.schema
    forms = [
        (s.input_form, s.named, s.task, s.labels, [(c.name, c.kind, c.categories) for c in s.columns])
        for s in (one, other)
    ]
    encoders = [s.encoder.identity if s.encoder is not None else "" for s in (one, other)]
    if forms[0] != forms[1] or encoders[0] != encoders[1]:
        raise WrongUse(
            "the file reads the log in another way (columns, categories, classes or encoder differ): fit it with the schema of the live "
            "baseline, `fit --schema`, or give the model another id"
        )


def _entry(tenant: str, stored: StoredBaselines) -> Entry:
    return Entry(tenant, KIND, stored.model, packed(stored))


def _about(stored: StoredBaselines) -> str:
    return f"model:{stored.model} live:{stored.live} beside:{stored.beside or '-'}"
