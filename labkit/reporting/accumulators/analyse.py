"""`analyse`: the accumulators of a network, at worst and on real images."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from labkit.errors import InputError
from labkit.net import IntegerNet
from labkit.quantization.batches import checked_batches
from labkit.reporting.accumulators.ledger import ledger
from labkit.reporting.accumulators.observed import Watch
from labkit.reporting.accumulators.results import Analysis, LayerSums
from labkit.reporting.accumulators.worst_case import worst_case

__all__ = ["analyse"]

BATCH = 64  # images at a time: the memory that is needed does not depend on how many there are
_SMALL_IMAGE = 3 * 32 * 32  # numbers; of larger ones there are fewer


def analyse(
    net: IntegerNet, images: Any = None, source: str = "", progress: Callable[[int], None] | None = None
) -> Analysis:
    """How large every layer's sums can be, how large they are on ``images``, and what the clamp after them cuts off.

    Parameters
    ----------
    net : IntegerNet
    images : array or tensor [N, ...], a dict of them by input name, or any iterable of these, optional
        In the types and the layout of the network's inputs. They are run through the readable kernels, a batch at a time.
        Without any, only what holds for all inputs is found.
    source : which images these are, in words, for tables
    progress : called with the number of images done so far

    Returns
    -------
    Analysis
        One entry for each operation that sums or requantizes, and the ledger of bit widths.

    Raises
    ------
    InputError
        There is no image in ``images``, or one does not fit the network.
    QuantizationError
        An image holds a NaN.
    """
    graph = net.graph
    layers = [found for node in graph if (found := worst_case(graph, node)) is not None]
    steps = ledger(graph)
    if images is None:
        return Analysis(tuple(layers), 0, source, steps)
    watch, done = Watch(graph), 0
    numbers = sum(math.prod(graph[name].output.shape) for name in graph.inputs)
    for batch in checked_batches(images, net.checked, max(1, min(BATCH, BATCH * _SMALL_IMAGE // numbers))):
        watch.run(batch)
        done += len(next(iter(batch.values())))
        if progress is not None:
            progress(done)
    if not done:
        raise InputError("There are no images to analyse the network on. Hand in at least one, or leave them out.")
    seen = tuple(replace(step, observed=watch.seen_step(step)) for step in steps)
    return Analysis(tuple(_with_seen(layer, watch) for layer in layers), done, source, seen)


def _with_seen(layer: LayerSums, watch: Watch) -> LayerSums:
    seen = watch.seen(layer.name)
    return layer if seen is None else replace(layer, observed=seen[0], landing=seen[1])
