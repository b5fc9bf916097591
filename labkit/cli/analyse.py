"""The options ``--analyse...`` of ``labkit quantize``: the accumulators of the network that was just made."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from labkit.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console

    from labkit.cli.sources import Images
    from labkit.data.preprocessing import Preprocessing
    from labkit.net import IntegerNet

__all__ = ["Seen", "Wanted", "show"]

_BATCH = 256  # images that are made real numbers at a time


@dataclass(frozen=True, eq=False)
class Seen:
    """Images to analyse a network on.

    batches : arrays [N, ...] in the net's own type, a dict of them by input name, or an iterable of these, gone through once.
    count : images in all of them.
    source : which they are, in words.
    """

    batches: Iterable[NDArray[np.float32]] | NDArray[Any] | dict[str, NDArray[Any]]
    count: int
    source: str


@dataclass(frozen=True)
class Wanted:
    """What the user asked for; each of the later options asks for the tables too.

    tables : print them.
    images : so many test images, or None for the calibration images.
    json_file, plot_file : what to write, or None.

    Raises
    ------
    InputError
        The figure is neither .svg nor .png.
    """

    tables: bool
    images: int | None
    json_file: Path | None
    plot_file: Path | None

    def __post_init__(self) -> None:
        if self.plot_file is not None and self.plot_file.suffix not in (".svg", ".png"):
            raise InputError(f"--analyse-plot draws a .svg or a .png file, got {self.plot_file.name}.")

    def files_beside(self, output: Path) -> tuple[Path, ...]:
        """The files to write beside the network's, ``output``.

        Raises
        ------
        InputError
            Two of them are one file.
        """
        files = tuple(path for path in (self.json_file, self.plot_file) if path is not None)
        if len({path.resolve() for path in (output, *files)}) <= len(files):
            raise InputError(
                "The network, its analysis and its figure need a file each: "
                f"{', '.join(str(path) for path in (output, *files))} are not all different."
            )
        return files

    def find(self, data: str, data_dir: Path | None, preprocessing: Preprocessing, calibration: Images) -> Seen | None:
        """The images to analyse on, or None where no analysis is wanted.

        Parameters
        ----------
        data, data_dir : as the options of ``labkit quantize``
        preprocessing : of the pictures in a folder
        calibration : the images that choose the ranges

        Raises
        ------
        InputError
            There are not so many test images.
        DataError
            The data cannot be had.
        """
        from labkit import data as data_sets
        from labkit.cli.sources import find_images

        if not (self.tables or self.json_file or self.plot_file or self.images):
            return None
        shipped = data in data_sets.names()
        if self.images is None:
            name = data_sets.resolve(data, data_dir) if shipped else data
            return Seen(calibration, len(calibration), f"calibration images of {name}")
        if not shipped:
            images = find_images(data, data_dir, self.images, preprocessing, "test")
            which = "pictures" if Path(data).is_dir() else "the first images"
            return Seen(images, len(images), f"{which} of {data}")
        loaded = data_sets.load(data, data_dir=data_dir)
        if self.images > len(loaded.test_images):
            raise InputError(
                f"--analyse-images must be in 1..{len(loaded.test_images)}, the test images of {loaded.name}, "
                f"got {self.images}."
            )
        pixels = loaded.test_images[: self.images]
        batches = (data_sets.normalise(pixels[at : at + _BATCH]) for at in range(0, len(pixels), _BATCH))
        return Seen(batches, len(pixels), f"test images of {loaded.name}")


def show(console: Console, net: IntegerNet, wanted: Wanted, seen: Seen | None) -> None:
    """Analyse ``net`` under a progress bar, print on ``console`` and write what is ``wanted``.

    ``seen`` are the images to run, or None for what holds for all of them.
    """
    import json

    from labkit.cli.progress import progress_bars
    from labkit.files import write_atomically
    from labkit.reporting.accumulators.analyse import analyse
    from labkit.reporting.accumulators.tables import analysis_tables, ledger_table

    if seen is None:
        found = analyse(net)
    else:
        with progress_bars(console) as tell:
            found = analyse(net, seen.batches, seen.source, lambda done: tell("Analyse", done, seen.count))
    console.print(analysis_tables(found))
    console.print(ledger_table(found))
    if wanted.json_file is not None:
        write_atomically(wanted.json_file, json.dumps(found.to_json(), indent=1, allow_nan=False) + "\n")
    if wanted.plot_file is not None:
        from labkit.reporting.accumulators.plot import bits_figure

        write_atomically(wanted.plot_file, bits_figure(found, wanted.plot_file.suffix[1:]))
