"""The same network at another length: what it computes, what it shares, and what it refuses."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from unit.quantization.nets import small, small_encoder, token_rows

import labkit
from labkit.errors import InputError, ModelError
from labkit.frontends.float_run import run_float
from labkit.frontends.torch_fx import from_torch
from labkit.graph import float_ops, int_ops
from labkit.graph.ir import FloatGraph, FloatNode, IntGraph
from labkit.graph.lengths import at_length, length_of
from labkit.graph.passes import simplify
from labkit.models.sentence_encoder import encoder_graph
from labkit.quantization.pipeline import quantize

ENCODER = small_encoder()
GRAPH = simplify(encoder_graph(ENCODER, 16))
NET = quantize(GRAPH, token_rows(4, 9, 16), ranges="percentile")


@pytest.mark.parametrize("length", [1, 5, 15, 16])
def test_a_float_network_is_the_one_made_for_that_length(length: int) -> None:
    graph, wanted = at_length(GRAPH, length), simplify(encoder_graph(ENCODER, length))
    assert length_of(graph) == length
    assert [(node.name, node.inputs, type(node.op)) for node in graph] == [
        (node.name, node.inputs, type(node.op)) for node in wanted
    ]
    (batch,) = token_rows(length)
    got, right = (run_float(one, batch, only_outputs=True) for one in (graph, wanted))
    for name in graph.outputs:
        np.testing.assert_array_equal(got[name], right[name])
        assert got[name].shape == (6, length, 24)


@pytest.mark.parametrize("length", [1, 5, 13])
def test_filling_up_changes_no_integer(length: int) -> None:
    (batch,) = token_rows(length, seed=1)
    more = ((0, 0), (0, 16 - length))
    short = NET.at_length(length).trace(batch, kernels="reference")
    filled = NET.trace({name: np.pad(array, more, constant_values=0) for name, array in batch.items()}, "reference")
    compared = 0
    for node in NET.graph:
        if node.output.shape[-1] == 16 and len(node.output.shape) == 2 and node.output.spec is not None:
            np.testing.assert_array_equal(short[node.name], filled[node.name][..., :length], node.name)
            compared += 1
    assert compared > 20
    (output,) = NET.graph.outputs
    np.testing.assert_array_equal(short[output], filled[output][:, :length])


def test_weights_are_shared_and_shapes_declared_anew() -> None:
    graph = NET.at_length(7).graph
    shared = 0
    for node, other in zip(NET.graph, graph, strict=True):
        assert (node.name, node.output.params) == (other.name, other.output.params)
        assert tuple(7 if size == 16 else size for size in node.output.shape) == other.output.shape
        if isinstance(node.op, int_ops.Conv2d | int_ops.Embedding):
            assert node.op.weight is other.op.weight  # type: ignore[union-attr]
            shared += 1
    assert shared == 13
    assert graph.notes == NET.graph.notes


def test_a_few_nets_are_kept() -> None:
    net = labkit.IntegerNet(NET.graph)
    first = net.at_length(1)
    assert net.at_length(1) is first
    assert net.at_length(16) is net
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("labkit.net.LENGTHS_KEPT", 3)
        kept = [net.at_length(length) for length in (1, 2, 3, 1, 4)]
        assert kept[3] is first
        assert net.at_length(1) is first  # used later than 2, which went
        assert net.at_length(2) is not kept[1]
        assert len(net._lengths) == 3
    assert net.at_length(np.int64(2)).graph.inputs == ("ids", "mask")


class Heard(nn.Module):
    """A network of sound: strides along time, the best class of each frame."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv1d(4, 8, 3, 2, 1), nn.Conv1d(8, 5, 5, padding=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.relu(self.first(x)))


def test_networks_of_sound_have_lengths_too() -> None:
    torch.manual_seed(0)
    x = torch.randn(8, 4, 30)
    net = quantize(Heard().eval(), x)
    shorter = net.at_length(17)
    assert shorter.run(x[:, :, :17]).shape == (8, 5, 9)
    whole = net.trace(x)["first"]
    for part, length in ((shorter, 17), (net.at_length(44), 44)):
        given = torch.nn.functional.pad(x, (0, max(0, length - 30)))[:, :, :length]
        got = part.trace(given)["first"]
        same = min(length, 30) // 2 - 1
        np.testing.assert_array_equal(got[:, :, :same], whole[:, :, :same])


@pytest.mark.parametrize("length", [0, -1, 2.0, True, "3"])
@pytest.mark.parametrize("graph", [GRAPH, NET.graph], ids=["float", "integer"])
def test_a_length_is_a_whole_number(graph: FloatGraph | IntGraph, length: object) -> None:
    with pytest.raises(InputError, match=f"1 or more, got {length!r}"):
        at_length(graph, length)  # type: ignore[arg-type]


@pytest.mark.parametrize("graph", [GRAPH, NET.graph], ids=["float", "integer"])
def test_a_network_cannot_be_longer_than_its_constants(graph: FloatGraph | IntGraph) -> None:
    with pytest.raises(InputError, match="each of 16 places, so the network takes no sequence of 17"):
        at_length(graph, 17)


def test_images_are_no_sequences() -> None:
    graph = simplify(from_torch(small(), (3, 8, 8)))
    with pytest.raises(ModelError, match=r"no network of sequences: its inputs have the shapes \(3, 8, 8\)"):
        at_length(graph, 4)
    with pytest.raises(ModelError, match="no network of sequences"):
        quantize(graph, torch.randn(4, 3, 8, 8)).at_length(4)


def test_inputs_of_two_lengths_are_refused() -> None:
    nodes = tuple(FloatNode(name, float_ops.Input((3, size))) for name, size in (("a", 4), ("b", 5)))
    with pytest.raises(ModelError, match=r"shapes \(3, 4\), \(3, 5\)"):
        at_length(FloatGraph(nodes, ("a",)), 3)


@pytest.mark.parametrize(
    ("op", "message"),
    [
        (float_ops.Flatten(), "made for sequences of length 6"),
        (float_ops.AdaptiveAveragePool2d((1, 1)), "made for sequences of length 6"),
        (float_ops.Reshape((18,)), "does not end with the length 6"),
    ],
    ids=["flatten", "mean", "reshape"],
)
def test_what_knows_the_length_is_refused(op: float_ops.FloatOp, message: str) -> None:
    graph = FloatGraph((FloatNode("x", float_ops.Input((3, 6))), FloatNode("y", op, ("x",))), ("y",))
    with pytest.raises(ModelError, match=f"y: .*{message}"):
        at_length(graph, 4)
    net = quantize(graph, np.random.default_rng(0).normal(size=(4, 3, 6)))
    with pytest.raises(ModelError, match=f"y: .*{message}"):
        net.at_length(4)


def test_a_constant_that_is_no_sequence_is_refused() -> None:
    nodes = tuple(
        replace(node, op=float_ops.Constant(np.ones((24, 3), np.float32)))
        if isinstance(node.op, float_ops.Constant)
        else node
        for node in GRAPH
    )
    with pytest.raises(ModelError, match=r"a constant of the shape \(24, 3\) does not end with the length 16"):
        at_length(FloatGraph(nodes, GRAPH.outputs), 4)
