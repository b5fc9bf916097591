"""Which data set is taken, and the sentence that says why."""

from __future__ import annotations

import os
from pathlib import Path

from labkit.data.dataset import DataSet
from labkit.errors import InputError

__all__ = ["load", "names", "resolve"]


def names() -> tuple[str, ...]:
    """The names that `load` knows: ``auto`` and the data sets."""
    return ("auto", "cifar10", "mnist5k")


def load(name: str = "auto", data_dir: str | Path | None = None, download: bool | None = None) -> DataSet:
    """Load a data set: uint8 images [N, 3, 32, 32] with int64 labels, and their normalised float32 forms.

    Parameters
    ----------
    name
        ``auto`` (CIFAR-10 where it is found, else mnist5k), ``cifar10`` or ``mnist5k``.
    data_dir
        A folder that holds CIFAR-10, unpacked or as the official archive. Looked into before the environment variable
        ``LABKIT_DATA`` and labkit's cache.
    download
        Whether CIFAR-10 may be downloaded when it is nowhere. None: only when asked for by its name.

    Raises
    ------
    InputError
        There is no data set of that name.
    DataError
        The data cannot be had, or a file is damaged.
    """
    # Imported as needed: reading mnist5k must not cost what CIFAR-10 needs, which is torch.
    if name == "mnist5k":
        from labkit.data.mnist5k import load_mnist5k

        return load_mnist5k()
    if name not in names():
        raise InputError(f"There is no data set named {name!r}. Choose one of: {', '.join(names())}.")
    from labkit.data.cifar10 import FETCH_COMMAND, find_cifar10, load_cifar10

    fetch = name == "cifar10" if download is None else download
    if name == "cifar10" or fetch or find_cifar10(data_dir) is not None:
        return load_cifar10(data_dir, fetch=fetch)
    from labkit.data.mnist5k import load_mnist5k

    named = data_dir or os.environ.get("LABKIT_DATA")
    where = f" (not under {named} either)" if named else ""
    return load_mnist5k(
        f"mnist5k, the digits that come with labkit, because CIFAR-10 was not found{where}; "
        f"`{FETCH_COMMAND}` fetches it (170 MB)."
    )


def resolve(name: str, data_dir: str | Path | None = None) -> str:
    """The data set whose trained nets go with ``name``: ``auto`` as `load` would decide with this ``data_dir``, else itself.

    A name that is no data set (a file or folder of the user's own) gives ``cifar10``, whose nets are the shipped standard.
    """
    if name != "auto":
        return name if name in names() else "cifar10"
    from labkit.data.cifar10 import find_cifar10

    return "mnist5k" if find_cifar10(data_dir) is None else "cifar10"
