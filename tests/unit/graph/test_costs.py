"""What a net costs, against numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from unit.graph.builders import every_operation, operations_of_runtimes, requantizer, tensor
from unit.graph.transformer_block import block, with_positions

from labkit.graph import int_ops
from labkit.graph.costs import costs, peak_activation_bytes
from labkit.graph.ir import IntGraph, IntNode, Tensor


def test_costs_of_every_operation() -> None:
    counted = costs(every_operation())
    # conv: 4 x 6 x 6 outputs of 1 x 3 x 3 products; point: 4 x 3 x 3 of 4; fc: 3 of 8
    assert dict(counted.macs) == {"conv": 144 * 9, "point": 36 * 4, "fc": 24}
    assert dict(counted.bops) == {"conv": 1296 * 8 * 8, "point": 144 * 4 * 8, "fc": 24 * 1 * 8}
    assert dict(counted.weight_bytes) == {"conv": 36, "point": 8, "fc": 12}
    assert dict(counted.bias_bytes) == {"conv": 16, "point": 16, "fc": 12}
    assert (counted.total_macs, counted.total_bops, counted.size_bytes) == (1464, 87_744, 100)


def test_costs_of_a_transformer() -> None:
    """12 features, 3 heads of 4, 24 inner ones, 5 tokens, a table of 30 rows."""
    counted = costs(with_positions(block()))
    layers = dict.fromkeys(("querys", "keys", "values", "attention"), 12 * 12 * 5) | {
        "up": 12 * 24 * 5,
        "down": 24 * 12 * 5,
    }
    products = {"scores": 3 * 5 * 5 * 4, "context": 3 * 4 * 5 * 5}
    assert dict(counted.macs) == layers | products
    assert dict(counted.bops) == {name: count * 64 for name, count in (layers | products).items()}
    weights = {name: count // 5 for name, count in layers.items()} | {"embedding": 30 * 12, "positions": 2 * 12 * 5}
    assert dict(counted.weight_bytes) == weights
    norms = dict.fromkeys(("norm", "middle", "last"), 12 * (4 + 8))
    assert dict(counted.bias_bytes) == {name: 24 * 4 if name == "up" else 12 * 4 for name in layers} | norms


def test_numbers_of_16_bits_take_two_bytes() -> None:
    """The first sum and what it adds up are held at once: 12 features of 5 tokens, three times."""
    graph = block()
    nodes = graph.nodes[: 1 + [node.name for node in graph].index("first sum")]
    assert peak_activation_bytes(IntGraph(nodes[:-1], ("attention", "norm"))) >= 2 * 2 * 60
    assert peak_activation_bytes(IntGraph(nodes, ("first sum",))) >= 3 * 2 * 60


def at_each_step(graph: IntGraph) -> list[int]:
    """Bytes of activations that are needed at each step, by playing it through: make, read, drop what nobody reads later."""
    held: dict[str, int] = {}
    names: dict[str, str] = {}
    found = []
    for step, node in enumerate(graph.nodes):
        moved = isinstance(node.op, int_ops.Flatten | int_ops.Reshape)
        names[node.name] = names[node.inputs[0]] if moved else node.name
        if not moved and node.output.dtype != np.float32:
            held[node.name] = int(np.prod(node.output.shape)) * node.output.dtype.itemsize
        found.append(sum(held.values()))
        later = {names[source] for after in graph.nodes[step + 1 :] for source in after.inputs if source in names}
        held = {name: size for name, size in held.items() if name in later or name in map(names.get, graph.outputs)}
    return found


def requantized(side: int) -> int_ops.Requantize:
    return int_ops.Requantize(requantizer(0.5, tensor((2, side, side))))


def added() -> int_ops.Add:
    return int_ops.Add(np.array([1 << 20, 1 << 20], np.int32), 20, 10, (0, 255))


def random_graph(seed: int, nodes: int = 14) -> IntGraph:
    """Sums and requantized copies of tensors drawn at random, some of them flattened; several may never be read."""
    rng = np.random.default_rng(seed)
    image, flat = tensor((2, 3, 3)), tensor((18,))
    made = [IntNode("x", int_ops.Quantize((2, 3, 3)), (), image)]
    for at in range(nodes):
        images = [node.name for node in made if node.output is image]
        first, second = (str(name) for name in rng.choice(images, 2))
        kind = rng.integers(4)
        if kind == 0:
            made.append(IntNode(f"n{at}", int_ops.Flatten(), (first,), flat))
        elif kind == 1:
            made.append(IntNode(f"n{at}", requantized(3), (first,), image))
        else:
            made.append(IntNode(f"n{at}", added(), (first, second), image))
    outputs = tuple(str(name) for name in rng.choice([node.name for node in made[1:]], 2, replace=False))
    shapes = {node.name: node.output.shape for node in made}
    ends = [IntNode(f"y{o}", int_ops.Dequantize(), (o,), Tensor(shapes[o], None, None)) for o in outputs]
    return IntGraph((*made, *ends), tuple(end.name for end in ends))


@pytest.mark.parametrize("seed", range(20))
def test_peak_of_random_graphs(seed: int) -> None:
    graph = random_graph(seed)
    assert peak_activation_bytes(graph) == max(at_each_step(graph))


def test_peak_of_every_operation() -> None:
    graph = every_operation()
    assert peak_activation_bytes(graph) == max(at_each_step(graph))


def residual(channels: int, side: int) -> IntGraph:
    """x -> a -> b, b + x -> flatten."""
    shape = (channels, side, side)
    nodes = (
        IntNode("x", int_ops.Quantize(shape), (), tensor(shape)),
        IntNode("a", requantized(side), ("x",), tensor(shape)),
        IntNode("b", requantized(side), ("a",), tensor(shape)),
        IntNode("sum", added(), ("b", "x"), tensor(shape)),
        IntNode("flat", int_ops.Flatten(), ("sum",), tensor((channels * side * side,))),
        IntNode("output", int_ops.Dequantize(), ("flat",), Tensor((channels * side * side,), None, None)),
    )
    return IntGraph(nodes, ("output",))


@pytest.mark.parametrize(("channels", "side"), [(1, 1), (3, 5), (16, 8)])
def test_a_shortcut_is_held_until_it_is_added(channels: int, side: int) -> None:
    # at b: x for the sum, a and b; at the sum: x, b and the result; real numbers do not count, and flat is the sum itself
    assert peak_activation_bytes(residual(channels, side)) == 3 * channels * side**2


def test_float_biases_count_like_integer_ones() -> None:
    graph = operations_of_runtimes()
    assert dict(costs(graph).bias_bytes) == {"even": 8, "twice": 8}
    assert dict(costs(graph).weight_bytes) == {"even": 4, "twice": 4, "constant": 2 * 3 * 3}
    assert peak_activation_bytes(graph) > 0
