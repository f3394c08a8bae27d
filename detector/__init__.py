"""The core: computes what a query log says about its clients.

Three rooms: the files beside this one are the online path, which every service runs; `fitting` makes a baseline; `simulation` generates
honest clients and thefts.

Rules:

* No I/O, clock, environment variable, thread, logger or unseeded randomness. Time comes in as ``now_s``, randomness as a keyed hash or an
  ``rng`` argument. The import contracts in ``pyproject.toml`` enforce this.
* The online path imports neither `fitting` nor `simulation`.
"""
