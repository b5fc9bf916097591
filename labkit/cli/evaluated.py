"""What ``labkit run`` loads: an integer network, or an ONNX model that can only be evaluated node by node."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from labkit.frontends.onnx.evaluate import OnnxNet
    from labkit.net import IntegerNet

__all__ = ["load_or_evaluate"]


def load_or_evaluate(path: Path, like: str | None, say: Callable[[str], None]) -> IntegerNet | OnnxNet:
    """The network in the file at ``path``; an ONNX model that is no integer network is evaluated in NumPy, which ``say`` tells.

    ``like`` names the runtime whose rounding rules the user asked for; what is evaluated follows onnxruntime's.

    Raises
    ------
    UnsupportedOperation
        The file is no integer network, and cannot be evaluated either, or another runtime than onnxruntime was asked for.
    ModelError
        There is no such file, or it is damaged.
    """
    from labkit.errors import UnsupportedOperation
    from labkit.net import load

    try:
        return load(path) if like is None else load(path, like=like)
    except UnsupportedOperation as error:
        if path.suffix.lower() != ".onnx" or like not in (None, "onnxruntime"):
            raise
        from labkit.frontends.onnx.evaluate import OnnxNet

        try:
            net = OnnxNet.load(path)
        except UnsupportedOperation as second:
            raise UnsupportedOperation(f"{error} It cannot be evaluated node by node either: {second}") from second
        say(f"No pure integer network, so {path} is evaluated node by node in NumPy, its floats in float: {error}")
        return net
