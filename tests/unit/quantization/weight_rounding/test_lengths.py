"""Rounding on sentences of several lengths: one quadratic form, one network, no sentence left out."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from unit.quantization.nets import small_encoder, token_rows

from labkit.errors import InputError, ModelError, QuantizationError
from labkit.frontends.float_run import run_float
from labkit.graph import float_ops, int_ops
from labkit.graph.ir import FloatGraph
from labkit.graph.lengths import at_length
from labkit.graph.passes import simplify
from labkit.models.sentence_encoder import encoder_graph
from labkit.net import IntegerNet
from labkit.quantization.calibration import calibrate
from labkit.quantization.convert import convert, quantize_table
from labkit.quantization.plan import BitPlan
from labkit.quantization.weight_rounding.best import BEST
from labkit.quantization.weight_rounding.driver import round_weights
from labkit.quantization.weight_rounding.gram import collect_gram
from labkit.quantization.weight_rounding.options import RoundedWeights, RoundingOptions
from labkit.quantization.weight_rounding.prefix import Prefix

GRAPH = simplify(encoder_graph(small_encoder(), 16))
BATCHES = token_rows(3, 16, 9, count=20)
CALIBRATION = calibrate(GRAPH, BATCHES)
PLAN = BitPlan.uniform(GRAPH, 3, 8)
FORM = RoundingOptions(images=60)
LAYERS = [node.name for node in GRAPH if isinstance(node.op, float_ops.Conv2d)]


def rounded(method: str = "gptq+descent", options: RoundingOptions = FORM) -> RoundedWeights:
    return round_weights(GRAPH, CALIBRATION, PLAN, BATCHES, method, options)


def damage(graph: FloatGraph) -> float:
    """Mean squared error of the hidden states on other sentences, activations not rounded."""
    parts = []
    for batch in token_rows(5, 12, count=16, seed=9):
        length = batch["ids"].shape[1]
        got, wanted = (run_float(at_length(one, length), batch, only_outputs=True) for one in (graph, GRAPH))
        parts += [np.square(got[name] - wanted[name]).mean() for name in GRAPH.outputs]
    return float(np.mean(parts))


def test_lengths_make_one_quadratic_form() -> None:
    rng = np.random.default_rng(0)
    op = next(node.op for node in GRAPH if isinstance(node.op, float_ops.Conv2d))
    parts = [torch.from_numpy(rng.normal(1, 1, (4, 24, n)).astype(np.float32)) for n in (3, 7)]
    wanted = [torch.from_numpy(rng.normal(1, 1, (4, 24, n)).astype(np.float32)) for n in (3, 7)]
    together = collect_gram(op, parts, wanted, samples=1000)
    # columns are what the form is made of, whichever sentence they stand in
    row = [torch.cat([*part], 1) for part in parts], [torch.cat([*part], 1) for part in wanted]
    alone = collect_gram(op, torch.cat(row[0], 1)[None], torch.cat(row[1], 1)[None], samples=1000)
    assert together.samples == alone.samples == 40
    for name in ("gram", "cross", "energy", "input_mean", "output_mean"):
        np.testing.assert_allclose(getattr(together, name), getattr(alone, name), rtol=1e-5, atol=1e-6)
    some = collect_gram(op, parts, wanted, samples=32)  # four places of each, or as many as there are
    assert some.samples == 4 * 3 + 4 * 4
    with pytest.raises(InputError, match="as many inputs as targets"):
        collect_gram(op, parts, wanted[:1])


def test_rounding_on_sentences_is_better_than_to_nearest() -> None:
    nearest = rounded("nearest", RoundingOptions(grid="minmax", correct_bias=False))
    best = rounded()
    assert list(best.weights) == LAYERS
    assert damage(best.simulated()) < 0.7 * damage(nearest.simulated())
    net = IntegerNet(convert(GRAPH, best.calibration, PLAN, {}, best.layers))
    for name in LAYERS:
        op = net.graph[name].op
        assert isinstance(op, int_ops.Conv2d)
        np.testing.assert_array_equal(op.weight.values, best.weights[name].values)
    (batch,) = token_rows(5, seed=3)
    assert np.isfinite(net.at_length(5).run(batch, kernels="reference")).all()


def test_every_length_takes_part() -> None:
    whole = rounded()
    for left_out in range(3):
        few = [batch for index, batch in enumerate(BATCHES) if index != left_out]
        other = round_weights(GRAPH, CALIBRATION, PLAN, few, "gptq+descent", FORM)
        assert any(not np.array_equal(whole.weights[name].values, other.weights[name].values) for name in LAYERS)
    first = round_weights(GRAPH, CALIBRATION, PLAN, BATCHES, "gptq+descent", replace(FORM, images=20))
    alone = round_weights(GRAPH, CALIBRATION, PLAN, BATCHES[:1], "gptq+descent", FORM)
    for name in LAYERS:
        np.testing.assert_array_equal(first.weights[name].values, alone.weights[name].values)


def test_the_order_of_lengths_does_not_matter_but_for_rounding() -> None:
    errors, turned = (
        round_weights(GRAPH, CALIBRATION, PLAN, batches, "gptq", replace(FORM, asymmetric=False)).error_after
        for batches in (BATCHES, BATCHES[::-1])
    )
    for name in LAYERS:
        assert errors[name] == pytest.approx(turned[name], rel=1e-2)


def test_ranges_by_output_error_are_the_same_at_every_length() -> None:
    plan = BitPlan.uniform(GRAPH, 4, 4)
    result = round_weights(GRAPH, CALIBRATION, plan, BATCHES, "gptq+descent", replace(BEST, images=60))
    changed = [name for name, ends in result.calibration.ranges.items() if ends != CALIBRATION.ranges[name]]
    assert len(changed) > 10
    assert all(plan.activations[name] == 4 for name in changed)
    assert np.isfinite(damage(result.simulated()))


@pytest.mark.parametrize("method", ["brecq", "qdrop", "adaround-images"])
def test_methods_that_look_at_whole_images_are_refused(method: str) -> None:
    with pytest.raises(QuantizationError, match=f"'{method}' compares outputs image by image .* got 3 lengths"):
        rounded(method)


def test_the_twin_looks_up_the_rounded_table() -> None:
    (node,) = (node for node in GRAPH if isinstance(node.op, float_ops.Embedding))
    plan = BitPlan({**PLAN.weights, node.name: 2}, PLAN.activations)
    table = quantize_table(node.name, node.op.weight, plan.weight_spec(node.name)).dequantized()
    taken: list[torch.Tensor] = []

    class Watching(Prefix):
        def step(self, node, quantized=None, output=None) -> None:  # type: ignore[no-untyped-def]
            super().step(node, quantized, output)
            if isinstance(node.op, float_ops.Embedding):
                taken.append(self.rounded[node.name])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("labkit.quantization.weight_rounding.driver.Prefix", Watching)
        round_weights(GRAPH, CALIBRATION, plan, BATCHES, "nearest", FORM)
    for batch, got in zip(BATCHES, taken, strict=True):
        wanted = table[batch["ids"]].transpose(0, 2, 1)
        assert np.abs(got.numpy() - wanted).max() < 1e-3  # 16 bits of the output


def test_other_names_are_refused() -> None:
    with pytest.raises(ModelError, match="on its inputs ids, mask, got ids"):
        Prefix(GRAPH, CALIBRATION, PLAN, {"ids": torch.zeros(2, 16, dtype=torch.int64)})
