"""The options that say what is done to pictures before a network sees them, the same for every command."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from labkit.errors import InputError

if TYPE_CHECKING:
    from labkit.data.preprocessing import Preprocessing
    from labkit.net import IntegerNet

__all__ = ["ImageSize", "Mean", "PictureOptions", "Preset", "Resize", "Std", "default_for_net", "preset_of_model"]

Preset = Annotated[
    str | None,
    typer.Option(
        "--preprocessing",
        help="Of the pictures in a folder: labkit (32 px, [-1, 1]) or imagenet (256 px, middle 224). "
        "Not given: a torchvision net's own, else labkit.",
    ),
]
ImageSize = Annotated[
    int | None, typer.Option(help="Side in pixels of what is cut out of a picture; the resize keeps its ratio.", min=1)
]
Resize = Annotated[
    int | None, typer.Option(help="Shorter side in pixels of a picture before it is cropped; 0: as it is.", min=0)
]
Mean = Annotated[str | None, typer.Option(help="Of red, green and blue in 0..1: 0.485,0.456,0.406, or one for all.")]
Std = Annotated[str | None, typer.Option(help="Of red, green and blue: 0.229,0.224,0.225, or one for all.")]


@dataclass(frozen=True)
class PictureOptions:
    """What the user said of ``--preprocessing``, ``--image-size``, ``--resize``, ``--mean`` and ``--std``."""

    preset: str | None
    image_size: int | None
    resize: int | None
    mean: str | None
    std: str | None

    @property
    def given(self) -> bool:
        """Whether any of them was."""
        return any(value is not None for value in (self.preset, self.image_size, self.resize, self.mean, self.std))

    def chosen(self, default: Preprocessing) -> Preprocessing:
        """``default``, or the named preset in its place, with what was given changed.

        Raises
        ------
        InputError
            There is no such preset, or a value makes no sense.
        """
        from labkit.data.preprocessing import PRESETS

        if self.preset is not None and self.preset not in PRESETS:
            raise InputError(f"--preprocessing must be one of {', '.join(PRESETS)}, got {self.preset!r}.")
        result = default if self.preset is None else PRESETS[self.preset]
        if self.image_size is not None:
            result = result.resized_to(self.image_size)
        changed: dict[str, Any] = {}
        if self.resize is not None:
            changed["resize"] = self.resize or None
        if self.mean is not None:
            changed["mean"] = _channels("--mean", self.mean)
        if self.std is not None:
            changed["std"] = _channels("--std", self.std)
        return replace(result, **changed)

    def refuse_for(self, data: str) -> None:
        """Raise where any is given for ``data``, a shipped data set.

        Raises
        ------
        InputError
            One is given.
        """
        if self.given:
            raise InputError(
                f"{data} holds images of 32 x 32 pixels in [-1, 1] as they are: --preprocessing, --image-size, --resize, --mean "
                f"and --std are for folders of pictures. Leave them out, or give a folder."
            )


def preset_of_model(model: str | None, weights: Path | None) -> Preprocessing | None:
    """The preprocessing that torchvision has for ``model`` with ``weights``, as those options are given; else None."""
    if model is None or ":" not in model:
        return None
    from labkit.models.brought import preprocessing_of

    return preprocessing_of(model, weights)


def default_for_net(net: IntegerNet, model: str | None, weights: Path | None) -> Preprocessing:
    """What ``net`` was quantized with, by its notes; else the preset of ``model`` with ``weights``; else labkit's.

    Raises
    ------
    InputError
        The notes do not hold a preprocessing.
    """
    from labkit.data.preprocessing import PRESETS, Preprocessing

    graph = net.graph
    saved = graph.notes.get("preprocessing")
    if isinstance(saved, Mapping):
        return Preprocessing.from_json(saved)
    side = (graph[graph.inputs[0]].output.shape or (1,))[-1]
    return preset_of_model(model, weights) or PRESETS["labkit"].resized_to(side)


def _channels(option: str, text: str) -> tuple[float, ...]:
    try:
        values = tuple(float(word) for word in text.split(","))
    except ValueError:
        values = ()
    if len(values) not in (1, 3):
        raise InputError(f"{option} takes one number, or three with commas between: 0.485,0.456,0.406, got {text!r}.")
    return values * 3 if len(values) == 1 else values
