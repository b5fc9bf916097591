"""`round_weights` on a small residual network: every method, the prefix it works on, and the way into the integer engine."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from unit.quantization.weight_rounding.nets import images, residual

from labkit.arithmetic.affine import QuantSpec, params_from_range
from labkit.errors import InputError, ModelError, QuantizationError
from labkit.frontends.float_run import run_float
from labkit.graph import float_ops
from labkit.graph.float_ops import Activation
from labkit.graph.ir import FloatGraph, Tensor
from labkit.net import IntegerNet
from labkit.quantization.calibration import Calibration, calibrate
from labkit.quantization.convert import convert
from labkit.quantization.plan import BitPlan
from labkit.quantization.simulate import run_simulated
from labkit.quantization.weight_rounding.activation_ranges import (
    _best_for_sum,
    _rectified_sum,
    mse_range,
    output_error_chooser,
)
from labkit.quantization.weight_rounding.best import BEST, BEST_METHOD, round_best
from labkit.quantization.weight_rounding.blocks import Block, find_blocks
from labkit.quantization.weight_rounding.driver import METHODS, round_weights
from labkit.quantization.weight_rounding.options import RoundedWeights, RoundingOptions
from labkit.quantization.weight_rounding.prefix import Prefix, fake_quantize
from labkit.quantization.weight_rounding.reconstruction import loss_gradients

GRAPH, IMAGES = residual(), images()
HELD = images(64, 1).numpy()
CALIBRATION: Calibration = calibrate(GRAPH, IMAGES)
LAYERS = ("stem", "a1", "a2", "a3", "b1", "b2", "depthwise", "fc")
QUICK = RoundingOptions(iterations=40, samples=4096, learning_rate=0.03)


def rounded(method: str, weights: int = 3, options: RoundingOptions = QUICK, seed: int = 0, **more) -> RoundedWeights:  # type: ignore[no-untyped-def]
    plan = BitPlan.uniform(GRAPH, weights, 8, **more)
    return round_weights(GRAPH, CALIBRATION, plan, IMAGES, method, options, seed)


def damage(result: RoundedWeights) -> float:
    """Mean squared error of the logits on other images, activations not rounded."""
    wanted = run_float(GRAPH, {"x": HELD}, only_outputs=True)["fc"]
    got = run_float(result.simulated(), {"x": HELD}, only_outputs=True)["fc"]
    return float(np.square(got - wanted).mean())


NEAREST = rounded("nearest", options=replace(QUICK, grid="minmax", correct_bias=False))


@pytest.mark.parametrize("method", METHODS)
def test_every_method_gives_integers_on_their_grids(method: str) -> None:
    result = rounded(method)
    assert tuple(result.weights) == LAYERS
    for name, tensor in result.weights.items():
        assert tensor.values.shape == GRAPH[name].op.weight.shape  # type: ignore[union-attr]
        assert tensor.spec.bits == 3 and tensor.spec.narrow
        assert result.error_after[name] >= -1e-9
    again = rounded(method)
    assert all(np.array_equal(result.weights[name].values, again.weights[name].values) for name in LAYERS)


@pytest.mark.parametrize(
    "method",
    [
        "descent",
        "gptq",
        "gptq+descent",
        "adaround",
        "adaround-images",
        "straight-through",
        "annealing",
        "brecq",
        "qdrop",
    ],
)
def test_methods_that_look_at_outputs_do_less_damage_than_nearest(method: str) -> None:
    result = rounded(method, options=replace(QUICK, iterations=250, correct_bias=True))
    assert damage(result) < 0.5 * damage(NEAREST)


def test_floor_and_ceil_are_the_worst() -> None:
    assert min(damage(rounded(method)) for method in ("floor", "ceil")) > 2 * damage(rounded("nearest"))


@pytest.mark.parametrize(
    "options",
    [
        RoundingOptions(samples=4096, restricted=True),
        RoundingOptions(samples=4096, refits=2, levels="full"),
        RoundingOptions(samples=4096, refits=2, levels="mirrored"),
        RoundingOptions(samples=4096, grid="output-mse"),
        RoundingOptions(samples=4096, grid="minmax"),
        RoundingOptions(samples=4096, grid="3sigma"),
        RoundingOptions(samples=4096, asymmetric=False),
        RoundingOptions(samples=4096, through_adds=False, scarce_below=100),
    ],
)
def test_options_of_the_problem(options: RoundingOptions) -> None:
    assert damage(rounded("descent", options=options)) < 0.7 * damage(NEAREST)


@pytest.mark.parametrize("bits", [1, 2, 4])
@pytest.mark.parametrize("per_channel", [True, False])
def test_bits_and_granularity(bits: int, per_channel: bool) -> None:
    options = replace(QUICK, levels="mirrored", refits=1)
    result = rounded("gptq+descent", bits, options, per_channel=per_channel)
    nearest = rounded("nearest", bits, replace(QUICK, grid="minmax"), per_channel=per_channel)
    assert damage(result) < damage(nearest)
    assert {tensor.params.scale.ndim for tensor in result.weights.values()} == {int(per_channel)}


def test_restricted_methods_keep_to_down_and_up() -> None:
    options = replace(QUICK, grid="minmax")
    for method in ("descent", "adaround", "cross-entropy"):
        result = rounded(method, options=replace(options, restricted=True))
        for name, tensor in result.weights.items():
            scale = tensor.params.scale.reshape([-1] + [1] * (tensor.values.ndim - 1))
            assert np.abs(tensor.values - GRAPH[name].op.weight / scale).max() < 1 + 1e-5  # type: ignore[union-attr]


def test_bias_is_corrected_or_left() -> None:
    left = rounded("descent", options=replace(QUICK, correct_bias=False))
    corrected = rounded("descent")
    for name in LAYERS:
        assert np.array_equal(left.graph[name].op.bias, GRAPH[name].op.bias)  # type: ignore[union-attr]
        assert not np.array_equal(corrected.graph[name].op.bias, GRAPH[name].op.bias)  # type: ignore[union-attr]
        assert np.array_equal(corrected.graph[name].op.weight, GRAPH[name].op.weight)  # type: ignore[union-attr]


@pytest.mark.parametrize(("method", "after"), [("brecq", False), ("qdrop", False), ("adaround-images", True)])
def test_methods_that_see_the_activation_keep_the_bias(method: str, after: bool) -> None:
    options = replace(QUICK, iterations=3, with_activation=after)
    for asked, kept in ((None, True), (False, True), (True, False)):
        result = rounded(method, options=replace(options, correct_bias=asked))
        assert np.array_equal(result.graph["a1"].op.bias, GRAPH["a1"].op.bias) is kept  # type: ignore[union-attr]


def test_corrected_biases_take_the_mean_error_away() -> None:
    plan = BitPlan.uniform(GRAPH, 2, 8)
    result = round_weights(
        GRAPH, CALIBRATION, plan, IMAGES, "nearest", replace(QUICK, samples=10**6, through_adds=False)
    )
    wanted = run_float(GRAPH, {"x": IMAGES.numpy()})
    prefix = Prefix(result.simulated(), CALIBRATION, plan, IMAGES)
    for node in prefix.graph:
        prefix.step(node)
        if node.name in ("a2", "fc"):  # no activation: what comes out is rounded to the tensor's grid, no more
            axes = (0, 2, 3) if node.name == "a2" else (0,)
            gap = prefix.rounded[node.name].numpy().mean(axes) - wanted[node.name].mean(axes)
            assert np.abs(gap).max() < 0.3 * float(prefix.tensors[node.name].quantized[1].scale)


def test_prefix_is_the_simulated_network() -> None:
    """The twin, given the decided weights, ends where `run_simulated` ends on the integer network's own grids."""
    plan = BitPlan.uniform(GRAPH, 4, 4)
    result = round_weights(GRAPH, CALIBRATION, plan, IMAGES, "descent", QUICK)
    prefix = Prefix(result.simulated(), CALIBRATION, plan, IMAGES)
    for node in prefix.graph:
        prefix.step(node)
    net = convert(result.graph, CALIBRATION, plan, rounded=result.layers)
    simulated = run_simulated(result.simulated(), net, IMAGES.numpy())
    np.testing.assert_allclose(prefix.rounded["fc"].numpy(), simulated, atol=1e-5)
    assert set(prefix.rounded) == set(prefix.floats) == {"fc"}, "tensors that nobody takes are kept"


