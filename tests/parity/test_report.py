"""Reports as text and JSON, and what `verify` does with the wrong module, net or images."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from parity.nets import case, images, quantized
from parity.zoo import build, conv, row
from torch import nn

import labkit
from labkit.errors import InputError, ModelError, QuantizationError
from labkit.kernels.kernel_set import REFERENCE
from labkit.net import IntegerNet
from labkit.parity.report import Comparison, Difference, ParityReport

VERIFY: dict[str, Any] = {"kernels": "reference"}


@pytest.fixture
def net() -> IntegerNet:
    return quantized("sequential", "W8A8")[0]


@pytest.fixture
def module() -> Any:
    return copy.deepcopy(quantized("sequential", "W8A8")[1])


@pytest.fixture
def report(net: IntegerNet, module: Any) -> ParityReport:
    return labkit.verify(net, module, images(), **VERIFY)


@pytest.fixture
def failed(net: IntegerNet, module: Any) -> ParityReport:
    module.get_submodule("3").weight.data[0, 1, 2, 0] += 0.25
    return labkit.verify(net, module, images(), **VERIFY)


def test_text_of_a_passing_report(report: ParityReport) -> None:
    assert str(report) == (
        "labkit integer net (reference kernels) against an integer emulation in PyTorch, derived from the float module "
        f"Sequential: 0 of {report.elements:,} elements differ ({len(report.comparisons)} comparisons, 8 images)."
    )
    assert report.elements == sum(found.elements for found in report.comparisons) > 5000


def test_text_says_what_was_judged_and_against_what(net: IntegerNet, module: Any) -> None:
    alone = labkit.verify(net, None, images())
    assert str(alone).startswith(
        "labkit integer net (numba kernels) against an integer emulation in PyTorch, from the net's own integers: 0 of"
    )
    own = REFERENCE.with_override("flatten", lambda x: x.reshape(len(x), -1))
    assert (
        labkit.verify(net, module, images(), kernels=own).subject
        == "labkit integer net (reference with your flatten kernels)"
    )


def test_text_of_a_failing_report(failed: ParityReport) -> None:
    assert failed.first is not None
    assert failed.first.where == "3.bias" or failed.first.where.startswith("3.")
    assert f": {failed.differing:,} of {failed.elements:,} elements differ over 8 images. First difference: 3." in str(
        failed
    )
    told = f"expected {failed.first.expected}, labkit has {failed.first.got}. The module's parameters are not those"
    assert told in str(failed)


@pytest.mark.parametrize("which", ["report", "failed"])
def test_json_round_trip(which: str, request: pytest.FixtureRequest) -> None:
    report: ParityReport = request.getfixturevalue(which)
    values = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert values["passed"] is report.passed
    assert (values["elements"], values["differing"]) == (report.elements, report.differing)
    assert set(values["versions"]) == {"labkit", "python", "numpy", "numba", "torch", "machine"}
    first = values["first"]
    again = ParityReport(
        values["subject"],
        values["against"],
        values["images"],
        tuple(Comparison(**found) for found in values["comparisons"]),
        None if first is None else Difference(**first | {"index": tuple(first["index"])}),
        values["versions"],
        tuple(values["remarks"]),
    )
    assert again == report
    assert report.passed is (which == "report")


def test_report_without_a_first_difference_but_with_differing_elements_has_not_passed() -> None:
    assert not ParityReport("a", "b", 1, (Comparison("x", "tensor", 4, 1),), None).passed
    assert not ParityReport("a", "b", 1, (), Difference("x", (), "1", "2")).passed


def test_images_in_any_form_give_the_same_report(net: IntegerNet, module: Any, report: ParityReport) -> None:
    x = images()
    labels = np.arange(8)
    seen: list[int] = []
    for form in (
        torch.tensor(x),
        [x[:3], torch.tensor(x[3:])],
        [(x[:5], labels[:5]), (x[5:], labels[5:])],
        list(x[:, None]),
    ):
        assert labkit.verify(net, module, form, **VERIFY) == report
    labkit.verify(net, module, [x[:3], x[3:]], progress=seen.append, **VERIFY)
    assert seen == [3, 8]


@pytest.mark.parametrize("nothing", [[], np.zeros((0, 3, 8, 8), np.float32)], ids=["no batch", "empty batch"])
@pytest.mark.parametrize("with_module", [True, False])
def test_no_images_prove_nothing(nothing: Any, with_module: bool, net: IntegerNet, module: Any) -> None:
    with pytest.raises(InputError, match="no images to verify with"):
        labkit.verify(net, module if with_module else None, nothing, **VERIFY)


@pytest.mark.parametrize(
    ("x", "error"),
    [
        (np.zeros((2, 3, 9, 8), np.float32), InputError),
        (np.zeros((3, 8, 8), np.float32), InputError),
        (np.full((2, 3, 8, 8), np.nan, np.float32), QuantizationError),
        (["image.png"], InputError),
        (7, InputError),
    ],
)
def test_images_that_do_not_fit(x: Any, error: type[Exception], net: IntegerNet, module: Any) -> None:
    with pytest.raises(error):
        labkit.verify(net, module, x, **VERIFY)


def test_unknown_kernels(net: IntegerNet, module: Any) -> None:
    with pytest.raises(InputError, match="kernels must be"):
        labkit.verify(net, module, images(), kernels="cuda")


class TestModuleOfAnotherNet:
    def test_of_other_names(self, net: IntegerNet) -> None:
        other = row(first=conv(), second=nn.ReLU())
        with pytest.raises(ModelError, match=r"not made from this Sequential: .*do not name 'first'.*was quantized"):
            labkit.verify(net, other, images(), **VERIFY)

    def test_for_other_images(self, net: IntegerNet) -> None:
        other = nn.Sequential(conv(1))
        with pytest.raises(ModelError, match=r"not made from this Sequential: .*\('N', 3, 8, 8\).*was quantized"):
            labkit.verify(net, other, images(), **VERIFY)

    def test_with_other_weights(self, net: IntegerNet) -> None:
        report = labkit.verify(net, build(case("sequential"), seed=9), images(), **VERIFY)
        assert not report.passed
        assert report.first is not None
        assert report.first.where == "0.bias"
        assert report.first.index == (0,)

    def test_of_other_shapes(self, net: IntegerNet, module: Any) -> None:
        module[0], module[3] = conv(3, 7), conv(7, 6, bias=False)
        report = labkit.verify(net, module.eval(), images(), **VERIFY)
        assert report.first == Difference("0.bias", (), "shape (7,)", "shape (4,)")
        [tensor] = [found for found in report.comparisons if (found.kind, found.name) == ("tensor", "0")]
        assert tensor.differing == 1, "a tensor of another shape counts as one difference"

    def test_with_a_layer_more(self, net: IntegerNet, module: Any) -> None:
        module.insert(6, nn.Unflatten(1, (6, 4, 4)))
        with pytest.raises(ModelError):
            labkit.verify(net, module, images(), **VERIFY)

    def test_with_a_pooling_more(self) -> None:
        net, _ = quantized("batch norm before convolution", "W8A8")
        module: Any = build(case("batch norm before convolution"))
        module.add_module("pool", nn.MaxPool2d(2))
        report = labkit.verify(net, module, images(), **VERIFY)
        assert report.first == Difference("node pool", (), "present", "absent")

    def test_with_a_pooling_less(self) -> None:
        net, _ = quantized("relu after max-pool, twice", "W8A8")
        module: Any = build(case("relu after max-pool, twice"))
        module.pool = nn.Identity()
        report = labkit.verify(net, module, images(), **VERIFY)
        assert not report.passed
        assert "node pool" in {found.name for found in report.comparisons if found.differing}

    def test_with_other_outputs(self) -> None:
        net, _ = quantized("output taken before relu", "W8A8")
        module: Any = build(case("output taken before relu"))
        type(module).forward = lambda self, x: self.last(self.relu(self.conv(x)))
        with pytest.raises(ModelError, match="has 1 outputs, the net 2"):
            labkit.verify(net, module, images(), **VERIFY)

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    def test_that_is_not_finite(self, value: float, net: IntegerNet, module: Any) -> None:
        module.get_submodule("6").bias.data[2] = value
        with pytest.raises(ModelError, match=r"6\.bias of the Sequential holds NaN or infinite"):
            labkit.verify(net, module, images(), **VERIFY)

    def test_whose_layer_died(self, net: IntegerNet, module: Any) -> None:
        module.get_submodule("3").weight.data[1] = 0
        report = labkit.verify(net, module, images(), **VERIFY)
        assert report.first is not None
        assert report.first.where.startswith("3.")


@pytest.mark.parametrize("left", [(), ("plan",), ("calibration",)])
def test_net_without_its_notes(left: tuple[str, ...], net: IntegerNet, module: Any) -> None:
    notes = {name: net.graph.notes[name] for name in left}
    bare = IntegerNet(replace(net.graph, notes=notes))
    missing = " and no ".join(name for name in ("calibration", "plan") if name not in left)
    with pytest.raises(ModelError, match=f"carries no {missing}, so .* Verify it without one"):
        labkit.verify(bare, module, images(), **VERIFY)
    assert labkit.verify(bare, None, images(), **VERIFY).passed


@pytest.mark.parametrize("name", ["calibration", "plan"])
def test_net_with_damaged_notes(name: str, net: IntegerNet, module: Any) -> None:
    damaged = IntegerNet(replace(net.graph, notes={**net.graph.notes, name: {"ranges": 3}}))
    with pytest.raises(QuantizationError, match="This is not a|A bit plan needs the keys"):
        labkit.verify(damaged, module, images(), **VERIFY)


def test_altered_calibration_is_noticed(net: IntegerNet, module: Any) -> None:
    """Notes are what the emulation starts from; a net that does not follow from them fails."""
    notes = json.loads(json.dumps(dict(net.graph.notes)))
    notes["calibration"]["ranges"]["3"][1] *= 1.01
    report = labkit.verify(IntegerNet(replace(net.graph, notes=notes)), module, images(), **VERIFY)
    assert report.first is not None
    assert report.first.where in ("3.exponent", "3.mantissa")


def test_saved_net_passes_as_well(net: IntegerNet, module: Any, report: ParityReport, tmp_path: Any) -> None:
    """Calibration and plan survive the file to the last bit."""
    net.save(tmp_path / "net.lab")
    assert labkit.verify(labkit.load(tmp_path / "net.lab"), module, images(), **VERIFY) == report


def test_module_in_training_mode_is_judged_as_in_inference() -> None:
    net, _ = quantized("batch norm of a linear layer", "W8A8")
    module = build(case("batch norm of a linear layer")).train()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    assert labkit.verify(net, module, images(), **VERIFY).passed
    assert module.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
