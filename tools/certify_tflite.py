"""Does labkit compute every tensor of a TFLite file as LiteRT does? Element by element, for real or random inputs.

    python tools/certify_tflite.py NET.tflite --random 1000
    python tools/certify_tflite.py NET.tflite --inputs images.npy --labels labels.npy --like xnnpack

The exit code is 1 where a single element differs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labkit.errors import LabkitError
from labkit.frontends.tflite import read_tflite
from labkit.net import IntegerNet
from labkit.parity.runtimes.litert import RESOLVERS, run_litert
from labkit.runtimes.rules import as_run_by


def main() -> int:
    """Compare, print a line a tensor, and say whether all agree."""
    parser = argparse.ArgumentParser(description="Compare labkit with LiteRT, tensor by tensor.")
    parser.add_argument("file", type=Path, help="the .tflite file, of one input")
    parser.add_argument("--inputs", type=Path, help="an .npy array [N, ...] as the file takes it")
    parser.add_argument("--labels", type=Path, help="an .npy array [N] of right answers, for the score")
    parser.add_argument("--random", type=int, default=100, metavar="N", help="without --inputs: so many random inputs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--like", choices=list(RESOLVERS), default="litert")
    parser.add_argument("--kernels", choices=("numba", "reference"), default="reference", help="labkit's tier")
    parser.add_argument("--batch", type=int, default=50, help="inputs at a time")
    options = parser.parse_args()
    try:
        return _certified(options)
    except LabkitError as error:
        print(error, file=sys.stderr)
        return 2


def _certified(options: argparse.Namespace) -> int:
    graph = read_tflite(options.file)
    net = IntegerNet(as_run_by(graph, options.like))
    (entry,) = graph.inputs
    indices: dict[str, int] = graph.notes["tflite"]["tensors"]
    elements = dict.fromkeys(indices, 0)
    differing = dict.fromkeys(indices, 0)
    answers: dict[str, list[NDArray[Any]]] = {"labkit": [], options.like: []}
    output = net.graph.outputs[0]
    for x in _batches(options, net):
        ours = net.trace({entry: x}, kernels=options.kernels)
        theirs = run_litert(options.file, [x], options.like, tensors=True)
        for name, index in indices.items():
            if index in theirs:
                elements[name] += theirs[index].size
                differing[name] += int((ours[name] != theirs[index]).sum())
        answers["labkit"].append(ours[output].reshape(len(x), -1).argmax(1))
        answers[options.like].append(theirs[indices[output]].reshape(len(x), -1).argmax(1))
    kinds = {node.name: type(node.op).__name__ for node in net.graph}
    for name in indices:
        if elements[name]:
            print(f"{name[:60]:60}  {kinds[name]:22}  {elements[name]:12,} elements  {differing[name]:6,} differ")
    total = sum(differing.values())
    print(f"{options.file.name} like {options.like}: {sum(elements.values()):,} elements compared, {total:,} differ")
    if options.labels is not None:
        labels = np.load(options.labels)
        for who, parts in answers.items():
            right = int((np.concatenate(parts) == labels[: sum(map(len, parts))]).sum())
            print(f"{who}: {right:,} of {sum(map(len, parts)):,} right")
    return int(total > 0)


def _batches(options: argparse.Namespace, net: IntegerNet) -> Iterator[NDArray[Any]]:
    tensor = net.graph[net.graph.inputs[0]].output
    if options.inputs is not None:
        inputs = np.load(options.inputs, mmap_mode="r")
    else:
        spec, _ = tensor.quantized
        rng = np.random.default_rng(options.seed)
        inputs = rng.integers(spec.qmin, spec.qmax + 1, (options.random, *tensor.source_shape)).astype(tensor.dtype)
    for start in range(0, len(inputs), options.batch):
        yield np.ascontiguousarray(inputs[start : start + options.batch])


if __name__ == "__main__":
    sys.exit(main())
