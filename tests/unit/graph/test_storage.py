"""`.lab` files: what goes in comes out, and whatever else is read ends in a ModelError."""

from __future__ import annotations

import hashlib
import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load as load_tensors
from unit.graph.builders import biased, changed, every_operation, operations_of_runtimes, requantizer, tensor, weights

import labkit
from labkit.arithmetic.affine import QParams, QTensor, QuantSpec
from labkit.arithmetic.requantize import RoundingRule
from labkit.errors import ModelError, OutputError
from labkit.graph import int_ops
from labkit.graph.ir import IntGraph, IntNode
from labkit.graph.storage import VERSION, dumps, load, loads, save
from labkit.net import IntegerNet

GRAPH = every_operation()
DATA = dumps(GRAPH)
HEAD = struct.Struct("<8sIQ32s")  # magic, version, length of the header, SHA-256 of header and body


def header_of(data: bytes) -> dict[str, Any]:
    length = HEAD.unpack_from(data)[2]
    header: dict[str, Any] = json.loads(data[HEAD.size : HEAD.size + length])
    return header


def body_of(data: bytes) -> bytes:
    return data[HEAD.size + HEAD.unpack_from(data)[2] :]


def forged(header: object, body: bytes | None = None, version: int = HEAD.unpack_from(DATA)[1]) -> bytes:
    """A file with a right checksum around a ``header`` that labkit never wrote."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    body = body_of(DATA) if body is None else body
    return HEAD.pack(DATA[:8], version, len(text), hashlib.sha256(text + body).digest()) + text + body


def equal(a: Any, b: Any) -> bool:
    """Both hold the same, array by array and field by field, with the same types."""
    if type(a) is not type(b):
        return False
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and bool(np.array_equal(a, b))
    if isinstance(a, tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    if hasattr(a, "__dataclass_fields__"):
        return all(equal(getattr(a, name), getattr(b, name)) for name in a.__dataclass_fields__)
    return bool(a == b)


# Round trips


@pytest.mark.parametrize("rule", RoundingRule)
def test_every_operation_survives_to_the_byte(rule: RoundingRule) -> None:
    graph = every_operation(rule)
    again = loads(dumps(graph))
    assert equal(again.nodes, graph.nodes)
    assert (again.outputs, dict(again.notes)) == (graph.outputs, dict(graph.notes))
    assert dumps(again) == dumps(graph)
    assert str(again) == str(graph)


OLD = IntGraph(GRAPH.nodes[:10], ("fc",), GRAPH.notes)  # what version 1 knew


def test_a_graph_of_old_operations_is_written_as_version_1() -> None:
    """To the byte as before, so that an older labkit reads it; one newer operation makes it version 2 or 3."""
    data = dumps(OLD)
    assert HEAD.unpack_from(data)[1] == 1
    assert HEAD.unpack_from(DATA)[1] == 3
    assert {key for node in header_of(data)["nodes"] for key in node["output"]} == {"class", "shape", "spec", "params"}
    assert equal(loads(data).nodes, OLD.nodes)
    versions = dict.fromkeys(("scaled", "padded", "moved", "sequence", "uneven", "shares", "class"), 2) | {"larger": 3}
    for name, version in versions.items():
        kept = [node for node in GRAPH if node.name == name or not isinstance(node.op, int_ops.UpsampleNearest2d)]
        names = [node.name for node in kept]
        part = IntGraph(tuple(kept[: 1 + names.index(name)]), (name,))
        assert HEAD.unpack_from(dumps(part))[1] == version
        assert equal(loads(dumps(part)).nodes, part.nodes)


NEWEST = operations_of_runtimes()


def test_operations_of_other_runtimes_are_written_as_version_4() -> None:
    data = dumps(NEWEST)
    assert HEAD.unpack_from(data)[1] == 4
    again = loads(data)
    assert equal(again.nodes, NEWEST.nodes)
    assert dumps(again) == data
    assert str(again) == str(NEWEST)
    for node in NEWEST.nodes[1:]:
        assert equal(again[node.name], node)


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("x", {"output": replace(GRAPH["x"].output, channels_last=True)}),
        ("fc", {"op_requantizer": biased(0.01, 0.5, GRAPH["fc"].output, RoundingRule.FLOAT32_EVEN)}),
        ("fc", {"op_requantizer": biased(0.01, [0.5, 0, -9], GRAPH["fc"].output, RoundingRule.FLOAT32_TWICE)}),
        ("fc", {"op_requantizer": requantizer(0.01, GRAPH["fc"].output, RoundingRule.FLOAT32_TWICE)}),
    ],
)
def test_a_new_field_makes_a_file_version_4_and_survives(name: str, fields: dict[str, Any]) -> None:
    graph = IntGraph(changed(OLD, name, **fields), OLD.outputs)
    data = dumps(graph)
    assert HEAD.unpack_from(data)[1] == 4
    assert equal(loads(data).nodes, graph.nodes)
    assert not equal(loads(data).nodes, OLD.nodes)


def test_a_rule_of_version_4_does_not_pass_for_an_older_one() -> None:
    """A file's version is not under its checksum: one that was lowered must not be read as if nothing had happened."""
    for version in (1, 2, 3):
        with pytest.raises(ModelError, match=f"says version {version} and holds what version 4 writes"):
            loads(DATA[:8] + struct.pack("<I", version) + dumps(NEWEST)[12:])


