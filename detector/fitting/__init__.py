"""Fitting: makes a baseline. `fit` and `recalibrate` use this room; a running service imports nothing of it.

Rules: all randomness comes from the `rng` that the caller gives, so the same inputs give the same baseline.
"""
