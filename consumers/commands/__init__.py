"""Commands of `querywarden`, one file per group. `cli` registers them. Rules: as in cli.py."""
