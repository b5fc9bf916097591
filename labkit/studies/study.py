"""`Study`, `Settings` and `StudyResult`: what a study is asked to do and what it found, as frozen data with a JSON form."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from labkit.errors import InputError
from labkit.studies.picture import Picture

__all__ = [
    "Figure",
    "Finding",
    "Series",
    "Settings",
    "Study",
    "StudyResult",
    "Surface",
    "Table",
    "Tell",
    "mean_and_spread",
]

SCHEMA = "labkit.study/1"
Cell = str | float | int | None
Tell = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Settings:
    """How much a study does.

    data : one of the names in the study's `Study.data`
    data_dir : where the data may lie
    seeds : how often what depends on chance is repeated, with seeds 0, 1, ...; at least 1
    images : test images; None for all
    calibration : training images that ranges and roundings see, without labels
    smoke : everything once and as short as can be, to see that it runs; its figures mean nothing

    Raises
    ------
    InputError
        A number is less than 1.
    """

    data: str = "cifar10"
    data_dir: Path | None = None
    seeds: int = 3
    images: int | None = None
    calibration: int = 1024
    smoke: bool = False

    def __post_init__(self) -> None:
        for name in ("seeds", "calibration"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if self.images is not None and self.images < 1:
            raise InputError(f"images must be at least 1, got {self.images}.")

    @classmethod
    def short(cls) -> Settings:
        """The smoke version, on digits that need no network."""
        return cls("mnist5k", None, 1, 100, 64, smoke=True)


@dataclass(frozen=True)
class Table:
    """A table with a title: ``columns`` as headings, ``rows`` of as many cells. Units stand in the headings.

    Raises
    ------
    InputError
        A row has more or fewer cells.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "columns", tuple(self.columns))
        object.__setattr__(self, "rows", tuple(tuple(row) for row in self.rows))
        for row in self.rows:
            if len(row) != len(self.columns):
                raise InputError(f"Table {self.title!r}: {len(self.columns)} columns, but a row of {len(row)}: {row}.")


@dataclass(frozen=True)
class Series:
    """Points of a figure: ``x`` and ``y`` of one length; ``error`` of that length, or empty.

    Raises
    ------
    InputError
        The lengths differ.
    """

    label: str
    x: tuple[float | str, ...]
    y: tuple[float, ...]
    error: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "x", tuple(self.x))
        object.__setattr__(self, "y", tuple(float(value) for value in self.y))
        object.__setattr__(self, "error", tuple(float(value) for value in self.error))
        if len(self.x) != len(self.y) or len(self.error) not in (0, len(self.y)):
            raise InputError(
                f"Series {self.label!r}: x, y and error must have one length, "
                f"got {len(self.x)}, {len(self.y)} and {len(self.error)}."
            )


@dataclass(frozen=True)
class Surface:
    """A quantity over a plane: ``z`` has a row for each of ``y`` and in it a number for each of ``x``.

    levels : where colours change, ascending, at least two; what lies above the last one has a colour of its own
    label : of the colours, with the unit

    Raises
    ------
    InputError
        The numbers do not fit together.
    """

    x: tuple[float, ...]
    y: tuple[float, ...]
    z: tuple[tuple[float, ...], ...]
    levels: tuple[float, ...]
    label: str

    def __post_init__(self) -> None:
        for name in ("x", "y", "levels"):
            object.__setattr__(self, name, tuple(float(value) for value in getattr(self, name)))
        object.__setattr__(self, "z", tuple(tuple(float(value) for value in row) for row in self.z))
        if len(self.z) != len(self.y) or any(len(row) != len(self.x) for row in self.z):
            raise InputError(
                f"A surface over {len(self.x)} by {len(self.y)} points takes as many numbers, got another shape."
            )
        if len(self.levels) < 2 or list(self.levels) != sorted(set(self.levels)):
            raise InputError(f"A surface's levels must be two or more numbers that ascend, got {self.levels}.")


