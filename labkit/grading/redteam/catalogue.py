"""All attacks, in the order of `labkit.grading.redteam.attacks.CATEGORIES`."""

from __future__ import annotations

from labkit.grading.redteam import crash, damage, exhaustion, forgery, honest, host, siblings, theft
from labkit.grading.redteam.attacks import Attack

__all__ = ["ATTACKS"]

ATTACKS: tuple[Attack, ...] = (
    *honest.ATTACKS,
    *crash.ATTACKS,
    *exhaustion.ATTACKS,
    *forgery.ATTACKS,
    *theft.ATTACKS,
    *siblings.ATTACKS,
    *host.ATTACKS,
    *damage.ATTACKS,
)
