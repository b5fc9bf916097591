"""`prepare`: from an `IntGraph` to packed weights, buffer sizes and a list of kernel calls.

Everything that can be decided once is decided here; what is left for `run` is integers. Threads may share the result.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import MappingProxyType

import numpy as np

from labkit.engine import (  # noqa: F401 (they register)
    lowering,
    lowering_more,
    lowering_products,
    lowering_runtimes,
    lowering_sequences,
)
from labkit.engine.dispatch import lower
from labkit.engine.memory import share_memory
from labkit.engine.plan import TABLES, Entry, Exit, Plan, Prepared, Purpose, Route
from labkit.graph import int_ops
from labkit.graph.ir import IntGraph, IntNode
from labkit.kernels.fast.elementwise import quantize, quantize_signs, take_integers
from labkit.kernels.fast.entry import PIXELS, quantize_kernel
from labkit.kernels.fast.tile import Dot, Registers, fastest_dots, widest_registers

__all__ = ["Dot", "Prepared", "Purpose", "Registers", "Route", "prepare"]

LARGEST_CHUNK = 32  # images that run together, so that a weight is loaded once for several
CACHED_BYTES = 1 << 20  # what a step reads and writes of them stays in the cache
WEIGHTS_SHARE = 4  # or is at least a quarter of the network's weights, which each chunk reads once more


def prepare(
    graph: IntGraph,
    *,
    purpose: Purpose = Purpose.SPEED,
    route: Route = Route.FASTEST,
    registers: Registers | None = None,
    dots: Sequence[Dot] | None = None,
) -> Prepared:
    """Choose kernels and buffers for ``graph`` and pack its weights.

    Made for ``purpose``, see `Purpose`. It changes no result, and neither do the ``route`` of the 3x3 convolutions, the
    width of ``registers`` and the ``dots`` by which tiles multiply, in the order in which they are tried. By default
    they are what suits the processor.

    Raises
    ------
    UnsupportedOperation
        A node has a shape that the fast kernels do not serve, such as a Linear layer over more than one axis.
    """
    registers = registers or widest_registers()
    if purpose is Purpose.MEMORY and route is Route.FASTEST:
        route = Route.DIRECT  # transformed weights are larger
    plan = Plan(graph, route, registers, tuple(dots or fastest_dots(registers)), purpose)
    for node in graph:
        lower(plan, node)
    entries = tuple(_entry(plan, graph[name]) for name in graph.inputs)
    exits = {node.name: _exit(plan, node) for node in graph}
    slots = share_memory(
        plan.buffers,
        plan.steps,
        [entry.place.buffer for entry in entries],
        [exits[name].place.buffer for name in graph.outputs],
    )
    return Prepared(
        graph,
        tuple(plan.buffers),
        slots,
        entries,
        tuple(plan.steps),
        MappingProxyType(exits),
        _chunk(plan),
    )


def _chunk(plan: Plan) -> int:
    """How many images to run together."""
    if plan.purpose is Purpose.MEMORY:
        return 1
    weights = sum(array.nbytes for step in plan.steps for array in step.constants if isinstance(array, np.ndarray))
    return max(1, min(LARGEST_CHUNK, max(CACHED_BYTES, weights // WEIGHTS_SHARE) // _step_bytes(plan)))


def _step_bytes(plan: Plan) -> int:
    """Bytes of each image that the step with the most of them reads and writes."""
    touched = ({number for number in step.buffers if number != TABLES} for step in plan.steps)
    sizes = (sum(plan.buffers[n].bytes for n in numbers if plan.buffers[n].is_per_image) for numbers in touched)
    return max(sizes, default=1)


def _entry(plan: Plan, node: IntNode) -> Entry:
    place = plan.places[node.name]
    if node.output.is_index:
        return Entry(node, place, take_integers, np.zeros(1, np.int64))
    spec, params = node.output.quantized
    channels, _, width = place.image
    if not isinstance(node.op, int_ops.Quantize):
        return Entry(node, place, take_integers, np.array([int(params.zero_point) - place.zero], np.int64))
    if spec.is_binary:
        kernel = quantize_signs
    elif plan.buffers[place.buffer].shape[2] == channels and width >= PIXELS:
        kernel = quantize_kernel(channels)
    else:
        kernel = quantize
    low, high = (end - int(params.zero_point) for end in (spec.qmin, spec.qmax))
    return Entry(node, place, kernel, np.array([params.scale, low, high, place.zero], np.float32))


def _exit(plan: Plan, node: IntNode) -> Exit:
    if node.output.is_index:
        return Exit(node, plan.places[node.name], None, np.int16(0), node.output.dtype)
    is_real = isinstance(node.op, int_ops.Dequantize)
    source = plan.graph[node.inputs[0]] if is_real else node
    spec, params = source.output.quantized
    return Exit(
        node,
        plan.places[source.name],
        np.float32(params.scale) if is_real else None,
        np.int16(int(params.zero_point) - plan.places[source.name].zero),
        np.dtype(np.float32) if is_real else spec.dtype,
    )
