"""The dashboard at ``/``: server-rendered pages for people.

Rules:
* A `…_page` module holds the content of one kind of page, `templates/` its form. `site` holds what all pages share, and `page_charts`
  draws.
* `handlers` (pages) and `actions` (changes) speak HTTP. `session` knows the signed-in user.
* Pages work without the script, which only adds keys and live updates. There is no build step, and nothing is loaded from elsewhere.
* Addresses name clients by keyed hash. Every change is a post with a token, by a role that may make it, through `operate`.
"""
