"""Cost tables, against numbers worked out by hand and against what the converted network says of itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from parity.encoders import Sizes, encoder, whole_sentences
from torch import nn
from unit.quantization.nets import branches, images, small

import labkit
from labkit.allocation.allocate import allocate
from labkit.allocation.budgets import average_bits, between
from labkit.allocation.constraints import first_and_last, residual_partners
from labkit.allocation.cost_table import CostTable
from labkit.allocation.costs import bit_operations, layer_macs, weight_bytes, weight_layers
from labkit.errors import OutputError, QuantizationError
from labkit.frontends.torch_fx import from_torch
from labkit.graph.costs import costs
from labkit.graph.ir import FloatGraph
from labkit.graph.passes import simplify
from labkit.models import build
from labkit.quantization.calibration import calibrate
from labkit.quantization.convert import convert
from labkit.quantization.plan import BitPlan
from labkit.sensitivity.table import SensitivityTable

GRAPHS = {"branches": simplify(from_torch(branches(), (3, 8, 8))), "small": simplify(from_torch(small(), (3, 8, 8)))}


def table(**changes: Any) -> CostTable:
    fields: dict[str, Any] = {
        "layers": ("conv1", "fc"),
        "bits": (4, 8),
        "values": [[1.5, 3.0], [10.0, 20.0]],
        "unit": "bytes",
        "name": "size",
        "fixed": 7.0,
    }
    return CostTable(**(fields | changes))


def test_bytes_by_hand() -> None:
    # conv: 4x3x3x3 weights, 4 biases; fc: 3x144 weights, 3 biases
    found = weight_bytes(GRAPHS["small"], (1, 4, 8))
    np.testing.assert_array_equal(found.values, [[108 / 8, 54, 108], [432 / 8, 216, 432]])
    assert found.fixed == 4 * (4 + 3) + 4 * (4 + 3) and found.unit == "bytes"
    assert weight_bytes(GRAPHS["small"], (8,), per_channel=False).fixed == 4 * (4 + 3) + 4 * 2
    assert dict(found.notes) == {"weights": 540, "biases": 7, "scales": 7}


def test_bit_operations_by_hand() -> None:
    # conv: 6x6 positions; its input has 8 bits, that of fc 3
    found = bit_operations(GRAPHS["small"], 3, (2, 4))
    np.testing.assert_array_equal(found.values, [[108 * 36 * 8 * 2, 108 * 36 * 8 * 4], [432 * 3 * 2, 432 * 3 * 4]])
    assert found.fixed == 0 and found.unit == "bit operations"


@pytest.mark.parametrize("net", list(GRAPHS))
@pytest.mark.parametrize("seed", range(3))
def test_counts_agree_with_the_converted_network(net: str, seed: int) -> None:
    graph = GRAPHS[net]
    rng = np.random.default_rng(seed)
    uniform = BitPlan.uniform(graph)
    plan = BitPlan(
        {name: int(rng.integers(1, 9)) for name in uniform.weights},
        {name: int(rng.integers(4, 9)) for name in uniform.activations},
    )
    counted = costs(convert(graph, calibrate(graph, images()), plan))
    assert layer_macs(graph) == dict(counted.macs)
    assert bit_operations(graph, plan).total(plan.weights) == counted.total_bops
    assert bit_operations(graph, plan.activations).total(plan.weights) == counted.total_bops
    sizes = weight_bytes(graph)
    for (
        name,
        byte_count,
    ) in counted.weight_bytes.items():  # there, up to four bits take half a byte and more a whole one
        assert sizes.value(name, 4) == byte_count if plan.weights[name] <= 4 else sizes.value(name, 8) == byte_count


@pytest.mark.parametrize("net", ["lenet", "resnet20"])
def test_counts_of_shipped_architectures(net: str) -> None:
    graph = simplify(from_torch(build(net), (3, 32, 32)))
    size = weight_bytes(graph)
    total = sum(graph[name].op.weight.size for name in weight_layers(graph))  # type: ignore[union-attr]
    assert size.uniform(8) - size.fixed == total and size.uniform(1) - size.fixed == total / 8
    operations = bit_operations(graph)
    assert operations.uniform(8) == 64 * sum(layer_macs(graph).values())
    assert operations.uniform(4) == operations.uniform(8) / 2


def test_activations_without_bits_are_refused() -> None:
    with pytest.raises(QuantizationError, match="no activation bits for 'conv1'|no activation bits for 'input_1'"):
        bit_operations(GRAPHS["small"], {"0": 4})
    with pytest.raises(QuantizationError, match=r"activation bits must be an integer in 2\.\.8, got 9"):
        bit_operations(GRAPHS["small"], 9)
    empty = simplify(from_torch(nn.Sequential(nn.ReLU(), nn.MaxPool2d(2)), (3, 8, 8)))
    for count in (weight_bytes, bit_operations, first_and_last):
        with pytest.raises(QuantizationError, match="no convolution and no linear layer"):
            count(empty)


def test_a_table_adds_up_and_prints() -> None:
    assert table().total({"conv1": 8, "fc": 4}) == 7 + 3 + 10
    assert table().uniform(4) == 18.5
    assert table().value("fc", 8) == 20
    text = str(table(notes={"weights": 5}))
    assert text.splitlines()[0] == "Cost: size in bytes, 7 of them fixed (weights=5)"
    with pytest.raises(QuantizationError, match="no weight bits for 'fc'"):
        table().total({"conv1": 8})
    with pytest.raises(QuantizationError, match="no column for 5 bits; it has 4, 8"):
        table().uniform(5)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"values": [[1.0, 2.0]]}, r"must have shape \(2, 2\)"),
        ({"values": [[1.0, -2.0], [1.0, 1.0]]}, r"finite and not negative, got -2\.0 for conv1 at 8 bits"),
        ({"unit": ""}, "needs a unit in words"),
        ({"name": None}, "needs a name in words"),
        ({"fixed": -1}, "must be finite and not negative, got -1"),
        ({"fixed": float("nan")}, "must be finite and not negative"),
        ({"fixed": "7"}, "must be finite and not negative, got '7'"),
        ({"bits": (8, 4)}, "ascending"),
    ],
)
def test_what_is_no_table_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(QuantizationError, match=words):
        table(**changes)


def test_json_there_and_back(tmp_path: Path) -> None:
    made = table(values=[[0.1, 1 / 3], [1e-9, 1e12]], notes={"rounds": 3})
    made.save(tmp_path / "cost.json")
    again = CostTable.load(tmp_path / "cost.json")
    assert again.to_json() == made.to_json() and again.values.tobytes() == made.values.tobytes()
    with pytest.raises(OutputError):
        made.save(tmp_path / "missing" / "cost.json")
    for text, words in (
        ("{}", "has no layers"),
        (json.dumps(made.to_json() | {"x": 1}), "has no key 'x'"),
        ("3", "does not hold a cost table but a int"),
    ):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(QuantizationError, match=words):
            CostTable.load(tmp_path / "bad.json")


def test_budgets_in_words() -> None:
    size = weight_bytes(GRAPHS["small"])
    assert average_bits(4).of(size) == size.uniform(4)
    assert average_bits(2.5).of(size) == size.fixed + 540 * 2.5 / 8
    assert between(0.5, 4, 8).of(size) == size.uniform(6)
    assert between(0, 2, 8).of(table(bits=(2, 8))) == 18.5
    with pytest.raises(QuantizationError, match=r"budget for the size in bytes, but the cost is bit operations"):
        average_bits(4).of(bit_operations(GRAPHS["small"]))
    for wrong in (0, 9, -1, "4", True, float("nan")):
        with pytest.raises(QuantizationError, match="more than 0 and at most 8 bits"):
            average_bits(wrong)  # type: ignore[arg-type]
    with pytest.raises(QuantizationError, match="must be a finite number"):
        between(float("inf"), 4, 8)


class Residual(nn.Module):
    """Two blocks: the first with a layer in its shortcut, the second with none; a pool before the second addition."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
        self.d, self.fc = nn.Conv2d(4, 4, 3, padding=1), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.a(x))
        x = torch.relu(self.b(x) + self.c(x))
        y = nn.functional.max_pool2d(torch.relu(self.d(x)), 3, 1, 1)
        return self.fc(nn.functional.adaptive_avg_pool2d(y + x, 1).flatten(1))


