"""Tables and figures of one kind of experiment: many rules, a few bit widths, the same images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from labkit.studies.evidence import Contrast, contrast, spread
from labkit.studies.study import Figure, Series, Table

__all__ = ["Ablation"]

_COLLAPSE = 5.0  # points below the float network


@dataclass(frozen=True, eq=False)
class Ablation:
    """What a net gets right by rule and bits.

    name : of the net
    setting : grid and bits that all share, in words
    accuracy : of the float network, per cent
    base : the rule that the others are compared with
    right : by (rule, bits), bool [draws, images]; a rule may lack some of the bits
    """

    name: str
    setting: str
    accuracy: float
    base: str
    right: Mapping[tuple[str, int], NDArray[np.bool_]]

    @property
    def rules(self) -> tuple[str, ...]:
        """In order."""
        return tuple(dict.fromkeys(rule for rule, _ in self.right))

    @property
    def bits(self) -> tuple[int, ...]:
        """In order."""
        return tuple(dict.fromkeys(bits for _, bits in self.right))

    def mean(self, rule: str, bits: int) -> float:
        """Mean accuracy of ``rule`` at ``bits``, per cent."""
        return 100 * float(self.right[rule, bits].mean())

    def change(self, rule: str, bits: int) -> Contrast:
        """How much better ``rule`` is than the base at ``bits``."""
        return contrast(self.right[rule, bits], self.right[self.base, bits])

    def best(self, bits: int) -> str:
        """The rule with the highest mean accuracy at ``bits``."""
        return max((rule for rule in self.rules if (rule, bits) in self.right), key=lambda rule: self.mean(rule, bits))

    def collapsed(self, bits: int) -> dict[str, float]:
        """The rules whose accuracy at ``bits`` is more than 5 points below the float network, and by how much it is."""
        drops = {rule: self.mean(rule, bits) - self.accuracy for rule in self.rules if (rule, bits) in self.right}
        return {rule: drop for rule, drop in drops.items() if drop < -_COLLAPSE}

    def table(self) -> Table:
        """Accuracies by rule and bits, each with its change against the base; a star where that is beyond two errors."""

        def cell(rule: str, bits: int) -> str:
            if (rule, bits) not in self.right:
                return ""
            change = self.change(rule, bits)
            star = " *" if change.is_better or change.is_worse else ""
            return spread(self.right[rule, bits]) + ("" if rule == self.base else f" ({change.points:+.2f}{star})")

        images = next(iter(self.right.values())).shape[1]
        return Table(
            f"{self.name}, {self.setting}: accuracy, % (float {self.accuracy:.2f} %; {images:,} test images), and "
            f"the change against {self.base}, points",
            ("rule", *(f"{bits} bits" for bits in self.bits)),
            tuple((rule, *(cell(rule, bits) for bits in self.bits)) for rule in self.rules),
        )

    def figure(self, stem: str) -> Figure:
        """Bars by rule, one series a bit width; ``stem`` names the file."""
        series = []
        for bits in self.bits:
            rules = [rule for rule in self.rules if (rule, bits) in self.right]
            draws = [100 * self.right[rule, bits].mean(1) for rule in rules]
            error = tuple(float(d.std(ddof=1)) for d in draws) if len(draws[0]) > 1 else ()
            series.append(Series(f"{bits} bits", tuple(rules), tuple(float(d.mean()) for d in draws), error))
        return Figure(stem, f"{self.name}, {self.setting}", "bar", "rule", "test accuracy, %", tuple(series))
