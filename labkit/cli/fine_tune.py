"""``labkit fine-tune``: quantization-aware training, from a trained network to a verified integer one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["fine_tune"]

_VERIFIED = 100  # test images that the certificate looks at


def fine_tune(
    model: Annotated[str, typer.Argument(help="A shipped net (lenet, ...), or module:callable of your own.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The .lab file to write.")],
    data: Annotated[str, typer.Option(help="Labelled training images: cifar10, mnist5k, or auto.")] = "cifar10",
    weights_file: Annotated[
        Path | None, typer.Option("--weights", help="A .safetensors or .pth file to fill the model with.")
    ] = None,
    save_weights: Annotated[
        Path | None,
        typer.Option(help="Where the fine-tuned float weights go; by default beside the .lab file, as .safetensors."),
    ] = None,
    weight_bits: Annotated[int | None, typer.Option("-w", "--weight-bits", help="1..8; 4 if it is not given.")] = None,
    activation_bits: Annotated[
        int | None, typer.Option("-a", "--activation-bits", help="2..8; 4 if it is not given.")
    ] = None,
    plan: Annotated[
        Path | None, typer.Option(help="A bit plan in JSON, as `labkit quantize --write-plan` writes it.")
    ] = None,
    recipe: Annotated[
        str, typer.Option(help="labkit, mpqco, jacob, pact or lsq; the options below change it.")
    ] = "labkit",
    epochs: Annotated[int | None, typer.Option(help="Passes over the training images.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images a step.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="The highest one; it falls along a cosine.")] = None,
    optimizer: Annotated[str | None, typer.Option(help="adam or sgd.")] = None,
    weight_scales: Annotated[str | None, typer.Option(help="minmax or learned.")] = None,
    activation_scales: Annotated[str | None, typer.Option(help="ema, learned or pact.")] = None,
    freeze_at: Annotated[
        float | None, typer.Option(help="Share of the steps after which batch norms are frozen and folded.")
    ] = None,
    distillation: Annotated[
        float | None, typer.Option(help="Share of the loss that compares with the float network, 0..1.")
    ] = None,
    start: Annotated[str | None, typer.Option(help="nearest or best.")] = None,
    precision: Annotated[
        str | None,
        typer.Option(help="float32 or bfloat16, of the products; bfloat16 is slow on a processor without it."),
    ] = None,
    images: Annotated[int | None, typer.Option(help="Only the first so many training images.", min=1)] = None,
    seed: Annotated[int, typer.Option(help="Decides order, augmentation and start.", min=0)] = 0,
    threads: Annotated[int | None, typer.Option(help="Threads of torch.", min=1)] = None,
    resume: Annotated[bool, typer.Option(help="Go on where an earlier run for the same OUTPUT was stopped.")] = True,
    data_dir: Annotated[Path | None, typer.Option(help="Folder in which CIFAR-10 lies.")] = None,
) -> None:
    """Fine-tune MODEL with rounded weights and activations, and write the integer network and the new weights."""
    from dataclasses import replace

    from rich.console import Console
    from safetensors.torch import save

    from labkit import data as data_sets
    from labkit.cli.progress import progress_bars
    from labkit.cli.sentences import refuse_sentences
    from labkit.cli.sources import find_module
    from labkit.errors import InputError
    from labkit.files import folder_of, write_atomically
    from labkit.frontends.torch_fx import from_torch
    from labkit.graph.passes import simplify
    from labkit.models.training import accuracy
    from labkit.parity.compare import verify
    from labkit.quantization.plan import BitPlan
    from labkit.quantization.qat.options import recipe as named_recipe
    from labkit.quantization.qat.train import fine_tune as train

    refuse_sentences(model, "fine-tune")
    if data not in data_sets.names():
        raise InputError(
            f"Fine-tuning needs labelled training images: --data {' or '.join(data_sets.names())}, got {data!r}. For images "
            f"of your own call labkit.quantization.qat.train.fine_tune with arrays."
        )
    if plan is not None and (weight_bits, activation_bits) != (None, None):
        raise InputError("A plan says all about bits: give either --plan, or -w and -a.")
    trained_on = data_sets.resolve(data, data_dir)
    given = {
        "epochs": epochs,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "optimizer": optimizer,
        "weight_scales": weight_scales,
        "activation_scales": activation_scales,
        "freeze_at": freeze_at,
        "distillation": distillation,
        "start": start,
        "precision": precision,
        "threads": threads,
    }
    changed = {name: value for name, value in given.items() if value is not None}
    options = replace(named_recipe(recipe), seed=seed, mirror=trained_on == "cifar10", **changed)  # type: ignore[arg-type]
    weights_out = save_weights or output.with_suffix(".safetensors")
    for path in (output, weights_file):
        if path is not None and weights_out.resolve() == path.resolve():
            raise InputError(
                f"The new weights would replace {path}. Say where they go instead: --save-weights FILE.safetensors."
            )
    progress_file = output.with_suffix(".progress.safetensors")
    console = Console()
    with folder_of(output), folder_of(weights_out):  # found out before the work
        if not resume:
            progress_file.unlink(missing_ok=True)
        loaded = data_sets.load(trained_on, data_dir=data_dir)
        module = find_module(model, weights_file, trained_on)
        x, labels = loaded.train()
        graph = simplify(from_torch(module, x.shape[1:]))
        bits = (
            BitPlan.load(plan) if plan is not None else BitPlan.uniform(graph, weight_bits or 4, activation_bits or 4)
        )
        if images is not None and images > len(x):
            raise InputError(f"{loaded.name} has {len(x):,} training images, got --images {images}.")
        with progress_bars(console) as tell:
            result = train(
                module,
                x[:images],
                labels[:images],
                bits,
                options,
                progress_file=progress_file,
                progress=tell,
                after_epoch=lambda number, epoch: console.print(
                    f"epoch {number}/{options.epochs}: loss {epoch.loss:.4f}, training images right "
                    f"{epoch.accuracy:.2f} %, {epoch.seconds:.0f} s",
                    highlight=False,
                ),
            )
            assert result is not None
            net = result.to_net(data=loaded.name, recipe=recipe)
            net.save(output)
            write_atomically(
                weights_out, save({name: one.contiguous() for name, one in result.module.state_dict().items()})
            )
            test, truth = loaded.test()
            tell("Test", 0, 1)
            right = 100 * float((net.run(test).argmax(1) == truth).mean())
            before = accuracy(module, loaded.test_images, loaded.test_labels)
            tell("Test", 1, 1)
            report = verify(net, result.module, test[:_VERIFIED])
    console.print(str(report), highlight=False, soft_wrap=True, markup=False)
    console.print(
        f"{len(test):,} test images: float network {before:.2f} %, fine-tuned integers {right:.2f} % ({right - before:+.2f}).\n"
        f"Integer network: {output}; float weights: {weights_out}. To verify again:\n"
        f"labkit verify {output} --model {model} --weights {weights_out}",
        highlight=False,
        soft_wrap=True,
        markup=False,
    )
    if not report.passed:
        raise typer.Exit(1)
