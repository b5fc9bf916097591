"""The reference nets by name: built, filled with trained weights, and what their recipes say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from labkit.errors import ModelError
from labkit.models.recipes import data_for, default_recipe

if TYPE_CHECKING:
    from torch import nn

__all__ = ["CHECKPOINTS", "MINILM", "build", "load", "recipe"]

_SPEECH = ("quartznet", "fsdd")  # has a training, features and a record of its own: see quartznet.py

MINILM = "minilm"
"""The name of the pretrained sentence encoder, whose weights an extra brings."""

CHECKPOINTS = Path(__file__).with_name("checkpoints")


def build(name: str = "lenet") -> nn.Module:
    """Make the net ``name`` with fresh weights from torch's generator, in training mode.

    Its forward takes float32 [N, 3, 32, 32] in [-1, 1] and returns logits, float32 [N, 10].

    Raises
    ------
    ModelError
        There is no net of that name.
    """
    data_for(name)
    if name == "resnet20":
        from labkit.models.resnet import ResNet20

        return ResNet20()
    if name == "mobilenetv2-small":
        from labkit.models.mobilenet import MobileNetV2Small

        return MobileNetV2Small()
    from labkit.models.lenet import LeNet

    return LeNet(last_bias="bias" in name)


def load(name: str = "lenet", data: str = "cifar10", weights: str | Path | None = None) -> nn.Module:
    """Load a trained reference net, in evaluation mode.

    Parameters
    ----------
    name
        One of `labkit.models.names()`, or ``quartznet``, which reads spoken digits, or ``minilm``, which reads sentences.
    data
        The data set that it was trained on, ``cifar10`` or ``mnist5k``; of ``quartznet`` it is ``fsdd``; of ``minilm`` nothing is
        looked at.
    weights
        A file with other weights for the same net, .safetensors as `labkit train` writes it, or PyTorch's own format.
        None: the shipped one.

    Returns
    -------
    A module that takes float32 [N, 3, 32, 32] in [-1, 1] and returns logits, float32 [N, 10]. ``quartznet`` takes log-mel
    features, float32 [N, 40, T] (`labkit.data.log_mel`), and returns float32 [N, 11, (T + 1) // 2]. ``minilm`` is that of
    `labkit.models.sentence_encoder.load_minilm`.

    Raises
    ------
    ModelError
        There is no such net, or the weights cannot be read, do not fit it, or hold a NaN or an infinity; or the extra that brings
        those of ``minilm`` is not installed.
    """
    if name == MINILM:
        from labkit.models.sentence_encoder import load_minilm

        if weights is not None:
            raise ModelError(f"{name} comes with its own weights, in the extra labkit[text]: leave out {weights}.")
        return load_minilm()
    if (name, data) == _SPEECH:
        from labkit.models.quartznet import load_quartznet

        return load_quartznet(weights)
    known = default_recipe(name, data)
    from labkit.models.weights import fill, read_weights

    if weights is None:
        path = CHECKPOINTS / f"{known.network}-{known.data}.safetensors"
        tensors = read_weights(path, sha256=recipe(name, data)["sha256"])
    else:
        from labkit.models.weights_files import read_tensors

        path = Path(weights)
        tensors = read_tensors(path)
    from torch.random import fork_rng

    with fork_rng(devices=[]):  # the first weights, which are replaced, are no reason to move the caller's generator
        module = build(name)
    fill(module, tensors, f"{path}, weights for {name}")
    return module.eval()


def recipe(name: str = "lenet", data: str = "cifar10") -> dict[str, Any]:
    """How the shipped weights of ``name`` on ``data`` were made.

    Returns
    -------
    ``command``, ``recipe`` (every number), ``test_accuracy`` in per cent, ``sha256`` of the weights file, ``versions``,
    ``mean_training_loss`` by epoch, ``seconds``. ``quartznet`` has a ``word_error_rate`` in place of the accuracy.

    Raises
    ------
    ModelError
        There is no such net, or its recipe file is missing or damaged.
    """
    if (name, data) == _SPEECH:
        from labkit.models.quartznet import quartznet_recipe

        return quartznet_recipe()
    known = default_recipe(name, data)
    path = CHECKPOINTS / f"{known.network}-{known.data}.json"
    try:
        content: dict[str, Any] = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(
            f"The recipe of {name} on {data} cannot be read from {path}: {error}. "
            f"Install labkit again: the file belongs to the package."
        ) from error
    return content
