"""Grading on a Dask cluster: sources and inputs go out as plain data, values come back, and are judged here.

A worker of the cluster needs labkit of the same version and a sandbox of its own, which it probes itself. A worker that dies
takes nothing with it: Dask gives its submissions to another.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from labkit import __version__
from labkit.errors import LabkitError
from labkit.grading.collecting import Parcel, collected
from labkit.grading.isolation import probe
from labkit.grading.kit import Kit, write_kit
from labkit.grading.worker import Reply, WorkerFault

__all__ = ["collect_there", "collected_on"]

_TRIES = 5
_CONNECT_SECONDS = 20


def collect_there(
    parcel: Parcel, modules: Sequence[str], version: str, unsafe: bool, isolation: str = ""
) -> tuple[dict[str, Sequence[Reply]], str]:
    """On a worker of the cluster: the replies to ``parcel``, and how it was shut in there.

    ``modules`` make the kit, ``version`` is the labkit of who asks, ``unsafe`` goes on without isolation,
    ``isolation`` is the level to take and no other, '' for what ``LABKIT_ISOLATION`` says there, or else for the best.

    Raises
    ------
    WorkerFault
        labkit is of another version here.
    LabkitError
        Nothing here can shut a submission in.
    """
    if version != __version__:
        raise WorkerFault(f"This worker has labkit {__version__}, and {version} grades. Install the same on both.")
    level = probe(unsafe, isolation)
    folder = Path(tempfile.mkdtemp(prefix="labkit-kit-"))
    try:
        folder.chmod(0o755)
        kit: Kit = write_kit(folder, modules)
        return collected(parcel, level, kit), level.says
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def collected_on(
    address: str, parcels: Mapping[str, Parcel], modules: Sequence[str], unsafe: bool = False, isolation: str = ""
) -> Iterator[tuple[str, dict[str, Sequence[Reply]] | None, str]]:
    """(student, replies, isolation) for each of ``parcels`` as they are done; None and the reason where a worker failed.

    Parameters
    ----------
    address : of the cluster's scheduler, such as tcp://127.0.0.1:8786
    parcels : by student
    modules : what the kit is made of
    unsafe : go on without isolation where there is none
    isolation : ``bubblewrap`` or ``lockdown`` and nothing else; '' for what each worker's own ``LABKIT_ISOLATION`` says

    Raises
    ------
    LabkitError
        Dask is not installed, or nobody answers at ``address``.
    """
    try:
        from distributed import Client, as_completed
    except ImportError as error:
        raise LabkitError(
            '--cluster needs Dask, which is not installed. Install it with: pip install ".[cluster]"'
        ) from error
    try:
        client: Any = Client(address, timeout=_CONNECT_SECONDS, set_as_default=False)  # type: ignore[no-untyped-call]
    except (OSError, TimeoutError, ValueError) as error:
        raise LabkitError(
            f"No Dask scheduler answers at {address}: {error}. Start one with `dask scheduler`."
        ) from error
    with client:
        futures = {
            client.submit(
                collect_there, parcel, tuple(modules), __version__, unsafe, isolation, pure=False, retries=_TRIES
            ): student
            for student, parcel in parcels.items()
        }
        for future in as_completed(list(futures), loop=client.loop, raise_errors=False):  # type: ignore[no-untyped-call]
            student = futures[future]
            fault = future.exception()
            if fault is None:
                replies, says = future.result()
                yield student, replies, says
            else:
                yield student, None, str(fault)