def test_integers_arrive_in_the_engine_unchanged() -> None:
    plan = BitPlan.uniform(GRAPH, 4, 8)
    result = round_weights(GRAPH, CALIBRATION, plan, IMAGES, "adaround", QUICK)
    net = IntegerNet(convert(result.graph, CALIBRATION, plan, rounded=result.layers))
    for name in LAYERS:
        assert np.array_equal(net.graph[name].op.weight.values, result.weights[name].values)  # type: ignore[union-attr]
    simulated = run_simulated(result.simulated(), net.graph, HELD)
    step = float(net.graph["fc"].output.quantized[1].scale)
    assert np.abs(net.run(HELD) - simulated).max() < 3.5 * step


def test_layers_after_a_fixed_branch_make_up_for_its_error() -> None:
    prefix = Prefix(GRAPH, CALIBRATION, BitPlan.uniform(GRAPH, 8, 2), IMAGES)
    checked = []
    for node in GRAPH:
        if node.name in LAYERS:
            output = prefix.output(node)
            target = prefix.target(node, output)
            if node.name in ("a3", "b2"):  # a2 comes before its other branch a3; the others are added to nothing
                other = next(n for n in GRAPH.consumers(node.name)[0].inputs if n != node.name)
                error = prefix.floats[other] - prefix.rounded[other]
                assert error.abs().max() > 0.01
                torch.testing.assert_close(target - output, error, atol=1e-5, rtol=0)
                checked.append(node.name)
            else:
                assert target is output
        prefix.step(node)
    assert checked == ["a3", "b2"]