def test_an_index_survives() -> None:
    assert loads(DATA)["class"].output.is_index
    assert [node["name"] for node in header_of(DATA)["nodes"] if "is_index" in node["output"]] == ["class"]


def test_equal_graphs_give_equal_bytes_and_others_do_not() -> None:
    assert dumps(every_operation()) == DATA
    assert dumps(IntGraph(changed(GRAPH, "add", op_clamp=(8, 255)), GRAPH.outputs, GRAPH.notes)) != DATA


def test_a_quantized_module_survives_with_its_results(tmp_path: Path) -> None:
    import torch
    from torch import nn

    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(3, 5, 3, padding=1), nn.BatchNorm2d(5), nn.ReLU6(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(80, 4)
    )
    x = torch.randn(8, 3, 8, 8).numpy()
    for bits in range(1, 9):
        net = labkit.quantize(
            module, x, weights=bits, activations=max(bits, 2), activation_scheme=("affine", "symmetric")[bits % 2]
        )
        net.save(tmp_path / "net.lab")
        again = labkit.load(tmp_path / "net.lab")
        assert equal(again.graph.nodes, net.graph.nodes)
        assert dumps(again.graph) == (tmp_path / "net.lab").read_bytes()
        assert np.array_equal(again.run(x, kernels="reference"), net.run(x, kernels="reference"))


def test_four_bits_take_half_the_bytes() -> None:
    def stored(bits: int) -> int:
        wide = weights((3, 8001), bits, per_channel=False)
        nodes = (
            IntNode("x", int_ops.Quantize((8001,)), (), tensor((8001,))),
            IntNode(
                "fc", int_ops.Linear(wide, np.zeros(3, np.int32), requantizer(0.01, tensor((3,)))), ("x",), tensor((3,))
            ),
        )
        data = dumps(IntGraph(nodes, ("fc",)))
        assert np.array_equal(loads(data)["fc"].op.weight.values, wide.values)  # type: ignore[union-attr]
        assert load_tensors(body_of(data))["fc.op.weight.values"].nbytes == (24_003 if bits > 4 else 12_002)
        return len(data)

    sizes = {bits: stored(bits) for bits in range(1, 9)}
    assert all(sizes[8] - sizes[bits] in range(11_990, 12_020) for bits in (1, 2, 3, 4))
    assert all(abs(sizes[8] - sizes[bits]) < 20 for bits in (5, 6, 7))


def test_unsigned_four_bit_weights_survive() -> None:
    spec = QuantSpec(4, signed=False, symmetric=False)
    values = np.arange(24, dtype=np.uint8).reshape(3, 8) % 16
    odd = QTensor(values, QParams(np.float32(0.5), np.int32(15)), spec)
    graph = IntGraph(changed(GRAPH, "fc", op_weight=odd), GRAPH.outputs)
    assert equal(loads(dumps(graph)).nodes, graph.nodes)


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    save(GRAPH, tmp_path / "net.lab")
    assert (tmp_path / "net.lab").read_bytes() == DATA
    assert equal(load(tmp_path / "net.lab").nodes, GRAPH.nodes)
    with pytest.raises(OutputError, match="Cannot write"):
        save(GRAPH, tmp_path / "missing" / "net.lab")
    assert [path.name for path in tmp_path.iterdir()] == ["net.lab"]


def test_a_net_loads_and_runs_without_torch(tmp_path: Path) -> None:
    save(GRAPH, tmp_path / "net.lab")
    program = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "torchvision"):
            raise ImportError(f"{name} is blocked")
