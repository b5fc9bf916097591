"""What a comparison between the integer engine and an independent computation found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

__all__ = ["Comparison", "Difference", "ParityReport"]


@dataclass(frozen=True)
class Difference:
    """The first element at which two computations part.

    ``index`` counts from 0 in the source's own layout (N, C, H, W for an image tensor).
    """

    where: str
    index: tuple[int, ...]
    expected: str
    got: str

    def __str__(self) -> str:
        return f"{self.where}, index {list(self.index)}: expected {self.expected}, labkit has {self.got}"


@dataclass(frozen=True)
class Comparison:
    """One thing compared.

    ``kind`` is "parameter" of a node (``conv1.bias``), "tensor" that a node puts out, or "node": what it makes of the tensors
    that the other side puts into it.
    """

    name: str
    kind: str
    elements: int
    differing: int


@dataclass(frozen=True)
class ParityReport:
    """A certificate: what was compared with what, over how many elements, and where they first differ.

    ``comparisons`` are in the order of the graph, ``first`` is None exactly when nothing differs; ``remarks`` are sentences
    that may explain a difference, or say what could not be derived and was taken as it is.
    """

    subject: str
    against: str
    images: int
    comparisons: tuple[Comparison, ...]
    first: Difference | None
    versions: Mapping[str, str] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """True when no element of any parameter or tensor differs."""
        return self.first is None and self.differing == 0

    @property
    def elements(self) -> int:
        """How many elements were compared, parameters and tensors together."""
        return sum(c.elements for c in self.comparisons)

    @property
    def differing(self) -> int:
        """How many of them differ."""
        return sum(c.differing for c in self.comparisons)

    def __str__(self) -> str:
        if self.passed:
            return (
                f"{self.subject} against {self.against}: 0 of {self.elements:,} elements differ "
                f"({len(self.comparisons)} comparisons, {self.images:,} images)."
                + "".join(f" {r}" for r in self.remarks)
            )
        return (
            f"{self.subject} against {self.against}: {self.differing:,} of {self.elements:,} elements differ "
            f"over {self.images:,} images. First difference: {self.first}." + "".join(f" {r}" for r in self.remarks)
        )

    __repr__ = __str__  # what a notebook shows; the fields are thousands of characters

    def to_json(self) -> dict[str, Any]:
        """The report as plain JSON values, with ``passed``, ``elements`` and ``differing`` spelled out."""
        return {"passed": self.passed, "elements": self.elements, "differing": self.differing, **asdict(self)}
