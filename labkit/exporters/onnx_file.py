"""An ONNX file from nodes and constants as they come: the protobuf and nothing that knows of networks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from labkit.arithmetic.packing import pack_int4
from labkit.errors import ModelError

__all__ = ["MICROSOFT", "OnnxFile", "onnx_package"]

MICROSOFT = "com.microsoft"
_OPSET, _IR_VERSION = 21, 10  # the first with tensors of 4 bits; onnxruntime 1.20 and newer read it


class OnnxFile:
    """Nodes and constants of a model, in the order in which they are added."""

    def __init__(self) -> None:
        self.package = onnx_package()
        self.nodes: list[Any] = []
        self.constants: dict[str, Any] = {}
        self.inputs: list[Any] = []
        self.outputs: list[Any] = []

    def constant(self, name: str, value: ArrayLike, dtype: Any) -> str:
        """Add the constant ``value``, of any shape and the NumPy type ``dtype``, unless there is one called ``name``.

        Gives back ``name``.
        """
        if name not in self.constants:
            self.constants[name] = self.package.numpy_helper.from_array(np.asarray(value, dtype), name)
        return name

    def nibbles(self, name: str, value: NDArray[Any]) -> str:
        """Add a constant of 4 bits called ``name``: ``value``, of any shape, uint8 in 0..15 or int8 in -8..7.

        Gives back ``name``.
        """
        kinds = self.package.TensorProto
        kind = kinds.UINT4 if value.dtype == np.uint8 else kinds.INT4
        packed = pack_int4(value).tobytes()
        self.constants[name] = self.package.helper.make_tensor(name, kind, value.shape, packed, raw=True)
        return name

    def node(self, kind: str, inputs: Sequence[str], output: str, domain: str = "", **attributes: Any) -> str:
        """Add the operator ``kind`` of ``domain`` from the values ``inputs`` to the value ``output``, with its ``attributes``.

        Gives back ``output``.
        """
        made = self.package.helper.make_node(kind, list(inputs), [output], name=output, domain=domain, **attributes)
        self.nodes.append(made)
        return output

    def enters(self, name: str, dtype: Any, shape: tuple[int, ...]) -> None:
        """Declare the input ``name`` of ``shape`` (without the batch axis) and NumPy type ``dtype``."""
        self.inputs.append(self._border(name, dtype, shape))

    def leaves(self, name: str, dtype: Any, shape: tuple[int, ...]) -> None:
        """Declare the output ``name`` of ``shape`` (without the batch axis) and NumPy type ``dtype``."""
        self.outputs.append(self._border(name, dtype, shape))

    def _border(self, name: str, dtype: Any, shape: tuple[int, ...]) -> Any:
        kind = self.package.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        return self.package.helper.make_tensor_value_info(name, kind, ["N", *shape])

    def content(self, version: str, notes: Mapping[str, str]) -> bytes:
        """The file's bytes; ``version`` of labkit and ``notes`` are its metadata. The same network gives the same bytes.

        Raises
        ------
        ModelError
            The model is larger than the 2 GB that a protobuf holds.
        """
        helper = self.package.helper
        graph = helper.make_graph(self.nodes, "labkit", self.inputs, self.outputs, list(self.constants.values()))
        opsets = [helper.make_opsetid("", _OPSET)]
        if any(node.domain == MICROSOFT for node in self.nodes):
            opsets.append(helper.make_opsetid(MICROSOFT, 1))
        model = helper.make_model(graph, opset_imports=opsets, producer_name="labkit", producer_version=version)
        model.ir_version = _IR_VERSION
        helper.set_model_props(model, dict(sorted(notes.items())))
        try:
            return bytes(model.SerializeToString(deterministic=True))
        except ValueError as error:
            raise ModelError(f"The network is too large for one ONNX file ({error}). Save a .lab file.") from error


def onnx_package() -> ModuleType:
    """The package onnx, which writes and reads the files.

    Raises
    ------
    ModelError
        It is not installed.
    """
    try:
        import onnx
        import onnx.helper
        import onnx.numpy_helper
    except ImportError as error:
        raise ModelError(
            f"To write an ONNX file the package onnx is needed ({error}). Install it: pip install 'labkit[parity]'."
        ) from error
    return onnx
