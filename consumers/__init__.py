"""The shell: every program that consumes the query log, the state or the decisions.

It may import ``detector``, never the reverse. Only ``consumers.cli`` names adapters and reads settings.
"""
