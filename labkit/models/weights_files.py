"""Weights in a user's own file, safetensors or PyTorch's format, made to fit a module. Nothing in a file is executed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import nn

from labkit.errors import ModelError
from labkit.models.weights import fill, read_weights

__all__ = ["AUXILIARY_HEADS", "fill_from", "read_tensors"]

# Heads of torchvision's Inception3 and GoogLeNet that help training and are not part of the network afterwards.
AUXILIARY_HEADS = ("AuxLogits", "aux1", "aux2")

# Under which key a training script keeps the tensors beside its epoch and optimizer, the most usual first.
_WRAPPERS = ("state_dict", "model_state_dict", "model")
_PREFIXES = ("module.", "_orig_mod.")  # of torch.nn.DataParallel, and of torch.compile
_TORCH_BEGINNINGS = (b"PK\x03\x04", b"\x80")  # the zip archive of torch 1.6 and later, and the pickle of before
_ADVICE = "Save the tensors alone: torch.save(module.state_dict(), 'weights.pth')."


def read_tensors(path: str | Path) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors or PyTorch file by name, of the shapes and dtypes that the file declares.

    A file of ``torch.save`` is read with ``weights_only=True``: an unpickler that makes tensors and plain values and calls
    nothing else, so that no code in the file runs. Of ``{"state_dict": ...}`` (or ``model_state_dict``, ``model``) the
    inner dict is taken.

    Raises
    ------
    ModelError
        The file is missing, damaged, of another format, or holds something else than tensors by name.
    """
    file = Path(path)
    try:
        with file.open("rb") as stream:
            beginning = stream.read(4)
    except OSError as error:
        raise ModelError(
            f"Cannot read the weights {path}: {error.strerror or error}. Give a .safetensors file, as `labkit train` writes "
            f"it, or a .pth file of torch.save."
        ) from error
    if file.suffix == ".safetensors" or not beginning.startswith(_TORCH_BEGINNINGS):
        return read_weights(file)
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged archive raises whatever its reader met
        raise ModelError(f"The weights {path} cannot be read as tensors: {_reason(error)} {_ADVICE}") from error
    for key in _WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
            break
    return _checked(content, path)


def fill_from(module: nn.Module, tensors: dict[str, torch.Tensor], what: str) -> None:
    """Fill ``module`` as `weights.fill` does, after what usually differs between files of one network is evened out.

    The prefix that DataParallel or torch.compile puts before all names is taken off; tensors of an auxiliary head that the
    module was made without are left out; counters of batches, which older versions of PyTorch did not save, stay as they
    are: neither takes part in evaluation.

    Parameters
    ----------
    module
        Changed in place.
    tensors
        By name, each of the shape and kind of dtype that ``module.state_dict()`` has.
    what
        What an error calls the weights.

    Raises
    ------
    ModelError
        As `weights.fill`.
    """
    wanted = module.state_dict()
    for prefix in _PREFIXES:
        if all(name.startswith(prefix) for name in tensors) and not all(name.startswith(prefix) for name in wanted):
            tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    left_out = tuple(f"{head}." for head in AUXILIARY_HEADS if getattr(module, head, module) is None)
    fitting = {name: tensor for name, tensor in tensors.items() if name in wanted or not name.startswith(left_out)}
    for name, tensor in wanted.items():
        if name not in fitting and name.rpartition(".")[2] == "num_batches_tracked":
            fitting[name] = tensor
    fill(module, fitting, what)


def _checked(content: Any, path: str | Path) -> dict[str, torch.Tensor]:
    if not isinstance(content, dict):
        raise ModelError(f"The weights {path} hold a {type(content).__name__}, not tensors by name. {_ADVICE}")
    strange = [f"{name} ({type(value).__name__})" for name, value in content.items() if not _is_tensor(name, value)]
    if strange or not content:
        held = f"not only tensors: {', '.join(strange[:5])}" if strange else "nothing"
        raise ModelError(
            f"The weights {path} hold {held}. A dict of tensors by name is read, also inside {', '.join(_WRAPPERS)}. {_ADVICE}"
        )
    return {str(name): tensor.detach() for name, tensor in content.items()}


def _is_tensor(name: Any, value: Any) -> bool:
    return isinstance(name, str) and isinstance(value, torch.Tensor) and value.layout is torch.strided


def _reason(error: Exception) -> str:
    """One sentence, without torch's advice to read the file with weights_only=False."""
    message = " ".join(str(error).split())
    if found := re.search(r"GLOBAL ([\w.]+)", message):
        return f"they need the Python object {found[1]}, and nothing that a file names is run."
    return f"{message[:150].rstrip('.')}."
