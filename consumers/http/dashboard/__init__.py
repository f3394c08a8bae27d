"""The dashboard at ``/``: server-rendered pages for people.

Rules:

* A `…_page` module says what one kind of page shows, `templates/` how; `site` is what all pages share, and `page_charts` draws.
* `handlers` (pages) and `actions` (changes) speak HTTP; `session` knows who is signed in.
* Works without the script; the script only adds keys and live updates. No build step, nothing from elsewhere.
* Every address is about keyed hashes of clients; every change is a post with a token, by a role that may, through `operate`.
"""
