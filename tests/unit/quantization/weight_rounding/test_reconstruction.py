"""Which tensors of a block are rounded while its weights are sought: all but the last, whatever bits the plan gives it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from unit.quantization.weight_rounding.nets import images, residual

from labkit.quantization.calibration import calibrate
from labkit.quantization.plan import BitPlan
from labkit.quantization.weight_rounding import reconstruction
from labkit.quantization.weight_rounding.blocks import Block, find_blocks
from labkit.quantization.weight_rounding.options import RoundingOptions
from labkit.quantization.weight_rounding.prefix import Prefix
from labkit.quantization.weight_rounding.reconstruction import reconstruct_block

GRAPH, IMAGES = residual(), images()
CALIBRATION = calibrate(GRAPH, IMAGES.numpy())
OPTIONS = RoundingOptions(iterations=40, batch_size=16, learning_rate=0.05)
FIRST, SECOND = (block for block in find_blocks(GRAPH) if len(block.nodes) > 1)


def found(block: Block, drop: bool = False, **bits: int) -> tuple[dict[str, np.ndarray], np.ndarray]:  # type: ignore[type-arg]
    """Levels by layer and losses of ``block``, weights of 3 bits, activations of 8 but for ``bits`` by tensor."""
    even = BitPlan.uniform(GRAPH, 3, 8)
    plan = replace(even, activations={**even.activations, **bits})
    prefix = Prefix(GRAPH, CALIBRATION, plan, IMAGES)
    for node in GRAPH:
        if node.name == block.nodes[0]:
            break
        prefix.step(node)
    results = reconstruct_block(prefix, block, plan, OPTIONS, drop, seed=0)
    (losses,) = {history.losses.tobytes() for _, _, history in results.values() if history is not None}
    return {name: levels for name, (levels, _, _) in results.items()}, np.frombuffer(losses)


def same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:  # type: ignore[type-arg]
    return all(np.array_equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("drop", [False, True], ids=["brecq", "qdrop"])
@pytest.mark.parametrize("block", [FIRST, SECOND, Block(("stem",))], ids=lambda block: block.output)
def test_the_last_tensor_of_a_block_is_not_rounded(block: Block, drop: bool) -> None:
    """Its grid of 2 bits or of 8 makes no difference to the weights, nor to any loss on the way."""
    fine, coarse = found(block, drop), found(block, drop, **{block.output: 2})
    assert same(fine[0], coarse[0])
    np.testing.assert_array_equal(fine[1], coarse[1])


@pytest.mark.parametrize("drop", [False, True], ids=["brecq", "qdrop"])
@pytest.mark.parametrize(("block", "inner"), [(FIRST, "a1"), (FIRST, "a2"), (FIRST, "a3"), (SECOND, "b1")], ids=str)
def test_the_tensors_before_it_are(block: Block, inner: str, drop: bool) -> None:
    fine, coarse = found(block, drop), found(block, drop, **{inner: 2})
    assert np.all(fine[1] != coarse[1])
    assert not same(fine[0], coarse[0])


def test_rounding_the_last_tensor_would_show(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mistake itself: with the last tensor on its grid of 2 bits, losses and weights are others."""
    internal = reconstruction._internal_tensors

    def planted(prefix, nodes, plan):  # type: ignore[no-untyped-def]
        own = dict(prefix.tensors)
        for node in nodes:
            own[node.name] = reconstruction.output_tensor(
                node, [own[name] for name in node.inputs], prefix.calibration, plan
            )
        return {**internal(prefix, nodes, plan), nodes[-1].name: own[nodes[-1].name]}

    right = found(SECOND, **{SECOND.output: 2})
    monkeypatch.setattr(reconstruction, "_internal_tensors", planted)
    wrong = found(SECOND, **{SECOND.output: 2})
    assert not same(right[0], wrong[0])
    assert np.all(right[1] != wrong[1])
