"""Intake: what becomes of a record on its way into a client's profile. `ingest` is the process that keeps it.

Rules of this room

* Nothing here reads the log, writes the store or asks the time: records and what is known of the cell come in, a checkpoint goes out
  (`checkpoints`). Two files act, and say so: `letters` ships what was refused, `trial` tries records in a child process.
* Every record is counted once, as one of the things that `ledger` names. Nothing is silent.
* What is kept of a client depends on its own queries in their order, never on how they fell into polls.
* Nothing here knows what a decision, an operator or a reader is.
"""
