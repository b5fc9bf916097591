"""``labkit accuracy``: how many labelled images an integer network gets right, beside the float one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from labkit.cli.pictures import ImageSize, Mean, PictureOptions, Preset, Resize, Std

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from rich.console import Console
    from torch import nn

    from labkit.cli.labelled import Labelled
    from labkit.net import IntegerNet

__all__ = ["accuracy"]

_NAMED = 10  # of the pictures that were left out, how many are printed; the JSON file has them all


def accuracy(
    net: Annotated[Path, typer.Argument(help="A .lab file.")],
    data: Annotated[
        str | None,
        typer.Option(
            help="A folder with one folder a class, or cifar10 or mnist5k; else what the net's notes name. Of a sentence encoder "
            "stsb."
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="The float model to compare with; else the shipped net that the notes name."),
    ] = None,
    weights: Annotated[
        Path | None,
        typer.Option(help="A .safetensors or .pth file to fill the model with, or DEFAULT for a torchvision model."),
    ] = None,
    images: Annotated[
        int | None,
        typer.Option(
            help="How many images, of a folder evenly spread; or pairs of sentences. All where not given.", min=1
        ),
    ] = None,
    class_file: Annotated[
        Path | None,
        typer.Option(help="One class folder name a line, the first line is label 0: for a part of the classes."),
    ] = None,
    skip_broken: Annotated[
        bool, typer.Option("--skip-broken", help="Leave out pictures that cannot be read, and count them.")
    ] = False,
    preprocessing: Preset = None,
    image_size: ImageSize = None,
    resize: Resize = None,
    mean: Mean = None,
    std: Std = None,
    kernels: Annotated[str, typer.Option(help="numba or reference.")] = "numba",
    threads: Annotated[int, typer.Option(min=1, help="Threads of the numba kernels.")] = 1,
    data_dir: Annotated[Path | None, typer.Option(help="Folder in which CIFAR-10 lies.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures to this file.")] = None,
) -> None:
    """Measure the accuracy of NET on labelled images, and the change against the float network on the same images.

    Of a sentence encoder: Spearman's correlation with people's scores of pairs of sentences.
    """
    import json
    from contextlib import nullcontext

    from rich.console import Console

    from labkit import data as data_sets
    from labkit.cli.labelled import from_class_folders, from_data_set
    from labkit.cli.likeness import show_likeness
    from labkit.cli.pictures import default_for_net
    from labkit.cli.progress import progress_bars
    from labkit.cli.sentences import reads_sentences
    from labkit.cli.sources import find_module, float_source
    from labkit.errors import InputError
    from labkit.files import folder_of, write_atomically
    from labkit.net import load
    from labkit.reporting.accuracy import accuracies_table, measure

    console = Console()
    options = PictureOptions(preprocessing, image_size, resize, mean, std)
    with nullcontext() if json_file is None else folder_of(json_file):
        integer_net = load(net)
        if reads_sentences(integer_net):
            _refuse_for_sentences(model, weights, class_file, skip_broken, options)
            show_likeness(
                console, integer_net, net, data, images, data_dir, json_file, kernels=kernels, threads=threads
            )
            return
        classes = _classes(integer_net, net)
        chosen = data or _data_in_notes(integer_net, net)
        shipped = chosen in data_sets.names()
        if shipped:
            options.refuse_for(chosen)
            if class_file is not None:
                raise InputError(f"--class-file is for folders of pictures; {chosen} has its labels with it.")
        used = None if shipped else options.chosen(default_for_net(integer_net, model, weights))
        shape = integer_net.graph[integer_net.graph.inputs[0]].output.shape
        if used is not None and shape != (3, used.crop, used.crop):
            raise InputError(
                f"{net} takes images of shape {shape}, and pictures are brought to {(3, used.crop, used.crop)}: give the side "
                f"that the net was made for, --image-size {shape[-1]}."
            )
        source = float_source(integer_net, model, data_dir)
        name = source.name
        module = None if name is None else find_module(name, weights, source.trained_on)
        with progress_bars(console) as tell:
            if used is None:
                found = from_data_set(chosen, data_dir, images, classes, None if data else False)
            else:
                found = from_class_folders(Path(chosen), used, images, classes, class_file, skip_broken, tell)

            def run(x: NDArray[Any]) -> Any:
                return integer_net.run(x, kernels=kernels, threads=threads)

            reference = None if module is None else _scores_of(module)
            result = measure(
                found.batches, run, reference, lambda done: tell("Measure the accuracy", done, found.count)
            )
        _say_what_was_used(console, net, integer_net, found, None if used is None else str(used), name, module)
        console.print(accuracies_table(result))
        if json_file is not None:
            content = {
                "net": net.name,
                "data": chosen,
                "float_network": name,
                "float_parameters_are_those_quantized": None
                if module is None
                else _is_what_was_quantized(integer_net, module),
                **result.to_json(),
                "preprocessing": None if used is None else used.to_json(),
                "broken": [{"file": str(path), "reason": reason} for path, reason in found.broken.items()],
            }
            write_atomically(json_file, json.dumps(content, indent=1, allow_nan=False) + "\n")


def _refuse_for_sentences(
    model: str | None, weights: Path | None, class_file: Path | None, skip_broken: bool, pictures: PictureOptions
) -> None:
    from labkit.errors import InputError
    from labkit.models.zoo import MINILM

    if model not in (None, MINILM) or weights is not None:
        raise InputError(f"A sentence encoder is measured beside the float {MINILM}: leave out --model and --weights.")
    if class_file is not None or skip_broken or pictures.given:
        raise InputError(
            "The net reads sentences: leave out what is for pictures (--class-file, --skip-broken, --preprocessing, "
            "--image-size, --resize, --mean, --std)."
        )


def _classes(net: IntegerNet, file: Path) -> int | None:
    """How many classes ``net`` tells apart, or None where it ends in an argmax."""
    from math import prod

    from labkit.errors import InputError

    graph = net.graph
    outputs = [graph[name].output for name in graph.outputs]
    shape = outputs[0].shape
    is_class = outputs[0].is_index and prod(shape) == 1
    if len(outputs) != 1 or not (is_class or (shape and prod(shape) == shape[0] and not outputs[0].is_index)):
        shapes = ", ".join(str(("N", *output.shape)) for output in outputs)
        raise InputError(f"Accuracy needs one score a class, (N, classes), and {file} puts out {shapes}.")
    return None if is_class else shape[0]


def _data_in_notes(net: IntegerNet, file: Path) -> str:
    """The data that the net was trained on, else those that it was calibrated on where they can have labels."""
    from labkit import data as data_sets
    from labkit.errors import InputError

    for key in ("trained_on", "data"):
        noted = net.graph.notes.get(key)
        if isinstance(noted, str) and (noted in data_sets.names() or Path(noted).is_dir()):
            return noted
    raise InputError(
        f"{file} does not say which labelled images it is for: give some, --data DIR with one folder a class."
    )


def _scores_of(module: nn.Module) -> Any:
    import torch

    from labkit.errors import ModelError

    def scores(x: NDArray[Any]) -> NDArray[Any]:
        with torch.inference_mode():
            try:
                found = module(torch.from_numpy(x))
            except (RuntimeError, ValueError) as error:
                raise ModelError(
                    f"The float network {type(module).__name__} does not take images of shape {x.shape}: "
                    f"{' '.join(str(error).split())[:150]}. Give the network that was quantized."
                ) from error
        if not isinstance(found, torch.Tensor):
            raise ModelError(
                f"The float network {type(module).__name__} returns a {type(found).__name__}, not a tensor."
            )
        array: NDArray[Any] = found.numpy()
        return array

    return scores


def _is_what_was_quantized(net: IntegerNet, module: nn.Module) -> bool:
    """Whether ``module`` has the parameters that ``net`` was made from; True where the net does not say."""
    from labkit.frontends.torch_fx import parameters_digest

    return net.graph.notes.get("parameters_sha256") in (None, parameters_digest(module))


def _say_what_was_used(
    console: Console,
    file: Path,
    net: IntegerNet,
    found: Labelled,
    preprocessing: str | None,
    name: str | None,
    module: nn.Module | None,
) -> None:
    from functools import partial

    say = partial(console.print, highlight=False, soft_wrap=True, markup=False)
    how = "" if preprocessing is None else f": {preprocessing}"
    say(f"{file} on {found.count:,} {found.source}{how}.")
    if module is None:
        say("No float model is given, so there is nothing to compare with: see --model.")
    else:
        if not _is_what_was_quantized(net, module):
            say(f"The parameters of {name} are not those that were quantized: other weights?")
    if found.broken:
        total = found.count + len(found.broken)
        say(f"{len(found.broken):,} of {total:,} pictures cannot be read and were left out:")
        for path, reason in list(found.broken.items())[:_NAMED]:
            say(f"  {path}: {reason}")
        if len(found.broken) > _NAMED:
            say(f"  and {len(found.broken) - _NAMED:,} more (--json has them all)")
