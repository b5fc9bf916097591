"""How much work a file may ask for when it is read."""

from __future__ import annotations

from labkit.errors import ModelError

__all__ = ["Work"]


class Work:
    """A count of what the file makes labkit do, so that a few bytes cannot ask for hours or for all of the memory."""

    def __init__(self, allowed: int) -> None:
        self.left = allowed

    def spend(self, amount: int) -> None:
        """Take ``amount`` numbers to copy or windows to look at from what is allowed.

        Raises
        ------
        ModelError
            There is not so much left.
        """
        self.left -= amount
        if self.left < 0:
            raise ModelError(
                "It uses its constants again and again, or has windows far too large, for a file of its size."
            )
