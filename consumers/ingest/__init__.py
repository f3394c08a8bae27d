"""Ingest: the process that reads the query log and keeps the clients' profiles.

Rules:

* `step` is the pure half: records and the state of the cell come in, a checkpoint goes out.
* `loop` is one turn after another: poll, claim, fold and commit, report. Its parts do the I/O, each of one kind: `ownership` claims and
  drops cells, `committer` commits, `recovery` acts after failures, `health` watches the store's answers, `reporting` shows metrics.
  `dead_letters` ships refused records, `poison` tries records in a child process.
* Every record is counted once, as one of the things that `records.ledger` names. Nothing is silent.
* What is kept of a client depends on its own queries in their order, never on how they fell into polls.
* What it leaves for other processes is described in `records`. Nothing here knows detect, a gateway or a reader.
"""
