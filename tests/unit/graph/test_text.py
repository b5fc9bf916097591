"""How a graph prints: one line a node, readable without the code at hand."""

from __future__ import annotations

import numpy as np
from unit.graph.builders import every_operation, float_conv, float_input

from labkit.graph import float_ops
from labkit.graph.float_ops import Activation
from labkit.graph.ir import FloatGraph, FloatNode

FLOAT = """\
FloatGraph: 5 nodes, outputs fc
  x     = Input(shape=(3,2,2)) -> none
  conv1 = Conv2d(weight[4x3x1x1], bias[4], stride=(1,1), padding=((0,0),(0,0)), dilation=(1,1), groups=1) <- x \
-> relu (with relu1)
  add   = Add() <- conv1, conv1 -> none
  flat  = Flatten() <- add -> none
  fc    = Linear(weight[2x16]) <- flat -> relu6"""

INTEGER = """\
IntGraph: 19 nodes, outputs output
  x        = Quantize(shape=(2,6,6)) -> 2x6x6 u8 S=0.02 Z=128
  conv     = Conv2d(weight[4x1x3x3] s8 per axis 0, bias[4], single clamp 0..255, stride=(1,1), padding=((1,1),(1,1)), \
dilation=(1,1), groups=2) <- x -> 4x6x6 u8 S=0.03 Z=10 (with bn, relu)
  pool     = MaxPool2d(kernel=(2,2), stride=(2,2), padding=((0,0),(0,0)), dilation=(1,1), ceil_mode=False) <- conv \
-> 4x3x3 u8 S=0.03 Z=10
  point    = Conv2d(weight[4x4x1x1] s4 per axis 0, bias[4], single clamp 0..255, stride=(1,1), padding=((0,0),(0,0)), \
dilation=(1,1), groups=1) <- pool -> 4x3x3 u8 S=0.05 Z=99
  add      = Add(multipliers[2], shift=30, zero_point=7, clamp=(7,255)) <- pool, point -> 4x3x3 u8 S=0.06 Z=7
  cat      = Concat(single clamp 0..255 single clamp 0..255) <- add, pool -> 8x3x3 u8 S=0.06 Z=8
  act      = Requantize(single clamp 0..255) <- cat -> 8x3x3 u8 S=0.04 Z=0
  mean     = AveragePool2d(kernel=(3,3), stride=(3,3), padding=((0,0),(0,0)), single clamp 0..255) <- act \
-> 8x1x1 u8 S=0.01 Z=3
  flat     = Flatten() <- mean -> 8 u8 S=0.01 Z=3
  fc       = Linear(weight[3x8] s1, bias[3], single clamp -127..127) <- flat -> 3 s8 S=0.5 Z=0
  scaled   = Multiply(single clamp 0..255) <- act, mean -> 8x3x3 u8 S=0.02 Z=5
  padded   = Pad(padding=((1,0),(0,1))) <- scaled -> 8x4x4 u8 S=0.02 Z=5
  larger   = UpsampleNearest2d(factor=(2,3)) <- padded -> 8x8x12 u8 S=0.02 Z=5
  moved    = Transpose(axes=(1,2,0)) <- padded -> 4x4x8 u8 S=0.02 Z=5
  sequence = Reshape(shape=(8,16)) <- moved -> 8x16 u8 S=0.02 Z=5
  uneven   = AdaptiveAveragePool2d(output_size=(3,2), single clamp 0..255) <- padded -> 8x3x2 u8 S=0.01 Z=9
  shares   = Softmax(axis=0, table[256], bits=8, zero_point=0, clamp=(0,255)) <- fc -> 3 u8 S=0.003906 Z=0
  class    = ArgMax(axis=0, keepdims=True) <- shares -> 1 index
  output   = Dequantize() <- fc -> 3 f32"""


def test_a_float_graph_prints() -> None:
    weight = np.ones((4, 3, 1, 1), np.float32)
    nodes = (
        float_input(3, 2, 2),
        FloatNode("conv1", float_conv(weight, np.ones(4, np.float32)), ("x",), Activation.RELU, ("relu1",)),
        FloatNode("add", float_ops.Add(), ("conv1", "conv1")),
        FloatNode("flat", float_ops.Flatten(), ("add",)),
        FloatNode("fc", float_ops.Linear(np.ones((2, 16), np.float32), None), ("flat",), Activation.RELU6),
    )
    assert str(FloatGraph(nodes, ("fc",))).splitlines() == FLOAT.splitlines()


def test_an_integer_graph_prints() -> None:
    assert str(every_operation()).splitlines() == INTEGER.splitlines()