def test_history_is_kept_where_asked_for() -> None:
    options = replace(QUICK, history=(0, 20, 40))
    result = rounded("adaround", options=options)
    assert tuple(result.history) == LAYERS
    assert set(result.history["a1"].decisions) == {0, 20, 40}
    assert result.history["a1"].losses.shape == (40,)
    assert not rounded("adaround").history


@pytest.mark.parametrize("bits", [3, 4])
def test_ranges_by_output_error(bits: int) -> None:
    plan = BitPlan.uniform(GRAPH, 8, bits)
    chosen = round_weights(GRAPH, CALIBRATION, plan, IMAGES, "descent", replace(QUICK, activation_ranges="omse"))
    kept = round_weights(GRAPH, CALIBRATION, plan, IMAGES, "descent", QUICK)
    assert kept.calibration is CALIBRATION
    assert "omse" in chosen.calibration.method
    changed = [name for name, ends in chosen.calibration.ranges.items() if ends != CALIBRATION.ranges[name]]
    assert changed and all(plan.activations[name] == bits for name in changed)
    wanted = run_float(GRAPH, {"x": HELD}, only_outputs=True)["fc"]
    errors = []
    for result in (chosen, kept):
        net = convert(result.graph, result.calibration, plan, rounded=result.layers)
        errors.append(np.square(run_simulated(result.simulated(), net, HELD) - wanted).mean())
    assert errors[0] < errors[1]


