"""Read a checkpoint and put it into a module, or say exactly what does not fit."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import nn

from labkit.errors import ModelError

__all__ = ["fill", "read_weights"]


def read_weights(path: str | Path, sha256: str | None = None) -> dict[str, torch.Tensor]:
    """The tensors of a .safetensors file by name, of the shapes and dtypes that the file declares.

    Parameters
    ----------
    path
        The file.
    sha256
        What its content must hash to, 64 hex digits; None checks nothing.

    Raises
    ------
    ModelError
        The file is missing, damaged, truncated, or no safetensors file.
    """
    advice = (
        "Install labkit again: the file belongs to the package."
        if sha256 is not None
        else "Hand in a .safetensors file, as `labkit train` writes it."
    )
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise ModelError(f"Cannot read the weights {path}: {error.strerror or error}. {advice}") from error
    if sha256 is not None and (got := hashlib.sha256(content).hexdigest()) != sha256:
        raise ModelError(f"The weights {path} are damaged: their sha256 is {got}, and must be {sha256}. {advice}")
    try:
        return load(content)
    except (SafetensorError, ValueError, KeyError) as error:
        raise ModelError(f"The weights {path} are damaged or no safetensors file: {error}. {advice}") from error


def fill(module: nn.Module, tensors: dict[str, torch.Tensor], what: str) -> None:
    """Copy ``tensors`` into the parameters and buffers of ``module``, all of them or, where one does not fit, none.

    Parameters
    ----------
    module
        Changed in place.
    tensors
        By the names of ``module.state_dict()``, each floating-point and of the shape there (integer buffers: integer).
    what
        What an error calls the weights.

    Raises
    ------
    ModelError
        A tensor is missing, is one too many, has another shape or kind of number, or holds a NaN or an infinity.
    """
    wanted = module.state_dict()
    missing = [name for name in wanted if name not in tensors]
    extra = [name for name in tensors if name not in wanted]
    if missing or extra:
        parts = [
            f"lack {_some(missing)}" if missing else "",
            f"have an unknown {_some(extra)}" if extra else "",
        ]
        raise ModelError(
            f"{what}: they {' and '.join(filter(None, parts))}; wanted are {_some(list(wanted))}. "
            f"Name the net that these weights were trained for, or weights of this net."
        )
    for name, tensor in tensors.items():
        target = wanted[name]
        if tensor.shape != target.shape:
            raise ModelError(
                f"{what}: {name} must have the shape {list(target.shape)}, got {list(tensor.shape)}. "
                f"Name the net that these weights were trained for, or weights of this net."
            )
        if tensor.is_floating_point() != target.is_floating_point():
            raise ModelError(
                f"{what}: {name} must be {target.dtype}, got {tensor.dtype}. Convert it before saving the weights."
            )
        bad = ~torch.isfinite(tensor)
        if bool(bad.any()):
            first = [int(i) for i in bad.nonzero()[0]]
            raise ModelError(
                f"{what}: {name} holds {int(bad.sum())} values that are NaN or infinite, the first at {first}. "
                f"No scale can be chosen for such a tensor; train again more slowly, or use other weights."
            )
    module.load_state_dict(tensors)


def _some(names: list[str], most: int = 3) -> str:
    """The first of ``names``, and how many more there are: a ResNet has hundreds."""
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest
