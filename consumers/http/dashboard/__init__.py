"""The dashboard at ``/``: server-rendered pages for people.

Rules:

* `views` says what a page shows, `templates/` how, `charts` draws; `pages` and `actions` speak HTTP; `session` knows who sits there.
* Works without the script; the script only adds keys and live updates. No build step, nothing from elsewhere.
* Every address is about keyed hashes of clients; every change is a post with a token, by a role that may, through `operate`.
"""
