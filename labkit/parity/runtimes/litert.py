"""LiteRT, asked for every tensor of a TFLite file: by its reference kernels, its optimised ones, or XNNPACK."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labkit.errors import InputError, ModelError
from labkit.frontends.tflite.file import with_every_output

__all__ = ["RESOLVERS", "interpreter_of", "run_litert"]

RESOLVERS: Mapping[str, str] = MappingProxyType(
    {"litert": "BUILTIN_REF", "litert-opt": "BUILTIN_WITHOUT_DEFAULT_DELEGATES", "xnnpack": "AUTO"}
)
"""By name in `labkit.runtimes.rules.RUNTIMES`, what LiteRT calls the kernels that it is to take."""


def run_litert(
    file: str | Path | bytes, inputs: Sequence[NDArray[Any]], runtime: str, tensors: bool = False
) -> dict[int, NDArray[Any]]:
    """Tensors of the TFLite ``file`` by their index in it, as LiteRT computes them for ``inputs``.

    Parameters
    ----------
    file : its path, or its bytes
    inputs : arrays [N, ...] in the order of the file's inputs, in its layout and types
    runtime : one of `RESOLVERS`
    tensors : every tensor that the network computes, not its outputs alone; each is then made an output of the file

    Raises
    ------
    InputError
        There is no such runtime, or the inputs do not fit.
    ModelError
        LiteRT is not installed, or it refuses the file.
    """
    content = file if isinstance(file, bytes) else Path(file).read_bytes()
    interpreter = interpreter_of(with_every_output(content) if tensors else content, runtime)
    details = interpreter.get_input_details()
    if len(details) != len(inputs):
        raise InputError(f"The file takes {len(details)} inputs, got {len(inputs)}.")
    try:
        for detail, array in zip(details, inputs, strict=True):
            if tuple(detail["shape"]) != array.shape:
                interpreter.resize_tensor_input(detail["index"], array.shape)
        interpreter.allocate_tensors()
        for detail, array in zip(details, inputs, strict=True):
            interpreter.set_tensor(detail["index"], array)
        interpreter.invoke()
    except (RuntimeError, ValueError) as error:
        raise ModelError(f"LiteRT does not run the file like {runtime}: {error}") from error
    return {
        detail["index"]: np.array(interpreter.get_tensor(detail["index"]))
        for detail in interpreter.get_output_details()
    }


def interpreter_of(content: bytes, runtime: str) -> Any:
    """LiteRT's interpreter of the TFLite file ``content``, on one thread, with the kernels of ``runtime``, one of `RESOLVERS`.

    Raises
    ------
    InputError
        There is no such runtime.
    ModelError
        LiteRT is not installed, or it refuses the file.
    """
    if runtime not in RESOLVERS:
        raise InputError(f"LiteRT runs like {', '.join(RESOLVERS)}; got {runtime!r}.")
    try:
        from ai_edge_litert.interpreter import Interpreter, OpResolverType
    except ImportError as error:
        raise ModelError(
            f"To compare with LiteRT the package ai-edge-litert is needed ({error}). Install it: pip install 'labkit[parity]'."
        ) from error
    try:
        return Interpreter(
            model_content=content, num_threads=1, experimental_op_resolver_type=OpResolverType[RESOLVERS[runtime]]
        )
    except (RuntimeError, ValueError) as error:
        raise ModelError(f"LiteRT does not take the file: {error}") from error
