"""Memory of a run: shared where lifetimes allow it, borders kept, nothing made after the first run."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from unit.engine.graphs import S8, U8, Builder, affine, images_for, lenet

from labkit.arithmetic.requantize import RoundingRule
from labkit.engine import arena as arenas
from labkit.engine.arena import arena_for, chunk_of
from labkit.engine.memory import share_memory, slot_bytes
from labkit.engine.node_by_node import run_nodes
from labkit.engine.plan import Buffer, Step
from labkit.engine.prepare import Dot, Route, prepare
from labkit.engine.run import run, trace
from labkit.kernels.kernel_set import REFERENCE

SAME = ((1, 1), (1, 1))
WORDS, BYTES = (Dot.PAIRS,), (Dot.QUADS, Dot.PAIRS)


def steps(*buffers):
    return [Step("", lambda *_: 0, numbers, ()) for numbers in buffers]


def plain(size):
    return Buffer((size, 1, 1), np.int16)


def test_a_chain_takes_two_slots():
    slots = share_memory([plain(4)] * 5, steps((0, 1), (1, 2), (2, 3), (3, 4)), [0], [4])
    assert slots == (0, 1, 0, 1, 0)


def test_what_is_read_later_is_kept():
    """Buffer 0 is added to buffer 3, and buffer 1 is an output."""
    slots = share_memory([plain(4)] * 5, steps((0, 1), (1, 2), (2, 3), (0, 3, 4)), [0], [1, 4])
    assert len({slots[0], slots[1], slots[2]}) == 3
    assert slots[3] not in (slots[0], slots[1], slots[2])
    assert slots[4] == slots[2]


def test_inputs_are_filled_before_the_first_step():
    slots = share_memory([plain(4)] * 4, steps((0, 2), (1, 2, 3)), [0, 1], [3])
    assert len({slots[0], slots[1], slots[2]}) == 3


def test_the_best_fit_is_taken():
    sizes = [1, 9, 5, 4, 20]
    slots = share_memory([plain(size) for size in sizes], steps((0, 1, 2), (3,), (4,)), [0], [])
    assert slots == (0, 1, 2, 2, 1)
    assert slot_bytes([plain(size) for size in sizes], slots, 3) == [6, 120, 30]


def test_borders_are_shared_among_their_like_and_scratch_among_scratch():
    bordered = Buffer((4, 4, 16), np.int16, border=(1, 1, 1, 1))
    other = Buffer((4, 4, 16), np.int16, border=(0, 2, 1, 1))
    scratch = Buffer((4, 4, 16), np.int16, is_per_image=False)
    buffers = [bordered, plain(999), other, bordered, scratch, scratch]
    slots = share_memory(buffers, steps((0,), (1,), (2,), (3,), (4,), (5,)), [], [])
    assert slots == (0, 1, 2, 0, 3, 3)
    assert slot_bytes([scratch, plain(1)], (0, 1), 7) == [512, 14]


def test_bytes_that_stand_for_zero_differ_and_so_do_their_borders():
    """Two tensors on grids of their own: the border of each holds its zero point."""
    bordered = [Buffer((4, 4, 16), np.uint8, border=(1, 1, 1, 1), zero=zero) for zero in (3, 3, 4, 0, 0)]
    words = Buffer((4, 4, 16), np.int16, border=(1, 1, 1, 1))
    slots = share_memory([*bordered, words], steps((0,), (1,), (2,), (3,), (4,), (5,)), [], [])
    assert slots == (0, 0, 1, 2, 2, 3)


def residual_net(rule=RoundingRule.SINGLE, size=12, repeat=1, spec=None):
    """Blocks with a shortcut and sizes that change, as in a ResNet, and a tensor that is read much later.

    ``repeat`` : how many blocks there are of each kind
    ``spec`` : of all tensors after an activation; by default each has a zero point of its own
    """
    b = Builder(4, rule=rule)
    spec = spec or affine(U8)
    first = x = b.conv(b.quantize((3, size, size), affine(U8)), 16, (3, 3), padding=SAME, spec=spec)
    for channels, stride in ((16, 1), *((16, 1),) * repeat, (20, 2), *((20, 1),) * repeat):
        y = b.conv(x, channels, (3, 3), padding=SAME, stride=(stride, stride), spec=spec)
        y = b.conv(y, channels, (3, 3), padding=SAME, spec=affine(S8))
        if stride > 1:
            x = b.conv(x, channels, (1, 1), stride=(stride, stride), spec=affine(S8))
        x = b.add(x, y, spec=spec)
    late = b.conv(first, 20, (3, 3), stride=(2, 2), padding=SAME, spec=affine(U8))
    x = b.concat(x, b.conv(x, 20, (3, 3), groups=20, padding=SAME), late, spec=affine(S8))
    b.average_pool(x, (size // 2, size // 2))
    out = b.linear(b.flatten(b.nodes[-1].name), 10)
    return b.graph(b.dequantize(out))


@pytest.mark.parametrize("rule", RoundingRule)
@pytest.mark.parametrize("route", Route)
def test_shared_memory_changes_no_result(rule, route):
    """Words, bytes and what suits the processor, in turn."""
    graph = residual_net(rule)
    dots = (WORDS, BYTES, None)[(list(RoundingRule).index(rule) + list(Route).index(route)) % 3]
    prepared = prepare(graph, route=route, dots=dots)
    for count in (1, 5, prepared.chunk + 1, 1):
        inputs = images_for(graph, count, count)
        expected = run_nodes(graph, inputs, REFERENCE)
        for name, array in run(prepared, inputs).items():
            np.testing.assert_array_equal(array, expected[name])
        for name, array in trace(prepared, inputs).items():
            np.testing.assert_array_equal(array, expected[graph.carriers()[name]])


def memory_of(prepared):
    """Bytes with and without sharing. They are all that there is, but for what aligns each slot."""
    shared, all_kept = arena_for(prepared, 1), arena_for(prepared, 1, keeps_all=True)
    held = {id(buffer.base): buffer.base.nbytes for buffer in shared.buffers}
    assert shared.bytes == sum(held.values()) - 128 * (1 + max(prepared.slots))
    return shared.bytes, all_kept.bytes


@pytest.mark.parametrize("dots", [WORDS, BYTES, None], ids=["words", "bytes", "default"])
@pytest.mark.parametrize("route", [Route.FASTEST, Route.DIRECT])
def test_memory_is_shared(dots, route):
    """After a ReLU all tensors have the same zero point, so that they can take each other's place with their borders."""
    graph = residual_net(size=32, repeat=4, spec=U8)
    shared, all_kept = memory_of(prepare(graph, dots=dots, route=route))
    assert shared < all_kept / 2


