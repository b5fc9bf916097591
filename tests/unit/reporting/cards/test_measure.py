"""A card's figures, against what PyTorch's modules, the ``.lab`` file and whole-array computations say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn
from unit.quantization.nets import branches, images, small
from unit.reporting.cards.counting import macs_by_hooks, parameters_after_folding

import labkit
from labkit.errors import InputError
from labkit.frontends.float_run import run_float
from labkit.frontends.torch_fx import from_torch
from labkit.graph.passes import simplify
from labkit.net import IntegerNet
from labkit.quantization.calibration import calibrate
from labkit.quantization.convert import convert
from labkit.quantization.plan import tensor_names
from labkit.reporting.cards import noise
from labkit.reporting.cards.measure import CardData, measure
from labkit.reporting.cards.plans import PLANS
from labkit.reporting.cards.results import NetworkCard
from labkit.reporting.layers import sqnr
from labkit.reporting.paired import change_error


def lab_parts(net: IntegerNet, path: Path) -> tuple[int, int, int]:
    """Bytes of weights, of biases that are not all 0, and of the whole file, as they lie in it."""
    from safetensors.numpy import load

    net.save(path)
    content = path.read_bytes()
    body = content[52 + int.from_bytes(content[12:20], "little") :]
    arrays = load(body)
    weights = sum(a.nbytes for name, a in arrays.items() if name.endswith("op.weight.values"))
    biases = sum(a.nbytes for name, a in arrays.items() if name.endswith("op.bias") and a.any())
    return weights, biases, len(content)


def made_again(module: nn.Module, calibration: Any, images: NDArray[np.float32]) -> tuple[Any, dict[str, IntegerNet]]:
    graph = simplify(from_torch(module, images.shape[1:]))
    return graph, {plan.name: labkit.quantize(module, calibration, plan=plan.make(graph)) for plan in PLANS}


@pytest.fixture(scope="module")
def again() -> tuple[Any, dict[str, IntegerNet]]:
    digits = labkit.data.load("mnist5k")
    return made_again(labkit.models.load("lenet", data="mnist5k"), digits.calibration(64), digits.test(1)[0])


def test_lenet_is_the_one_of_the_lab(lenet_card: NetworkCard) -> None:
    shapes = {layer.name: (layer.inputs, layer.output) for layer in lenet_card.layers}
    assert shapes["conv2"] == (((12, 14, 14),), (32, 12, 12))
    assert shapes["fc1"] == (((1152,),), (256,))
    facts = {layer.name: layer for layer in lenet_card.layers}
    assert (facts["conv1"].kernel, facts["conv1"].stride, facts["conv1"].groups) == ((5, 5), (1, 1), 1)
    assert (facts["pool1"].kernel, facts["pool1"].stride, facts["pool1"].groups) == ((2, 2), (2, 2), None)
    assert (lenet_card.parameters, lenet_card.module_parameters, lenet_card.macs) == (316_292, 316_292, 1_515_200)
    # conv1 needs its input, 3 x 32 x 32 bytes, and its output, 12 x 28 x 28, at once
    assert lenet_card.activation_bytes == 3_072 + 9_408
    assert lenet_card.float_bytes == 4 * 316_292
    assert lenet_card.float_bops == 1_515_200 * 32 * 32


@pytest.mark.parametrize("name", ["lenet", "branches"])
def test_macs_and_parameters_are_those_of_hooks(name: str, request: pytest.FixtureRequest) -> None:
    card: NetworkCard = request.getfixturevalue(f"{name}_card")
    module = branches() if name == "branches" else labkit.models.build("lenet")
    shape = card.layers[0].output
    assert {layer.name: layer.macs for layer in card.layers if layer.macs} == macs_by_hooks(module, shape)
    assert card.parameters == parameters_after_folding(module, shape)
    assert card.module_parameters == sum(parameter.numel() for parameter in module.parameters())


def test_bops_are_macs_times_bits(lenet_card: NetworkCard) -> None:
    by_hand = {
        "W8A8": {"conv1": 64, "conv2": 64, "fc1": 64, "fc2": 64, "fc3": 64},
        "W4A8": {"conv1": 32, "conv2": 32, "fc1": 32, "fc2": 32, "fc3": 32},
        "W4A4": {"conv1": 32, "conv2": 16, "fc1": 16, "fc2": 16, "fc3": 16},  # the input keeps 8 bits
        "mixed": {"conv1": 64, "conv2": 64, "fc1": 32, "fc2": 64, "fc3": 64},
    }
    macs = {layer.name: layer.macs for layer in lenet_card.layers}
    for plan in lenet_card.plans:
        assert plan.bops == sum(macs[name] * product for name, product in by_hand[plan.name].items()), plan.name


def test_sizes_are_those_in_the_file(
    lenet_card: NetworkCard, again: tuple[Any, dict[str, IntegerNet]], tmp_path: Path
) -> None:
    for plan in lenet_card.plans:
        weights, biases, whole = lab_parts(again[1][plan.name], tmp_path / "net.lab")
        assert (plan.weight_bytes, plan.size_bytes, plan.file_bytes) == (weights, weights + biases, whole)
        assert lenet_card.compression(plan) == lenet_card.float_bytes / (weights + biases)


def test_sizes_with_biases(branches_card: NetworkCard, tmp_path: Path) -> None:
    _, nets = made_again(branches(), np.array_split(images(16).numpy(), 3), images(1).numpy())
    for plan in branches_card.plans:
        weights, biases, whole = lab_parts(nets[plan.name], tmp_path / "net.lab")
        assert biases == 4 * (8 + 8 + 5)
        assert (plan.weight_bytes, plan.size_bytes, plan.file_bytes) == (weights, weights + biases, whole)


def test_accuracy_is_that_of_the_nets(lenet_card: NetworkCard, again: tuple[Any, dict[str, IntegerNet]]) -> None:
    x, labels = labkit.data.load("mnist5k").test(150)
    with torch.no_grad():
        logits = labkit.models.load("lenet", data="mnist5k")(torch.from_numpy(x)).numpy()
    real = logits.argmax(1) == labels
    assert (lenet_card.accuracy_images, lenet_card.no_accuracy) == (150, "")
    assert lenet_card.accuracy == pytest.approx(100 * real.mean())
    for plan in lenet_card.plans:
        right = again[1][plan.name].run(x).argmax(1) == labels
        assert plan.accuracy == pytest.approx(100 * right.mean())
        assert plan.change == pytest.approx(100 * (right.mean() - real.mean()))
        assert plan.change_error == change_error(right, real)


def test_a_wrong_label_is_a_wrong_answer(lenet_card: NetworkCard) -> None:
    """Labels meet the images they belong to, also where a batch of theirs is split."""
    digits = labkit.data.load("mnist5k")
    x, labels = digits.test(130)
    moved = np.roll(labels, 1)  # neighbours are of different classes
    data = CardData("digits", digits.calibration(64), 64, x[:2], 1, [(x, moved)], 130)
    card = measure("lenet", labkit.models.load("lenet", data="mnist5k"), data, PLANS[:1])
    assert lenet_card.accuracy is not None and lenet_card.accuracy > 90
    assert card.accuracy is not None and card.accuracy < 10


def test_without_labels_there_is_no_accuracy(branches_card: NetworkCard) -> None:
    assert (branches_card.accuracy, branches_card.accuracy_images) == (None, 0)
    assert branches_card.no_accuracy == "the images have no labels"
    assert {(plan.accuracy, plan.change, plan.change_error) for plan in branches_card.plans} == {(None, None, None)}


@pytest.mark.parametrize("name", ["lenet", "branches"])
def test_certificates(name: str, request: pytest.FixtureRequest) -> None:
    card: NetworkCard = request.getfixturevalue(f"{name}_card")
    for plan in card.plans:
        proof = plan.certificate
        assert (proof.differing, proof.first) == (0, "")
        assert proof.images == (20 if name == "lenet" else 9)  # all, where there are fewer than asked for
        assert proof.comparisons > len(card.layers)
        assert proof.elements > proof.images * sum(int(np.prod(layer.output)) for layer in card.layers)
    assert {"labkit", "numpy", "torch"} <= set(card.versions)


def test_a_difference_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = IntegerNet.trace

    def lying(self: IntegerNet, x: Any, **options: Any) -> dict[str, NDArray[np.generic]]:
        found = dict(honest(self, x, **options))
        found["0"] = found["0"] + 1
        return found

    data = CardData("random", images(16).numpy(), 16, images(3).numpy())
    monkeypatch.setattr(IntegerNet, "trace", lying)
    card = measure("small", small(), data, PLANS[:1])
    assert card.plans[0].certificate.differing == 3 * 4 * 6 * 6
    assert card.plans[0].certificate.first.startswith("tensor 0, index [0, 0, 0, 0]")


@pytest.mark.parametrize("batch", [1, 4, 60])
def test_sqnr_is_that_of_whole_arrays(
    lenet_card: NetworkCard, again: tuple[Any, dict[str, IntegerNet]], batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph, nets = again
    x = labkit.data.load("mnist5k").test(60)[0]
    real = run_float(graph, {graph.inputs[0]: x})
    monkeypatch.setattr(noise, "BATCH", batch)
    found = noise.sqnr_by_tensor(graph, nets, x)
    for plan in lenet_card.plans:
        trace = nets[plan.name].trace(x)
        assert list(plan.sqnr_db) == ["x", "conv1", "conv2", "fc1", "fc2", "fc3"]
        for name, ratio in plan.sqnr_db.items():
            _, params = nets[plan.name].graph[name].output.quantized
            integers = (trace[name].astype(np.float64) - int(params.zero_point)) * float(params.scale)
            assert ratio == pytest.approx(sqnr(real[name], integers), abs=1e-3)
            assert found[plan.name][name] == pytest.approx(ratio, abs=1e-3)  # float sums of another batch size


def test_sqnr_of_all_kinds_of_nodes(branches_card: NetworkCard) -> None:
    graph = simplify(from_torch(branches(), (3, 8, 8)))
    assert tuple(branches_card.plans[0].sqnr_db) == tensor_names(graph)
    kinds = {layer.kind for layer in branches_card.layers if layer.name in branches_card.plans[0].sqnr_db}
    assert {"Input", "Conv2d", "Add", "Concat", "AveragePool2d", "Linear"} <= kinds
    eight, four = (branches_card.plans[at].median_sqnr_db for at in (0, 2))
    assert eight > four + 10


def test_exact_and_lost_ratios() -> None:
    """Real 0 is on every grid, so that an input of zeros is exact; a bias is not, and its rounding is an error."""
    module, seen = small(), images(16)
    graph = simplify(from_torch(module, (3, 8, 8)))
    nets = {"W8A8": IntegerNet(convert(graph, calibrate(graph, seen), PLANS[0].make(graph)))}
    found = noise.sqnr_by_tensor(graph, nets, np.zeros((2, 3, 8, 8), np.float32))["W8A8"]
    assert found[graph.inputs[0]] == np.inf
    assert np.isfinite(found["3"])
    assert [noise._decibel(*sums) for sums in ((0.0, 1.0), (0.0, 0.0), (100.0, 1.0))] == [-np.inf, np.inf, 20.0]


def test_progress_reaches_the_end() -> None:
    told: dict[str, tuple[int, int]] = {}
    x = images(5).numpy()
    data = CardData("random", images(16).numpy(), 16, x, 2, [(x, np.zeros(5, np.int64))], 5)
    measure("small", small(), data, PLANS[:2], progress=lambda step, done, total: told.update({step: (done, total)}))
    assert told == {
        "Calibrate": (16, 16),
        "Accuracy": (5, 5),
        "Error of each tensor": (5, 5),
        "Verify W8A8 against PyTorch": (2, 2),
        "Verify W4A8 against PyTorch": (2, 2),
    }


def card_data(**changed: Any) -> CardData:
    x = images(4).numpy()
    given = {"source": "these", "calibration": x, "calibration_images": 4, "images": x, "certified_images": 1}
    return CardData(**{**given, **changed})


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"images": np.zeros((0, 3, 8, 8), np.float32)}, "these: a card needs at least one image"),
        ({"certified_images": 0}, "at least one image to measure on and one to certify, got 4 and 0"),
        ({"labelled": []}, "there are no labelled images"),
        ({"labelled": [(images(4).numpy(), np.array([0, 1, 2]))]}, "one for each of 4 images"),
        ({"labelled": [(images(2).numpy(), np.array([0.0, 1.0]))]}, "labels must be integers"),
        (
            {"labelled": [(images(2).numpy(), np.array([0, 3]))]},
            "the network tells 3 classes apart, got labels in 0..3",
        ),
        ({"labelled": [(images(2).numpy(), np.array([-1, 2]))]}, "labels in -1..2"),
    ],
)
def test_bad_data_is_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        measure("small", small(), card_data(**changed))


def test_bad_plans_and_nets_are_refused() -> None:
    with pytest.raises(InputError, match="Name at least one"):
        measure("small", small(), card_data(), ())
    with pytest.raises(InputError, match="names of their own"):
        measure("small", small(), card_data(), (PLANS[0], PLANS[0]))
    image_out = nn.Sequential(nn.Conv2d(3, 4, 3)).eval()
    with pytest.raises(InputError, match=r"puts out \('N', 4, 6, 6\)"):
        measure("image", image_out, card_data(labelled=[(images(1).numpy(), np.array([0]))]))
    assert measure("image", image_out, card_data(), PLANS[:1]).macs == 4 * 36 * 27
