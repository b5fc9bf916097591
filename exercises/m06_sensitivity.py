"""m06, sensitivity: what is asked and how it is judged."""

from __future__ import annotations

import numpy as np
import torch

from labkit.course.ingredients import Made
from labkit.course.judges.values import Close, Items
from labkit.course.tasks import Kind, Mistake, Module, Question, Task


def _symmetric(rng, n, shift=0.0):
    a = rng.normal(0, 1, (n, n))
    return (a + a.T) / 2 + shift * np.eye(n)


# --- m06.q1 -----------------------------------------------------------------------------------------------------------


def _taylor(rng, number):
    n = [3, 4, 2, 5, 1][number % 5]
    return {
        "gradient": rng.normal(0, 1, n),
        "hessian": _symmetric(rng, n, 1.0),
        "change": rng.normal(0, 0.5, n),
    }


def _at_minimum(rng, number):
    return _taylor(rng, number) | {"gradient": np.zeros([3, 4, 2][number % 3])}


def _taylor_by_sums(gradient, hessian, change):
    n = len(change)
    second = sum(hessian[i, j] * change[i] * change[j] for i in range(n) for j in range(n))
    return sum(gradient[i] * change[i] for i in range(n)) + 0.5 * second


TAYLOR = Task(
    name="m06.q1",
    title="What a change costs, to second order",
    function="taylor_change",
    points=3,
    minutes=5,
    source="AdaRound, section 2; MPQCO supplement, section 4",
    kinds=(
        Kind("typical", "one to five weights, somewhere on a slope", _taylor, count=5, public=2),
        Kind("at a minimum", "a gradient of 0", _at_minimum, count=3, public=1),
    ),
    oracle=_taylor_by_sums,
    judge=Close(1e-6, 1e-9),
    mistakes=(
        Mistake(
            "no half",
            "The second term of a Taylor series has a factor of 1/2.",
            lambda gradient, hessian, change: gradient @ change + change @ hessian @ change,
        ),
        Mistake(
            "no slope",
            "You left the first term out. It is small after training, but it is part of the series.",
            lambda gradient, hessian, change: change @ hessian @ change / 2,
        ),
        Mistake(
            "diagonal only",
            "You used the diagonal of the Hessian alone. What couples two weights counts as well.",
            lambda gradient, hessian, change: gradient @ change + np.sum(np.diag(hessian) * change**2) / 2,
        ),
    ),
)

# --- m06.q2 -----------------------------------------------------------------------------------------------------------


def _net_data(rng, number):
    features, hidden, classes = [(3, 2, 2), (2, 3, 3), (4, 2, 3)][number % 3]
    return {
        "x": rng.normal(0, 1, (5, features)),
        "labels": rng.integers(0, classes, 5),
        "hidden": hidden,
        "classes": classes,
    }


def _flat_weights(rng, data):
    return rng.normal(0, 0.8, data["hidden"] * (data["x"].shape[1] + data["classes"]))


def _product_of_net(rng, number):
    data = _net_data(rng, number)
    w = _flat_weights(rng, data)
    return {"loss": Made("losses.tanh_net", data), "w": w, "v": rng.normal(0, 1, len(w))}


def _product_of_matrix(rng, number):
    n = 3 + number
    data = {"matrix": _symmetric(rng, n), "linear": rng.normal(0, 1, n)}
    return {"loss": Made("losses.quadratic", data), "w": rng.normal(0, 1, n), "v": rng.normal(0, 1, n)}


def _hessian(loss, w):
    return torch.autograd.functional.hessian(loss, torch.from_numpy(w)).numpy()


def _gradient(loss, w):
    return torch.autograd.functional.jacobian(loss, torch.from_numpy(w)).numpy()


