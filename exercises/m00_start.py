"""m00, start: what is asked and how it is judged."""

from __future__ import annotations

import math

import numpy as np
import scipy.special

from labkit.arithmetic.packing import pack_int4
from labkit.course.judges.values import Close, Exact, Items
from labkit.course.tasks import Kind, Mistake, Module, Question, Task
from labkit.data import dataset
from labkit.graph.shapes import window_output
from labkit.kernels import reference
from labkit.reporting.paired import change_error

# --- m00.q1 -----------------------------------------------------------------------------------------------------------


def _pixels(rng, number):
    shape = [(2, 3, 2, 2), (3, 4, 4), (7,), (1, 3, 3, 2)][number % 4]
    return {"pixels": rng.integers(0, 256, shape).astype(np.uint8)}


def _ends(rng, number):
    return {"pixels": np.array([[0, 255], [127, 128], [rng.integers(1, 127), rng.integers(129, 255)]], np.uint8)}


NORMALISE = Task(
    name="m00.q1",
    title="Pixels as the network wants them",
    function="normalise",
    points=3,
    minutes=6,
    source="EE219 lab, section IV.B: the input's range is [-1, 1]",
    kinds=(
        Kind("typical", "pixels in arrays of several shapes", _pixels, count=4, public=2),
        Kind("ends", "the pixels 0, 127, 128 and 255", _ends, count=2, public=1),
    ),
    oracle=dataset.normalise,
    judge=Close(1e-5, 1e-6),
    mistakes=(
        Mistake(
            "overflow",
            "Your pixels overflowed: uint8 stays uint8 when you double it, and 200 becomes 144. Make them real first.",
            lambda pixels: pixels * np.uint8(2) / 255 - 1,
        ),
        Mistake(
            "divides by 256",
            "You divided by 256, so that the brightest pixel stays below 1. There are 256 pixel values, but the largest is 255.",
            lambda pixels: pixels / 256 * 2 - 1,
        ),
        Mistake(
            "0 to 1",
            "Your numbers lie between 0 and 1. The network was trained on numbers between -1 and 1.",
            lambda pixels: pixels / 255,
        ),
        Mistake(
            "integer division",
            "You divided integers by integers and lost everything behind the point.",
            lambda pixels: (pixels // 255) * 2.0 - 1,
        ),
    ),
    library="labkit.data.dataset.normalise",
)

# --- m00.q2 -----------------------------------------------------------------------------------------------------------


def _logits(rng, number):
    shape = [(3, 4), (2, 10), (1, 3), (4, 4), (5, 2)][number % 5]
    return {"logits": rng.normal(0, 2.5, shape).astype(np.float32)}


def _far_logits(rng, number):
    case = _logits(rng, number)
    return {"logits": case["logits"] + np.float32([800, -800, 300, -3000][number % 4])}


def _rows_apart(rng, number):
    logits = rng.normal(0, 2, (5, 3)).astype(np.float32)
    logits += np.array([[0], [500], [-500], [1500], [0]], np.float32)
    logits[4] += rng.permutation([-400, 0, 300]).astype(np.float32)
    return {"logits": logits}


def _shares(logits, largest, axis=1):
    powers = np.exp(logits - largest)
    return powers / powers.sum(axis=axis, keepdims=True)


SOFTMAX = Task(
    name="m00.q2",
    title="Logits as probabilities",
    function="softmax",
    points=4,
    minutes=8,
    source="docs/arithmetic.md, section 9, before eq. 25",
    kinds=(
        Kind("typical", "logits as networks give them", _logits, count=5, public=2),
        Kind(
            "far from 0",
            "logits so large or so negative that their exponential is infinite or 0",
            _far_logits,
            public=2,
        ),
        Kind(
            "rows apart",
            "logits that differ by hundreds, from image to image or within one",
            _rows_apart,
            count=2,
            public=1,
        ),
    ),
    oracle=lambda logits: scipy.special.softmax(logits.astype(np.float64), axis=1),
    judge=Close(1e-3, 1e-6),
    mistakes=(
        Mistake(
            "wrong axis",
            "Your columns add up to 1. Each row is one image, so that each row has to.",
            lambda logits: _shares(logits, logits.max(axis=0), axis=0),
        ),
        Mistake(
            "overflow",
            "The exponential of a large number is infinite, and infinity over infinity is no number. A factor common to both "
            "drops out: choose one that makes the largest exponent 0.",
            lambda logits: _shares(logits, 0),
        ),
        Mistake(
            "largest of all",
            "You subtracted the largest logit of all images. In a row far below it every exponential is 0. Each row has a "
            "largest of its own.",
            lambda logits: _shares(logits, logits.max()),
        ),
        Mistake(
            "no exponential",
            "You divided the logits by their sum. Logits may be negative; the exponential comes first.",
            lambda logits: logits / logits.sum(axis=1, keepdims=True),
        ),
    ),
)

# --- m00.q3 -----------------------------------------------------------------------------------------------------------


def _predictions(rng, number):
    images, classes = [(8, 3), (20, 4), (5, 10), (12, 2), (30, 5)][number % 5]
    logits = rng.normal(0, 1, (images, classes)).astype(np.float32)
    labels = np.where(rng.random(images) < 0.6, logits.argmax(axis=1), rng.integers(0, classes, images))
    labels[0], labels[1] = logits[0].argmax(), logits[1].argmin()  # some right, some wrong
    return {"logits": logits, "labels": labels}


def _equal_logits(rng, number):
    logits = rng.integers(0, 3, (10, 4)).astype(np.float32)
    logits[:5, 1:3] = 3  # two largest, classes 1 and 2
    labels = np.where(np.arange(10) % 2, 1, 2)
    labels[5:] = logits[5:].argmax(axis=1)
    return {"logits": logits, "labels": labels}


def _no_doubt(rng, number):
    images = [4, 1, 6, 3][number % 4]
    logits = rng.normal(0, 1, (images, 3)).astype(np.float32)
    return {"logits": logits, "labels": logits.argmax(axis=1) if number % 2 == 0 else logits.argmin(axis=1)}


def _accuracy(logits, labels):
    rows = logits.tolist()
    right = sum(row.index(max(row)) == label for row, label in zip(rows, labels.tolist(), strict=True))
    n = len(rows)
    return 100 * right / n, 100 * math.sqrt(right * (n - right) / n) / n


def _accuracy_with(change):
    return lambda logits, labels: change(*_accuracy(logits, labels), len(labels))


def _last_largest(logits, labels):
    share = np.mean(logits.shape[1] - 1 - logits[:, ::-1].argmax(axis=1) == labels)
    return 100 * share, 100 * np.sqrt(share * (1 - share) / len(labels))


ACCURACY = Task(
    name="m00.q3",
    title="Accuracy, and how far to trust it",
    function="accuracy",
    points=5,
    minutes=9,
    source="EE219 lab, sections I, III.B and V.D: the accuracies to compare",
    kinds=(
        Kind("typical", "5 to 30 images, some of them wrong", _predictions, count=5, public=2),
        Kind("ties", "two equally large logits: the lower class counts", _equal_logits, count=3, public=1),
        Kind("no doubt", "all images right, or all of them wrong", _no_doubt, count=4, public=2),
    ),
    oracle=_accuracy,
    judge=Items((Close(1e-5, 1e-6), Close(1e-5, 1e-6))),
    mistakes=(
        Mistake(
            "no root",
            "You returned p (1 - p) / n, the variance. The standard error is its square root.",
            _accuracy_with(lambda p, e, n: (p, 100 * (e / 100) ** 2)),
        ),
        Mistake(
            "error of one image",
            "You forgot to divide by the number of images: the more images, the surer the accuracy.",
            _accuracy_with(lambda p, e, n: (p, e * math.sqrt(n))),
        ),
        Mistake(
            "root outside",
            "You divided the root by n. The n stands under the root: four times the images halve the error.",
            _accuracy_with(lambda p, e, n: (p, e / math.sqrt(n))),
        ),
        Mistake(
            "shares, not per cent",
            "Both numbers are shares of 1. They are asked for in per cent.",
            _accuracy_with(lambda p, e, n: (p / 100, e / 100)),
        ),
        Mistake(
            "error as a share",
            "The accuracy is in per cent and the error a share of 1. Both are asked for in per cent.",
            _accuracy_with(lambda p, e, n: (p, e / 100)),
        ),
        Mistake(
            "last of equals",
            "Of two equally large logits you took the one further back. NumPy's argmax takes the first, and so does labkit.",
            _last_largest,
        ),
    ),
)

# --- m00.q4 -----------------------------------------------------------------------------------------------------------


def _layer(image, outputs, kernel, stride=1, padding=0):
    return {
        "image": tuple(int(v) for v in image),
        "outputs": int(outputs),
        "kernel": kernel,
        "stride": stride,
        "padding": padding,
    }


def _plain_convolution(rng, number):
    if number == 0:
        return _layer((3, 32, 32), 12, 5)  # conv1
    kernel = [5, 3, 1, 4, 2][number % 5]
    return _layer((rng.integers(1, 9), *rng.integers(6, 20, 2)), rng.integers(2, 17), kernel)


def _padded_convolution(rng, number):
    kernel, stride, padding = [(3, 1, 1), (5, 2, 2), (4, 3, 1), (7, 2, 3)][number % 4]
    return _layer((rng.integers(2, 9), *rng.integers(9, 24, 2)), rng.integers(2, 17), kernel, stride, padding)


def _uneven_convolution(rng, number):
    kernel, stride = [(3, 2), (2, 3), (5, 4)][number % 3]
    height, width = (kernel + stride * int(rng.integers(2, 6)) + int(rng.integers(1, stride)) for _ in range(2))
    return _layer((rng.integers(2, 5), height, width), rng.integers(2, 9), kernel, stride)


def _counted(image, outputs, kernel, stride, padding):
    high, wide = (window_output(size, kernel, stride, (padding, padding), 1, False) for size in image[1:])
    weights = np.empty((outputs, image[0], kernel, kernel)).size
    return weights, weights * high * wide, (outputs, high, wide)


def _cost_with(change):
    def counted(image, outputs, kernel, stride, padding):
        weights, _, (_, high, wide) = _counted(image, outputs, kernel, stride, padding)
        weights, high, wide = change(weights, high, wide, image, kernel, stride, padding)
        return weights, weights * high * wide, (outputs, high, wide)

    return counted


COSTS = Task(
    name="m00.q4",
    title="What a convolution costs",
    function="convolution_costs",
    points=6,
    minutes=12,
    source="EE219 lab, section I; labkit/graph/costs.py",
    kinds=(
        Kind("typical", "a window that moves by one pixel, without padding", _plain_convolution, count=5, public=2),
        Kind(
            "padding and stride",
            "a padded image, or a window that moves by more than one pixel",
            _padded_convolution,
            public=2,
        ),
        Kind("uneven", "a last step that does not fit into the image any more", _uneven_convolution, count=3, public=1),
    ),
    oracle=_counted,
    judge=Items((Exact(), Exact(), Items((Exact(), Exact(), Exact())))),
    mistakes=(
        Mistake(
            "positions of the input",
            "You counted products for every pixel of the input. The filter stands once for each pixel of the output.",
            lambda image, outputs, kernel, stride, padding: (
                (counted := _counted(image, outputs, kernel, stride, padding))[0],
                counted[0] * image[1] * image[2],
                counted[2],
            ),
        ),
        Mistake(
            "one input channel",
            "You forgot the input channels: each filter looks at all of them, with weights of its own for each.",
            _cost_with(lambda weights, high, wide, image, *_: (weights // image[0], high, wide)),
        ),
        Mistake(
            "fence posts",
            "Your output is one too small. A window of 5 has 28 places on 32 pixels, not 27: count the first place, too.",
            _cost_with(lambda weights, high, wide, *_: (weights, high - 1, wide - 1)),
        ),
        Mistake(
            "padding on one side",
            "You added the padding once. It is put on both sides of the image.",
            _cost_with(
                lambda weights, high, wide, image, kernel, stride, padding: (
                    weights,
                    *((size + padding - kernel) // stride + 1 for size in image[1:]),
                )
            ),
        ),
        Mistake(
            "rounds up",
            "Your last window hangs over the edge of the image. What does not fit any more is left out.",
            _cost_with(
                lambda weights, high, wide, image, kernel, stride, padding: (
                    weights,
                    *(-(-(size + 2 * padding - kernel) // stride) + 1 for size in image[1:]),
                )
            ),
        ),
    ),
    library="labkit.graph.costs.costs",
)

# --- m00.q5 -----------------------------------------------------------------------------------------------------------


def _all_alike(rng, number):
    bits = [8, 4, 32, 2, 5][number % 5]
    counts = [int(2 * n) for n in rng.integers(10, 500, 3)]
    return {"counts": counts, "bits": [bits] * 3}


def _mixed(rng, number):
    counts = [int(2 * n) for n in rng.integers(10, 500, 4)]
    return {"counts": counts, "bits": [[8, 4, 2, 8], [32, 8, 6, 4], [5, 3, 32, 1], [7, 4, 1, 8]][number % 4]}


def _odd(rng, number):
    counts = [int(2 * n + 1) for n in rng.integers(5, 100, 3 + number % 2)]
    return {"counts": counts, "bits": [[4, 3, 4], [4, 8, 2, 3], [1, 4, 32]][number % 3][: len(counts)]}


def _packed_bytes(counts, bits):
    total = 0
    for count, width in zip(counts, bits, strict=True):
        if width <= 4:
            total += pack_int4(np.zeros(count, np.int8)).nbytes
        else:
            total += np.zeros(count, np.float32 if width == 32 else np.int8).nbytes
    return total


def _by_bits(counts, bits):
    return [count * width for count, width in zip(counts, bits, strict=True)]


BYTES = Task(
    name="m00.q5",
    title="Bytes of a network",
    function="network_bytes",
    points=4,
    minutes=7,
    source="docs/arithmetic.md, section 6; labkit/graph/costs.py",
    kinds=(
        Kind("alike", "the same bits in every layer", _all_alike, count=5, public=2),
        Kind("mixed", "a number of bits for each layer", _mixed, count=4, public=2),
        Kind("odd", "layers with an odd number of weights of 4 bits or fewer", _odd, count=3, public=2),
    ),
    oracle=_packed_bytes,
    judge=Exact(),
    mistakes=(
        Mistake(
            "as if bits could be packed closely",
            "You divided all bits by 8. A weight of 5 bits takes a whole byte here, and one of 2 bits half a byte.",
            lambda counts, bits: -(-sum(_by_bits(counts, bits)) // 8),
        ),
        Mistake(
            "packed across layers",
            "You paired the last weight of one layer with the first of the next. Each layer begins with a byte of its own.",
            lambda counts, bits: (
                (sum(n for n, b in zip(counts, bits, strict=True) if b <= 4) + 1) // 2
                + sum(n * (4 if b == 32 else 1) for n, b in zip(counts, bits, strict=True) if b > 4)
            ),
        ),
        Mistake(
            "half a byte lost",
            "An odd number of half-bytes needs one byte more for the last of them: you rounded down.",
            lambda counts, bits: sum(
                n // 2 if b <= 4 else n * (4 if b == 32 else 1) for n, b in zip(counts, bits, strict=True)
            ),
        ),
        Mistake(
            "bits for bytes",
            "You counted bits. A byte has eight of them.",
            lambda counts, bits: sum(_by_bits(counts, bits)),
        ),
        Mistake(
            "a byte for each",
            "You gave small integers a byte each. Two weights of 4 bits or fewer share one.",
            lambda counts, bits: sum(n * (4 if b == 32 else 1) for n, b in zip(counts, bits, strict=True)),
        ),
    ),
    library="labkit.graph.costs.costs",
)

# --- m00.q6 -----------------------------------------------------------------------------------------------------------


def _integers_to_pool(rng, number):
    shape, size = [((1, 2, 4, 4), 2), ((2, 1, 6, 4), 2), ((1, 1, 6, 6), 3), ((1, 2, 2, 8), 1), ((1, 1, 8, 4), 4)][
        number % 5
    ]
    return {"x": rng.integers(0, 256, shape).astype(np.uint8), "size": size}


def _negative_to_pool(rng, number):
    return {"x": rng.integers(-128, 0, (1, 2, 4, 6)).astype(np.int8), "size": 2}


def _uneven_to_pool(rng, number):
    shape, size = [((1, 1, 5, 7), 2), ((1, 2, 4, 5), 3), ((2, 1, 7, 4), 2)][number % 3]
    x = rng.integers(-20, 20, shape).astype(np.int8)
    x[..., -1, :] = x[..., -1] = 99  # what does not fill a window must not count
    return {"x": x, "size": size}


def _pooled(x, size):
    window, positions = (size, size), (x.shape[2] // size, x.shape[3] // size)
    return reference.max_pool2d(x, kernel=window, stride=window, output_size=positions)


def _windows(x, size):
    n, c, high, wide = *x.shape[:2], x.shape[2] // size, x.shape[3] // size
    return x[:, :, : high * size, : wide * size].reshape(n, c, high, size, wide, size)


def _overlapping(x, size):
    padded = np.pad(x, ((0, 0), (0, 0), (0, -x.shape[2] % size), (0, -x.shape[3] % size)), constant_values=x.min())
    return _pooled(padded, size)


def _blocks(x, size):
    n, c, high, wide = *x.shape[:2], x.shape[2] // size, x.shape[3] // size
    return x[:, :, : high * size, : wide * size].reshape(n, c, high, wide, size, size).max(axis=(4, 5))


POOL = Task(
    name="m00.q6",
    title="Max pooling of your own",
    function="max_pool",
    points=6,
    minutes=12,
    source="EE219 lab, section I; labkit/kernels/reference.py, max_pool2d",
    kinds=(
        Kind("typical", "integers whose windows fill the image", _integers_to_pool, count=5, public=3),
        Kind("negative", "integers that are all below 0", _negative_to_pool, count=3, public=1),
        Kind("uneven", "rows or columns that are left over at the end", _uneven_to_pool, count=3, public=2),
    ),
    oracle=_pooled,
    judge=Exact(),
    mistakes=(
        Mistake(
            "starts at 0",
            "Your largest value starts at 0, so that a window of negative numbers gets 0. Start with a number of the window.",
            lambda x, size: np.maximum(_pooled(x, size), 0),
        ),
        Mistake(
            "average",
            "You took the mean of each window. The largest number is wanted.",
            lambda x, size: _windows(x, size).mean(axis=(3, 5)),
        ),
        Mistake(
            "first of each window",
            "You took the first number of each window. Skipping pixels is no maximum.",
            lambda x, size: _windows(x, size)[:, :, :, 0, :, 0],
        ),
        Mistake(
            "runs for windows",
            "You reshaped runs of neighbouring numbers into windows. The rows of a window do not lie side by side in memory: "
            "a window needs an axis for its rows and another one for its columns.",
            _blocks,
        ),
        Mistake(
            "windows over the edge",
            "You kept windows that hang over the edge. Rows and columns that do not fill a window are left out.",
            _overlapping,
        ),
    ),
    library="labkit.kernels.reference.max_pool2d",
)

# --- m00.c1 -----------------------------------------------------------------------------------------------------------


def _two_networks(rng, number):
    images, classes = [(12, 3), (25, 4), (8, 2), (30, 5)][number % 4]
    logits = rng.normal(0, 1, (images, classes)).astype(np.float32)
    labels = np.where(rng.random(images) < 0.6, logits.argmax(axis=1), rng.integers(0, classes, images))
    others = (logits + rng.normal(0, 0.7, logits.shape)).astype(np.float32)
    others[0], labels[0] = -logits[0], logits[0].argmax()  # at least one image is lost
    return {"logits": logits, "others": others, "labels": labels}


def _same_answers(rng, number):
    case = _two_networks(rng, number)
    return case | {"others": case["logits"] * np.float32(0.5)}


def _other_mistakes(rng, number):
    """Both wrong, but differently: nothing that an accuracy would notice."""
    logits = rng.normal(0, 1, (10, 4)).astype(np.float32)
    labels = logits.argmin(axis=1)
    labels[:3] = logits[:3].argmax(axis=1)
    others = logits.copy()
    others[3:8, :] = 0
    others[np.arange(3, 8), (labels[3:8] + 1) % 4] = 5
    others[2, :] = 0
    others[2, (labels[2] + 1 + number % 2) % 4] = 1
    return {"logits": logits, "others": others, "labels": labels}


def _paired(logits, others, labels):
    first, second = logits.argmax(axis=1) == labels, others.argmax(axis=1) == labels
    return _accuracy(others, labels)[0] - _accuracy(logits, labels)[0], change_error(second, first)


PAIRED = Task(
    name="m00.c1",
    title="A difference between two networks",
    function="paired_change",
    points=4,
    minutes=12,
    source="labkit/reporting/paired.py (McNemar 1947)",
    kinds=(
        Kind("typical", "two networks that mostly agree", _two_networks, count=4, public=2),
        Kind("same answers", "two networks that are right about the same images", _same_answers, count=2, public=1),
        Kind(
            "other mistakes", "images on which both are wrong, each in its own way", _other_mistakes, count=3, public=2
        ),
    ),
    oracle=_paired,
    judge=Items((Close(1e-5, 1e-5), Close(1e-5, 1e-6))),
    mistakes=(
        Mistake(
            "as if other images",
            "You added the squares of the two accuracies' own errors. That is right for two samples; here both networks saw the "
            "same images, and most of the luck is shared.",
            lambda logits, others, labels: (
                _paired(logits, others, labels)[0],
                math.hypot(_accuracy(logits, labels)[1], _accuracy(others, labels)[1]),
            ),
        ),
        Mistake(
            "changed predictions",
            "You counted images whose prediction changed. Where both networks are wrong, nothing happens to the accuracy.",
            lambda logits, others, labels: (
                _paired(logits, others, labels)[0],
                100 * math.sqrt(np.count_nonzero(logits.argmax(axis=1) != others.argmax(axis=1))) / len(labels),
            ),
        ),
        Mistake(
            "wrong sign",
            "Your sign is turned round: a network that is better than the first has a positive change.",
            lambda logits, others, labels: (
                -_paired(logits, others, labels)[0],
                _paired(logits, others, labels)[1],
            ),
        ),
        Mistake(
            "no root",
            "You divided b + c by n. It is the root of b + c, a standard deviation, that is divided.",
            lambda logits, others, labels: (
                _paired(logits, others, labels)[0],
                _paired(logits, others, labels)[1] ** 2 * len(labels) / 100,
            ),
        ),
    ),
    library="labkit.reporting.paired.change_error",
)

# --- questions --------------------------------------------------------------------------------------------------------

WHERE_THE_WORK_IS = Question(
    name="m00.e1",
    title="Where is the work, and where are the weights?",
    text=(
        "Look at your two bars. Which layers do most of the multiplications, and which hold most of the weights? Why are they "
        "not the same ones? If you could give 4 bits to one layer only, which would you take to make the file small, and which "
        "to make the network fast?"
    ),
    points=4,
    minutes=6,
    rubric=(
        (1, "Work: the two convolutions, about four fifths of all products. Weights: fc1, 93 %."),
        (
            1,
            "A weight of a convolution is used at every output position (784 and 144 times), one of a linear layer once.",
        ),
        (1, "File: fc1, since bytes go by the number of weights."),
        (
            1,
            "Speed: conv1 or conv2, since time goes by products (or: a reason why loading fc1's weights may cost more time).",
        ),
    ),
)

WHY_POOLING_IS_FREE = Question(
    name="m00.e2",
    title="Why is max pooling for free?",
    text=(
        "Your `max_pool` was written without a thought of quantization, and it fits into an integer network as it is. Why does "
        "the largest integer of a window stand for the largest real number, and why does nothing have to be rounded? Name an "
        "operation of a network for which that is not so, and say why."
    ),
    points=4,
    minutes=5,
    rubric=(
        (1, "The real number grows with its integer (the scale is positive), so that both have the same order."),
        (1, "The result is one of the inputs, so it is on the grid already, with the same scale and zero point."),
        (1, "Not so: convolution, linear layer, average pooling or addition."),
        (
            1,
            "Their results are sums or products, which lie between the grid's points (or on another scale) and must be rounded.",
        ),
    ),
)

MODULE = Module(
    name="m00",
    topic="start",
    title="Start: a network, its accuracy and its price",
    minutes=70,
    source="EE219 lab, section I",
    tasks=(NORMALISE, SOFTMAX, ACCURACY, COSTS, BYTES, POOL, PAIRED),
    questions=(WHERE_THE_WORK_IS, WHY_POOLING_IS_FREE),
)
