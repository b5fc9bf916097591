"""`.lab` files of version 5: operations of transformers, 16 bits, indices and masks come back as they went in."""

from __future__ import annotations

import copy
import struct
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors
from unit.graph.builders import changed, every_operation, operations_of_runtimes
from unit.graph.test_storage import HEAD, _set, body_of, equal, forged, header_of, node
from unit.graph.transformer_block import WIDE, block, sentences, tensor, with_positions

from labkit.errors import ModelError
from labkit.graph import int_ops
from labkit.graph.ir import IntGraph, IntNode
from labkit.graph.storage import VERSION, dumps, load, loads, save
from labkit.net import IntegerNet
from labkit.runtimes.labkit_rules import requantizer

GRAPH = with_positions(block())
DATA = dumps(GRAPH)


def version_of(data: bytes) -> int:
    version: int = HEAD.unpack_from(data)[1]
    return version


def test_every_operation_on_sequences_survives_to_the_byte() -> None:
    used = {type(n.op).__name__ for n in GRAPH}
    assert used >= {"Embedding", "MatMul", "SoftmaxPolynomial", "GeluPolynomial", "LayerNorm", "Constant", "Input"}
    assert version_of(DATA) == VERSION == 5
    again = loads(DATA)
    assert equal(again.nodes, GRAPH.nodes)
    assert again.outputs == GRAPH.outputs
    assert dumps(again) == DATA
    assert str(again) == str(GRAPH)
    assert again["ids"].output.is_index
    assert again["positions"].op.values.dtype == np.int16  # type: ignore[union-attr]


def test_a_loaded_net_gives_the_same_results(tmp_path: Any) -> None:
    save(GRAPH, tmp_path / "net.lab")
    x = sentences(GRAPH, 5)
    before, after = (IntegerNet(g).trace(x, kernels="reference") for g in (GRAPH, load(tmp_path / "net.lab")))
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[name], after[name]) and before[name].dtype == after[name].dtype for name in before)


def alone(op: Any, source: Any, target: Any) -> IntGraph:
    return IntGraph(
        (IntNode("x", int_ops.Quantize(source.shape), (), source), IntNode("y", op, ("x",), target)), ("y",)
    )


def test_what_is_new_makes_version_5_and_nothing_else_does() -> None:
    """Sixteen bits are enough, whatever the operation; an index that goes in is as old as an index that comes out."""
    byte, wide = every_operation()["x"].output, tensor((2, 6, 6), 0.01)
    to_wide = alone(int_ops.Requantize(requantizer(0.5, wide)), byte, wide)
    assert version_of(dumps(to_wide)) == 5
    assert equal(loads(dumps(to_wide)).nodes, to_wide.nodes)
    to_byte = alone(int_ops.Requantize(requantizer(0.5, byte)), byte, byte)
    assert version_of(dumps(to_byte)) == 1
    assert version_of(dumps(every_operation())) == 3
    assert version_of(dumps(operations_of_runtimes())) == 4
    only_mask = IntGraph((GRAPH["mask"],), ("mask",))
    assert version_of(dumps(only_mask)) == 4
    only_index = IntGraph((GRAPH["ids"],), ("ids",))
    assert version_of(dumps(only_index)) == 4
    assert equal(loads(dumps(only_index)).nodes, only_index.nodes)


@pytest.mark.parametrize("version", [1, 2, 3, 4])
def test_a_lowered_version_is_refused(version: int) -> None:
    with pytest.raises(ModelError, match=f"says version {version} and holds what version 5 writes"):
        loads(DATA[:8] + struct.pack("<I", version) + DATA[12:])


def spec_of(name: str) -> Callable[[Any], Any]:
    return lambda header: node(header, name)["output"]["spec"]


def _wider(*path: str) -> Callable[[Any], None]:
    """Say 16 bits where ``path`` (a node, and words that lead to a spec) has 8."""

    def change(header: Any) -> None:
        found = node(header, path[0])
        for word in path[1:]:
            found = found[word]
        found.update(bits=16, signed=True, symmetric=True)

    return change


