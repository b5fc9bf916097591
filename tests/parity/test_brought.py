"""Networks that people bring, at four plans of bits: 0 elements differ, and in full size within 4 GB of memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from parity.brought import NETS, PLANS, build, images, make
from parity.test_zoo import assert_whole_and_equal

import labkit
from labkit.errors import UnsupportedOperation

MEMORY = 4_000_000_000


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("name", NETS)
def test_nothing_differs_in_small(name: str, plan: str) -> None:
    side = NETS[name].small_side
    module = make(name, side)
    net = labkit.quantize(module, images(4, side, seed=2), **PLANS[plan](module, side))
    x = images(2, side, seed=3)
    assert_whole_and_equal(net, labkit.verify(net, module, x), len(x), parameters=True)
    assert len(np.unique(net.trace(x)[net.graph.nodes[-1].inputs[0]])) > 30, "outputs that hardly vary prove little"


@pytest.mark.parametrize("name", ["squeezenet1_1", "mobilenet_v2"])
def test_nothing_differs_in_the_readable_tier(name: str) -> None:
    side = NETS[name].small_side
    module = make(name, side)
    net = labkit.quantize(module, images(4, side, seed=2), weights=4)
    assert_whole_and_equal(net, labkit.verify(net, module, images(1, side, seed=4), "reference"), 1, parameters=True)


REFUSED = {
    "shufflenet_v2_x0_5": r"^getitem\w*: taking a part of a tensor \(an index, a slice, chunk or split\) has no integer form",
    "mobilenet_v3_small": r"^features\.0\.2: nn\.Hardswish has no integer form",
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_brought_is_named(name: str) -> None:
    with pytest.raises(UnsupportedOperation, match=REFUSED[name]):
        labkit.quantize(build(name), images(2, 64, seed=2))


@pytest.mark.slow
@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("name", NETS)
def test_nothing_differs_in_full_size(name: str, plan: str) -> None:
    """In a process of its own, so that the memory is that of this network alone."""
    script = Path(__file__).with_name("certify_brought.py")
    done = subprocess.run([sys.executable, str(script), name, plan, "16"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    print(found)
    assert (found["differing"], found["first"], found["images"]) == (0, None, 16)
    assert found["elements"] > 16 * 3 * NETS[name].side ** 2
    assert found["verify peak"] <= MEMORY