@pytest.mark.parametrize("spec", [QuantSpec(4, signed=False, symmetric=False), QuantSpec(3, narrow=True)])
def test_mse_range_is_as_good_as_a_finer_search(spec: QuantSpec) -> None:
    values = torch.randn(20_000, generator=torch.Generator().manual_seed(0)) ** 3

    def error(ends: tuple[float, float]) -> float:
        params = params_from_range(*ends, spec)
        q = torch.round(values / float(params.scale)) + int(params.zero_point)
        return float(
            ((q.clamp(spec.qmin, spec.qmax) - int(params.zero_point)) * float(params.scale) - values).square().mean()
        )

    low, high = float(values.min()), float(values.max())
    least = min(error((low * share, high * share)) for share in np.linspace(0.05, 1, 400))
    assert error(mse_range(values, spec)) < 1.05 * least


def test_best_is_the_method_it_names() -> None:
    plan = BitPlan.uniform(GRAPH, 4, 4)
    best = round_best(GRAPH, CALIBRATION, plan, IMAGES, 3)
    same = round_weights(GRAPH, CALIBRATION, plan, IMAGES, BEST_METHOD, BEST, 3)
    assert best.method == BEST_METHOD and best.seed == 3
    assert all(np.array_equal(best.weights[name].values, same.weights[name].values) for name in LAYERS)
    assert "gptq+descent" in str(best) and "depthwise" in str(best)


def test_residual_blocks_are_found() -> None:
    blocks = find_blocks(GRAPH)
    assert [{name for name in block.nodes if name in LAYERS} for block in blocks] == [
        *({"stem"}, {"a1", "a2", "a3"}, {"b1", "b2"}, {"depthwise"}, {"fc"}),
    ]
    assert [block.output for block in blocks if len(block.nodes) > 1] == [
        node.name for node in GRAPH if type(node.op).__name__ == "Add"
    ]


def test_blocks_can_be_handed_in() -> None:
    plan = BitPlan.uniform(GRAPH, 3, 8)
    single = tuple(Block((name,)) for name in LAYERS)
    one, two = (
        round_weights(GRAPH, CALIBRATION, plan, IMAGES, "brecq", QUICK, blocks=blocks) for blocks in (single, None)
    )
    assert any(not np.array_equal(one.weights[name].values, two.weights[name].values) for name in LAYERS)
    with pytest.raises(QuantizationError, match="starts after all of its inputs"):
        round_weights(GRAPH, CALIBRATION, plan, IMAGES, "brecq", QUICK, blocks=(Block(("stem", "b2")),))


def test_gradients_of_the_loss_are_those_of_the_output() -> None:
    gradient = loss_gradients(GRAPH, IMAGES[:5], "fc")
    logits = torch.from_numpy(run_float(GRAPH, {"x": IMAGES[:5].numpy()})["fc"])
    shares = torch.softmax(logits, 1)
    shares[torch.arange(5), logits.argmax(1)] -= 1  # derivative of the cross-entropy
    np.testing.assert_allclose(gradient, shares, atol=1e-6)
    assert loss_gradients(GRAPH, IMAGES[:5], "stem").shape == (5, 8, 8, 8)
    assert damage(rounded("brecq", options=replace(QUICK, fisher=True, iterations=250))) < damage(NEAREST)


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(QuantizationError, match="rounding method must be one of nearest, .* got 'up'"):
        rounded("up")
    with pytest.raises(QuantizationError, match="no calibration images"):
        round_weights(GRAPH, CALIBRATION, BitPlan.uniform(GRAPH), [])
    with pytest.raises(InputError, match="the network takes"):
        round_weights(GRAPH, CALIBRATION, BitPlan.uniform(GRAPH), IMAGES[:, :, :4])
    with pytest.raises(QuantizationError, match="reconstruct blocks have no quadratic form"):
        rounded("brecq", options=replace(QUICK, grid="output-mse"))
    for change, words in (
        ({"grid": "best"}, "grid must be one of"),
        ({"levels": "all"}, "levels must be one of"),
        ({"activation_ranges": "kl"}, "activation_ranges must be one of"),
        ({"images": 0}, "images must be at least 1"),
        ({"warm_up": 1.5}, "warm_up must be in 0..1"),
    ):
        with pytest.raises(QuantizationError, match=words):
            RoundingOptions(**change)  # type: ignore[arg-type]


