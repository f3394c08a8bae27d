"""Operators: what people say about clients, kept in the operator cell, and what follows from it.

Rules:

* All that people say is an entry of the operator cell (`entries`), written by one fenced step with its row of the audit log (`audit`,
  `operate`). Who read an older revision reads again before writing.
* Detect honours it (`overrides`) and tells the sinks (`verdicts`); what processes say of themselves lies in the same cell, without a
  row of the audit log (`heartbeats`).
* An entry that cannot be read is passed over with a warning; it never lifts or imposes anything.
* To erase is the one thing that cannot be taken back (`erasure`).
"""
