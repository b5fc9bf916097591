"""An integer net as its users meet it: run, trace, overrides, files, and what it says to bad input."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from parity.nets import images, quantized, tiers
from parity.zoo import conv, row
from unit.graph import transformer_block
from unit.graph.builders import operations_of_runtimes
from unit.net.inputs import integers_for

import labkit
from labkit.engine import node_by_node
from labkit.errors import InputError, ModelError, OutputError, QuantizationError
from labkit.graph.ir import IntGraph
from labkit.kernels import reference
from labkit.kernels.kernel_set import REFERENCE, KernelSet
from labkit.net import IntegerNet


@pytest.fixture
def net() -> IntegerNet:
    return quantized("sequential", "W8A8")[0]


@pytest.fixture
def block() -> IntegerNet:
    return quantized("residual", "W4A8")[0]


@pytest.mark.parametrize("tier", tiers())
class TestOnBothTiers:
    def test_run_gives_the_last_of_the_trace(self, net: IntegerNet, tier: str) -> None:
        out, trace = net.run(images(), kernels=tier), net.trace(images(), kernels=tier)
        assert (out.dtype, out.shape) == (np.float32, (8, 5))
        assert np.array_equal(out, trace["output"])
        assert len(np.unique(out)) > 20

    def test_trace_names_nodes_and_what_was_fused_into_them(self, block: IntegerNet, tier: str) -> None:
        trace = block.trace(images(2), kernels=tier)
        nodes = {node.name for node in block.graph}
        fused = {name for node in block.graph for name in node.carries}
        assert set(trace) == nodes | fused
        assert {"layer1.0.bn1", "layer1.1.shortcut.1", "relu_3", "pool", "output"} <= set(trace)
        assert np.array_equal(trace["layer1.0.bn1"], trace["layer1.0.conv1"])
        assert np.array_equal(trace["relu_1"], trace["add"])

    def test_trace_holds_integers_of_each_tensors_own_grid(self, block: IntegerNet, tier: str) -> None:
        trace: dict[str, NDArray[Any]] = block.trace(images(2), kernels=tier)
        for node in block.graph:
            array, spec = trace[node.name], node.output.spec
            assert array.shape == (2, *node.output.shape)
            if spec is None:
                assert array.dtype == np.float32
            else:
                assert array.dtype == spec.dtype
                assert spec.qmin <= array.min() <= array.max() <= spec.qmax

    def test_trace_gives_copies(self, net: IntegerNet, tier: str) -> None:
        x = images(3)
        first = net.trace(x, kernels=tier)
        kept = {name: array.copy() for name, array in first.items()}
        for array in first.values():
            array.fill(1)
        second = net.trace(x, kernels=tier)
        assert all(np.array_equal(second[name], kept[name]) for name in kept)
        net.run(images(8, seed=5), kernels=tier)
        assert all(np.array_equal(second[name], kept[name]) for name in kept)

    def test_result_of_run_is_a_copy(self, net: IntegerNet, tier: str) -> None:
        first = net.run(images(3), kernels=tier)
        kept = first.copy()
        net.run(images(3, seed=5), kernels=tier)
        assert np.array_equal(first, kept)
        assert not np.array_equal(net.run(images(3, seed=5), kernels=tier), kept)

    @pytest.mark.parametrize("size", [1, 5, 64, 65, 70])
    def test_batch_size_changes_nothing(self, net: IntegerNet, tier: str, size: int) -> None:
        x = images(70)
        alone = np.concatenate([net.run(x[i : i + 1], kernels="reference") for i in range(size)])
        assert np.array_equal(net.run(x[:size], kernels=tier), alone)
        trace = net.trace(x[:size], kernels=tier)
        assert {len(array) for array in trace.values()} == {size}
        assert np.array_equal(trace["output"], alone)

    def test_no_images_give_no_results(self, block: IntegerNet, tier: str) -> None:
        out = block.run(images(8)[:0], kernels=tier)
        assert (out.shape, out.dtype) == ((0, 6, 1, 1), np.float32)
        trace = block.trace(images(8)[:0], kernels=tier)
        for node in block.graph:
            assert trace[node.name].shape == (0, *node.output.shape)

    def test_two_outputs_come_by_name(self, tier: str) -> None:
        net, module = quantized("two outputs", "W8A8")
        outputs = net.run(images(2), kernels=tier)
        assert list(outputs) == ["output_0", "output_1", "output_2"]
        assert {name: array.shape for name, array in outputs.items()} == {
            "output_0": (2, 2, 8, 8),
            "output_1": (2, 3, 8, 8),
            "output_2": (2, 4, 8, 8),
        }
        with torch.no_grad():
            head, (tail, shared) = module(torch.tensor(images(32, seed=2)[:4:2]))
        close = net.run(images(32, seed=2)[:4:2], kernels=tier)  # of the calibration images
        for real, name in zip((head, tail, shared), close, strict=True):
            assert np.abs(real.numpy() - close[name]).max() < 0.05

    def test_names_of_images_come_from_the_module(self, net: IntegerNet, tier: str) -> None:
        out = net.run(images(), kernels=tier)
        assert np.array_equal(net.run({"input_1": images()}, kernels=tier), out)

    @pytest.mark.parametrize(
        "form",
        [
            lambda x: torch.tensor(x),
            lambda x: torch.tensor(x, requires_grad=True),
            lambda x: x.astype(np.float64),
            lambda x: x.tolist(),
            lambda x: np.asfortranarray(x),
            lambda x: np.repeat(x, 2, axis=3)[:, :, :, ::2],
            lambda x: x.astype(">f4"),
        ],
        ids=["tensor", "leaf tensor", "float64", "lists", "Fortran order", "view", "big-endian"],
    )
    def test_images_in_any_form(self, net: IntegerNet, tier: str, form: Callable[[Any], Any]) -> None:
        x = images()
        assert np.array_equal(net.run(form(x), kernels=tier), net.run(x, kernels=tier))

    def test_half_precision(self, net: IntegerNet, tier: str) -> None:
        x = np.random.default_rng(0).integers(0, 3, (4, 3, 8, 8)).astype(np.float16)
        assert np.array_equal(net.run(x, kernels=tier), net.run(x.astype(np.float32), kernels=tier))

    @pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int64])
    def test_pixels_that_nobody_normalised(self, net: IntegerNet, tier: str, dtype: type) -> None:
        x = np.random.default_rng(0).integers(0, 3, (4, 3, 8, 8)).astype(dtype)
        with pytest.raises(InputError, match=r"must hold real numbers .*normalised"):
            net.run(x, kernels=tier)

    def test_infinite_images_are_clipped(self, net: IntegerNet, tier: str) -> None:
        x = images().copy()
        x[0, 0, 0, :2] = np.inf, -np.inf
        huge = x.copy()
        huge[0, 0, 0, :2] = 1e30, -1e30
        assert np.array_equal(net.run(x, kernels=tier), net.run(huge, kernels=tier))

    @pytest.mark.parametrize("at", [(0, 0, 0, 0), (69, 2, 7, 7)])
    def test_nan_is_refused(self, net: IntegerNet, tier: str, at: tuple[int, ...]) -> None:
        x = images(70).copy()
        x[at] = np.nan
        with pytest.raises(QuantizationError, match="Cannot quantize NaN: 1 of"):
            net.run(x, kernels=tier)
        with pytest.raises(QuantizationError, match="Cannot quantize NaN: 1 of"):
            net.trace(x, kernels=tier)

    def test_images_are_not_changed(self, net: IntegerNet, tier: str) -> None:
        x = np.array(images())
        before = x.copy()
        net.trace(x, kernels=tier)
        assert np.array_equal(x, before)

    def test_saved_net_gives_the_same(self, block: IntegerNet, tier: str, tmp_path: Path) -> None:
        block.save(tmp_path / "net.lab")
        loaded = labkit.load(tmp_path / "net.lab")
        assert str(loaded) == str(block)
        assert dict(loaded.graph.notes) == dict(block.graph.notes)
        before, after = block.trace(images(), kernels=tier), loaded.trace(images(), kernels=tier)
        assert before.keys() == after.keys()
        assert all(np.array_equal(before[name], after[name]) for name in before)


# ---- bad input


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (np.zeros((3, 8, 8)), r"must have shape \('N', 3, 8, 8\), got \(3, 8, 8\)\. Add a batch axis: x\[None\]"),
        (np.zeros((2, 1, 8, 8)), r"got \(2, 1, 8, 8\)\. Resize the images, or take the network made for them"),
        (np.zeros((2, 3, 8, 9)), r"got \(2, 3, 8, 9\)\. Resize"),
        (np.zeros((2, 3, 64)), r"got \(2, 3, 64\)\. Resize"),
        (np.zeros((2, 2, 3, 8, 8)), r"got \(2, 2, 3, 8, 8\)\. Resize"),
        (3.0, r"got \(\)\. Resize"),
        (np.zeros((2, 3, 8, 8), complex), r"must hold real numbers \(float32\), got complex128"),
        (np.zeros((2, 3, 8, 8), bool), r"must hold real numbers \(float32\), got bool"),
        (np.full((2, 3, 8, 8), "x"), r"must hold real numbers \(float32\), got <U1"),
        (None, r"must hold real numbers \(float32\), got object"),
        ("cat.png", r"must hold real numbers \(float32\), got <U7"),
    ],
)
@pytest.mark.parametrize("tier", tiers())
def test_images_that_do_not_fit(x: Any, words: str, tier: str, net: IntegerNet) -> None:
    with pytest.raises(InputError, match=f"^Input 'input_1' {words}" if words.startswith("must") else words):
        net.run(x, kernels=tier)


@pytest.mark.parametrize("x", [{}, {"image": images()}, {"input_1": images(), "mask": images()}])
def test_inputs_of_other_names(x: Any, net: IntegerNet) -> None:
    with pytest.raises(InputError, match=r"The net takes the inputs input_1, got"):
        net.run(x)


@pytest.mark.parametrize("kernels", ["cuda", "", None, 3, {}, reference])
def test_unknown_kernels(kernels: Any, net: IntegerNet) -> None:
    for call in (net.run, net.trace):
        with pytest.raises(InputError, match='kernels must be "numba", "reference" or a KernelSet, got'):
            call(images(), kernels=kernels)


# ---- overrides


def test_override_is_used_in_place_of_the_operation(net: IntegerNet) -> None:
    shapes = []

    def conv2d(x: Any, weight: Any, bias: Any, **options: Any) -> Any:
        shapes.append(weight.shape)
        return reference.conv2d(x, weight, bias, **options)

    out = net.run(images(), kernels=REFERENCE.with_override("conv2d", conv2d))
    assert shapes == [(4, 3, 3, 3), (6, 4, 3, 3)]
    assert np.array_equal(out, net.run(images(), kernels="reference"))


def test_result_of_an_override_is_passed_on(net: IntegerNet) -> None:
    kernels = REFERENCE.with_override("max_pool2d", lambda x, **_: x[:, :, ::2, ::2])
    trace, plain = net.trace(images(), kernels=kernels), net.trace(images(), kernels="reference")
    assert np.array_equal(trace["2"], plain["0"][:, :, ::2, ::2])
    assert not np.array_equal(trace["2"], plain["2"])
    assert not np.array_equal(trace["output"], plain["output"])


MOVES = (
    "squeeze and excite",
    "zeros around images",
    "channel shuffle",
    "softmax of an image",
    "sequences",
    "encoder and decoder",
)
UNEVEN = ("adaptive pooling that does not divide",)


def test_every_operation_can_be_overridden() -> None:
    called = set()

    def counted(name: str) -> Callable[..., Any]:
        def function(*arrays: Any, **options: Any) -> Any:
            called.add(name)
            return getattr(reference, name)(*arrays, **options)

        return function

    kernels = REFERENCE
    for name in reference.__all__:
        kernels = kernels.with_override(name, counted(name))
    for case in ("sequential", "residual", "relu of a concatenation", "average pool with padding", *MOVES, *UNEVEN):
        net, _ = quantized(case, "W8A8")
        out, plain = net.trace(images(), kernels=kernels), net.trace(images(), kernels="reference")
        assert all(np.array_equal(out[name], plain[name]) for name in plain)
    others = IntegerNet(operations_of_runtimes())
    given = integers_for(others)
    out, plain = others.trace(given, kernels=kernels), others.trace(given, kernels="reference")
    assert all(np.array_equal(out[name], plain[name]) for name in plain)
    encoder = IntegerNet(transformer_block.block())
    words = transformer_block.sentences(encoder.graph, 3)
    out, plain = encoder.trace(words, kernels=kernels), encoder.trace(words, kernels="reference")
    assert all(np.array_equal(out[name], plain[name]) for name in plain)
    assert called == set(reference.__all__)


def test_override_leaves_the_set_that_it_is_made_from() -> None:
    def mine(x: Any) -> Any:
        return x

    kernels = REFERENCE.with_override("flatten", mine)
    assert kernels["flatten"] is mine
    assert kernels.name == "reference with your flatten"
    assert REFERENCE["flatten"] is reference.flatten
    assert {name for name in REFERENCE.functions if kernels[name] is not REFERENCE[name]} == {"flatten"}
    with pytest.raises(TypeError):
        REFERENCE.functions["flatten"] = mine


def test_override_of_nothing() -> None:
    with pytest.raises(InputError, match=r"no operation 'conv3d' to override; choose one of .*conv2d"):
        REFERENCE.with_override("conv3d", lambda x: x)
    with pytest.raises(InputError, match="An override must be a function, got int"):
        REFERENCE.with_override("conv2d", 3)


def linear_with(change: Callable[[Any], Any]) -> KernelSet:
    return REFERENCE.with_override("linear", lambda *arrays, **options: change(reference.linear(*arrays, **options)))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda y: y[:, :4], r"returned shape \(8, 4\), but \(8, 5\) is needed\. Check the output size"),
        (lambda y: y[..., None], r"returned shape \(8, 5, 1\), but"),
        (lambda y: None, r"returned shape \(\), but"),
        (lambda y: y.astype(np.float32), "returned float32, but integers are needed. Round and cast"),
        (lambda y: y > 3, "returned bool, but integers are needed"),
        (lambda y: y + 1000, r"returned \d+\.\.\d+, outside the grid 0\.\.255\. Clamp"),
        (lambda y: y.astype(np.int64) - 300, r"returned -\d+\.\.-?\d+, outside the grid 0\.\.255\. Clamp"),
    ],
)
def test_wrong_result_of_an_override_names_the_node(change: Callable[[Any], Any], words: str, net: IntegerNet) -> None:
    for call in (net.run, net.trace):
        with pytest.raises(InputError, match=f"^6: the kernel {words}"):
            call(images(), kernels=linear_with(change))


@pytest.mark.parametrize(
    "change", [lambda y: y[:1], lambda y: np.concatenate([y, y])], ids=["one image", "too many images"]
)
def test_override_that_loses_images(change: Callable[[Any], Any], net: IntegerNet) -> None:
    with pytest.raises(InputError, match="^6: the kernel returned shape"):
        net.run(images(), kernels=linear_with(change))


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda real, params, spec: real / params.scale, "returned float32, but integers"),
        (lambda real, params, spec: np.zeros((len(real), 3), np.uint8), "returned shape"),
        (lambda real, params, spec: np.full(real.shape, 256, np.int32), r"returned 256\.\.256, outside the grid"),
    ],
)
def test_wrong_result_at_the_border_in(function: Callable[..., Any], words: str, net: IntegerNet) -> None:
    with pytest.raises(InputError, match=f"^input_1: the kernel {words}"):
        net.run(images(), kernels=REFERENCE.with_override("quantize", function))


def test_override_cannot_spoil_what_others_read(block: IntegerNet) -> None:
    """`relu` feeds two convolutions: the first must not change what the second gets, nor what the trace shows."""

    def spoiling(x: Any, *arrays: Any, **options: Any) -> Any:
        result = reference.conv2d(x, *arrays, **options)
        x += 1
        return result

    with pytest.raises(ValueError, match="read-only"):
        block.trace(images(), kernels=REFERENCE.with_override("conv2d", spoiling))


# ---- files and text


def test_text_shows_every_node(net: IntegerNet) -> None:
    lines = str(net).splitlines()
    assert repr(net) == str(net)
    assert [line.split()[0] for line in lines[1:]] == [node.name for node in net.graph]
    assert "6x4x4 u8" in str(net)


def test_notes_can_be_added(net: IntegerNet, tmp_path: Path) -> None:
    noted = net.with_notes(model="tiny", plan={"weights": {}, "activations": {}})
    assert noted.graph.notes["model"] == "tiny"
    assert noted.graph.notes["plan"] == {"weights": {}, "activations": {}}
    assert noted.graph.notes["calibration"] == net.graph.notes["calibration"]
    assert "model" not in net.graph.notes
    noted.save(tmp_path / "noted.lab")
    assert dict(labkit.load(tmp_path / "noted.lab").graph.notes) == dict(noted.graph.notes)


def test_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"Cannot read .*nothing\.lab: .*Give the path of a \.lab file"):
        labkit.load(tmp_path / "nothing.lab")
    with pytest.raises(ModelError, match="Cannot read"):
        labkit.load(tmp_path)


@pytest.mark.parametrize("content", [b"", b"labkit", b"\x89PNG\r\n\x1a\n" + bytes(100), b"{}" * 40])
def test_foreign_file(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "foreign.lab"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=r"foreign\.lab is not a \.lab file"):
        labkit.load(path)


def test_unwritable_folder(net: IntegerNet, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError):
        net.save(tmp_path / "file" / "net.lab")
    assert (tmp_path / "file").read_text() == "in the way"


def test_net_of_one_convolution() -> None:
    """The smallest there is."""
    module: Any = row(only=conv(1, 1, 1, 0, bias=False)).eval()
    x = np.linspace(-1, 1, 16, dtype=np.float32).reshape(4, 1, 2, 2)
    net = labkit.quantize(module, x)
    weight = module.only.weight.item()
    for tier in ("reference", "numba"):
        assert np.abs(net.run(x, kernels=tier) - weight * x).max() < abs(weight) * 2 / 255 * 1.01


@pytest.mark.parametrize("threads", [0, -1, 2.0, "2", None])
def test_threads_are_a_whole_number(threads: Any, net: IntegerNet) -> None:
    with pytest.raises(InputError, match="threads: got .*whole number, 1 or more"):
        net.run(np.zeros((1, *net.graph[net.graph.inputs[0]].output.shape), np.float32), threads=threads)


@pytest.mark.parametrize(("budget", "most"), [(1, 1), (1 << 18, 19), (1 << 40, 20)])
def test_large_images_run_node_by_node_few_at_a_time(
    net: IntegerNet, budget: int, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, sizes = images(20), []
    expected = net.trace(x, kernels="reference")
    compute = node_by_node.run_nodes

    def counted(graph: IntGraph, inputs: Mapping[str, Any], kernels: KernelSet) -> Any:
        sizes.append(len(inputs[graph.inputs[0]]))
        return compute(graph, inputs, kernels)

    monkeypatch.setattr("labkit.net.NODE_BY_NODE_BYTES", budget)
    monkeypatch.setattr(node_by_node, "run_nodes", counted)
    found = net.trace(x, kernels="reference")
    assert all(np.array_equal(found[name], expected[name]) for name in expected)
    assert sum(sizes) == 20 and max(sizes) <= most
