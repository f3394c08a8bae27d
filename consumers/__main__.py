"""``python -m consumers`` is ``querywarden``: see `cli`."""

from __future__ import annotations

from consumers.cli import main

if __name__ == "__main__":
    main()
