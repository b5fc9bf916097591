"""The ONNX models that are built for onnxruntime compute what labkit computes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import labkit
from labkit.arithmetic.requantize import RoundingRule, scale_and_round
from labkit.benchmark.machine import features
from labkit.benchmark.nets import Subject
from labkit.errors import UnsupportedOperation
from labkit.graph import int_ops
from labkit.graph.ir import IntGraph, IntNode
from labkit.kernels import reference
from labkit.net import IntegerNet

pytest.importorskip("onnx", reason="onnx is not installed (pip install onnx onnxruntime)")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (pip install onnx onnxruntime)")

from labkit.benchmark import peer_onnxruntime
from labkit.benchmark.onnx_models import integer_model

SATURATES = features() >= {"avx2"} and not features() & {"avxvnni", "avx512vnni"}


class Unrounded:
    """In place of a requantizer: hands the int32 sums on."""

    def apply(self, sums: np.ndarray, axis: int = 1) -> np.ndarray:
        return sums


def sums_of(node: IntNode, x: np.ndarray, input_zero_point: int) -> np.ndarray:
    op = node.op
    assert isinstance(op, int_ops.Conv2d | int_ops.Linear)
    given = (x, op.weight.values, op.bias)
    zero_points = {"input_zero_point": input_zero_point, "weight_zero_point": op.weight.params.zero_point}
    if isinstance(op, int_ops.Linear):
        return reference.linear(*given, **zero_points, requantizer=Unrounded())  # type: ignore[arg-type]
    window = {"stride": op.stride, "padding": op.padding, "dilation": op.dilation, "groups": op.groups}
    return reference.conv2d(*given, **zero_points, requantizer=Unrounded(), **window)  # type: ignore[arg-type]


def rounded_as_onnxruntime(graph: IntGraph, node: IntNode, x: np.ndarray) -> np.ndarray:
    """The exact sums of ``x`` under FLOAT32_EVEN, with the multiplier computed in float32."""
    (source,) = graph.inputs_of(node)
    _, given = source.quantized
    spec, made = node.output.quantized
    multiplier = np.float32(given.scale) * node.op.weight.params.scale / np.float32(made.scale)
    sums = sums_of(node, x, int(given.zero_point))
    rounded = scale_and_round(sums, multiplier.astype(np.float32), RoundingRule.FLOAT32_EVEN)
    return np.clip(rounded + int(made.zero_point), spec.qmin, spec.qmax)


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(
            peer_onnxruntime.int8_unsigned,
            marks=pytest.mark.skipif(SATURATES, reason="u8s8 saturates on this processor, which has no VNNI"),
        ),
        peer_onnxruntime.int8_signed,
    ],
)
def test_lenet_is_labkits_but_for_the_rounding(make, lenet: Subject, lenet_net: IntegerNet) -> None:  # type: ignore[no-untyped-def]
    graph = lenet_net.graph
    peer = make(lenet, graph, 1)
    trace = peer.trace(lenet.images)
    layers = [node for node in graph if isinstance(node.op, int_ops.Conv2d | int_ops.Linear)]
    assert len(layers) == 5
    assert np.array_equal(trace[graph.inputs[0]], lenet_net.trace(lenet.images)[graph.inputs[0]])
    for node in layers:
        wanted = rounded_as_onnxruntime(graph, node, trace[node.inputs[0]])
        assert np.array_equal(trace[node.name], wanted), node.name
    difference = np.abs(trace["fc3"].astype(int) - lenet_net.trace(lenet.images)["fc3"].astype(int))
    assert difference.max() <= 1
    assert np.mean(difference > 0) < 0.05
    scale = float(graph["fc3"].output.quantized[1].scale)
    assert np.abs(peer.run(lenet.images) - lenet_net.run(lenet.images)).max() <= scale * 1.001


def test_residual_net_is_off_by_one_at_most_in_each_layer(resnet20: Subject) -> None:
    from labkit.benchmark.answers import expected, judge_peer

    graph = labkit.quantize(resnet20.module, resnet20.calibration[:16]).graph
    images = resnet20.images[:2]
    trace = peer_onnxruntime.int8_signed(resnet20, graph, 1).trace
    assert trace is not None
    answer = judge_peer(graph, expected(graph, images), images, trace(images))
    assert answer.wrong_sums == 0.0
    assert answer.beyond_one < 0.5


def test_clamp_inside_the_grid_is_written(lenet: Subject) -> None:
    """An addition, groups, a plain average pool, and a clamp that no ReLU explains."""

    class Small(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(1)
            self.a, self.b = (torch.nn.Conv2d(3, 4, 3, stride=2, padding=1) for _ in range(2))
            self.c = torch.nn.Conv2d(4, 6, 3, groups=2)
            self.average, self.flatten = torch.nn.AvgPool2d(2), torch.nn.Flatten()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.flatten(self.average(self.c(self.a(x) + self.b(x))))

    graph = labkit.quantize(Small().eval(), lenet.calibration[:32]).graph
    narrowed = tuple(
        replace(node, op=replace(node.op, requantizer=replace(node.op.requantizer, clamp=(7, 90))))
        if node.name == "c"
        else node
        for node in graph
    )
    net = IntegerNet(replace(graph, nodes=narrowed))
    ours = net.trace(lenet.images)
    for make in (peer_onnxruntime.int8_signed, peer_onnxruntime.int8_unsigned):
        trace = make(lenet, net.graph, 1).trace
        assert trace is not None
        theirs = trace(lenet.images)
        assert (theirs["c"].min(), theirs["c"].max()) == (7, 90)
        if not SATURATES:
            for name in theirs:
                assert np.abs(theirs[name].astype(int) - ours[name].astype(int)).max() <= 2, name


@pytest.mark.parametrize("name", ["lenet", "resnet20"])
def test_float_model_is_the_module(name: str, request: pytest.FixtureRequest) -> None:
    net: Subject = request.getfixturevalue(name)
    graph = labkit.quantize(net.module, net.calibration[:8]).graph
    with torch.inference_mode():
        wanted = net.module(torch.from_numpy(net.images)).numpy()
    got = peer_onnxruntime.float32(net, graph, 1).run(net.images)
    assert np.abs(got - wanted).max() < 1e-4 * np.abs(wanted).max()


def test_four_bit_activations_are_refused(lenet: Subject) -> None:
    graph = labkit.quantize(lenet.module, lenet.calibration[:16], 4, 4).graph
    with pytest.raises(UnsupportedOperation, match="conv1: this format holds activations of 8 bits, got 4"):
        integer_model(graph)
