"""`read_float_onnx`: a float network in an ONNX file as a `FloatGraph`, to be quantized here.

The file is run on probe images first: what does not depend on their values is a constant, what comes of them must have the
batch axis first. Then each node is translated (`float_graph_ops`), and the translation is run beside the file.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labkit.errors import ModelError, UnsupportedOperation
from labkit.frontends.onnx.evaluate import OnnxNet, call_of, unknown_nodes
from labkit.frontends.onnx.float_graph_ops import FLOAT_OPERATORS, FloatCall, Step, supported_kinds
from labkit.frontends.onnx.reading import Declared, OnnxFile, OnnxNode, read_file
from labkit.graph import float_ops
from labkit.graph.ir import FloatGraph, FloatNode

__all__ = ["read_float_onnx"]

Array = NDArray[Any]
_SHAPE_ONLY = ("Shape", "Size")  # what they put out depends on shapes alone
_QUANTIZED = re.compile(r"QLinear|QuantizeLinear|QGemm|Integer$")


def read_float_onnx(path: str | Path) -> FloatGraph:
    """The float network in the ``.onnx`` file at ``path``, for any batch size.

    Its layers are called by their paths in the torch module ("blocks.4.conv1") where torch's exporter wrote the file, else as the
    tensors that they put out; sums, products and the like as torch.fx calls them ("add", "add_1").

    Raises
    ------
    ModelError
        There is no such file, it is damaged, or it contradicts itself.
    UnsupportedOperation
        It is a quantized network, has an operator that has no integer form here, mixes the images of a batch, or leaves the
        size of its images open.
    """
    file = read_file(path)
    _refuse_strangers(file)
    net = OnnxNet(file)
    sizes = _batch_sizes(file)
    images = _probe(file, max(sizes))
    runs = [dict(net.steps({name: x[:size] for name, x in images.items()})) for size in sizes]
    real = _real_tensors(file)
    _check_batch(file, real, runs, sizes)
    graph = _translated(file, real, runs[0])
    _check_faithful(file, graph, {name: x[: sizes[0]] for name, x in images.items()}, runs[0])
    from labkit.frontends.onnx.float_graph_module import with_torch_names  # torch is loaded by now

    return with_torch_names(graph)


def _refuse_strangers(file: OnnxFile) -> None:
    for node in file.nodes:
        if _QUANTIZED.search(node.kind):
            raise UnsupportedOperation(
                f"{file.path}: {node}: this network is quantized already: labkit.load reads it, `labkit run` runs it."
            )
    known = {*FLOAT_OPERATORS, *_SHAPE_ONLY}
    strangers = {node.name for node in unknown_nodes(file)}
    real = _real_tensors(file)
    for node in file.nodes:
        is_constant = not any(name in real for name in node.inputs)
        if node.name in strangers or (not is_constant and (node.domain or node.kind not in known)):
            raise UnsupportedOperation(
                f"{file.path}: {node}: this operator has no integer form in labkit. Supported are {supported_kinds()}: rewrite "
                f"this part of the network with them, or leave it outside of the network that you quantize."
            )


def _real_tensors(file: OnnxFile) -> set[str]:
    """Names of the tensors whose values depend on the images; shapes do not."""
    real = {value.name for value in file.inputs}
    for node in file.nodes:
        if node.kind not in _SHAPE_ONLY and any(name in real for name in node.inputs):
            real.update(name for name in node.outputs if name)
    return real


def _batch_sizes(file: OnnxFile) -> tuple[int, ...]:
    """How many images to try: two and three, or as many as the file insists on."""
    fixed = {value.shape[0] for value in file.inputs if value.shape}
    if not fixed:
        raise UnsupportedOperation(f"{file.path} has no input with a shape. Export it with an input [N, ...].")
    sizes = {size for size in fixed if size is not None}
    if len(sizes) > 1 or 0 in sizes:
        raise UnsupportedOperation(
            f"{file.path} has inputs of differing batch sizes {sorted(sizes)}: [N, ...] is needed."
        )
    return tuple(sizes) or (2, 3)


def _probe(file: OnnxFile, count: int) -> dict[str, NDArray[np.float32]]:
    """Seeded normal noise for each input: ``count`` images."""
    rng = np.random.default_rng(0)
    return {value.name: rng.standard_normal((count, *_image_shape(file, value)), np.float32) for value in file.inputs}


def _image_shape(file: OnnxFile, value: Declared) -> tuple[int, ...]:
    shape = (value.shape or ())[1:]
    if value.dtype != np.float32 or not shape or any(size is None or size < 1 for size in shape):
        sizes = ", ".join("?" if size is None else str(size) for size in value.shape or ())
        raise UnsupportedOperation(
            f"{file.path}: input {value.name!r} is {value.dtype} [{sizes}]; float32 [N, ...] of a fixed image size is needed. "
            f"Export the network for the size of its images, in float32."
        )
    return tuple(int(size) for size in shape if size is not None)


def _check_batch(file: OnnxFile, real: set[str], runs: list[dict[str, Array]], sizes: tuple[int, ...]) -> None:
    for node in file.nodes:
        for name in node.outputs:
            if name not in real:
                continue
            shapes = [run[name].shape for run in runs]
            sound = all(
                shape[:1] == (size,) and shape[1:] == shapes[0][1:] for shape, size in zip(shapes, sizes, strict=True)
            )
            kind = runs[0][name].dtype
            if not sound or kind not in (np.float32, np.int64):
                raise UnsupportedOperation(
                    f"{file.path}: {node}: its result is {kind} {', '.join(map(str, shapes))} for "
                    f"{' and '.join(map(str, sizes))} images; float32 with the images along the first axis is needed. Export "
                    f"the network with a free batch axis and without mixing images."
                )


def _translated(file: OnnxFile, real: set[str], values: Mapping[str, Array]) -> FloatGraph:
    names = _names(file)
    nodes = [FloatNode(names[value.name], float_ops.Input(values[value.name].shape[1:])) for value in file.inputs]
    linear: set[str] = set()  # tensors that linear layers put out
    users: dict[str, list[OnnxNode]] = {}
    for node in file.nodes:
        for name in dict.fromkeys(node.inputs):
            users.setdefault(name, []).append(node)
    outputs = [value.name for value in file.outputs]
    for node in file.nodes:
        first = next((name for name in node.inputs if name in real), None)
        if first is None or node.kind in _SHAPE_ONLY:
            continue
        alone = len(users[first]) == 1 and first not in outputs
        call = FloatCall(
            call_of(node, file.opsets),
            node.inputs,
            tuple(values[name].shape if name else () for name in node.inputs),
            {i: values[name] for i, name in enumerate(node.inputs) if name and name not in real},
            values[node.outputs[0]].shape,
            first in linear and alone,
            node.outputs[0] in outputs and node.outputs[0] not in users,
        )
        steps = FLOAT_OPERATORS[node.kind](call)
        made = _chain(names[node.outputs[0]], steps, tuple(names[name] for name in node.inputs if name in real))
        nodes += made
        is_linear = isinstance(made[-1].op, float_ops.Linear)
        if is_linear or (isinstance(made[-1].op, float_ops.Identity) and first in linear and alone):
            linear.add(node.outputs[0])
    if missing := [name for name in outputs if name not in real]:
        raise UnsupportedOperation(
            f"{file.path}: the output {missing[0]!r} does not depend on the images. Leave it out."
        )
    return FloatGraph(tuple(nodes), tuple(names[name] for name in outputs))


def _chain(name: str, steps: Step, inputs: tuple[str, ...]) -> list[FloatNode]:
    """The nodes of one or several ``steps``, one after the other; the last is called ``name``."""
    made: list[FloatNode] = []
    several = steps if isinstance(steps, tuple) else (steps,)
    for i, op in enumerate(several):
        label = name if i == len(several) - 1 else f"{name}_step{i}"
        made.append(FloatNode(label, op, inputs))
        inputs = (label,)
    return made


def _names(file: OnnxFile) -> dict[str, str]:
    """By tensor, the name of the node that puts it out: a layer's path in the torch module, where the file tells it."""
    real = _real_tensors(file)
    scopes = {node.outputs[0]: _scope(node.name) for node in file.nodes if node.outputs[0] in real}
    shared = Counter(scopes.values())
    kinds = {node.outputs[0]: node.kind for node in file.nodes}
    found: dict[str, str] = {}
    taken: set[str] = set()
    for tensor, plain in file.names.items():
        scope = scopes.get(tensor, "")
        base = plain if not scope else scope if shared[scope] == 1 else f"{scope}.{kinds[tensor]}"
        new, number = base, 1
        while new in taken:
            number += 1
            new = f"{base}_{number}"
        taken.add(new)
        found[tensor] = new
    return found


def _scope(name: str) -> str:
    """The path of a layer, "blocks.4.conv1", in the name that torch's exporter gives its node, "/blocks/blocks.4/conv1/Conv"."""
    if not re.fullmatch(r"(/[A-Za-z0-9_.]+){2,}", name) or ".." in name:
        return ""
    path: list[str] = []
    for part in name.split("/")[1:-1]:
        if path and part.startswith(f"{path[-1]}."):
            path.pop()
        path.append(part.strip("."))
    return ".".join(path)


def _check_faithful(
    file: OnnxFile, graph: FloatGraph, images: Mapping[str, NDArray[np.float32]], values: Mapping[str, Array]
) -> None:
    """Whether the translation computes what the file says, on the probe images."""
    from labkit.frontends.faithful import is_close
    from labkit.frontends.float_run import run_float

    names = _names(file)
    results = run_float(graph, {names[name]: x for name, x in images.items()})
    for node in file.nodes:
        for tensor in node.outputs:
            name = names.get(tensor, "")
            if name in results and not is_close(results[name], values[tensor]):
                raise ModelError(
                    f"{file.path}: {node}: labkit's translation computes something else than the file. Quantize the torch module "
                    f"itself, and report this file."
                )