@dataclass(frozen=True)
class Figure:
    """A figure: ``line`` (points joined), ``scatter``, ``bar`` (x are words) or ``step`` (a histogram: x are left edges).

    With a ``surface`` it is a map of that in place of all else but name, title and labels.

    name : the stem of its file
    marks : upright lines by label, at their x, or at several
    panels : smaller figures, three to a row, with one legend; of the figure itself only name and title are then used
    diagonal : a dashed line where y = x
    pictures : images, ``across`` of them in a row, each under its label; again only name and title are used beside them
    """

    name: str
    title: str
    kind: Literal["line", "scatter", "bar", "step"]
    x_label: str
    y_label: str
    series: tuple[Series, ...]
    marks: Mapping[str, float | tuple[float, ...]] = field(default_factory=dict)
    log_x: bool = False
    log_y: bool = False
    panels: tuple[Figure, ...] = ()
    pictures: tuple[Picture, ...] = ()
    across: int = 6
    diagonal: bool = False
    surface: Surface | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "series", tuple(self.series))
        object.__setattr__(self, "pictures", tuple(self.pictures))
        object.__setattr__(self, "panels", tuple(self.panels))
        marks = {label: tuple(at) if isinstance(at, list | tuple) else at for label, at in self.marks.items()}
        object.__setattr__(self, "marks", marks)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Figure:
        """The figure whose plain JSON values, fields by name, are ``values``."""
        series = tuple(Series(**one) for one in values["series"])
        panels = tuple(map(cls.from_json, values.get("panels", ())))
        pictures = tuple(Picture(**one) for one in values.get("pictures", ()))
        surface = Surface(**values["surface"]) if values.get("surface") else None
        return cls(**{**values, "series": series, "panels": panels, "pictures": pictures, "surface": surface})


@dataclass(frozen=True)
class Finding:
    """A claim of the document, what was measured here, and whether that agrees: "yes", "no" or "partly"."""

    claim: str
    measured: str
    agrees: Literal["yes", "no", "partly"]


@dataclass(frozen=True)
class StudyResult:
    """What a study found.

    tables, figures, findings : in the order in which the page shows them
    notes : sentences that a reader needs: what differs from the document, what was corrected in it
    """

    tables: tuple[Table, ...]
    findings: tuple[Finding, ...]
    figures: tuple[Figure, ...] = ()
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The result as plain JSON values."""
        return {"schema": SCHEMA, **asdict(self)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> StudyResult:
        """The result that `to_json` made ``values`` of.

        Raises
        ------
        InputError
            ``values`` is not such a result.
        """
        try:
            if values["schema"] != SCHEMA:
                raise InputError(f"A study's result must be {SCHEMA}, got {values['schema']}. Run the study again.")
            return cls(
                tuple(Table(**table) for table in values["tables"]),
                tuple(Finding(**finding) for finding in values["findings"]),
                tuple(Figure.from_json(figure) for figure in values["figures"]),
                tuple(values["notes"]),
            )
        except (KeyError, TypeError) as error:
            raise InputError(f"This is not a study's result ({type(error).__name__}: {error}).") from error


@dataclass(frozen=True)
class Study:
    """A table or figure of a document.

    name : as the command line knows it; also its folder in docs/studies
    title : a line
    source : the document, and where in it
    says : what the document reports, in a sentence or two with its figures
    module : where its function ``run(settings, tell) -> StudyResult`` is; imported when it is run
    minutes : about how long the whole of it takes on two cores
    data : names of the data that it runs on, its own choice first
    """

    name: str
    title: str
    source: str
    says: str
    module: str
    minutes: float
    data: tuple[str, ...] = ("cifar10", "mnist5k")

    def data_called(self, name: str | None) -> str:
        """``name`` if the study runs on data of that name; where it is None, the study's own choice.

        Raises
        ------
        InputError
            It does not run on these.
        """
        if name is not None and name not in self.data:
            allowed = " or ".join(self.data)
            raise InputError(f"{self.name} runs on {allowed}, got --data {name}. Leave --data out or say one of these.")
        return self.data[0] if name is None else name


def mean_and_spread(values: tuple[float, ...] | list[float], digits: int = 2) -> str:
    """``mean ± standard deviation`` of ``values`` (one number where there is one), with ``digits`` decimals.

    The deviation is that of a sample (n - 1).
    """
    import statistics

    mean = statistics.fmean(values)
    if len(values) == 1:
        return f"{mean:.{digits}f}"
    return f"{mean:.{digits}f} ± {statistics.stdev(values):.{digits}f}"
