"""`labkit.quantize`, the one line: what it takes, what it refuses, and that the module stays as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from unit.quantization.nets import branches, images, small

import labkit
from labkit.errors import InputError, LabkitError, ModelError, QuantizationError
from labkit.graph.storage import dumps

X = images(48)


def test_it_makes_a_net_that_computes_the_module() -> None:
    module = branches()
    net = labkit.quantize(module, X)
    got = net.run(X, kernels="reference")
    with torch.no_grad():
        wanted = module(X).numpy()
    assert got.dtype == np.float32
    assert got.shape == wanted.shape
    assert np.square(got - wanted).mean() < 0.001 * wanted.var()
    assert net.graph.notes["source"] == "Branches"


def test_it_is_deterministic() -> None:
    assert dumps(labkit.quantize(branches(), X).graph) == dumps(labkit.quantize(branches(), X).graph)


def _generator() -> Iterator[Any]:
    yield from (X[:20], X[20:])


@pytest.mark.parametrize(
    "batches",
    [lambda: X.numpy(), lambda: [X], _generator, lambda: DataLoader(TensorDataset(X, X), batch_size=48)],
    ids=["array", "list", "generator", "loader"],
)
def test_images_come_in_many_forms(batches: Callable[[], Any]) -> None:
    wanted, got = labkit.quantize(small(), X), labkit.quantize(small(), batches())
    assert got.graph.notes["calibration"]["images"] == 48
    for node in wanted.graph:
        if node.output.params is not None:
            assert got.graph[node.name].output.params.scale == pytest.approx(node.output.params.scale, rel=1e-5)  # type: ignore[union-attr]


def test_the_module_is_not_changed() -> None:
    module = branches()
    module.train()
    module.norm.eval()
    module.drop.eval()
    module.fc.requires_grad_(False)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    flags = {name: part.training for name, part in module.named_modules()}
    wants = {name: p.requires_grad for name, p in module.named_parameters()}
    labkit.quantize(module, X, weights=2)
    assert {name: part.training for name, part in module.named_modules()} == flags
    assert len({*flags.values()}) == 2
    assert {name: p.requires_grad for name, p in module.named_parameters()} == wants
    assert all(p.grad is None for p in module.parameters())
    after = module.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_a_module_in_training_is_quantized_as_in_inference() -> None:
    module = branches()
    wanted = dumps(labkit.quantize(module, X).graph)
    assert dumps(labkit.quantize(module.train(), X).graph) == wanted


def test_dead_and_binary_and_per_tensor_options_reach_the_net() -> None:
    plain = labkit.quantize(small(), X).graph["0"].op
    assert plain.weight.params.scale.shape == (4,)  # type: ignore[union-attr]
    whole = labkit.quantize(small(), X, weights=1, per_channel=False, activation_scheme="symmetric").graph
    assert whole["0"].op.weight.params.scale.shape == ()  # type: ignore[union-attr]
    assert set(whole["0"].op.weight.values.ravel().tolist()) == {-1, 1}  # type: ignore[union-attr]
    assert int(whole["0"].output.quantized[1].zero_point) == 0


@pytest.mark.parametrize("options", [{"ranges": "3sigma"}, {"method": "3sigma"}])
def test_ranges_and_method_are_two_ways_to_say_it(options: dict[str, str]) -> None:
    notes = labkit.quantize(small(), X, **options).graph.notes  # type: ignore[arg-type]
    assert notes["calibration"]["method"] == "3sigma"
    assert labkit.quantize(small(), X, method="minmax").graph.notes["calibration"]["method"] == "minmax"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"weights": 0}, r"0: weight bits must be an integer in 1\.\.8, got 0"),
        ({"weights": 9}, "got 9"),
        ({"weights": 2.5}, r"got 2\.5"),
        ({"weights": True}, "got True"),
        ({"activations": 1}, r"activation bits must be an integer in 2\.\.8, got 1"),
        ({"activations": 9}, "got 9"),
        ({"activations": True}, "got True"),
        ({"ranges": "median"}, "ranges must be one of minmax, 3sigma"),
        ({"rounding": "down"}, "rounding must be one of nearest"),
        ({"method": "magic"}, "method must be one of minmax, 3sigma"),
        ({"activation_scheme": "dynamic"}, "activation_scheme must be one of affine, symmetric"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(QuantizationError, match=words):
        labkit.quantize(small(), X, **options)


def test_images_that_make_no_sense_are_refused() -> None:
    for empty in ([], X[:0], iter(())):
        with pytest.raises(QuantizationError, match="calibration set is empty"):
            labkit.quantize(small(), empty)
    with pytest.raises(InputError, match=r"does not accept an input of shape \('N', 1, 8, 8\)"):
        labkit.quantize(small(), X[:, :1])
    with pytest.raises(InputError, match=r"images have shape \(3, 4, 8\), the network takes \(3, 8, 8\)"):
        labkit.quantize(small(), [X, X[:, :, :4]])
    with pytest.raises(QuantizationError, match="'input_1' was 0 for every calibration image"):
        labkit.quantize(small(), X * 0)
    broken = X.clone()
    broken[7, 0, 0, 0] = float("nan")
    with pytest.raises(QuantizationError, match="'input_1' holds NaN"):
        labkit.quantize(small(), broken)


def test_modules_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ModelError):
        labkit.quantize("lenet", X)  # type: ignore[arg-type]
    module = small()
    with torch.no_grad():
        module[3].weight[1, 2] = float("nan")
    with pytest.raises(ModelError, match=r"3: weight holds nan at index \(1, 2\)"):
        labkit.quantize(module, X)
    module = small()
    with torch.no_grad():
        module[0].weight[2] = 0
    with pytest.raises(QuantizationError, match="0, weights: .*channel 2 holds only zeros"):
        labkit.quantize(module, X)
    labkit.quantize(module, X, per_channel=False)
    module = small()
    with torch.no_grad():
        module[0].bias.fill_(-100)
    with pytest.raises(QuantizationError, match="'0' was 0 for every calibration image"):
        labkit.quantize(module, X)


def test_every_error_is_one_paragraph() -> None:
    cases: list[Callable[[], object]] = [
        lambda: labkit.quantize(small(), []),
        lambda: labkit.quantize(small(), X[:, :1]),
        lambda: labkit.quantize(small(), X * 0),
        lambda: labkit.quantize(small(), X, weights=9),
        lambda: labkit.quantize(nn.Sequential(nn.Sigmoid()), X),
    ]
    for case in cases:
        with pytest.raises(LabkitError) as caught:
            case()
        text = str(caught.value)
        assert "\n" not in text
        assert text.endswith(".")
        assert len(text) > 40
