"""Fitting: makes a baseline. `fit` and `recalibrate` use this room; a running service imports nothing of it."""
