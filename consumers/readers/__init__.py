"""Readers: the content of the store as people and programs read it.

Rules:
* Reading changes nothing: no file here writes to the store.
* Values are frozen and typed (`models`). API, dashboard and command line show the same values (`queries`), in the same words
  (`explanation`) and with the same plots (`charts`).
* Exports stand alone: a report is one HTML file, and an evidence bundle can be checked without QueryWarden's store (`report`, `evidence`).
"""
