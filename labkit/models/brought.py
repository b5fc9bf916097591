"""A user's own network: a callable of an importable Python module, filled with weights from a file or from torchvision."""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from labkit.data.preprocessing import Preprocessing
from labkit.errors import ModelError

if TYPE_CHECKING:
    from torch import nn

    from labkit.models.torchvision_nets import TorchvisionNet

__all__ = ["bring", "preprocessing_of", "remark_on"]

_NAME = re.compile(r"(\w+_Weights\.)?\w+")  # of torchvision's weights; a file has a suffix or stands in a folder
_SEED = 0


def bring(source: str, weights: str | Path | None = None) -> nn.Module:
    """Build the module that ``source`` names and fill it with ``weights``.

    Parameters
    ----------
    source
        ``module:callable``, for example ``mynet:make`` or ``torchvision.models:resnet18``; the module is looked for in the
        current folder too, and the callable takes no arguments and returns a torch.nn.Module (or is one).
    weights
        A file with every parameter and buffer of the module, safetensors or PyTorch's own format (read as tensors only:
        nothing in it is executed); or, for a network of torchvision.models, the name of weights that torchvision offers,
        ``DEFAULT`` or ``IMAGENET1K_V1``, which it downloads. None: as the callable made it, with random numbers from a
        fixed seed, so that a second call makes the same.

    Returns
    -------
    The module in evaluation mode. Networks of torchvision come without their auxiliary heads.

    Raises
    ------
    ModelError
        The module or callable is not there, fails, or returns something else; or the weights cannot be had or do not fit.
    """
    from torch import nn

    net = _torchvision_net(source)
    named = None if net is None else _member_named(net, weights)
    made = _made(source) if net is None else _built(source, net, named)
    if not isinstance(made, nn.Module):
        raise ModelError(f"{source} returned a {type(made).__name__}, but a torch.nn.Module is needed.")
    if weights is not None and named is None:
        _fill(made, source, weights, is_torchvision=net is not None)
    return made.eval()


def preprocessing_of(source: str, weights: str | Path | None = None) -> Preprocessing | None:
    """What torchvision does to pictures before the network ``source``; None where it is not one of torchvision's.

    Parameters
    ----------
    source, weights
        As of `bring`. A file that is a download of torchvision's is recognised by its SHA-256.

    Raises
    ------
    ModelError
        torchvision offers no weights of that name.
    """
    net = _torchvision_net(source)
    if net is None:
        return None
    member = _member_named(net, weights)
    if member is None and weights is not None:
        member = net.recognised(Path(weights))
    return net.preprocessing(member)


def remark_on(source: str, weights: str | Path | None = None) -> str | None:
    """One sentence on what could surprise the user of ``source`` with ``weights``, both as of `bring`; mostly None.

    Raises
    ------
    ModelError
        torchvision offers no weights of that name.
    """
    net = _torchvision_net(source)
    if net is None:
        return None
    if weights is None:
        return (
            f"{source} has random weights, the same each time. Give trained ones: --weights FILE, or --weights DEFAULT where "
            f"there is a network."
        )
    if net.normalises_itself and _member_named(net, weights) is None and net.recognised(Path(weights)) is None:
        return (
            f"{weights} is not torchvision's own file for {net.name}, so the network is made with transform_input=False. Weights "
            f"that were trained on from torchvision's need --mean 0.5 --std 0.5, which is what transform_input=True does."
        )
    return None


def _torchvision_net(source: str) -> TorchvisionNet | None:
    module, _, attribute = source.partition(":")
    if not attribute or module.partition(".")[0] != "torchvision":
        return None
    from labkit.models.torchvision_nets import find_torchvision_net

    return find_torchvision_net(module, attribute)


def _member_named(net: TorchvisionNet, weights: str | Path | None) -> Any | None:
    """The member of torchvision's enum where ``weights`` is a name and no file."""
    if weights is None or Path(weights).exists() or not _NAME.fullmatch(str(weights)):
        return None
    return net.named(str(weights))


def _fill(module: nn.Module, source: str, weights: str | Path, is_torchvision: bool) -> None:
    from labkit.models.weights_files import fill_from, read_tensors

    if not is_torchvision and not Path(weights).exists() and _NAME.fullmatch(str(weights)):
        raise ModelError(
            f"There is no file {weights}. Give {source} a .safetensors or .pth file; names of weights, such as DEFAULT, are "
            f"for the networks of torchvision.models."
        )
    tensors = read_tensors(weights)
    try:
        fill_from(module, tensors, f"{weights}, weights for {source}")
    except ModelError as error:
        if not is_torchvision or not set(tensors) & set(module.state_dict()):
            raise
        name = source.partition(":")[2]
        raise ModelError(
            f"{error} A network that differs from torchvision's, say in its classes, needs a small function: "
            f"`def make(): return torchvision.models.{name}(num_classes=10)` in mynet.py, and mynet:make."
        ) from error


def _built(source: str, net: TorchvisionNet, named: Any | None) -> nn.Module:
    try:
        with _seeded():
            return net.build(named)
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(f"{source} could not be made ({type(error).__name__}: {error}).") from error


def _made(source: str) -> Any:
    """What the callable returns, or the module that it is."""
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
        with _seeded():
            made = getattr(_imported(module_name), attribute)
        if isinstance(made, nn.Module):
            return made
        _refuse_arguments(made, source, attribute)
        with _seeded():  # anew: the import may have drawn numbers, which it does only once
            return made()
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(
            f"{source} could not be made ({type(error).__name__}: {error}). Check that the module can be imported from the "
            f"current folder and that the callable works without arguments."
        ) from error


def _refuse_arguments(made: Any, source: str, attribute: str) -> None:
    try:
        parameters = inspect.signature(made).parameters.values()
    except (TypeError, ValueError):  # not callable, or written in C: calling it will tell
        return
    varying = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    needed = [p.name for p in parameters if p.default is p.empty and p.kind not in varying]
    if needed:
        arguments = ", ".join(f"{name}=..." for name in needed)
        raise ModelError(
            f"{source} needs {', '.join(needed)}, and it is called without arguments. Write a small function that gives "
            f"them, `def make(): return {attribute}({arguments})`, and name that one: {source.partition(':')[0]}:make."
        )


@contextmanager
def _seeded() -> Iterator[None]:
    """Random numbers of torch begin anew inside, and go on after it as if nothing had been."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        yield


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
