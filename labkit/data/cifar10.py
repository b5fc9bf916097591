"""CIFAR-10 through torchvision: found where the user keeps it, or downloaded when asked for by name."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from labkit.data.dataset import DataSet
from labkit.data.download import download
from labkit.data.torchvision_shim import import_torchvision
from labkit.errors import DataError, OutputError
from labkit.files import make_folder, user_cache

__all__ = ["FETCH_COMMAND", "find_cifar10", "load_cifar10", "places"]

FETCH_COMMAND = "labkit demo --data cifar10"
_FOLDER = "cifar-10-batches-py"
_ARCHIVE = "cifar-10-python.tar.gz"


def places(data_dir: str | Path | None = None) -> tuple[tuple[str, Path], ...]:
    """Where CIFAR-10 is looked for, in order: (what the place is called, the folder).

    ``data_dir``, then the environment variable ``LABKIT_DATA``, then ``data`` in labkit's cache. A place that is not
    set is left out.
    """
    found = [] if data_dir is None else [("--data-dir", Path(data_dir))]
    if chosen := os.environ.get("LABKIT_DATA"):
        found.append(("LABKIT_DATA", Path(chosen)))
    return (*found, ("the cache", user_cache() / "data"))


def find_cifar10(data_dir: str | Path | None = None) -> tuple[str, Path] | None:
    """The first of `places` that holds CIFAR-10, unpacked or as the official archive; None where none does.

    A place that is itself the unpacked folder counts, and its parent is returned. Nothing is opened or checked here.
    """
    for called, folder in places(data_dir):
        if folder.name == _FOLDER and folder.is_dir():
            return called, folder.parent
        if (folder / _FOLDER).is_dir() or (folder / _ARCHIVE).is_file():
            return called, folder
    return None


def load_cifar10(data_dir: str | Path | None = None, *, fetch: bool = True) -> DataSet:
    """Read CIFAR-10: 50,000 training and 10,000 test images, uint8 [N, 3, 32, 32].

    Parameters
    ----------
    data_dir
        Looked into first, and downloaded to; see `places`.
    fetch
        Whether to download it (170 MB) where it is in none of the places.

    Raises
    ------
    DataError
        It is nowhere and not to be fetched, cannot be fetched, or a file of it is damaged.
    """
    found = find_cifar10(data_dir)
    if found is None and not fetch:
        looked = ", ".join(f"{folder} ({called})" for called, folder in places(data_dir))
        raise DataError(f"CIFAR-10 is in none of these folders: {looked}. {_ways()}")
    # Imported only now: it brings torch in, and an answer of "it is nowhere" should be quick.
    datasets: Any = import_torchvision().datasets
    if found is None:
        root = _fetch(datasets.CIFAR10, places(data_dir)[0][1])
        reason = f"CIFAR-10, downloaded to {root} because it was asked for by name."
    else:
        called, root = found
        reason = f"CIFAR-10, found in {_shown(root)} ({called})."
    if not (root / _FOLDER).is_dir():
        _unpack(datasets.CIFAR10, root)
    try:
        train, test = (datasets.CIFAR10(root, train=part) for part in (True, False))
    except RuntimeError as error:  # torchvision compares every file's MD5 and does not say which one is wrong
        raise DataError(_damage(datasets.CIFAR10, root)) from error
    return DataSet(
        name="cifar10",
        reason=reason,
        class_names=tuple(train.classes),
        train_images=np.ascontiguousarray(train.data.transpose(0, 3, 1, 2)),
        train_labels=np.array(train.targets, dtype=np.int64),
        test_images=np.ascontiguousarray(test.data.transpose(0, 3, 1, 2)),
        test_labels=np.array(test.targets, dtype=np.int64),
    )


def _ways() -> str:
    return (
        f"Three ways to have it: let labkit download it (`{FETCH_COMMAND}`, 170 MB, needs the network); "
        f"put the official {_ARCHIVE} or the unpacked {_FOLDER} into a folder and name that with --data-dir; "
        f"or name the folder in the environment variable LABKIT_DATA. "
        f"Or use the digits that come with labkit: --data mnist5k."
    )


def _fetch(cifar10: Any, root: Path) -> Path:
    """Download the official archive into ``root`` and return ``root``."""
    try:
        make_folder(root)
        download(cifar10.url, root / _ARCHIVE, md5=cifar10.tgz_md5, title="CIFAR-10")
    except (DataError, OutputError) as error:
        raise DataError(f"{error} {_ways()}") from error
    return root


def _unpack(cifar10: Any, root: Path) -> None:
    """Unpack the archive in ``root`` beside itself, whole or not at all."""
    utils: Any = import_torchvision().datasets.utils
    archive = root / _ARCHIVE
    if not utils.check_integrity(str(archive), cifar10.tgz_md5):
        raise DataError(
            f"{archive} is damaged: its MD5 is not {cifar10.tgz_md5}, that of the official archive. "
            f"Delete it and get it again, for example with `{FETCH_COMMAND}`."
        )
    try:
        scratch = Path(tempfile.mkdtemp(prefix=".unpacking.", dir=root))
    except OSError as error:
        raise DataError(
            f"Cannot unpack {archive} beside itself: {error.strerror or error}. "
            f"Copy it to a folder that you may write to and name that with --data-dir."
        ) from error
    try:
        utils.extract_archive(str(archive), str(scratch))
        os.replace(scratch / _FOLDER, root / _FOLDER)
    except OSError as error:
        raise DataError(
            f"Cannot unpack {archive}: {error.strerror or error}. Free some space and try again."
        ) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _damage(cifar10: Any, root: Path) -> str:
    """Say which file of the unpacked folder is missing or not the official one."""
    utils: Any = import_torchvision().datasets.utils
    folder = root / _FOLDER
    meta = (cifar10.meta["filename"], cifar10.meta["md5"])
    wrong = [
        f"{name} ({'its MD5 differs from the official one' if (folder / name).exists() else 'missing'})"
        for name, md5 in (*cifar10.train_list, *cifar10.test_list, meta)
        if not utils.check_integrity(str(folder / name), md5)
    ]
    return (
        f"CIFAR-10 in {folder} is damaged: {', '.join(wrong) or 'torchvision cannot read it'}. "
        f"Delete that folder and get it again, for example with `{FETCH_COMMAND}`; "
        f"or use the digits that come with labkit: --data mnist5k."
    )


def _shown(folder: Path) -> str:
    """``folder`` as a reader may see it: a home folder is nobody's business."""
    try:
        return str(Path("~") / folder.relative_to(Path.home()))
    except (ValueError, RuntimeError):  # elsewhere, or there is no home
        return str(folder)