PRODUCT = Task(
    name="m06.q2",
    title="A Hessian-vector product",
    function="hessian_vector_product",
    points=6,
    minutes=12,
    source="Pearlmutter 1994; docs/sensitivity.md, Traces and eigenvalues",
    kinds=(
        Kind("small network", "the loss of a network with one layer of tanh", _product_of_net, count=4, public=2),
        Kind("known matrix", "a quadratic loss w M w / 2 + b w", _product_of_matrix, count=3, public=1),
    ),
    oracle=lambda loss, w, v: _hessian(loss, w) @ v,
    judge=Close(1e-5, 1e-8, of_largest=True),
    mistakes=(
        Mistake(
            "v is not used",
            "You added the rows of the Hessian up: your answer is H times a vector of ones.",
            lambda loss, w, v: _hessian(loss, w).sum(0),
        ),
        Mistake(
            "diagonal",
            "You multiplied v with the diagonal of the Hessian, element by element.",
            lambda loss, w, v: np.diag(_hessian(loss, w)) * v,
        ),
        Mistake(
            "one derivative",
            "This is the gradient of the loss. Multiply it with v, and differentiate once more.",
            lambda loss, w, v: _gradient(loss, w),
        ),
        Mistake(
            "gradient squared",
            "You differentiated the gradient times itself. It is the gradient times v that is wanted.",
            lambda loss, w, v: 2 * _hessian(loss, w) @ _gradient(loss, w),
        ),
    ),
    seconds=5.0,  # torch.func loads half of torch when it is used first
)

# --- m06.q3 -----------------------------------------------------------------------------------------------------------


def _signs(rng, shape):
    return rng.choice([-1.0, 1.0], shape)


def _probes(rng, number):
    n, m = [(4, 6), (3, 9), (5, 4), (6, 2)][number % 4]
    return {
        "product": Made("numbers.product_with", {"matrix": _symmetric(rng, n, 2.0)}),
        "probes": _signs(rng, (m, n)),
    }


def _diagonal(rng, number):
    n = 3 + number
    return {
        "product": Made("numbers.product_with", {"matrix": np.diag(rng.uniform(0.5, 3, n))}),
        "probes": _signs(rng, (5, n)),
    }


def _normal_probes(rng, number):
    case = _probes(rng, number)
    return case | {"probes": rng.normal(0, 1, case["probes"].shape)}


def _trace_by_sums(product, probes):
    found = [sum(a * b for a, b in zip(v, product(v), strict=True)) for v in probes]
    mean = sum(found) / len(found)
    variance = sum((value - mean) ** 2 for value in found) / (len(found) - 1)
    return mean, (variance / len(found)) ** 0.5


def _values(product, probes):
    return np.array([v @ product(v) for v in probes])


TRACE = Task(
    name="m06.q3",
    title="Hutchinson's estimate of the trace",
    function="hutchinson",
    points=6,
    minutes=10,
    source="Hutchinson 1990; HAWQ slides, Hessian trace; docs/sensitivity.md, Traces and eigenvalues",
    kinds=(
        Kind("typical", "probes of -1 and +1", _probes, count=4, public=2),
        Kind("diagonal", "a diagonal matrix, for which every probe is exact", _diagonal, count=3, public=1),
        Kind("normal probes", "normally distributed probes", _normal_probes, count=3, public=0),
    ),
    oracle=_trace_by_sums,
    judge=Items((Close(1e-6, 1e-9), Close(1e-6, 1e-9))),
    mistakes=(
        Mistake(
            "a sum",
            "The estimate is the mean of v . Hv over the probes; yours grows with their number.",
            lambda product, probes: (_values(product, probes).sum(), _trace_by_sums(product, probes)[1]),
        ),
        Mistake(
            "spread for error",
            "This is how far one probe lies from the mean. The mean of m probes is closer by the square root of m.",
            lambda product, probes: (_values(product, probes).mean(), _values(product, probes).std(ddof=1)),
        ),
        Mistake(
            "divides by m",
            "The mean was taken from the same probes, so their spread is a little too small: divide by m - 1 (ddof).",
            lambda product, probes: (
                _values(product, probes).mean(),
                _values(product, probes).std() / np.sqrt(len(probes)),
            ),
        ),
        Mistake(
            "average eigenvalue",
            "You divided by the number of weights. That is the mean of the eigenvalues; the trace is their sum.",
            lambda product, probes: (
                _values(product, probes).mean() / probes.shape[1],
                _trace_by_sums(product, probes)[1],
            ),
        ),
    ),
)

# --- m06.q4, m06.q5 ---------------------------------------------------------------------------------------------------


