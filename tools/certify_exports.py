"""Prove that exported files compute labkit's integers: run them in onnxruntime and LiteRT, tolerance 0.

    python tools/certify_exports.py                                   # every net, plan and format, 1,000 images of mnist5k
    python tools/certify_exports.py --nets lenet --plans w8a8 --images 100
    python tools/certify_exports.py --data cifar10                    # where CIFAR-10 is (LABKIT_DATA)

For each file: every tensor that the runtime shows against the net under that runtime's rules, and the output of the file read
back by `labkit.load`. Exit 1 where an element differs.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import labkit
from labkit.exporters.onnx import onnx_bytes
from labkit.exporters.tflite import tflite_content
from labkit.exporters.tflite_form import held_by_tflite
from labkit.frontends.torch_fx import from_torch
from labkit.graph import float_ops
from labkit.graph.ir import FloatGraph, IntGraph
from labkit.graph.passes import simplify
from labkit.net import IntegerNet
from labkit.parity.runtimes.exported import run_onnx, run_tflite
from labkit.quantization.plan import BitPlan
from labkit.runtimes.rules import as_run_by

NETS = ("lenet", "resnet20", "mobilenetv2-small")
BATCH = 100
Arrays = Mapping[str, NDArray[Any]]
Run = Callable[[bytes, IntGraph, Arrays], Arrays]


@dataclass(frozen=True)
class Way:
    """One runtime with one kind of file.

    runtime : one of `labkit.runtimes.rules.RUNTIMES`.
    suffix : of the file.
    content : the file of a graph.
    run : the tensors that the runtime shows, by node.
    """

    runtime: str
    suffix: str
    content: Callable[[IntGraph], bytes]
    run: Run


WAYS = {
    "onnx qdq": Way("onnxruntime", ".onnx", lambda graph: onnx_bytes(graph, "qdq"), run_onnx),
    "onnx qoperator": Way("onnxruntime", ".onnx", lambda graph: onnx_bytes(graph, "qoperator"), run_onnx),
    "tflite litert": Way("litert", ".tflite", tflite_content, lambda c, g, x: run_tflite(c, g, x, "litert")),
    "tflite xnnpack": Way("xnnpack", ".tflite", tflite_content, lambda c, g, x: run_tflite(c, g, x, "xnnpack")),
}


def mixed(graph: FloatGraph) -> BitPlan:
    """Weights of 8 and 4 bits in turn, activations of 8 bits."""
    layers = [node.name for node in graph if isinstance(node.op, float_ops.Conv2d | float_ops.Linear)]
    plan = BitPlan.uniform(graph)
    return BitPlan({name: (8, 4)[index % 2] for index, name in enumerate(layers)}, plan.activations)


PLANS: dict[str, Callable[[FloatGraph], BitPlan]] = {"w8a8": BitPlan.uniform, "w84a8": mixed}


@dataclass
class Found:
    """How many elements were compared and how many differ, and where the first does.

    shown : tensors of the runtime that were compared with the net's.
    read : elements of the output of the file read back, and how many of them differ from the runtime's.
    """

    shown: set[str]
    elements: int = 0
    differing: int = 0
    read: int = 0
    read_differing: int = 0
    first: str = ""


def quantized(name: str, plan: str, data_name: str) -> IntegerNet:
    """The net called ``name``, trained on ``data_name``, under one of `PLANS`."""
    data = labkit.data.load(data_name)
    module = labkit.models.load(name, data=data_name)
    graph = simplify(from_torch(module, data.test(1)[0].shape[1:]))
    return labkit.quantize(module, data.calibration(256), plan=PLANS[plan](graph))


def certify(graph: IntGraph, way: Way, x: NDArray[np.float32], folder: Path) -> Found:
    """Compare what ``way`` computes of ``graph`` for the images ``x`` [N, ...]; the file lies in ``folder`` for a moment."""
    content = way.content(graph)
    path = folder / f"net{way.suffix}"
    path.write_bytes(content)
    ours = IntegerNet(as_run_by(held_by_tflite(graph) if way.suffix == ".tflite" else graph, way.runtime))
    read = labkit.load(path, like=way.runtime)
    (entry,), (exit_,) = graph.inputs, graph.outputs
    found = Found(set())
    for start in range(0, len(x), BATCH):
        images = x[start : start + BATCH]
        theirs, mine = way.run(content, graph, {entry: images}), ours.trace(images)
        for name, result in theirs.items():
            if name not in mine:
                continue
            found.shown.add(name)
            wrong = np.argwhere(mine[name] != result)
            found.elements += result.size
            found.differing += len(wrong)
            if len(wrong) and not found.first:
                where = tuple(int(i) for i in wrong[0])
                found.first = f"{name}{list(where)}: {mine[name][where]} here, {result[where]} there"
        if way.suffix == ".tflite":  # which has the channel axis last
            back = np.moveaxis(read.run(np.moveaxis(images, 1, -1)), -1, 1)
        else:
            back = read.run(images)
        found.read += back.size
        found.read_differing += int(np.count_nonzero(back != theirs[exit_]))
    return found


def main(arguments: list[str]) -> int:
    """Certify what ``arguments`` name; 1 where an element differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", default=",".join(NETS))
    parser.add_argument("--plans", default=",".join(PLANS))
    parser.add_argument("--ways", default=",".join(WAYS), help="of " + ", ".join(WAYS))
    parser.add_argument("--data", default="mnist5k")
    parser.add_argument("--images", type=int, default=1000)
    wanted = parser.parse_args(arguments)
    x, _ = labkit.data.load(wanted.data).test(wanted.images)
    failed = False
    print(f"{len(x):,} test images of {wanted.data}")
    with tempfile.TemporaryDirectory() as folder:
        for name in wanted.nets.split(","):
            for plan in wanted.plans.split(","):
                net = quantized(name, plan, wanted.data)
                for way in wanted.ways.split(","):
                    started = time.perf_counter()
                    found = certify(net.graph, WAYS[way], x, Path(folder))
                    failed |= bool(found.differing or found.read_differing)
                    print(
                        f"{name} {plan}, {way}: {found.differing:,} of {found.elements:,} elements of {len(found.shown)} tensors "
                        f"differ; read back {found.read_differing:,} of {found.read:,} ({time.perf_counter() - started:.0f} s)"
                        + (f"; first {found.first}" if found.first else ""),
                        flush=True,
                    )
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
