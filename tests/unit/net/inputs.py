"""Input for a net as its source lays it out: integers where it takes them, else real numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from labkit.graph import int_ops
from labkit.net import IntegerNet


def integers_for(net: IntegerNet, count: int = 5, seed: int = 0) -> dict[str, NDArray[Any]]:
    """``count`` images for each input of ``net`` by its name."""
    rng = np.random.default_rng(seed)
    given: dict[str, NDArray[Any]] = {}
    for name in net.graph.inputs:
        tensor = net.graph[name].output
        spec, params = tensor.quantized
        q = rng.integers(spec.qmin, spec.qmax + 1, (count, *tensor.source_shape))
        is_integer = isinstance(net.graph[name].op, int_ops.Input)
        real = (q - int(params.zero_point)) * float(params.scale)
        given[name] = q.astype(spec.dtype) if is_integer else real.astype(np.float32)
    return given
