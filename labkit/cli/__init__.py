"""The command line. `main` is what the ``labkit`` script calls; each command is a module of its own."""

from __future__ import annotations

import sys

from labkit.errors import LabkitError

__all__ = ["main"]

USER_ERROR = 2
INTERRUPTED = 130


def main() -> None:
    """Run the command line; exit 0 on success, 1 where a check failed, 2 for a mistake of the user, 130 for Ctrl-C.

    A mistake is answered with one paragraph on standard error, never with a traceback; so is Ctrl-C, with one word.
    """
    try:
        from labkit.cli.app import app

        app()
    except LabkitError as error:
        from rich.console import Console
        from rich.text import Text

        console = Console(stderr=True)
        console.print(Text.assemble(("Error: ", "bold red"), str(error)), soft_wrap=not console.is_terminal)
        sys.exit(USER_ERROR)
    except (KeyboardInterrupt, SystemExit) as stop:  # typer turns the one into the other
        if not _interrupted(stop):
            raise
        # A terminal shows ^C where the cursor is.
        print("\nStopped." if sys.stderr.isatty() else "Stopped.", file=sys.stderr)
        sys.exit(INTERRUPTED)


def _interrupted(error: BaseException | None) -> bool:
    """Whether ``error`` is Ctrl-C, or was raised because of it."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None
