"""`OnnxNet`: an ONNX model evaluated node by node in NumPy, for models that are no pure integer network.

Integers are exact; floats are computed in their own type and may differ from a runtime's in the order of their sums.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labkit.errors import InputError, LabkitError, ModelError, UnsupportedOperation
from labkit.frontends.onnx.nodes import OPERATORS
from labkit.frontends.onnx.nodes_call import Call
from labkit.frontends.onnx.nodes_types import ELEMENT_TYPES, is_integer
from labkit.frontends.onnx.reading import Declared, OnnxFile, OnnxNode, read_file

__all__ = ["OnnxNet", "call_of", "run_node", "unknown_nodes"]

Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class OnnxNet:
    """An ONNX model that can be run and traced in the file's own types.

    file : what it holds, as `labkit.frontends.onnx.reading` reads it.

    Raises
    ------
    UnsupportedOperation
        It holds an operator that labkit has no function for.
    """

    file: OnnxFile

    def __post_init__(self) -> None:
        if unknown := unknown_nodes(self.file):
            kinds = ", ".join(dict.fromkeys(f"{node.domain}:{node.kind}".lstrip(":") for node in unknown))
            raise UnsupportedOperation(
                f"{self.file.path}: {unknown[0].name}: labkit cannot evaluate {kinds}. Run this model with onnxruntime, or "
                f"export it without these operators."
            )

        typed = [value for value in self.file.outputs if value.dtype is not None]
        for value in (*self.file.inputs, *typed):
            if value.dtype is None or value.dtype.name not in ELEMENT_TYPES.values():
                raise UnsupportedOperation(
                    f"{self.file.path}: {value.name} is declared as {value.dtype or 'no tensor'}; labkit evaluates tensors of "
                    f"{', '.join(ELEMENT_TYPES.values())}. Run this model with onnxruntime."
                )

    @classmethod
    def load(cls, path: str | Path) -> OnnxNet:
        """The model in the ``.onnx`` file at ``path``.

        Raises
        ------
        ModelError, UnsupportedOperation
            As `labkit.frontends.onnx.reading.read_file`, or an operator is unknown.
        """
        return cls(read_file(path))

    def run(self, x: Any) -> Any:
        """The model's output.

        Parameters
        ----------
        x : array, or a dict of them by input name
            In the types and shapes that the file declares; integers of 2 and 4 bits may come as int8 or uint8.

        Returns
        -------
        array in the file's type (integers of 2 and 4 bits in ml_dtypes' types), or a dict by output name where there are several

        Raises
        ------
        InputError
            An input is missing, unknown, or of another type or shape.
        ModelError
            A node cannot be computed: the file contradicts itself.
        """
        names = {declared.name for declared in self.file.outputs}
        found = {name: value for name, value in self.steps(x) if name in names}
        outputs = {declared.name: found[declared.name] for declared in self.file.outputs}
        return outputs if len(outputs) > 1 else next(iter(outputs.values()))

    def trace(self, x: Any) -> dict[str, Array]:
        """Every tensor that a node puts out, by a name that is also fit for a file; ``x`` and the errors as in `run`.

        Raises
        ------
        InputError, ModelError
            As `run`.
        """
        made = {name for node in self.file.nodes for name in node.outputs}
        return {self.file.names[name]: value for name, value in self.steps(x) if name in made}

    def steps(self, x: Any) -> Iterator[tuple[str, Array]]:
        """Constants, inputs and then each node's results as (tensor's name, array), as they come; ``x`` as in `run`.

        Raises
        ------
        InputError, ModelError
            As `run`.
        """
        values: dict[str, Array] = {**self.file.constants, **self._inputs(x)}
        yield from values.items()
        last_use = {name: index for index, node in enumerate(self.file.nodes) for name in node.inputs}
        for index, node in enumerate(self.file.nodes):
            given = [values[name] if name else None for name in node.inputs]
            results = run_node(node, self.file.opsets, given)
            for name, result in zip(node.outputs, results, strict=False):
                if name:
                    values[name] = result
                    yield name, result
            for name in {*node.inputs, *node.outputs}:
                if last_use.get(name, index) == index:
                    values.pop(name, None)  # who goes through the steps decides what is kept

    def _inputs(self, x: Any) -> dict[str, Array]:
        declared = {value.name: value for value in self.file.inputs}
        if isinstance(x, Mapping):
            given: Mapping[Any, Any] = x
        elif len(declared) == 1:
            given = {next(iter(declared)): x}
        else:
            raise InputError(
                f"The model takes the inputs {', '.join(declared) or 'none'}: give a dict of arrays by name."
            )
        if set(given) != set(declared):
            raise InputError(
                f"The model takes the inputs {', '.join(declared) or 'none'}, got {', '.join(map(str, given))}."
            )
        return {name: _checked(value, given[name]) for name, value in declared.items()}


def unknown_nodes(file: OnnxFile) -> list[OnnxNode]:
    """The nodes of ``file`` for whose operators there is no function."""
    return [node for node in file.nodes if (node.domain, node.kind) not in OPERATORS]


def call_of(node: OnnxNode, opsets: Mapping[str, int]) -> Call:
    """``node`` without its tensors, as operators take it; ``opsets`` are the versions that its file names, by domain."""
    wanted = max(index + 1 for index, name in enumerate(node.outputs) if name)
    return Call(node.kind, node.name, node.domain, opsets.get(node.domain, 1), node.attributes, wanted)


def run_node(node: OnnxNode, opsets: Mapping[str, int], inputs: list[Array | None]) -> tuple[Array, ...]:
    """The results of ``node``, arrays in the order of its outputs.

    Parameters
    ----------
    node : of a file
    opsets : versions of the operator sets that the file names, by domain
    inputs : arrays of any type and shape; None for one that is left out

    Raises
    ------
    UnsupportedOperation
        The operator, or what is asked of it, is not supported.
    ModelError
        It cannot be computed: types or shapes do not fit.
    """
    operator = OPERATORS.get((node.domain, node.kind))
    if operator is None:
        raise UnsupportedOperation(f"{node}: labkit cannot evaluate this operator. Run the model with onnxruntime.")
    call = call_of(node, opsets)
    try:
        results = operator(call, *inputs)
    except LabkitError:
        raise
    except Exception as error:  # of whatever NumPy says of shapes and types that do not fit
        shapes = ", ".join("none" if x is None else f"{x.dtype} {list(x.shape)}" for x in inputs)
        raise ModelError(
            f"{node} cannot be computed for inputs {shapes} ({type(error).__name__}: {error}). Give inputs of the size that "
            f"the model was made for, or export it again."
        ) from error
    return results if isinstance(results, tuple) else (results,)


def _checked(declared: Declared, x: Any) -> Array:
    array = np.asarray(x.detach().cpu().numpy() if hasattr(x, "detach") else x)
    name, wanted = declared.name, declared.dtype
    if wanted is not None and array.dtype != wanted:
        fits = array.dtype.kind == wanted.kind == "f" or (is_integer(array.dtype) and is_integer(wanted))
        narrowed = array.astype(wanted) if fits else array
        back = narrowed.astype(array.dtype)
        if not fits or (is_integer(wanted) and not np.array_equal(back, array)):
            raise InputError(f"Input {name!r} must hold {wanted}, got {array.dtype}. Convert it first.")
        array = narrowed
    shape = declared.shape
    if shape is not None and (
        len(shape) != array.ndim or any(s not in (None, a) for s, a in zip(shape, array.shape, strict=True))
    ):
        sizes = ", ".join("any" if size is None else str(size) for size in shape)
        raise InputError(f"Input {name!r} must have shape [{sizes}], got {list(array.shape)}.")
    return array
