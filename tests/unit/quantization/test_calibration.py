"""What calibration sees, keeps and refuses."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset
from unit.quantization.nets import branches, images, small, small_encoder, token_rows

from labkit.errors import InputError, OutputError, QuantizationError
from labkit.frontends.float_run import run_float
from labkit.frontends.torch_fx import from_torch
from labkit.graph import float_ops
from labkit.graph.ir import FloatGraph, FloatNode
from labkit.graph.lengths import at_length
from labkit.graph.passes import simplify
from labkit.models.sentence_encoder import encoder_graph
from labkit.quantization.batches import image_batches
from labkit.quantization.calibration import Calibration, calibrate, choose_ranges
from labkit.quantization.plan import BitPlan, observed_names

GRAPH = simplify(from_torch(small(), (3, 8, 8)))
X = images(300)
WHOLE = calibrate(GRAPH, X)


def test_it_sees_what_the_module_computes() -> None:
    module, taps = small(), {}
    for name in ("1", "3"):
        module.get_submodule(name).register_forward_hook(
            lambda part, given, result, name=name: taps.__setitem__(name, result.detach().numpy())
        )
    with torch.no_grad():
        module(X)
    assert WHOLE.images == 300
    assert list(WHOLE.statistics) == ["input_1", "0", "3"]  # flatten has no range of its own, the ReLU is fused
    for tensor, values in (("input_1", X.numpy()), ("0", taps["1"]), ("3", taps["3"])):
        statistics = WHOLE.statistics[tensor]
        reals = values.astype(np.float64)
        assert statistics.count == values.size
        assert WHOLE.ranges[tensor] == (statistics.minimum, statistics.maximum)
        assert [statistics.minimum, statistics.maximum] == pytest.approx([reals.min(), reals.max()], rel=1e-5)
        assert [statistics.mean, statistics.deviation] == pytest.approx([reals.mean(), reals.std()], rel=1e-5, abs=1e-6)


def _generator(x: torch.Tensor) -> Iterator[Any]:
    for start in range(0, len(x), 37):
        yield x[start : start + 37].numpy()


@pytest.mark.parametrize(
    "batches",
    [
        lambda x: x.numpy(),
        lambda x: x.double(),
        lambda x: [x[:200], x[200:].numpy()],
        lambda x: DataLoader(TensorDataset(x, torch.zeros(len(x))), batch_size=64),
        lambda x: DataLoader(TensorDataset(x), batch_size=100),
        _generator,
        lambda x: ((part, None) for part in _generator(x)),
    ],
    ids=["array", "float64", "list", "loader of pairs", "loader", "generator", "generator of pairs"],
)
def test_images_come_in_many_forms(batches: Callable[[torch.Tensor], Any]) -> None:
    got = calibrate(GRAPH, batches(X))
    assert got.images == 300
    for name, statistics in WHOLE.statistics.items():
        assert (got.statistics[name].minimum, got.statistics[name].maximum) == pytest.approx(
            WHOLE.ranges[name], rel=1e-5
        )
        assert got.statistics[name].deviation == pytest.approx(statistics.deviation, rel=1e-6)
        assert got.statistics[name].count == statistics.count


def test_batches_stay_small_whatever_is_handed_in() -> None:
    parts = list(image_batches(np.zeros((300, 2), np.float64)))
    assert [part.shape for part in parts] == [(128, 2), (128, 2), (44, 2)]
    assert {part.dtype for part in parts} == {np.dtype(np.float32)}
    large = list(image_batches(np.zeros((5, 3, 224, 224), np.float32)))
    assert [len(part) for part in large] == [2, 2, 1], "memory does not grow with the size of the images"


@pytest.mark.parametrize("dtype", [np.uint8, np.int64])
def test_pixels_that_nobody_normalised_are_refused(dtype: type) -> None:
    with pytest.raises(InputError, match="Normalise pixels"):
        list(image_batches(np.zeros((3, 2), dtype)))


@pytest.mark.parametrize("empty", [[], np.zeros((0, 3, 8, 8)), iter(()), [np.zeros((0, 3, 8, 8))]])
def test_an_empty_set_is_refused(empty: Any) -> None:
    with pytest.raises(QuantizationError, match=r"calibration set is empty.*few hundred images"):
        calibrate(GRAPH, empty)


@pytest.mark.parametrize("shape", [(4, 3, 8, 9), (4, 1, 8, 8), (4, 192), (3, 8, 8)])
def test_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"images have shape .*, the network takes \(3, 8, 8\)"):
        calibrate(GRAPH, [X, np.zeros(shape)])


@pytest.mark.parametrize("batches", [5, None, "images", [["a"]], [np.zeros(3)], np.zeros((2, 3), complex), [{"x": X}]])
def test_what_are_no_images_is_refused(batches: Any) -> None:
    with pytest.raises(InputError, match="Images must be"):
        list(image_batches(batches))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_image_that_is_not_finite_is_refused(value: float) -> None:
    x = X[:8].clone()
    x[5, 1, 2, 3] = value
    with pytest.raises(QuantizationError, match="activation 'input_1' holds NaN or infinite values"):
        calibrate(GRAPH, [X[:8], x])


def test_an_unknown_method_is_refused_before_any_work() -> None:
    def never() -> Iterator[Any]:
        raise AssertionError("the images were asked for")
        yield

    with pytest.raises(QuantizationError, match="ranges must be one of"):
        calibrate(GRAPH, never(), "kl2")


def test_one_array_for_two_inputs_is_refused() -> None:
    nodes = tuple(FloatNode(name, float_ops.Input((2,))) for name in "ab")
    with pytest.raises(InputError, match="This network takes the inputs a, b"):
        calibrate(FloatGraph(nodes, ("a",)), np.zeros((1, 2)))


def test_other_ranges_from_the_same_observations() -> None:
    cut = WHOLE.with_ranges("3sigma")
    assert cut.ranges == calibrate(GRAPH, X, "3sigma").ranges
    assert (cut.method, cut.statistics, cut.images) == ("3sigma", WHOLE.statistics, 300)
    for name, (low, high) in cut.ranges.items():
        seen = WHOLE.statistics[name]
        wanted = (max(seen.minimum, seen.mean - 3 * seen.deviation), min(seen.maximum, seen.mean + 3 * seen.deviation))
        assert (low, high) == wanted
    assert cut.ranges["0"][0] == 0  # after the ReLU
    assert cut.ranges["0"][1] < WHOLE.ranges["0"][1]


def test_it_is_frozen() -> None:
    with pytest.raises(TypeError):
        WHOLE.ranges["0"] = (0, 1)  # type: ignore[index]


def test_it_survives_json_to_the_last_bit(tmp_path: Path) -> None:
    calibration = calibrate(simplify(from_torch(branches(), (3, 8, 8))), X, "3sigma")
    assert Calibration.from_json(json.loads(json.dumps(calibration.to_json()))) == calibration
    calibration.save(tmp_path / "c.json")
    assert Calibration.from_json(json.loads((tmp_path / "c.json").read_text())) == calibration
    with pytest.raises(OutputError):
        calibration.save(tmp_path / "missing" / "c.json")


@pytest.mark.parametrize(
    "values",
    [
        {},
        [],
        None,
        {**WHOLE.to_json(), "ranges": {"0": [1]}},
        {**WHOLE.to_json(), "ranges": {"0": ["a", "b"]}},
        {**WHOLE.to_json(), "statistics": {"0": {"minimum": 1}}},
        {**WHOLE.to_json(), "statistics": {"0": 3}},
    ],
)
def test_json_that_is_no_calibration_is_refused(values: Any) -> None:
    with pytest.raises(QuantizationError, match="This is not a calibration"):
        Calibration.from_json(values)


def test_it_prints_seen_and_chosen() -> None:
    lines = str(WHOLE.with_ranges("3sigma")).splitlines()
    assert lines[0] == "Calibration on 300 images, ranges by 3sigma"
    assert len(lines) == 4
    assert all(word in lines[2] for word in ("0 ", "seen [", "chosen ["))


# ---- sentences of several lengths


def test_sentences_are_observed_at_their_own_lengths() -> None:
    graph = simplify(encoder_graph(small_encoder(), 16))
    batches = token_rows(3, 16, 9)
    got = calibrate(graph, batches, histograms=True)
    assert got.images == 18
    seen: dict[str, list[np.ndarray]] = {}
    for batch in batches:
        for name, value in run_float(at_length(graph, batch["ids"].shape[1]), batch).items():
            seen.setdefault(name, []).append(value.reshape(-1))
    assert set(got.statistics) == set(observed_names(graph))
    assert not {"ids", "mask"} & set(got.statistics)
    for name, statistics in got.statistics.items():
        values = np.concatenate(seen[name])
        assert statistics.count == values.size
        assert (statistics.minimum, statistics.maximum) == pytest.approx((values.min(), values.max()), rel=1e-6)
        assert statistics.mean == pytest.approx(values.mean(dtype=np.float64), abs=1e-6)
    gelus = [node.inputs[0] for node in graph if isinstance(node.op, float_ops.Gelu)]
    for name in gelus:
        assert got.ranges[name][0] <= -8.2 < 8.2 <= got.ranges[name][1]


def test_sixteen_bits_are_not_clipped() -> None:
    graph = simplify(encoder_graph(small_encoder(), 16))
    observed = calibrate(graph, token_rows(3, 16, 9), histograms=True)
    plan = BitPlan.uniform(graph)
    clipped = choose_ranges(observed, graph, plan, "percentile", percentile=90.0)
    wide = [name for name in observed_names(graph) if plan.activations[name] == 16]
    narrow = [name for name in observed_names(graph) if plan.activations[name] == 8]
    assert len(wide) > 8
    assert len(narrow) > 8
    for name in wide:
        assert clipped.ranges[name] == observed.ranges[name], name
    for name in narrow:
        (low, high), (lowest, highest) = clipped.ranges[name], observed.ranges[name]
        assert lowest <= low < high <= highest
        assert high - low < highest - lowest, name


def test_a_gelu_of_eight_bits_needs_no_room() -> None:
    graph = simplify(encoder_graph(small_encoder(), 16))
    observed = calibrate(graph, token_rows(16), histograms=True)
    plan = BitPlan.uniform(graph)
    source = next(node.inputs[0] for node in graph if isinstance(node.op, float_ops.Gelu))
    eight = BitPlan(plan.weights, {**plan.activations, source: 8})
    seen = observed.statistics[source]
    assert choose_ranges(observed, graph, plan, "minmax").ranges[source] == (
        min(seen.minimum, -8.2),
        max(seen.maximum, 8.2),
    )
    assert choose_ranges(observed, graph, eight, "minmax").ranges[source] == (seen.minimum, seen.maximum)
    assert max(-seen.minimum, seen.maximum) < 8.2


def test_a_filled_up_sentence_is_refused() -> None:
    graph = simplify(encoder_graph(small_encoder(), 16))
    (batch,) = token_rows(5)
    batch["mask"][2, 3:] = 0
    with pytest.raises(InputError, match="leaves tokens out"):
        calibrate(graph, batch)