sys.meta_path.insert(0, Block())
import numpy as np, labkit
net = labkit.load("net.lab")
y = net.run(np.linspace(-2, 2, 144, dtype=np.float32).reshape(2, 2, 6, 6), kernels="reference")
assert "torch" not in sys.modules
print(y.shape, y.tobytes().hex())
"""
    ran = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(labkit.__file__).parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )
    x = np.linspace(-2, 2, 144, dtype=np.float32).reshape(2, 2, 6, 6)
    wanted = IntegerNet(GRAPH).run(x, kernels="reference")
    assert ran.stdout.strip() == f"(2, 3) {wanted.tobytes().hex()}", ran.stderr


# Damage


@pytest.mark.parametrize("length", [*range(0, 80), *range(80, len(DATA), max(1, len(DATA) // 150)), len(DATA) - 1])
def test_a_truncated_file_is_refused(length: int) -> None:
    with pytest.raises(ModelError, match=r"^cut\.lab (is|has) .*(Make one|Copy it again)"):
        loads(DATA[:length], "cut.lab")


def test_a_flipped_byte_anywhere_is_refused() -> None:
    rng = np.random.default_rng(0)
    places = [*range(HEAD.size + 20), *rng.integers(0, len(DATA), 400).tolist(), len(DATA) - 1]
    for place in places:
        for bit in (0x01, 0x10, 0x80):
            flipped = bytearray(DATA)
            flipped[place] ^= bit
            with pytest.raises(ModelError, match=r"^bad\.lab "):
                loads(bytes(flipped), "bad.lab")


def test_a_digit_changed_in_the_header_is_refused() -> None:
    """The clamp of a ReLU, say: the file would still parse, and the net would be another."""
    at = DATA.index(b'"clamp":[7,255]')
    with pytest.raises(ModelError, match=r"damaged.*checksum"):
        loads(DATA[:at] + b'"clamp":[8,255]' + DATA[at + 15 :])


def test_bytes_after_the_end_are_refused() -> None:
    with pytest.raises(ModelError, match="checksum"):
        loads(DATA + b"\0")


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04" + bytes(200), b"\x80\x02}q\x00.", b"TFL3" + bytes(99), DATA[1:]])
def test_a_foreign_file_is_refused(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.lab").write_bytes(data)
    with pytest.raises(ModelError, match=r"model\.lab is not a \.lab file"):
        load(tmp_path / "model.lab")


@pytest.mark.parametrize("version", [0, VERSION + 1, 2**32 - 1])
def test_another_version_is_refused(version: int) -> None:
    with pytest.raises(ModelError, match=f"has version {version}, this labkit reads versions 1 to {VERSION}"):
        loads(forged(header_of(DATA), version=version))


@pytest.mark.parametrize("length", [len(DATA), 2**40, 2**64 - 1])
def test_a_huge_header_length_is_refused(length: int) -> None:
    with pytest.raises(ModelError, match="cut off inside its header"):
        loads(HEAD.pack(DATA[:8], VERSION, length, bytes(32)) + DATA[HEAD.size :])


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none.lab", tmp_path):
        with pytest.raises(ModelError, match="Give the path of a .lab file"):
            load(path)


# Hostile headers, each with a right checksum


def at(header: Any, *path: Any) -> Any:
    for key in path:
        header = header[key]
    return header


def node(header: Any, name: str) -> Any:
    return next(n for n in header["nodes"] if n["name"] == name)


def _set(*path: Any) -> Callable[[Any], None]:
    """Set what ``path`` leads to (the first word names a node) to its last item."""
    *keys, last, value = path

    def change(header: Any) -> None:
        at(node(header, keys[0]), *keys[1:])[last] = value

    return change


HOSTILE: dict[str, Callable[[Any], None]] = {
    "no nodes": lambda h: h.pop("nodes"),
    "empty nodes": lambda h: h.update(nodes=[]),
    "nodes a number": lambda h: h.update(nodes=5),
    "nodes a list of numbers": lambda h: h.update(nodes=[1, 2]),
    "nodes tensors": lambda h: h.update(nodes=[at(n, "output") for n in h["nodes"]]),
    "outputs a number": lambda h: h.update(outputs=3),
    "outputs lists": lambda h: h.update(outputs=[["output"]]),
    "notes a list": lambda h: h.update(notes=[1, 2]),
    "a builtin class": _set("pool", "op", "class", "eval"),
    "a dotted class": _set("pool", "op", "class", "os.system"),
    "a class of another module": _set("pool", "op", "class", "IntGraph"),
    "a dunder class": _set("pool", "op", "class", "__class__"),
    "a class that is a list": _set("pool", "op", "class", ["MaxPool2d"]),
    "a node for an operation": lambda h: node(h, "pool").update(op=node(h, "conv")),
    "an operation for a node": lambda h: h["nodes"].__setitem__(2, at(h["nodes"], 2, "op")),
    "an unknown field": _set("pool", "op", "__init__", 1),
    "a missing field": lambda h: node(h, "pool")["op"].pop("kernel"),
    "a name that is a number": lambda h: (node(h, "output").update(name=7), h.update(outputs=[7])),
    "a stride of text": _set("pool", "op", "stride", ["2", "2"]),
    "a stride of 0": _set("pool", "op", "stride", [0, 2]),
    "a stride below 0": _set("pool", "op", "stride", [-1, 2]),
    "a stride that is no integer": _set("conv", "op", "stride", [1.0, 1.0]),
    "a padding below 0": _set("pool", "op", "padding", [[-1, 1], [0, 0]]),
    "one stride": _set("pool", "op", "stride", [2]),
    "no bits": _set("fc", "op", "weight", "spec", "bits", 0),
    "many bits": _set("fc", "op", "weight", "spec", "bits", 64),
    "bits of text": _set("fc", "op", "weight", "spec", "bits", "1"),
    "an unknown rule": _set("fc", "op", "requantizer", "rule", "enum", "up"),
    "an unknown array": _set("fc", "op", "bias", "array", "nothing"),
    "the wrong array": _set("fc", "op", "bias", "array", "conv.op.bias"),
    "weights that are another array": _set("fc", "op", "weight", "values", "conv.op.bias"),
    "a number for an array": _set("fc", "op", "bias", 5),
    "a wrong weight shape": _set("point", "op", "weight", "shape", [4, 2, 1, 1]),
    "a huge weight shape": _set("point", "op", "weight", "shape", [2**40, 2**40, 1, 1]),
    "a negative weight shape": _set("point", "op", "weight", "shape", [-4, -4, 1, 1]),
    "a huge input": _set("x", "op", "shape", [2, 10**30, 6]),
    "a huge clamp": _set("fc", "op", "requantizer", "clamp", [-(10**30), 10**30]),
    "an input from nowhere": _set("pool", "inputs", ["y"]),
    "an input of itself": _set("pool", "inputs", ["pool"]),
    "an infinite shift": _set("add", "op", "shift", float("inf")),
    "a shift that is not a number": _set("add", "op", "shift", float("nan")),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_header_is_refused(kind: str) -> None:
    header = header_of(DATA)
    HOSTILE[kind](header)
    assert json.dumps(header) != json.dumps(header_of(DATA))
    with pytest.raises(ModelError, match=r"^evil\.lab does not hold a sound network"):
        loads(forged(header), "evil.lab")


@pytest.mark.parametrize(
    "text", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b'{"nodes":' * 50_000, b"NaN", b'{"a":1}{"b":2}']
)
def test_a_header_that_is_no_header_is_refused(text: bytes) -> None:
    with pytest.raises(ModelError, match="does not hold a sound network"):
        loads(forged(text))


@pytest.mark.parametrize("body", [b"", b"\xff" * 64, struct.pack("<Q", 2**60), body_of(DATA)[:-8]])
def test_a_body_that_is_no_safetensors_is_refused(body: bytes) -> None:
    with pytest.raises(ModelError, match="does not hold a sound network"):
        loads(forged(header_of(DATA), body))


def test_a_graph_that_breaks_a_rule_is_refused_on_loading() -> None:
    """A file made by someone who skipped validation: its weights are fine, its sums may overflow."""
    big = replace(GRAPH["fc"].op, bias=np.full(3, 2**31 - 1, np.int32))  # type: ignore[type-var]
    broken = object.__new__(IntGraph)
    for name, value in (("nodes", changed(GRAPH, "fc", op_bias=big.bias)), ("outputs", GRAPH.outputs), ("notes", {})):  # type: ignore[union-attr]
        object.__setattr__(broken, name, value)
    with pytest.raises(ModelError, match=r"does not hold a sound network\. fc: the accumulator"):
        loads(dumps(broken))


def test_the_forger_of_these_tests_makes_sound_files() -> None:
    assert equal(loads(forged(header_of(DATA))).nodes, GRAPH.nodes)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes")
def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "net.lab")
    with pytest.raises(ModelError, match="it is no file"):
        load(tmp_path / "net.lab")
