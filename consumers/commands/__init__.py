"""Commands: what `querywarden` can do, one file per group. A command is imported when it is called.

Rules: as in cli.py.
"""