# each with a right checksum
HOSTILE: dict[str, tuple[Callable[[Any], None], str]] = {
    "a table of 16 bits": (_wider("embedding", "op", "weight", "spec"), "A s16 per axis 0 tensor holds int16"),
    "a convolution of 16 bits": (_wider("querys", "op", "weight", "spec"), "tensor holds int16, got int8"),
    "a mask of 16 bits": (_wider("mask", "output", "spec"), "a mask for .* at most 8 bits"),
    "a convolution's input of 16 bits": (_wider("narrow", "output", "spec"), "zero point or clamp|at most 8 bits"),
    "a constant of 8 bits": (_set("positions", "output", "spec", "bits", 8), "positions"),
    "12 bits": (_set("norm", "output", "spec", "bits", 12), "bits must be an integer in 1..8, or 16"),
    "16 unsigned bits": (_set("norm", "output", "spec", "signed", False), "16 bits are signed and symmetric"),
    "16 affine bits": (_set("norm", "output", "spec", "symmetric", False), "16 bits are signed and symmetric"),
    "an index with a grid": (
        lambda h: node(h, "mask")["output"].update(is_index=True),
        "an index has no grid",
    ),
    "an index for a mask": (_set("shares", "inputs", ["scores", "ids"]), "An index has no scale"),
    "an index for a convolution": (_set("querys", "inputs", ["ids"]), "querys: Conv2d"),
    "a mask for indices": (_set("embedding", "inputs", ["mask"]), "an Embedding takes indices"),
    "an index out of a layer norm": (
        lambda h: node(h, "norm").update(output=node(h, "ids")["output"]),
        "norm",
    ),
    "addends that are multipliers": (
        _set("norm", "op", "addends", "array", "norm.op.multipliers"),
        "addends must be int64",
    ),
    "multipliers that are addends": (
        _set("norm", "op", "multipliers", "array", "norm.op.addends"),
        "multipliers must be int32",
    ),
    "addends of another length": (
        _set("norm", "op", "addends", "array", "embedding.op.weight.values"),
        "addends must be",
    ),
    "addends a number": (_set("norm", "op", "addends", 3), "norm"),
    "a shift of text": (_set("norm", "op", "shift", "45"), "sound network"),
    "a huge shift": (_set("norm", "op", "shift", 10**30), "takes a shift of 1..61"),
    "a huge clamp": (_set("norm", "op", "clamp", [-(10**30), 10**30]), "does not fit the grid"),
    "a huge ln 2": (_set("shares", "op", "ln2", -(10**300)), "shares"),
    "a huge coefficient": (_set("shares", "op", "b", 10**300), "more than 32 bits"),
    "a coefficient that is no integer": (_set("shares", "op", "c", 0.5), "whole numbers"),
    "a coefficient of text": (_set("shares", "op", "c", "1"), "sound network"),
    "a list for a coefficient": (_set("gelu", "op", "b", [1]), "sound network"),
    "huge coefficients of a GELU": (
        lambda h: node(h, "gelu")["op"].update(b=-(10**300), c=-(10**300), one=-(10**300)),
        "fits 62 bits",
    ),
    "bits of a softmax that are many": (_set("shares", "op", "bits", 10**6), "with 1000000 bits"),
    "a multiplier for each row of a softmax": (
        lambda h: node(h, "shares")["op"].update(multiplier=node(h, "embedding")["op"]["requantizer"]["multiplier"]),
        "the multiplier of i-softmax",
    ),
    "a requantizer for a multiplier": (
        lambda h: node(h, "shares")["op"].update(multiplier=node(h, "scores")["op"]["requantizer"]),
        "sound network",
    ),
    "a product without heads": (_set("scores", "inputs", ["querys", "keys"]), "MatMul takes two tensors"),
    "a product of one tensor": (_set("scores", "inputs", ["query"]), "MatMul takes 2 inputs, got 1"),
    "a transposition of text": (
        _set("scores", "op", "transpose_a", ""),
        "transpose_a of MatMul is of the type bool, got ''",
    ),
    "a transposition of 0": (
        _set("scores", "op", "transpose_a", 0),
        "transpose_a of MatMul is of the type bool, got 0",
    ),
    "bits of a softmax that are true": (
        _set("shares", "op", "bits", True),
        "bits of SoftmaxPolynomial is of the type int",
    ),
    "a clamp of four": (
        _set("norm", "op", "clamp", [-9, 9, -9, 9]),
        r"clamp of LayerNorm is of the type tuple\[int, int\]",
    ),
    "a rule of 1": (_set("scores", "op", "requantizer", "rule", 1), "A rule must be a RoundingRule, got 1"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_header_is_refused(kind: str) -> None:
    change, words = HOSTILE[kind]
    header = copy.deepcopy(header_of(DATA))
    change(header)
    assert header != header_of(DATA)
    with pytest.raises(ModelError, match=words) as caught:
        loads(forged(header, body_of(DATA), version=5), "evil.lab")
    assert str(caught.value).startswith("evil.lab does not hold a sound network")


def with_array(name: str, array: Any) -> bytes:
    """The file with another array in its body, and a right checksum."""
    arrays = load_tensors(body_of(DATA))
    assert name in arrays
    return forged(header_of(DATA), save_tensors(arrays | {name: array}), version=5)


@pytest.mark.parametrize(
    ("name", "array", "words"),
    [
        ("embedding.op.weight.values", np.zeros((30, 12), np.int16), "tensor holds int8, got int16"),
        ("querys.op.weight.values", np.zeros((12, 12, 1, 1), np.int16), "tensor holds int8, got int16"),
        ("embedding.op.weight.values", np.full((30, 12), -128, np.int8), "holds -127..127"),
        ("norm.op.addends", np.zeros(12, np.int32), "addends must be int64"),
        ("norm.op.addends", np.zeros(12, np.float64), "addends must be int64"),
        ("norm.op.addends", np.full(12, -(2**63)), "more than 62 bits"),
        ("norm.op.multipliers", np.zeros(12, np.int64), "multipliers must be int32"),
        ("norm.op.multipliers", np.zeros((12, 1), np.int32), "multipliers must be int32"),
        ("positions.op.values", np.zeros((12, 5), np.int32), "positions"),
        ("positions.op.values", np.full((12, 5), -32768, np.int16), "positions"),
        ("positions.op.values", np.zeros((5, 12), np.int16), "positions"),
    ],
)
def test_a_hostile_array_is_refused(name: str, array: Any, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        loads(with_array(name, array))


def test_weights_of_16_bits_are_refused_though_all_of_them_fit() -> None:
    """Header and body agree; only a convolution of such weights does not exist."""
    header = header_of(DATA)
    _wider("querys", "op", "weight", "spec")(header)
    arrays = load_tensors(body_of(DATA))
    arrays["querys.op.weight.values"] = arrays["querys.op.weight.values"].astype(np.int16)
    with pytest.raises(ModelError, match="querys: weights have at most 8 bits, got 16"):
        loads(forged(header, save_tensors(arrays), version=5))


def test_16_bits_where_they_may_not_be_are_refused_when_the_graph_is_made() -> None:
    wide = replace(GRAPH["narrow"].output, spec=WIDE, params=GRAPH["norm"].output.params)
    by = requantizer(1.0, wide)
    with pytest.raises(ModelError, match="querys: Conv2d takes activations of at most 8 bits, got 16. Requantize"):
        IntGraph(changed(GRAPH, "narrow", output=wide, op_requantizer=by), GRAPH.outputs)
    with pytest.raises(
        ModelError, match="x: Quantize puts out activations of at most 8 bits, not 16. Put a Requantize"
    ):
        IntGraph((IntNode("x", int_ops.Quantize((3,)), (), tensor((3,), 0.1)),), ("x",))
