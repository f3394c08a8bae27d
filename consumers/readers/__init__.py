"""Readers: what the store says, as people and programs read it.

Rules:

* To read changes nothing: no file here writes to the store.
* Values are frozen and typed (`models`); API, dashboard and command line show the same ones (`queries`), in the same words
  (`explanation`) and with the same plots (`charts`).
* What leaves the house stands alone: a report is one HTML file, an evidence bundle can be checked without us (`report`, `evidence`).
"""
