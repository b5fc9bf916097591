"""``labkit card``: what a network is made of, what its bit plans cost, and what they keep of its accuracy."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from labkit.cli.pictures import ImageSize, Mean, PictureOptions, Preset, Resize, Std

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import nn

    from labkit.cli.labelled import Labelled

__all__ = ["card"]


def card(
    model: Annotated[
        str,
        typer.Argument(help="A shipped net (lenet, ...), module:callable of your own, or torchvision.models:resnet18."),
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for the card: NAME.md, NAME.svg and NAME.json.")],
    data: Annotated[str, typer.Option(help="Images: auto, cifar10, mnist5k, an .npy file, or a folder.")] = "auto",
    weights: Annotated[
        Path | None,
        typer.Option(help="A .safetensors or .pth file to fill the model with, or DEFAULT for a torchvision model."),
    ] = None,
    labelled: Annotated[
        bool | None,
        typer.Option(
            help="Measure the accuracy; a folder then has one folder a class. Else: where the data are shipped."
        ),
    ] = None,
    class_file: Annotated[
        Path | None,
        typer.Option(help="One class folder name a line, the first line is label 0: for a part of the classes."),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Of the card; else the model's.")] = None,
    images: Annotated[int | None, typer.Option(help="Labelled images for the accuracy; else all.", min=1)] = None,
    calibration: Annotated[int, typer.Option(help="How many images choose the ranges.", min=1)] = 512,
    calibration_data: Annotated[
        str | None,
        typer.Option(help="Where these come from; else --data, and of a folder some may be measured on too."),
    ] = None,
    measured: Annotated[int, typer.Option(help="How many images the error of each layer is measured on.", min=1)] = 64,
    certified: Annotated[int, typer.Option(help="How many of these are compared with PyTorch.", min=1)] = 16,
    preprocessing: Preset = None,
    image_size: ImageSize = None,
    resize: Resize = None,
    mean: Mean = None,
    std: Std = None,
    data_dir: Annotated[Path | None, typer.Option(help="Folder in which CIFAR-10 lies.")] = None,
) -> None:
    """Measure MODEL under four bit plans: shapes, costs, accuracy, error by layer, certificate."""
    import json
    import shlex
    import sys

    import numpy as np
    from rich.console import Console

    from labkit import data as data_sets
    from labkit.cli.labelled import from_class_folders, from_data_set
    from labkit.cli.pictures import preset_of_model
    from labkit.cli.progress import progress_bars
    from labkit.cli.sentences import refuse_sentences
    from labkit.cli.sources import find_images, find_module
    from labkit.data.preprocessing import PRESETS
    from labkit.errors import InputError
    from labkit.files import folder_for, write_atomically
    from labkit.reporting.cards.measure import CardData, measure
    from labkit.reporting.cards.plot import sqnr_figure
    from labkit.reporting.cards.text import card_text

    refuse_sentences(model, "card")
    console = Console()
    options = PictureOptions(preprocessing, image_size, resize, mean, std)
    trained_on = data_sets.resolve(data, data_dir)
    shipped = data in data_sets.names()
    if shipped:
        options.refuse_for(data)
    chosen = options.chosen((None if shipped else preset_of_model(model, weights)) or PRESETS["labkit"])
    title = name or (model.rpartition(":")[2] if ":" in model else f"{model}-{trained_on}")
    if Path(title).name != title or title in ("", ".", ".."):
        raise InputError(f"--name is the name of files in --out, without a folder, got {title!r}.")
    with folder_for(out) as folder, progress_bars(console) as tell:
        module = find_module(model, weights, trained_on)
        seen = find_images(calibration_data or data, data_dir, calibration, chosen, "train")
        shown = np.concatenate(list(find_images(data, data_dir, measured, chosen, "test")))
        graded: Labelled | None = None
        if labelled or (labelled is None and shipped):
            classes = _classes(module, shown[:1])
            graded = (
                from_data_set(data, data_dir, images, classes, None)
                if shipped
                else from_class_folders(Path(data), chosen, images, classes, class_file, False, tell)
            )
        source = f"test images of {trained_on}" if shipped else f"pictures of {Path(data).name}"
        if not shipped and calibration_data is None:
            source += ", some of which may have chosen the ranges too"
        found = measure(
            title,
            module,
            CardData(
                source, seen, len(seen), shown, certified,
                None if graded is None else graded.batches, 0 if graded is None else graded.count,
                "labels were not asked for",
            ),
            weights=_words(model, weights, trained_on),
            command=shlex.join(["labkit", *sys.argv[1:]]),
            progress=tell,
        )  # fmt: skip
        text = json.dumps(found.to_json(), indent=1, allow_nan=False) + "\n"
        page = card_text(found, f"{title}.svg", level=1)
        for suffix, content in (("json", text), ("svg", sqnr_figure(found)), ("md", page)):
            write_atomically(folder / f"{title}.{suffix}", content)
    for plan in found.plans:
        accuracy = "" if plan.accuracy is None else f"{plan.accuracy:.2f} % right ({plan.change:+.2f}), "
        console.print(
            f"{plan.name}: {plan.size_bytes:,} bytes, {accuracy}median SQNR {plan.median_sqnr_db:.1f} dB, "
            f"{plan.certificate.differing:,} of {plan.certificate.elements:,} elements differ",
            highlight=False, soft_wrap=True, markup=False,
        )  # fmt: skip
    console.print(f"The card: {folder / title}.md", highlight=False, soft_wrap=True, markup=False)
    if any(plan.certificate.differing for plan in found.plans):
        raise typer.Exit(1)


def _classes(module: nn.Module, image: NDArray[np.float32]) -> int | None:
    """How many classes ``module`` tells apart; None where it puts out something else, or refuses ``image`` [1, ...]."""
    import torch

    try:
        with torch.inference_mode():
            scores = module(torch.from_numpy(image))
    except (RuntimeError, ValueError):
        return None  # measuring says what is wrong
    return scores.shape[1] if isinstance(scores, torch.Tensor) and scores.ndim == 2 else None


def _words(model: str, weights: Path | None, trained_on: str) -> str:
    """Where the weights of ``model`` come from."""
    if weights is not None:
        return f"{model}, filled from {weights.name}"
    return f"{model}, as it is made" if ":" in model else f"{model}, trained by labkit on {trained_on}"
