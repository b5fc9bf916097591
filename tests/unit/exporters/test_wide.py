"""Tensors of 16 bits and indices are refused by the exporters, not written as something else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from unit.graph.transformer_block import BYTE, block, tensor

from labkit.errors import UnsupportedOperation
from labkit.graph import int_ops
from labkit.graph.ir import IntGraph, IntNode, Tensor
from labkit.net import IntegerNet
from labkit.runtimes.labkit_rules import add, requantizer, scale_of

EXPORTS: dict[str, Callable[[IntegerNet, Path], None]] = {
    "ONNX qdq": lambda net, path: net.to_onnx(path, "qdq"),
    "ONNX qoperator": lambda net, path: net.to_onnx(path, "qoperator"),
    "TFLite": lambda net, path: net.to_tflite(path),
}


def wide_sum() -> IntegerNet:
    """Operations that every exporter knows, with 16 bits in between."""
    byte, wide, shape = tensor((2, 3, 3), 0.02, 3, BYTE), tensor((2, 3, 3), 0.0002), (2, 3, 3)
    back = int_ops.Requantize(requantizer(scale_of(wide) / scale_of(byte), byte))
    nodes = (
        IntNode("x", int_ops.Quantize(shape), (), byte),
        IntNode("sum", add((byte, byte), wide), ("x", "x"), wide),
        IntNode("y", back, ("sum",), byte),
        IntNode("output", int_ops.Dequantize(), ("y",), Tensor(shape, None, None)),
    )
    return IntegerNet(IntGraph(nodes, ("output",)))


@pytest.mark.parametrize("kind", EXPORTS)
def test_16_bits_are_refused(kind: str, tmp_path: Path) -> None:
    words = f"sum: activations of 16 bits cannot be exported to {kind.partition(' ')[0]}: .* Save the net as .lab"
    with pytest.raises(UnsupportedOperation, match=words):
        EXPORTS[kind](wide_sum(), tmp_path / "net")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", EXPORTS)
def test_a_transformer_is_refused(kind: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedOperation, match="^(ids|embedding): "):
        EXPORTS[kind](IntegerNet(block()), tmp_path / "net")
    assert not list(tmp_path.iterdir())
