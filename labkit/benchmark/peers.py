"""The other contestants: what a peer is, and which there are."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from labkit.errors import InputError, UnsupportedOperation

if TYPE_CHECKING:
    from labkit.benchmark.nets import Subject
    from labkit.graph.ir import IntGraph

__all__ = ["LIBRARIES", "Peer", "PeerMissing", "peers_from"]

LIBRARIES = ("onnxruntime", "torch")


class PeerMissing(Exception):
    """A peer cannot take part here; the message says why and what would help. Nothing fails for it."""


@dataclass(frozen=True, eq=False)
class Peer:
    """Another computation of the same network.

    name : the library and the kind of its numbers, as in "onnxruntime int8"
    what : one phrase on how it was made
    run : float32 [N, ...] to float32 [N, classes], quantize and dequantize included where there is any
    trace : only of an integer peer: images to every node's integers by the node's name, on the grid of our own net
    is_best : the fastest that its library has of this kind, by its own documentation
    exact : only of another form of labkit's own: what ``run`` must give for the subject's images, float32 [n, classes]
    """

    name: str
    what: str
    run: Callable[[NDArray[np.float32]], NDArray[np.float32]]
    trace: Callable[[NDArray[np.float32]], Mapping[str, NDArray[Any]]] | None = None
    is_best: bool = True
    exact: NDArray[np.float32] | None = None

    @property
    def is_integer(self) -> bool:
        """True for a peer whose answers can be compared with ours integer by integer."""
        return self.trace is not None


def peers_from(library: str, subject: Subject, graph: IntGraph, threads: int) -> list[Peer]:
    """The peers that ``library`` brings for the float net of ``subject`` and its integer form ``graph``.

    ``threads`` is how many each of them may use. A library that cannot do one of the operations brings what it can.

    Raises
    ------
    PeerMissing
        The library is not installed, or none of its peers can be built; the message says what to do.
    InputError
        There is no such library.
    """
    if library not in LIBRARIES:
        raise InputError(f"labkit can be timed against {' and '.join(LIBRARIES)}, got {library!r}.")
    needed = {"onnxruntime": ("onnx", "onnxruntime"), "torch": ("torch",)}[library]
    for name in needed:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise PeerMissing(
                f"{library} takes no part: {name} cannot be imported ({error}). "
                "Install both with: pip install onnx onnxruntime"
            ) from error
    makers = importlib.import_module(f"labkit.benchmark.peer_{library}").MAKERS
    peers, reasons = [], []
    for make in makers:
        try:
            peers.append(make(subject, graph, threads))
        except UnsupportedOperation as error:
            reasons.append(str(error))
    if not peers:
        raise PeerMissing(f"{library} takes no part: {' '.join(reasons)}")
    return peers
