"""The capstone's leaderboard: every entry is measured again, and one that claims what its network does not give is refused.

What a network takes is counted (bytes, bit operations), so that the order is the same on every machine. Time is measured
beside it, as a ratio to the same network at 8 bits, in turns with it on the same machine; it orders nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labkit.benchmark.timing import WALL, time_pair
from labkit.course.entries import CLAIM, COURSE_BUDGET, NET, Budget, Entry, entry_of, read_claim
from labkit.data.dataset import DataSet
from labkit.errors import InputError, LabkitError
from labkit.files import write_atomically
from labkit.graph import storage
from labkit.graph.costs import costs, peak_activation_bytes
from labkit.graph.ir import IntGraph
from labkit.net import IntegerNet
from labkit.reporting.paired import change_error

__all__ = ["Leaderboard", "Place", "Refusal", "eight_bits", "read_leaderboard", "relative_time"]

# What is read and run of somebody else's file, so that no entry can hold the others up.
_LARGEST_NET = 16 << 20
_MOST_MACS = 100_000_000
_MOST_ACTIVATION_BYTES = 64 << 20
_ROUNDS, _SECONDS = 31, 1.0


@dataclass(frozen=True)
class Place:
    """One entry whose claim holds.

    folder : the name of its folder.
    entry : as it was measured.
    within : whether it keeps to the budget.
    behind : percentage points behind the first place; 0 for the first itself.
    behind_error : one standard error of that, over the same images; 0 for the first itself.
    time : median of the ratios of its time for one image to that of 8 bits, with the 10th and 90th percentile; None where
        it was not measured.
    same_as : the folder of an earlier place with the very same network, '' where there is none.
    right : bool [images], whether it is right about each test image.
    """

    folder: str
    entry: Entry
    within: bool
    behind: float
    behind_error: float
    time: tuple[float, float, float] | None
    same_as: str
    right: NDArray[np.bool_] = field(repr=False, compare=False)


@dataclass(frozen=True)
class Refusal:
    """An entry that does not count: the name of its folder, and the reason in one sentence."""

    folder: str
    reason: str


@dataclass(frozen=True)
class Leaderboard:
    """All entries of a folder: places in their order, those over the budget at the end, and what was refused."""

    data: str
    budget: Budget
    places: tuple[Place, ...]
    refused: tuple[Refusal, ...]

    def to_json(self) -> dict[str, Any]:
        """The leaderboard as plain JSON values."""
        return {
            "schema": "labkit.leaderboard/1",
            "data": self.data,
            "budget": {"size": self.budget.size, "bit_operations": self.budget.bit_operations},
            "places": [
                {
                    "place": number if place.within else None,
                    "folder": place.folder,
                    "within_budget": place.within,
                    "behind": place.behind,
                    "behind_error": place.behind_error,
                    "time_to_8_bits": None if place.time is None else list(place.time),
                    "same_as": place.same_as,
                    "entry": place.entry.to_json(),
                }
                for number, place in enumerate(self.places, 1)
            ],
            "refused": [{"folder": one.folder, "reason": one.reason} for one in self.refused],
        }

    def save(self, path: str | Path) -> None:
        """Write the leaderboard to ``path`` as JSON, whole or not at all.

        Raises
        ------
        OutputError
            The file cannot be written.
        """
        write_atomically(path, json.dumps(self.to_json(), indent=2, ensure_ascii=False) + "\n")

    def _rows(self) -> Iterator[tuple[str, ...]]:
        for number, place in enumerate(self.places, 1):
            entry = place.entry
            behind = "" if number == 1 else f"{0.0 - place.behind:+.2f} ± {place.behind_error:.2f}"
            time = "" if place.time is None else "{:.2f} ({:.2f}..{:.2f})".format(*place.time)
            same = f" (the net of {place.same_as})" if place.same_as else ""
            yield (
                str(number) if place.within else "over",
                entry.name + same,
                f"{entry.accuracy:.2f} %",
                behind,
                f"{entry.size:,}",
                f"{entry.bit_operations / 1e6:.2f}",
                time,
            )

    @property
    def _head(self) -> tuple[str, ...]:
        return ("place", "name", "right", "to the first, points", "bytes", "10⁶ bit operations", "time to 8 bits")

    @property
    def _caption(self) -> str:
        images = f"{self.places[0].entry.images:,} test images of {self.data}; " if self.places else ""
        return (
            f"{images}budget {self.budget.size:,} bytes and {self.budget.bit_operations / 1e6:g} x 10⁶ bit operations; "
            "every figure was measured again; ± is one standard error over the same images"
        )

    def __str__(self) -> str:
        rows = [self._head, *self._rows()]
        widths = [max(len(row[i]) for row in rows) for i in range(len(self._head))]
        lines = [
            "  ".join(
                f"{cell:<{w}}" if i == 1 else f"{cell:>{w}}"
                for i, (cell, w) in enumerate(zip(row, widths, strict=True))
            )
            for row in rows
        ]
        return "\n".join(
            [*lines, *(f"refused: {one.folder}: {one.reason}" for one in self.refused), f"({self._caption})"]
        )

    __repr__ = __str__

    def _repr_html_(self) -> str:
        def line(cells: tuple[str, ...], tag: str) -> str:
            side = ["left" if i == 1 else "right" for i in range(len(cells))]
            return "".join(
                f'<{tag} style="padding:2px 12px;text-align:{to}">{escape(cell)}</{tag}>'
                for cell, to in zip(cells, side, strict=True)
            )

        body = "".join(f"<tr>{line(row, 'td')}</tr>" for row in self._rows())
        refused = "".join(f"<li>{escape(one.folder)}: {escape(one.reason)}</li>" for one in self.refused)
        return (
            f"<table><thead><tr>{line(self._head, 'th')}</tr></thead><tbody>{body}</tbody></table>"
            + (f"<p>Refused:</p><ul>{refused}</ul>" if refused else "")
            + f"<small>{escape(self._caption)}</small>"
        )


def read_leaderboard(
    folder: str | Path, data: DataSet | None = None, budget: Budget = COURSE_BUDGET, *, timed: bool = True
) -> Leaderboard:
    """Measure every entry in the folders of ``folder`` again, and order them.

    An entry counts where its hash, accuracy, size and bit operations are what its network gives here. The order: within the
    budget before over it, then more images right, fewer bytes, fewer bit operations, and the folder's name.

    Parameters
    ----------
    folder : has one folder for each entry, with ``net.lab`` and ``entry.json``; others are passed over, files too
    data : whose test images count; None for the data set that most entries name
    budget : what a network may take
    timed : measure the time of each beside LeNet at 8 bits, which the data set must have weights for

    Raises
    ------
    InputError
        There is no such folder, no entry in it, or no data set that an entry names.
    DataError
        The data set is not there.
    """
    place = Path(folder)
    if not place.is_dir():
        raise InputError(f"There is no folder {place}. Name the one that holds a folder for each entry.")
    found = [
        one for one in sorted(place.iterdir()) if one.is_dir() and ((one / CLAIM).exists() or (one / NET).exists())
    ]
    if not found:
        raise InputError(f"No folder in {place} holds an entry: each needs {NET} and {CLAIM}.")
    claims: dict[str, Entry] = {}
    refused = []
    for one in found:
        try:
            claims[one.name] = read_claim(one)
        except (LabkitError, OSError) as error:
            refused.append(Refusal(one.name, str(error)))
    chosen = data if data is not None else _data_of(claims)
    measured: list[tuple[str, Entry, NDArray[np.bool_], IntGraph]] = []
    for name, claim in claims.items():
        try:
            measured.append((name, *_measured(place / name, claim, chosen)))
        except (LabkitError, OSError) as error:
            refused.append(Refusal(name, str(error)))
    measured.sort(key=lambda m: (not budget.holds(m[1]), -m[1].right, m[1].size, m[1].bit_operations, m[0]))
    reference = eight_bits(chosen) if timed and measured else None
    x = chosen.test(1)[0]
    places: list[Place] = []
    for name, entry, right, graph in measured:
        first = places[0] if places else None
        twins = [other.folder for other in places if other.entry.sha256 == entry.sha256]
        places.append(
            Place(
                name,
                entry,
                budget.holds(entry),
                0.0 if first is None else first.entry.accuracy - entry.accuracy,
                0.0 if first is None else change_error(right, first.right),
                None if reference is None else relative_time(IntegerNet(graph), reference, x),
                twins[0] if twins else "",
                right,
            )
        )
    return Leaderboard(chosen.name, budget, tuple(places), tuple(sorted(refused, key=lambda one: one.folder)))


def eight_bits(data: DataSet) -> IntegerNet:
    """LeNet with 8-bit weights and activations, to which times are set in relation.

    Raises
    ------
    ModelError
        There are no weights of LeNet for ``data``.
    """
    import labkit

    return labkit.quantize(labkit.models.load("lenet", data=data.name), data.calibration(256))


def relative_time(net: IntegerNet, reference: IntegerNet, images: NDArray[np.float32]) -> tuple[float, float, float]:
    """The time of ``net`` over that of ``reference`` for the same ``images``, float32 [N, ...]: median, 10th and 90th percentile.

    Both run in turns on one thread; the ratio is taken in each turn, so that what disturbs the machine disturbs both.
    """

    def theirs() -> object:
        return net.run(images)

    def ours() -> object:
        return reference.run(images)

    paired = time_pair(ours, theirs, WALL, _ROUNDS, _SECONDS)
    return paired.ratio, paired.p10, paired.p90


def _data_of(claims: dict[str, Entry]) -> DataSet:
    from labkit.data.select import load, names

    known = [name for name in names() if name != "auto"]
    named = sorted(claim.data for claim in claims.values() if claim.data in known)
    if not named:
        raise InputError(f"No entry names a data set that labkit knows ({', '.join(known)}). Give data=.")
    return load(max(named, key=named.count), download=False)


def _measured(folder: Path, claim: Entry, data: DataSet) -> tuple[Entry, NDArray[np.bool_], IntGraph]:
    """What the network in ``folder`` gives on ``data``, which must be what ``claim`` says."""
    if claim.data != data.name:
        raise InputError(f"It is an entry for {claim.data!r:.60}, and these are counted on {data.name!r}.")
    path = folder / NET
    if path.is_symlink() or not path.is_file():
        raise InputError(f"{NET} is missing, or is no ordinary file.")
    if path.stat().st_size > _LARGEST_NET:
        raise InputError(f"{NET} has {path.stat().st_size:,} bytes; {_LARGEST_NET:,} are allowed.")
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    if digest != claim.sha256:
        raise InputError(
            f"{NET} is not the file that was entered: its SHA-256 is {digest}, entered was {claim.sha256:.70}."
        )
    graph = storage.loads(content, NET)
    work, memory = costs(graph).total_macs, peak_activation_bytes(graph)
    if work > _MOST_MACS or memory > _MOST_ACTIVATION_BYTES:
        raise InputError(
            f"{NET} makes {work:,} multiply-accumulates and {memory:,} bytes of activations an image; at most {_MOST_MACS:,} "
            f"and {_MOST_ACTIVATION_BYTES:,} are run."
        )
    entry, right = entry_of(content, claim.name, data)
    for one in fields(Entry):
        said, is_so = getattr(claim, one.name), getattr(entry, one.name)
        if one.name != "labkit" and said != is_so:
            raise InputError(
                f"It claims {one.name.replace('_', ' ')} {said!r:.80}, and its network gives {is_so!r:.80}."
            )
    return entry, right, graph
