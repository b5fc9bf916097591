"""``labkit train``: a reference net from its first weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["train"]


def train(
    net: Annotated[str, typer.Argument(help="A reference net: lenet, resnet20, mobilenetv2-small, ...")],
    data: Annotated[str, typer.Option(help="cifar10 or mnist5k.")] = "cifar10",
    out: Annotated[Path, typer.Option(help="Folder for the weights and the recipe.")] = Path("labkit-training"),
    epochs: Annotated[int | None, typer.Option(help="Passes over the training images.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images a step.")] = None,
    schedule: Annotated[str | None, typer.Option(help="step, cosine, one-cycle or constant.")] = None,
    learning_rate: Annotated[
        float | None, typer.Option(help="The first learning rate; of one-cycle the highest.")
    ] = None,
    final_learning_rate: Annotated[float | None, typer.Option(help="The last one, except of constant.")] = None,
    momentum: Annotated[float | None, typer.Option(help="Of SGD.")] = None,
    weight_decay: Annotated[float | None, typer.Option(help="Of SGD.")] = None,
    seed: Annotated[int, typer.Option(help="Decides weights, order and augmentation.")] = 0,
    threads: Annotated[
        int | None, typer.Option(help="Threads of torch; another number gives slightly other weights.")
    ] = None,
    augment: Annotated[
        bool | None, typer.Option(help="Shift by up to 4 pixels and mirror (digits are not mirrored).")
    ] = None,
    label_smoothing: Annotated[float | None, typer.Option(help="Share of the target spread over all classes.")] = None,
    precision: Annotated[
        str | None,
        typer.Option(help="float32 or bfloat16, of the products; bfloat16 is slow on a processor without it."),
    ] = None,
    channels_last: Annotated[bool | None, typer.Option(help="Order of the numbers in memory.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda.")] = None,
    resume: Annotated[bool, typer.Option(help="Go on where an earlier run in the same folder stopped.")] = True,
    force: Annotated[bool, typer.Option("--force", help="Replace a finished training in the same folder.")] = False,
    data_dir: Annotated[Path | None, typer.Option(help="Folder in which CIFAR-10 lies.")] = None,
) -> None:
    """Train NET. What is not given follows the recipe of the shipped checkpoint."""
    from rich.console import Console

    from labkit.data import load
    from labkit.errors import InputError
    from labkit.files import folder_for
    from labkit.models import default_recipe
    from labkit.models.training import train as train_net

    if data == "auto":
        raise InputError("Training needs one data set by name: --data cifar10 or --data mnist5k.")
    given = {
        "epochs": epochs,
        "batch_size": batch_size,
        "schedule": schedule,
        "learning_rate": learning_rate,
        "final_learning_rate": final_learning_rate,
        "momentum": momentum,
        "weight_decay": weight_decay,
        "threads": threads,
        "augment": augment,
        "label_smoothing": label_smoothing,
        "precision": precision,
        "channels_last": channels_last,
        "device": device,
    }
    changed = {name: value for name, value in given.items() if value is not None}
    recipe = replace(default_recipe(net, data), seed=seed, **changed)  # type: ignore[arg-type]
    console = Console()
    with folder_for(out):  # found out before the data are fetched
        images = load(data, data_dir=data_dir)
        result = train_net(recipe, images, out, resume=resume, force=force, console=console)
    if result is not None:
        found = "Already there, by the same recipe (--force trains again): test" if result.already_there else "Test"
        files = f"Weights: {result.weights_file}, recipe: {result.recipe_file}"
        console.print(
            f"{found} accuracy {result.test_accuracy:.2f} %. {files}",
            highlight=False,
            soft_wrap=True,
            markup=False,
        )
