"""The core: what a query log says about its clients, by computation alone.

Nothing in here does I/O, reads a clock or an environment variable, starts a thread, logs, or draws unseeded randomness: time comes in as
``now_s``, randomness as a keyed hash or an ``rng`` argument. The import contracts in ``pyproject.toml`` hold it to that.
"""
