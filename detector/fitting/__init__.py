"""Fitting: what only `fit` and `recalibrate` use. A running service imports nothing of this room."""