def test_vanished_channels_get_a_scale() -> None:
    nodes = []
    for node in GRAPH:
        if node.name == "b1":
            weight = node.op.weight.copy()  # type: ignore[union-attr]
            weight[[1, 4]] = 0
            node = replace(node, op=replace(node.op, weight=weight, vanished=(1, 4)))  # type: ignore[call-arg, arg-type]
        nodes.append(node)
    graph = FloatGraph(tuple(nodes), GRAPH.outputs)
    for bits in (1, 2, 4):
        result = round_weights(graph, CALIBRATION, BitPlan.uniform(graph, bits, 8), IMAGES, "gptq+descent", BEST)
        assert np.abs(result.weights["b1"].dequantized()[[1, 4]]).max() < 0.01
    bare = FloatGraph(
        tuple(replace(n, op=replace(n.op, vanished=())) if n.name == "b1" else n for n in nodes), GRAPH.outputs
    )  # type: ignore[call-arg, arg-type]
    with pytest.raises(QuantizationError, match="b1, weights: .* channel 1 holds only zeros"):
        round_weights(bare, CALIBRATION, BitPlan.uniform(bare, 4, 8), IMAGES)


def test_the_chooser_leaves_tensors_of_many_bits_alone() -> None:
    prefix = Prefix(GRAPH, CALIBRATION, BitPlan.uniform(GRAPH, 8, 8), IMAGES, output_error_chooser(4))
    for node in GRAPH:
        prefix.step(node)
    assert dict(prefix.calibration.ranges) == dict(CALIBRATION.ranges)
    assert fake_quantize(prefix.floats["fc"], prefix.tensors["fc"]).shape == (64, 5)


def test_one_array_for_two_inputs_is_refused() -> None:
    second = replace(GRAPH[GRAPH.inputs[0]], name="other")
    graph = FloatGraph((second, *GRAPH.nodes), GRAPH.outputs)
    with pytest.raises(ModelError, match="on its inputs other, x, got other"):
        Prefix(graph, CALIBRATION, BitPlan.uniform(GRAPH), IMAGES)


@pytest.mark.parametrize("bits", [3, 4])
@pytest.mark.parametrize("seed", range(3))
def test_branches_before_a_sum_are_cut_where_its_relu_cuts_them(bits: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    exact = torch.randn(64, 4, 6, 6, generator=generator)
    other = torch.randn(64, 4, 6, 6, generator=generator)
    spec = QuantSpec(bits, signed=False, symmetric=False)
    addition = next(node for node in GRAPH if isinstance(node.op, float_ops.Add))
    addition = replace(addition, activation=Activation.RELU)
    plain = mse_range(exact, spec)
    low, high = _best_for_sum(exact, exact, (addition, other, other), plain, spec)

    def error(ends: tuple[float, float]) -> float:
        rounded = fake_quantize(exact, Tensor((), spec, params_from_range(*ends, spec)))
        return float(((rounded + other).relu() - (exact + other).relu()).square().mean())

    assert error((low, high)) < error(plain)
    assert low > plain[0]  # half of what lies below 0 never reaches the sum


def test_only_a_branch_whose_sum_is_rectified_is_looked_at_so() -> None:
    prefix = Prefix(GRAPH, CALIBRATION, BitPlan.uniform(GRAPH, 8, 4), IMAGES)
    seen = {}
    for node in GRAPH:
        prefix.step(node)
        seen[node.name] = _rectified_sum(prefix, node, slice(0, 8))
    consumers = {node.name: GRAPH.consumers(node.name) for node in GRAPH}
    for name, found in seen.items():
        takers = consumers[name]
        rectified = (
            len(takers) == 1 and isinstance(takers[0].op, float_ops.Add) and takers[0].activation is not Activation.NONE
        )
        assert (found is not None) <= rectified
        if found is not None:
            assert found[0] is takers[0]
            assert len(found[1]) == len(found[2]) == 8
    assert any(found is not None for found in seen.values())