def _softmax(logits):
    e = np.exp(logits - logits.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def _outputs(rng, number):
    images, classes, n = [(4, 3, 2), (3, 2, 4), (5, 4, 3), (2, 3, 5)][number % 4]
    return {
        "jacobian": rng.normal(0, 1, (images, classes, n)),
        "probabilities": _softmax(rng.normal(0, 1.5, (images, classes))),
    }


def _with_labels(rng, number):
    case = _outputs(rng, number)
    images, classes = case["probabilities"].shape
    return case | {"labels": rng.integers(0, classes, images)}


def _sure(rng, number):
    case = _outputs(rng, number)
    images, classes = case["probabilities"].shape
    return case | {"probabilities": _softmax(8 * np.eye(classes)[rng.integers(0, classes, images)])}


def _fitted(rng, number):
    case = _sure(rng, number)
    return case | {"labels": case["probabilities"].argmax(1)}


def _slope(jacobian, probabilities, label):
    """The gradient of -log p(label) of one image: the mean row of its Jacobian less the label's."""
    return sum(p * row for p, row in zip(probabilities, jacobian, strict=True)) - jacobian[label]


def _empirical(jacobian, probabilities, labels):
    total = 0.0
    for j, p, y in zip(jacobian, probabilities, labels, strict=True):
        g = _slope(j, p, y)
        total = total + np.outer(g, g)
    return total / len(labels)


def _expected(jacobian, probabilities):
    total = 0.0
    for j, p in zip(jacobian, probabilities, strict=True):
        for label, chance in enumerate(p):
            g = _slope(j, p, label)
            total = total + chance * np.outer(g, g)
    return total / len(probabilities)


def _slopes(jacobian, probabilities, labels):
    return np.array([_slope(j, p, y) for j, p, y in zip(jacobian, probabilities, labels, strict=True)])


EMPIRICAL = Task(
    name="m06.q4",
    title="The empirical Fisher matrix",
    function="empirical_fisher",
    points=5,
    minutes=10,
    source="MPQCO supplement, eq. 5",
    kinds=(
        Kind("typical", "two to five images of two to four classes", _with_labels, count=4, public=2),
        Kind("fitted", "images that the model is sure of, and right", _fitted, count=3, public=1),
    ),
    oracle=_empirical,
    judge=Close(1e-6, 1e-12, of_largest=True),
    mistakes=(
        Mistake(
            "mean gradient",
            "You took the mean of the gradients first. Each image's own gradient times itself is wanted, and then the mean.",
            lambda jacobian, probabilities, labels: np.outer(*2 * [_slopes(jacobian, probabilities, labels).mean(0)]),
        ),
        Mistake(
            "labels left out",
            "The derivative of -log p(y) by the logits is p - e_y. You used p alone.",
            lambda jacobian, probabilities, labels: (
                np.einsum("nc,ncv,nd,ndw->vw", probabilities, jacobian, probabilities, jacobian) / len(labels)
            ),
        ),
        Mistake(
            "classes apart",
            "The gradient of an image is the sum over its classes. You squared each class's part alone.",
            lambda jacobian, probabilities, labels: (
                np.einsum(
                    "nc,ncv,ncw->vw",
                    (probabilities - np.eye(probabilities.shape[1])[labels]) ** 2,
                    jacobian,
                    jacobian,
                )
                / len(labels)
            ),
        ),
        Mistake(
            "a sum",
            "A mean over the images is wanted; yours grows with their number.",
            lambda jacobian, probabilities, labels: _empirical(jacobian, probabilities, labels) * len(labels),
        ),
    ),
)

GAUSS_NEWTON = Task(
    name="m06.q5",
    title="The Gauss-Newton matrix",
    function="gauss_newton",
    points=6,
    minutes=12,
    source="MPQCO supplement, eqs. 6 to 8; docs/sensitivity.md, The methods",
    kinds=(
        Kind("typical", "two to five images of two to four classes", _outputs, count=4, public=2),
        Kind("sure", "images that the model is sure of", _sure, count=3, public=1),
    ),
    oracle=_expected,
    judge=Close(1e-6, 1e-12, of_largest=True),
    mistakes=(
        Mistake(
            "diagonal of A only",
            "A has a second part: the probabilities add up to 1, so one can only grow where others shrink.",
            lambda jacobian, probabilities: (
                np.einsum("nc,ncv,ncw->vw", probabilities, jacobian, jacobian) / len(probabilities)
            ),
        ),
        Mistake(
            "likeliest label",
            "You used the likeliest label of each image. All labels count here, each with its probability.",
            lambda jacobian, probabilities: _empirical(jacobian, probabilities, probabilities.argmax(1)),
        ),
        Mistake(
            "labels equally likely",
            "You gave all labels the same weight. Each counts with the probability that the model gives it.",
            lambda jacobian, probabilities: np.mean(
                [_empirical(jacobian, probabilities, [y] * len(jacobian)) for y in range(probabilities.shape[1])], 0
            ),
        ),
        Mistake(
            "a sum",
            "A mean over the images is wanted; yours grows with their number.",
            lambda jacobian, probabilities: _expected(jacobian, probabilities) * len(probabilities),
        ),
    ),
)

# --- m06.q6 -----------------------------------------------------------------------------------------------------------


def _samples(rng, number):
    data = _net_data(rng, number)
    return {"losses": Made("losses.tanh_net_samples", data), "w": _flat_weights(rng, data)}


def _one_sample(rng, number):
    data = _net_data(rng, number)
    data |= {"x": data["x"][:1], "labels": data["labels"][:1]}
    return {"losses": Made("losses.tanh_net_samples", data), "w": _flat_weights(rng, data)}


def _rows(losses, w):
    return torch.autograd.functional.jacobian(losses, torch.from_numpy(w)).numpy()


SAMPLES = Task(
    name="m06.q6",
    title="Every image's own gradient",
    function="sample_gradients",
    points=5,
    minutes=10,
    source="MPQCO supplement, eq. 5",
    kinds=(
        Kind("typical", "five images and a network of one layer of tanh", _samples, count=4, public=2),
        Kind("one image", "a single image", _one_sample, count=2, public=1),
    ),
    oracle=_rows,
    judge=Close(1e-5, 1e-8, of_largest=True),
    mistakes=(
        Mistake(
            "mean gradient",
            "This is one gradient, of the mean loss. A row for each image is wanted.",
            lambda losses, w: _rows(losses, w).mean(0),
        ),
        Mistake(
            "sum of gradients",
            "This is one gradient, of the sum of all losses: calling backward() on all of them adds them up.",
            lambda losses, w: _rows(losses, w).sum(0),
        ),
        Mistake(
            "added up along the way",
            "Each of your rows also holds the gradients of the images before it: .grad adds up until it is set to zero.",
            lambda losses, w: np.cumsum(_rows(losses, w), axis=0),
        ),
        Mistake(
            "divided by N",
            "You differentiated each image's share of the mean loss. Each image's own loss is wanted, undivided.",
            lambda losses, w: _rows(losses, w) / len(_rows(losses, w)),
        ),
    ),
    seconds=5.0,  # torch.func loads half of torch when it is used first
)

# --- m06.q7 -----------------------------------------------------------------------------------------------------------


def _perturbation(rng, number):
    images, n = [(4, 3), (6, 2), (3, 5), (8, 4)][number % 4]
    return {"gradients": rng.normal(0.2, 1, (images, n)), "change": rng.normal(0, 0.3, n)}


def _converged(rng, number):
    case = _perturbation(rng, number)
    return case | {"gradients": case["gradients"] - case["gradients"].mean(0)}


PERTURBATION = Task(
    name="m06.q7",
    title="MPQCO's loss perturbation",
    function="loss_perturbation",
    points=5,
    minutes=8,
    source="MPQCO supplement, eq. 5 and section 4; docs/sensitivity.md, Traps",
    kinds=(
        Kind("typical", "three to eight images", _perturbation, count=4, public=2),
        Kind("converged", "gradients whose mean is 0, as after training", _converged, count=3, public=1),
    ),
    oracle=lambda gradients, change: float(change @ (gradients.T @ gradients / len(gradients)) @ change / 2),
    judge=Close(1e-6, 1e-15),
    mistakes=(
        Mistake(
            "mean gradient",
            "You took the mean over images before squaring. The mean gradient of a trained network is about 0, whatever "
            "the change; each image's own product has to be squared.",
            lambda gradients, change: (gradients.mean(0) @ change) ** 2 / 2,
        ),
        Mistake(
            "no half",
            "This is the second term of a Taylor series, which has a factor of 1/2.",
            lambda gradients, change: np.mean((gradients @ change) ** 2),
        ),
        Mistake(
            "a sum",
            "Yours grows with the number of images; a mean over them is wanted.",
            lambda gradients, change: np.sum((gradients @ change) ** 2) / 2,
        ),
        Mistake(
            "weights apart",
            "You squared each weight's part alone. What couples the weights gets lost: first the product g . change, then "
            "the square.",
            lambda gradients, change: np.mean(np.sum((gradients * change) ** 2, axis=1)) / 2,
        ),
    ),
)

# --- m06.q8 -----------------------------------------------------------------------------------------------------------


def _rounded(rng, number):
    shape = [(3, 4), (2, 3, 2, 2), (6,), (5, 2)][number % 4]
    weights = rng.normal(0, 0.3, shape).astype(np.float32)
    step = np.float32(0.125)
    return {
        "trace": float(rng.uniform(0.5, 20)),
        "weights": weights,
        "quantized": (np.rint(weights / step) * step).astype(np.float32),
    }


def _unchanged(rng, number):
    case = _rounded(rng, number)
    return case | {"quantized": case["weights"].copy()}


def _distance(weights, quantized):
    return float(np.sum(np.square(np.asarray(quantized, np.float64) - weights)))


HAWQ = Task(
    name="m06.q8",
    title="HAWQ-V2's sensitivity",
    function="hawq_v2",
    points=3,
    minutes=5,
    source="HAWQ slides, theorem 1; Dong et al. 2020",
    kinds=(
        Kind("typical", "layers of several shapes", _rounded, count=4, public=3),
        Kind("unchanged", "a layer whose weights are on the grid already", _unchanged, count=2, public=1),
    ),
    oracle=lambda trace, weights, quantized: trace * _distance(weights, quantized) / weights.size,
    judge=Close(1e-4, 1e-12),
    mistakes=(
        Mistake(
            "whole trace",
            "The average trace is wanted, one share for each weight: a large layer has a large trace by its size alone.",
            lambda trace, weights, quantized: trace * _distance(weights, quantized),
        ),
        Mistake(
            "divided twice",
            "You divided the squared change by the number of weights too. Only the trace is averaged.",
            lambda trace, weights, quantized: trace * _distance(weights, quantized) / weights.size**2,
        ),
        Mistake(
            "not squared",
            "The squared length of the change is wanted, and yours is the length.",
            lambda trace, weights, quantized: trace * _distance(weights, quantized) ** 0.5 / weights.size,
        ),
        Mistake(
            "number of rows",
            "len(weights) counts the rows of the array, not the weights in it.",
            lambda trace, weights, quantized: trace * _distance(weights, quantized) / len(weights),
        ),
    ),
)

# --- m06.q9 -----------------------------------------------------------------------------------------------------------


def _moves(rng, number):
    images, classes = [(3, 4), (5, 2), (2, 3), (6, 5)][number % 4]
    return {
        "moves": rng.normal(0, 1, (images, classes)),
        "probabilities": _softmax(rng.normal(0, 1.5, (images, classes))),
    }


def _all_alike(rng, number):
    case = _moves(rng, number)
    return case | {"moves": np.repeat(case["moves"][:, :1], case["moves"].shape[1], axis=1)}


def _by_matrix(moves, probabilities):
    cost = 0.0
    for u, p in zip(moves, probabilities, strict=True):
        cost += float(u @ (np.diag(p) - np.outer(p, p)) @ u)
    return cost / (2 * len(moves))


VARIANCE = Task(
    name="m06.q9",
    title="The cost of moving logits",
    function="logit_cost",
    points=4,
    minutes=8,
    source="docs/sensitivity.md, The methods (gauss-newton)",
    kinds=(
        Kind("typical", "two to six images of two to five classes", _moves, count=4, public=2),
        Kind("all alike", "logits that all move by the same amount", _all_alike, count=3, public=1),
    ),
    oracle=_by_matrix,
    judge=Close(1e-5, 1e-6),
    mistakes=(
        Mistake(
            "no mean taken out",
            "If all logits move alike, the softmax does not change. Yours costs something then: the mean move is missing.",
            lambda moves, probabilities: np.mean(np.sum(probabilities * moves**2, axis=1)) / 2,
        ),
        Mistake(
            "plain variance",
            "You counted all classes alike. Each counts with its probability, in the mean move and in the spread around it.",
            lambda moves, probabilities: np.mean(moves.var(axis=1)) / 2,
        ),
        Mistake(
            "no half",
            "This is the second term of a Taylor series, which has a factor of 1/2.",
            lambda moves, probabilities: 2 * _by_matrix(moves, probabilities),
        ),
        Mistake(
            "a sum",
            "Yours grows with the number of images; a mean over them is wanted.",
            lambda moves, probabilities: _by_matrix(moves, probabilities) * len(moves),
        ),
    ),
)

# --- m06.c1 -----------------------------------------------------------------------------------------------------------


def _power(rng, number):
    n = 3 + number
    return {
        "product": Made("numbers.product_with", {"matrix": _symmetric(rng, n, 2.0)}),
        "start": rng.normal(0, 2, n),
        "steps": [5, 3, 8, 2][number % 4],
    }


def _negative_end(rng, number):
    case = _power(rng, number)
    matrix = _symmetric(rng, 3 + number, -3.0)
    return case | {"product": Made("numbers.product_with", {"matrix": matrix})}


def _no_steps(rng, number):
    return _power(rng, number) | {"steps": 0}


def _rayleigh(product, start, steps):
    v = np.asarray(start, np.float64)
    matrix = np.array([product(e) for e in np.eye(len(v))]).T
    for _ in range(steps):
        v = matrix @ v
        v = v / np.abs(v).max()
    return float(v @ matrix @ v / (v @ v))


def _iterated(product, start, steps):
    v = start / np.linalg.norm(start)
    for _ in range(steps):
        v = product(v) / np.linalg.norm(product(v))
    return v


EIGENVALUE = Task(
    name="m06.c1",
    title="The sharpest direction",
    function="top_eigenvalue",
    points=5,
    minutes=12,
    source="HAWQ slides, sharp and flat; labkit/sensitivity/eigenvalues.py",
    kinds=(
        Kind("typical", "matrices of three to six rows", _power, count=4, public=2),
        Kind("negative", "matrices whose eigenvalue of the largest magnitude is below 0", _negative_end, 3, 1),
        Kind("no steps", "0 steps, which leaves the direction where it begins", _no_steps, count=2, public=0),
    ),
    oracle=_rayleigh,
    judge=Close(1e-6, 1e-8),
    mistakes=(
        Mistake(
            "length",
            "The length of H v is never negative, and eigenvalues may be. v . H v keeps the sign.",
            lambda product, start, steps: np.linalg.norm(product(_iterated(product, start, steps))),
        ),
        Mistake(
            "one step less",
            "You took one step less than was asked for.",
            lambda product, start, steps: _rayleigh(product, start, max(steps - 1, 0)),
        ),
        Mistake(
            "one step more",
            "You took one step more than was asked for.",
            lambda product, start, steps: _rayleigh(product, start, steps + 1),
        ),
        Mistake(
            "the direction",
            "You returned the direction. Its eigenvalue, one number, is wanted.",
            lambda product, start, steps: _iterated(product, start, steps),
        ),
    ),
)

# --- questions --------------------------------------------------------------------------------------------------------

TRAP = Question(
    name="m06.e1",
    title="A sensitivity of nothing",
    text=(
        "A colleague computes MPQCO's loss perturbation with the gradient of the *mean* loss, `0.5 * (g @ dw) ** 2`, because "
        "that takes one backward pass instead of N. For a well-trained network every layer comes out as insensitive, even at 1 "
        "bit. What happened, and why do each image's own gradients not have this problem?"
    ),
    points=3,
    rubric=(
        (1, "Training has driven the mean gradient to (nearly) 0, so its product with any change is nearly 0."),
        (1, "The gradients of single images are not 0; they only cancel in the mean."),
        (1, "Squaring before the mean prevents the cancelling (it is the mean of g g^T, not g g^T of the mean)."),
    ),
)

PROPOSITION = Question(
    name="m06.e2",
    title="A proposition on trial",
    text=(
        "The supplement's proposition 2 says that the empirical Fisher matrix H~ is exact, H~ = H, once the data is perfectly "
        "fit. Look at your figure of section 4. What do H~, the Gauss-Newton matrix and H do as the loss falls, in absolute size "
        "and relative to each other? Find the step that fails, from J^T A J to J^T r r^T J."
    ),
    points=5,
    minutes=8,
    rubric=(
        (1, "All three shrink as the data is fitted, H~ fastest: |H - H~| / |H| tends to 1, not to 0."),
        (1, "The Gauss-Newton matrix stays close to H: what is left out is proportional to the residuals."),
        (2, "r r^T equals A only on average over labels drawn from the model, not for the label that an image has."),
        (1, "With p of the right class near 1, A shrinks as 1 - p and r r^T as (1 - p)^2."),
    ),
)

MODULE = Module(
    name="m06",
    topic="sensitivity",
    title="Sensitivity: which layer can take it?",
    minutes=115,
    source="MPQCO supplement (Chen et al. 2021), sections 3 and 4; Systematic Neural Network Quantization (HAWQ slides, 2021)",
    tasks=(TAYLOR, PRODUCT, TRACE, EMPIRICAL, GAUSS_NEWTON, SAMPLES, PERTURBATION, HAWQ, VARIANCE, EIGENVALUE),
    questions=(TRAP, PROPOSITION),
)
