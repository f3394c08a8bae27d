"""Commands of `querywarden` besides the main jobs, one file a group; `cli` registers them. Rules: as in cli.py."""
