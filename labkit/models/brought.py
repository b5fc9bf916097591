"""A user's own network: a callable of an importable Python module, filled with weights from a safetensors file."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from labkit.errors import ModelError

if TYPE_CHECKING:
    from torch import nn

__all__ = ["bring"]


def bring(source: str, weights: str | Path | None = None) -> nn.Module:
    """Build the module that ``source`` names and fill it with ``weights``.

    Parameters
    ----------
    source
        ``module:callable``, for example ``mynet:make``; the module is looked for in the current folder too, and the callable
        takes no arguments and returns a torch.nn.Module (or is one).
    weights
        A safetensors file with every parameter and buffer of the module. None: as the callable made it.

    Returns
    -------
    The module in evaluation mode.

    Raises
    ------
    ModelError
        The module or callable is not there, fails, or returns something else; or the weights do not fit.
    """
    from torch import nn

    module_name, _, attribute = source.partition(":")
    if not module_name or not attribute:
        raise ModelError(f"A network of your own is named module:callable, for example mynet:make, got {source!r}.")
    if module_name.endswith(".py"):
        raise ModelError(
            f"A network of your own is named module:callable, without .py: {module_name[:-3]}:{attribute}."
        )
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        made = getattr(_imported(module_name), attribute)
        made = made if isinstance(made, nn.Module) else made()
    except Exception as error:
        raise ModelError(
            f"{source} could not be made ({type(error).__name__}: {error}). Check that the module can be imported from the "
            f"current folder and that the callable works without arguments."
        ) from error
    if not isinstance(made, nn.Module):
        raise ModelError(f"{source} returned a {type(made).__name__}, but a torch.nn.Module is needed.")
    if weights is not None:
        from labkit.models.weights import fill, read_weights

        fill(made, read_weights(Path(weights)), str(weights))
    return made.eval()


def _imported(name: str) -> ModuleType:
    """The Python module ``name``, which may import torchvision beside a CPU-only torch."""
    try:
        return importlib.import_module(name)
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
    from labkit.data.torchvision_shim import import_torchvision

    import_torchvision()
    return importlib.import_module(name)
