"""labkit as a backend of ONNX's own test suite (``onnx.backend.base.Backend``): every operator evaluated in NumPy.

import onnx.backend.test
from labkit.frontends.onnx.backend import LabkitBackend

tests = onnx.backend.test.BackendTest(LabkitBackend, __name__)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labkit.errors import LabkitError, ModelError
from labkit.frontends.onnx.evaluate import OnnxNet
from labkit.frontends.onnx.reading import read_proto

try:
    from onnx import ModelProto, NodeProto, ValueInfoProto, defs, helper
    from onnx.backend.base import Backend, BackendRep
except ImportError as error:
    raise ModelError('The ONNX backend takes the package onnx: pip install "labkit[parity]".') from error

__all__ = ["OLDEST_OPSET", "LabkitBackend", "Prepared"]

OLDEST_OPSET = 10  # ONNX's tests of QLinearConv, ConvInteger and MatMulInteger are of this one; files start at 13


class Prepared(BackendRep):
    """A model that is ready to be run with `run`.

    net : the evaluated model.
    """

    def __init__(self, net: OnnxNet) -> None:
        self.net = net

    def run(self, inputs: Any, **kwargs: Any) -> tuple[NDArray[Any], ...]:
        """The outputs of the model in its own order, for ``inputs`` in its own order; ``kwargs`` are not used.

        ``inputs`` are a sequence of arrays of the dtypes and shapes that the model declares, or one array.

        Raises
        ------
        InputError, ModelError
            As `OnnxNet.run`.
        """
        given = [inputs] if isinstance(inputs, np.ndarray) else list(inputs)
        names = [declared.name for declared in self.net.file.inputs]
        result = self.net.run(dict(zip(names, given, strict=False)))
        outputs = [declared.name for declared in self.net.file.outputs]
        return tuple(result[name] for name in outputs) if len(outputs) > 1 else (result,)


class LabkitBackend(Backend):
    """The interface of ONNX's backends; the only device is the processor."""

    @classmethod
    def is_compatible(cls, model: ModelProto, device: str = "CPU", **kwargs: Any) -> bool:
        """Whether `prepare` takes ``model`` on ``device``; ``kwargs`` are not used."""
        if not cls.supports_device(device):
            return False
        try:
            cls.prepare(model)
        except LabkitError:
            return False
        return True

    @classmethod
    def prepare(cls, model: ModelProto, device: str = "CPU", **kwargs: Any) -> Prepared:
        """``model``, read and checked, for ``device`` "CPU"; ``kwargs`` are not used.

        Raises
        ------
        ModelError, UnsupportedOperation
            The model is damaged, or holds what labkit does not evaluate.
        """
        if not cls.supports_device(device):
            raise ModelError(f"labkit runs on the processor only: device must be CPU, got {device}.")
        return Prepared(OnnxNet(read_proto(model, oldest=OLDEST_OPSET)))

    @classmethod
    def run_model(cls, model: ModelProto, inputs: Any, device: str = "CPU", **kwargs: Any) -> tuple[Any, ...]:
        """The outputs of ``model`` for ``inputs``, a sequence of arrays; ``device`` and ``kwargs`` as in `prepare`.

        Raises
        ------
        ModelError, UnsupportedOperation, InputError
            As `prepare` and `Prepared.run`.
        """
        return cls.prepare(model, device, **kwargs).run(inputs)

    @classmethod
    def run_node(
        cls,
        node: NodeProto,
        inputs: Any,
        device: str = "CPU",
        outputs_info: Sequence[tuple[Any, tuple[int, ...]]] | None = None,
        **kwargs: Any,
    ) -> tuple[Any, ...]:
        """The results of the single ``node``.

        Parameters
        ----------
        node : of any operator that labkit evaluates
        inputs : arrays, one for each name in ``node.input`` that is not empty
        device : "CPU"
        outputs_info : not used: the results have the types that they have
        kwargs : ``opset_version``, else the newest that onnx knows

        Raises
        ------
        ModelError, UnsupportedOperation, InputError
            As `run_model`.
        """
        arrays = [np.asarray(x) for x in inputs]
        names = list(dict.fromkeys(name for name in node.input if name))
        version = int(kwargs.get("opset_version", defs.onnx_opset_version()))
        values = [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(x.dtype), x.shape)
            for name, x in zip(names, arrays, strict=True)
        ]
        outputs = [ValueInfoProto(name=name) for name in node.output if name]
        graph = helper.make_graph([node], "node", values, outputs)
        opsets = [helper.make_opsetid("", version)]
        if node.domain:
            opsets.append(helper.make_opsetid(node.domain, 1))
        return cls.run_model(helper.make_model(graph, opset_imports=opsets), arrays, device)

    @classmethod
    def supports_device(cls, device: str) -> bool:
        """Whether ``device`` is "CPU"."""
        return device == "CPU"
