"""Labelled images for ``labkit accuracy``: a shipped data set, or a folder with one folder a class."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from labkit.errors import DataError, InputError

if TYPE_CHECKING:
    from labkit.data.preprocessing import Preprocessing

__all__ = ["Labelled", "from_class_folders", "from_data_set"]

_NAMED = 5  # of many broken pictures, how many an error names

Tell = Callable[[str, int, int], None]


@dataclass(frozen=True, eq=False)
class Labelled:
    """Images with labels, to be gone through once.

    batches : pairs of float32 [N, ...] and int64 [N].
    count : images in all of them.
    source : which they are, in words.
    broken : pictures that were left out, each with the reason.
    """

    batches: Iterable[tuple[NDArray[np.float32], NDArray[np.int64]]]
    count: int
    source: str
    broken: dict[Path, str] = field(default_factory=dict)


def from_data_set(
    data: str, data_dir: Path | None, count: int | None, classes: int | None, download: bool | None
) -> Labelled:
    """The first ``count`` test images of a shipped data set, or all.

    Parameters
    ----------
    data, data_dir, download : as of `labkit.data.load`
    count : how many; None for all
    classes : how many the net tells apart; None where it does not say

    Raises
    ------
    InputError
        The data set has another number of classes, or not so many images.
    DataError
        The data cannot be had.
    """
    from labkit import data as data_sets
    from labkit.cli.sources import test_batches

    loaded = data_sets.load(data, data_dir=data_dir, download=download)
    if classes is not None and classes != len(loaded.class_names):
        raise InputError(
            f"{loaded.name} has {len(loaded.class_names)} classes and the net {classes}. Give images of the net's own classes: "
            f"--data DIR, with one folder a class."
        )
    total = len(loaded.test_images)
    if count is not None and count > total:
        raise InputError(f"{loaded.name} has {total:,} test images, got --images {count}.")
    count = total if count is None else count
    return Labelled(test_batches(loaded, count), count, f"test images of {loaded.name}")


def from_class_folders(
    folder: Path,
    preprocessing: Preprocessing,
    count: int | None,
    classes: int | None,
    class_file: Path | None,
    skip_broken: bool,
    tell: Tell,
) -> Labelled:
    """``count`` of the pictures in ``folder``, evenly spread, or all, each with the label of the folder it lies in.

    Parameters
    ----------
    folder : holds one folder a class
    preprocessing : what is done to each picture
    count : how many; None for all
    classes : how many the net tells apart; None where it does not say
    class_file : names one class folder a line, the first one that of label 0; None: the folders sorted by name
    skip_broken : leave out what cannot be read, where an error says it otherwise
    tell : told of progress

    Raises
    ------
    InputError
        There are not as many folders as classes, or the class file does not fit.
    DataError
        There are no pictures, or some cannot be read.
    """
    from labkit.data.folder import broken_pictures, class_folders, labelled_pictures

    names = class_folders(folder)
    labels = (
        _labels_by_sorting(folder, names, classes)
        if class_file is None
        else _labels_by_file(class_file, names, classes)
    )
    pictures, numbers = labelled_pictures(folder, labels, preprocessing, count)
    step = "Check the pictures"  # all of them before the work, which would otherwise stop at each in turn
    broken = broken_pictures(pictures.paths, lambda done: tell(step, done, len(pictures)))
    if broken and (not skip_broken or len(broken) == len(pictures)):
        first = "; ".join(f"{path} ({reason})" for path, reason in list(broken.items())[:_NAMED])
        more = f" and {len(broken) - _NAMED:,} more" if len(broken) > _NAMED else ""
        advice = "Mend or remove them" + ("." if skip_broken else ", or leave them out with --skip-broken.")
        raise DataError(f"{len(broken):,} of {len(pictures):,} pictures cannot be read: {first}{more}. {advice}")
    sound = np.array([path not in broken for path in pictures.paths])
    pictures = replace(pictures, paths=tuple(path for path in pictures.paths if path not in broken))
    numbers = numbers[sound]

    def batches() -> Iterable[tuple[NDArray[np.float32], NDArray[np.int64]]]:
        done = 0
        for x in pictures:
            yield x, numbers[done : done + len(x)]
            done += len(x)

    return Labelled(batches(), len(pictures), f"pictures of {folder}", broken)


def _labels_by_sorting(folder: Path, names: tuple[str, ...], classes: int | None) -> dict[str, int]:
    if classes is not None and len(names) != classes:
        raise InputError(
            f"{folder} has {len(names)} class folders ({names[0]}..{names[-1]}) and the net {classes} classes, so the labels "
            f"cannot be told from their order. Give --class-file FILE with one folder name a line: the first line is "
            f"label 0, and classes without a folder have their line too."
        )
    return {name: label for label, name in enumerate(names)}


def _labels_by_file(file: Path, names: tuple[str, ...], classes: int | None) -> dict[str, int]:
    try:
        lines = [line.strip() for line in file.read_text("utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"Cannot read the class file {file}: {error}. Give a text file, one folder name a line."
        ) from error
    while lines and not lines[-1]:
        lines.pop()
    if classes is not None and len(lines) > classes:
        raise InputError(f"{file} has {len(lines)} lines, and the net {classes} classes: the line number is the label.")
    labels: dict[str, int] = {}
    for label, name in enumerate(lines):
        if name in labels:
            raise InputError(f"{file} names the folder {name} twice, in lines {labels[name] + 1} and {label + 1}.")
        if name:
            labels[name] = label
    if unknown := [name for name in names if name not in labels]:
        raise InputError(
            f"{file} does not name {len(unknown)} of the class folders, the first {unknown[0]}. Add a line for each, at "
            f"the place of its label."
        )
    return {name: labels[name] for name in names}
