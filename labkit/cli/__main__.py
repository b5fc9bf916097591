"""``python -m labkit.cli`` is the ``labkit`` command."""

from __future__ import annotations

from labkit.cli import main

__all__: list[str] = []

if __name__ == "__main__":
    main()