def test_bytes_take_half_the_memory_of_words():
    """No scratch but the few sums of the pooling at the end."""
    graph = residual_net(size=32, repeat=2, spec=U8)
    words, bytes_ = (memory_of(prepare(graph, dots=dots, route=Route.DIRECT)) for dots in (WORDS, BYTES))
    assert bytes_[0] < 0.51 * words[0]
    assert bytes_[1] < 0.51 * words[1]


@pytest.mark.parametrize("count", [1, 33])
@pytest.mark.parametrize("integers", [False, True])
def test_after_the_first_run_only_the_result_is_allocated(count, integers):
    """Python's own objects, such as views and tuples, take the few kilobytes that are allowed."""
    b = Builder(0)
    x = b.quantize((3, 24, 24), affine(U8))
    for _ in range(3):
        x = b.conv(x, 16, (3, 3), padding=SAME, spec=affine(U8))
    graph = b.graph(x) if integers else b.graph(b.dequantize(x))
    prepared, inputs = prepare(graph), images_for(graph, count)
    run(prepared, inputs)
    run(prepared, inputs)
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        (result,) = run(prepared, inputs).values()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert result.nbytes >= count * 16 * 24 * 24
    assert peak - before < result.nbytes + 8192


def test_arenas_go_with_their_network():
    import gc
    import weakref

    prepared = prepare(lenet(0))
    arena = weakref.ref(arena_for(prepared, 1).buffers[0].base)
    del prepared
    gc.collect()
    assert arena() is None


def test_images_run_together_while_the_cache_holds_them():
    """LeNet's are small. A large image runs alone, unless large weights make it worth while to share them."""
    for dots in (WORDS, BYTES, None):
        assert prepare(lenet(0), dots=dots).chunk == 32
    graphs = []
    for outputs in (8, 1024):
        b = Builder(0)
        x = b.conv(b.quantize((3, 200, 200), affine(U8)), 8, (3, 3), padding=SAME, spec=affine(U8))
        x = b.flatten(b.average_pool(x, (5, 5), spec=affine(U8)))
        b.linear(x, outputs)
        graphs.append(b.graph())
    (few_in_words, many_in_words), (few_in_bytes, many_in_bytes) = (
        [prepare(graph, dots=dots, route=Route.DIRECT).chunk for graph in graphs] for dots in (WORDS, BYTES)
    )
    assert few_in_words == few_in_bytes == 1
    assert 1 < many_in_words < many_in_bytes < 32
    assert many_in_bytes // 2 == many_in_words  # twice as many images of half the size


def test_a_trace_of_large_images_takes_few_at_a_time(monkeypatch):
    """Whose tensors are all kept: a chunk of those whose tensors share memory would be too much."""
    graph = residual_net(size=32, repeat=2, spec=U8)
    prepared = prepare(graph)
    each = sum(buffer.bytes for buffer in prepared.buffers if buffer.is_per_image)
    inputs = images_for(graph, prepared.chunk + 3)
    expected = trace(prepared, inputs)
    assert chunk_of(prepared) == chunk_of(prepared, keeps_all=True) == prepared.chunk > 4
    for budget, chunk in ((1, 1), (3 * each + 1, 3), (1 << 40, prepared.chunk)):
        monkeypatch.setattr(arenas, "_TRACED_BYTES", budget)
        fresh = prepare(graph)
        assert chunk_of(fresh, keeps_all=True) == chunk
        for name, array in trace(fresh, inputs).items():
            np.testing.assert_array_equal(array, expected[name])
        assert arena_for(fresh, 2, keeps_all=True).capacity == chunk