def residual() -> FloatGraph:
    return simplify(from_torch(Residual().eval(), (3, 8, 8)))


def test_layers_that_meet_in_an_addition_are_partners() -> None:
    graph = residual()
    assert residual_partners(graph) == (("b", "c"),)
    assert first_and_last(graph) == {"a": 8, "fc": 8}
    assert first_and_last(graph, 4) == {"a": 4, "fc": 4}


def test_partners_in_resnet20() -> None:
    groups = residual_partners(simplify(from_torch(build("resnet20"), (3, 32, 32))))
    assert groups == (
        ("blocks.0.conv2", "conv1"),
        ("blocks.3.conv2", "blocks.3.shortcut.0"),
        ("blocks.6.conv2", "blocks.6.shortcut.0"),
    )


@pytest.mark.parametrize("bits", [4, 8])
def test_costs_and_plans_of_a_transformer_are_those_of_its_net(bits: int) -> None:
    """What no layer multiplies by is the fixed part: tables, layer norms, constants; embeddings keep 8 bits in a plan."""
    sizes = Sizes()
    graph = encoder(sizes)
    net = labkit.quantize(graph, whole_sentences(sizes, 4), weights=bits)
    found, size, work = costs(net.graph), weight_bytes(graph), bit_operations(graph)
    column = size.bits.index(bits)
    scales = 4 * (sizes.vocabulary + sum(graph[name].op.weight.shape[0] for name in size.layers))  # type: ignore[union-attr]
    assert size.values[:, column].sum() + size.fixed == found.size_bytes + scales
    products = sum(count for name, count in found.bops.items() if name not in work.layers)
    assert work.values[:, column].sum() == found.total_bops - products > 0


def test_an_allocation_for_a_transformer_is_a_plan_that_it_takes() -> None:
    sizes = Sizes()
    graph = encoder(sizes)
    size, rng, names = weight_bytes(graph, (4, 8)), np.random.default_rng(0), weight_layers(graph)
    values = np.sort(rng.random((len(names), 2)))[:, ::-1]
    sensitivity = SensitivityTable(names, (4, 8), values, np.zeros_like(values), "by hand", "loss")
    found = allocate(sensitivity, size, average_bits(6), graph=graph).plan
    assert set(found.weights) == {*names, "words"}
    assert found.weights["words"] == 8
    assert len({found.weights[name] for name in names}) == 2
    net = labkit.quantize(graph, whole_sentences(sizes, 4), plan=found)
    assert labkit.verify(net, graph, whole_sentences(sizes, 2)).passed
