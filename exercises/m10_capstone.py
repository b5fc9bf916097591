"""m10, capstone: what is asked and how it is judged."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
from scipy.optimize import LinearConstraint, milp
from scipy.stats import binomtest

from labkit.course.judges.values import Close, Exact, Items
from labkit.course.tasks import Equivalent, Kind, Mistake, Module, Question, Task
from labkit.reporting.paired import change_error

# --- m10.q1 -----------------------------------------------------------------------------------------------------------

_SHAPES = [(12, 3, 5, 5), (10, 64), (7, 3, 3, 3), (5, 9), (16, 1, 3, 3), (3, 5)]


def _stored(rng, shape, bits):
    return {
        "shape": shape,
        "bits": int(bits),
        "per_channel": bool(rng.integers(2)),
        "bias": bool(rng.integers(2)),
    }


def _layers(rng, number):
    shapes = [_SHAPES[i] for i in rng.choice(len(_SHAPES), 2 + number % 3, replace=False)]
    return {"layers": [_stored(rng, shape, rng.choice([2, 3, 4, 5, 6, 8])) for shape in shapes]}


def _odd_counts(rng, number):
    shapes = [(3, 5), (7, 3, 3, 3), (5, 9)]
    return {"layers": [_stored(rng, shapes[(number + i) % 3], [3, 1, 5][i]) for i in range(3)]}


def _one_layer(rng, number):
    layer = _stored(rng, _SHAPES[number % 6], [4, 2, 8, 6][number % 4])
    return {"layers": [layer | {"per_channel": number % 2 == 0, "bias": number % 4 < 2}]}


def _packed(layers):
    total = 0
    for layer in layers:
        bits = np.zeros(math.prod(layer["shape"]) * layer["bits"], np.uint8)
        total += len(np.packbits(bits)) + np.zeros(layer["shape"][0] if layer["per_channel"] else 1, np.float32).nbytes
        total += np.zeros(layer["shape"][0] if layer["bias"] else 0, np.int32).nbytes
    return total


def _bytes(layers, *, of_bits=lambda n, b: -(-n * b // 8), scales=None, biases=None, whole=False):
    parts, rest = [], 0
    for layer in layers:
        n, channels = math.prod(layer["shape"]), layer["shape"][0]
        parts.append(n * layer["bits"] if whole else of_bits(n, layer["bits"]))
        rest += 4 * (scales(layer) if scales else channels if layer["per_channel"] else 1)
        rest += 4 * (biases(layer) if biases else channels if layer["bias"] else 0)
    return (-(-sum(parts) // 8) if whole else sum(parts)) + rest


SIZE = Task(
    name="m10.q1",
    title="How many bytes is a network?",
    function="network_bytes",
    points=5,
    minutes=8,
    source="docs/arithmetic.md, section 6; docs/allocation.md, costs",
    kinds=(
        Kind("typical", "two to four layers of several shapes and bits", _layers, count=6, public=2),
        Kind("odd counts", "layers whose bits do not fill whole bytes", _odd_counts, count=4),
        Kind("one layer", "a single layer, with and without biases and a scale for each channel", _one_layer, count=4),
    ),
    oracle=_packed,
    judge=Exact(),
    mistakes=(
        Mistake(
            "rounded down",
            "A layer's last byte is lost where its bits do not fill it. A byte that is begun is a byte.",
            lambda layers: _bytes(layers, of_bits=lambda n, b: n * b // 8),
        ),
        Mistake(
            "rounded once",
            "You rounded up once for the whole network. Each layer begins a new byte.",
            lambda layers: _bytes(layers, whole=True),
        ),
        Mistake(
            "whole bytes a weight",
            "You gave each weight whole bytes. Two weights of 4 bits share one byte, and eight of 3 bits share three.",
            lambda layers: _bytes(layers, of_bits=lambda n, b: n),
        ),
        Mistake(
            "no scales",
            "The scales are missing. Without them the integers say nothing, and each is a float32 number.",
            lambda layers: _bytes(layers, scales=lambda layer: 0),
        ),
        Mistake(
            "always biases",
            "You count biases for layers that have none.",
            lambda layers: _bytes(layers, biases=lambda layer: layer["shape"][0]),
        ),
        Mistake(
            "one scale a layer",
            "You count one scale for every layer. Where it is per channel, each output channel has its own.",
            lambda layers: _bytes(layers, scales=lambda layer: 1),
        ),
    ),
    library="labkit.course.entries.parameter_bytes",
)

# --- m10.q2 -----------------------------------------------------------------------------------------------------------

_CONVOLUTIONS = [
    ((12, 3, 5, 5), (12, 28, 28)),
    ((8, 4, 3, 3), (8, 6, 5)),
    ((6, 1, 3, 3), (6, 7, 4)),
    ((5, 5, 1, 1), (5, 3, 9)),
]
_LINEARS = [((10, 64), (10,)), ((7, 12), (7,)), ((256, 1152), (256,))]


def _worked(rng, shapes):
    weight, output = shapes
    bits = rng.choice([2, 3, 4, 5, 6, 8], 2)
    return {"shape": weight, "output": output, "bits": int(bits[0]), "input_bits": int(bits[1])}


def _mixed(rng, number):
    layers = [_CONVOLUTIONS[number % 4], _CONVOLUTIONS[(number + 1) % 4], _LINEARS[number % 3]]
    return {"layers": [_worked(rng, shapes) for shapes in layers[: 2 + number % 2]]}


def _only_linear(rng, number):
    return {"layers": [_worked(rng, shapes) for shapes in _LINEARS[: 1 + number % 3]]}


def _each_output(layers):
    """From the output's side: every element of it takes as many products as one filter has weights."""
    return sum(
        int(np.prod(layer["output"])) * int(np.prod(layer["shape"][1:])) * layer["bits"] * layer["input_bits"]
        for layer in layers
    )


def _work(layers, *, positions=lambda output: math.prod(output[1:]), bits=lambda w, x: w * x):
    return sum(
        math.prod(layer["shape"]) * positions(layer["output"]) * bits(layer["bits"], layer["input_bits"])
        for layer in layers
    )


WORK = Task(
    name="m10.q2",
    title="How much work is a network?",
    function="bit_operations",
    points=5,
    minutes=8,
    source="HAWQ slides, tables of ResNet50 (BOPS); docs/allocation.md, costs",
    kinds=(
        Kind("typical", "convolutions of several shapes, some grouped, and linear layers", _mixed, count=6, public=2),
        Kind("linear only", "linear layers, whose output has no positions", _only_linear, count=3, public=1),
    ),
    oracle=_each_output,
    judge=Exact(),
    mistakes=(
        Mistake(
            "once a weight",
            "You count every weight once. A convolution uses each of its weights again at every position of its output.",
            lambda layers: _work(layers, positions=lambda output: 1),
        ),
        Mistake(
            "channels twice",
            "You count the output channels twice: the weights have them already. Only height and width are left.",
            lambda layers: _work(layers, positions=math.prod),
        ),
        Mistake(
            "bits added",
            "You added the bits. A product of b and c bits takes about b times c operations on single bits.",
            lambda layers: _work(layers, bits=lambda w, x: w + x),
        ),
        Mistake(
            "weights alone",
            "The bits of the layer's input are missing: they count as much as those of the weights.",
            lambda layers: _work(layers, bits=lambda w, x: w),
        ),
    ),
    library="labkit.graph.costs.costs",
)

# --- m10.q3 -----------------------------------------------------------------------------------------------------------


def _scored(rng, number, factors):
    budgets = [int(b) for b in rng.integers(200, 2000, len(factors)) * 40]
    return {
        "accuracy": round(float(rng.uniform(50, 99)), 2),
        "costs": [int(b * f) for b, f in zip(budgets, factors, strict=True)],
        "budgets": budgets,
        "rate": [1.0, 0.5, 2.0, 0.25][number % 4],
    }


def _over_some(rng, number):
    return _scored(rng, number, [[1.1, 0.8], [1.5, 1.05], [0.5, 1.25], [1.2, 0.9, 1.1]][number % 4])


def _within(rng, number):
    return _scored(rng, number, [[0.9, 0.3], [0.5, 0.95], [0.25, 0.2, 0.99]][number % 3])


def _exactly(rng, number):
    return _scored(rng, number, [[1.0, 1.0], [1.0, 1.5]][number % 2])


def _fraction(accuracy, costs, budgets, rate):
    over = sum(max(Fraction(0), Fraction(c, b) - 1) for c, b in zip(costs, budgets, strict=True))
    return float(Fraction(accuracy) - 100 * Fraction(rate) * over)


def _score(accuracy, costs, budgets, rate, *, floor=True, per_cent=100, together=sum, relative=True):
    over = [c / b - 1 if relative else (c - b) for c, b in zip(costs, budgets, strict=True)]
    return accuracy - per_cent * rate * together([max(0, o) for o in over] if floor else over)


SCORE = Task(
    name="m10.q3",
    title="A score with a price for excess",
    function="score",
    points=4,
    minutes=6,
    source="HAWQ slides, uniform low precision and mixed precision; docs/allocation.md, the problem",
    kinds=(
        Kind("typical", "networks over one budget or over several", _over_some, count=6, public=2),
        Kind("within", "networks below all budgets", _within, count=3),
        Kind("exactly met", "networks that meet a budget exactly", _exactly, count=2),
    ),
    oracle=_fraction,
    judge=Close(1e-6),
    mistakes=(
        Mistake(
            "bonus for thrift",
            "Your network is rewarded for what it leaves over. Below the budget nothing is added, or small and wrong wins.",
            lambda **case: _score(**case, floor=False),
        ),
        Mistake(
            "worst one only",
            "You count the largest excess only. Each budget that is exceeded has its price.",
            lambda **case: _score(**case, together=max),
        ),
        Mistake(
            "share for per cent",
            "The rate is in points for each per cent of excess, and you took the share. One per cent is 0.01 of the budget.",
            lambda **case: _score(**case, per_cent=1),
        ),
        Mistake(
            "absolute excess",
            "You count bytes and operations of excess. In what unit is the sum? Take each relative to its own budget.",
            lambda **case: _score(**case, per_cent=1, relative=False),
        ),
    ),
)

# --- m10.q4 -----------------------------------------------------------------------------------------------------------


def _rights(rng, images, p, q):
    return {"right_a": rng.random(images) < p, "right_b": rng.random(images) < q}


def _two_networks(rng, number):
    a = rng.random(30 + 10 * (number % 4)) < 0.8
    b = a ^ (rng.random(a.size) < 0.2)
    a[:4], b[:4] = [True, True, False, True], [False, False, True, True]
    return {"right_a": a, "right_b": b}


def _same_answers(rng, number):
    a = rng.random(20 + number) < 0.7
    return {"right_a": a, "right_b": a.copy()}


def _one_way(rng, number):
    a = rng.random(24) < 0.6
    b = a.copy()
    b[np.flatnonzero(~a)[: 1 + number]] = True
    return {"right_a": a, "right_b": b} if number % 2 == 0 else {"right_a": b, "right_b": a}


def _paired(right_a, right_b):
    return 100 * (np.mean(right_a) - np.mean(right_b)), change_error(right_a, right_b)


def _unpaired(right_a, right_b):
    p, q = np.mean(right_a), np.mean(right_b)
    return 100 * (p - q), 100 * math.sqrt((p * (1 - p) + q * (1 - q)) / len(right_a))


def _discordant(right_a, right_b):
    return int(np.sum(right_a & ~right_b)), int(np.sum(~right_a & right_b))


PAIRED = Task(
    name="m10.q4",
    title="How sure is a difference?",
    function="paired_difference",
    points=5,
    minutes=10,
    source="McNemar 1947; labkit/reporting/paired.py",
    kinds=(
        Kind("typical", "two networks that part on some images", _two_networks, count=6, public=2),
        Kind("same answers", "two networks that are right about the same images", _same_answers, count=3),
        Kind(
            "one way", "one network that is right wherever the other is, and on a few more", _one_way, count=4, public=2
        ),
    ),
    oracle=_paired,
    judge=Items((Close(1e-6, 1e-9), Close(1e-6, 1e-9))),
    mistakes=(
        Mistake(
            "not paired",
            "Your error is that of two independent samples. Both networks saw the same images, and it matters where they part.",
            _unpaired,
        ),
        Mistake(
            "shares",
            "These are shares. Percentage points are wanted, a hundred times as much.",
            lambda right_a, right_b: tuple(v / 100 for v in _paired(right_a, right_b)),
        ),
        Mistake(
            "the other way round",
            "The sign is the other way round: it is positive where the first network is the better one.",
            lambda right_a, right_b: (-_paired(right_a, right_b)[0], _paired(right_a, right_b)[1]),
        ),
        Mistake(
            "variance",
            "You returned the variance of the count, without its root. An error has the unit of the difference.",
            lambda right_a, right_b: (
                _paired(right_a, right_b)[0],
                100 * sum(_discordant(right_a, right_b)) / len(right_a),
            ),
        ),
    ),
    library="labkit.reporting.paired.change_error",
)

# --- m10.q5 -----------------------------------------------------------------------------------------------------------


def _exact_test(right_a, right_b):
    b, c = _discordant(right_a, right_b)
    return binomtest(b, b + c).pvalue if b + c else 1.0


def _balanced(rng, number):
    a = np.zeros(16, bool)
    b = np.zeros(16, bool)
    order = rng.permutation(16)
    a[order[: number + 1]] = True
    b[order[number + 1 : 2 * number + 2]] = True
    a[order[-3:]] = b[order[-3:]] = True
    return {"right_a": a, "right_b": b}


def _tail(right_a, right_b, *, sides=2, cap=True, until=0, of=None):
    b, c = _discordant(right_a, right_b)
    n = b + c if of is None else of
    value = sides * sum(math.comb(n, k) for k in range(min(b, c) + 1 + until)) / 2**n
    return min(1.0, value) if cap else value


def _normal(right_a, right_b):
    b, c = _discordant(right_a, right_b)
    return math.erfc(abs(b - c) / math.sqrt(2 * (b + c))) if b + c else 1.0


TEST = Task(
    name="m10.q5",
    title="Chance, or a better network?",
    function="chance",
    points=6,
    minutes=12,
    source="McNemar 1947, in its exact form",
    kinds=(
        Kind("typical", "two networks that part on some images", _two_networks, count=6, public=2),
        Kind(
            "balanced",
            "as many images that only one is right about as images that only the other is",
            _balanced,
            count=3,
        ),
        Kind("one way", "one network that is right wherever the other is, and on a few more", _one_way, count=4),
        Kind("same answers", "two networks that are right about the same images", _same_answers, count=2),
    ),
    oracle=_exact_test,
    judge=Close(1e-6),
    mistakes=(
        Mistake(
            "one-sided",
            "This is one tail. A difference of the same size to the other side would have been as surprising: both tails count.",
            lambda right_a, right_b: _tail(right_a, right_b, sides=1),
        ),
        Mistake(
            "above 1",
            "A probability cannot exceed 1. Where both networks win equally often the two tails overlap.",
            lambda right_a, right_b: _tail(right_a, right_b, cap=False),
        ),
        Mistake(
            "without the count itself",
            "Your tail ends before the count that was seen. It is the chance of a result as uneven as this or more.",
            lambda right_a, right_b: _tail(right_a, right_b, until=-1),
        ),
        Mistake(
            "all images",
            "You tossed a coin for every image. Those about which both agree say nothing: toss for the others only.",
            lambda right_a, right_b: _tail(right_a, right_b, of=len(right_a)),
        ),
        Mistake(
            "bell curve",
            "This is the approximation by a bell curve. With few images it is off: use the binomial distribution itself.",
            _normal,
        ),
    ),
    seconds=5.0,  # SciPy's share of it is an import
)

# --- m10.q6 -----------------------------------------------------------------------------------------------------------


def _candidates(rng, number):
    count = 7 + number
    costs = np.stack([rng.integers(1, 12, count) * 10, rng.integers(1, 12, count)], 1)
    gain = 3.0 * np.log(costs[:, 0]) + 4.0 * np.log(costs[:, 1])
    return {"costs": costs, "accuracy": np.round(60 + gain + rng.normal(0, 4, count), 1)}


def _tied(rng, number):
    count = 8 + number
    return {
        "costs": rng.integers(1, 4, (count, 2)) * 10,
        "accuracy": rng.integers(70, 73, count).astype(np.float64),
    }


def _twins(rng, number):
    inputs = _candidates(rng, number)
    costs, accuracy = inputs["costs"], inputs["accuracy"]
    best = int(np.argmax(accuracy))
    return {"costs": np.concatenate([costs, costs[[best]]]), "accuracy": np.append(accuracy, accuracy[best])}


def _single(rng, number):
    return {"costs": rng.integers(1, 9, (1, 2)), "accuracy": np.array([80.0 + number])}


def _front(costs, accuracy, *, columns=(0, 1), strict=False, drop_twins=False, larger=False):
    rows = [
        (*(-int(c[i]) if larger else int(c[i]) for i in columns), -float(a))
        for c, a in zip(costs, accuracy, strict=True)
    ]

    def beaten(mine, other):
        if strict:
            return all(o < m for o, m in zip(other, mine, strict=True))
        return all(o <= m for o, m in zip(other, mine, strict=True)) and other != mine

    return [
        i
        for i, mine in enumerate(rows)
        if not any(beaten(mine, other) for other in rows) and not (drop_twins and mine in rows[:i])
    ]


PARETO = Task(
    name="m10.q6",
    title="Networks that nothing beats",
    function="pareto_front",
    points=6,
    minutes=14,
    source="docs/allocation.md, methods (pareto.py)",
    kinds=(
        Kind("typical", "candidates of different costs and accuracies", _candidates, count=6, public=2),
        Kind("ties", "candidates that share costs or accuracies", _tied, count=4, public=2),
        Kind("twins", "two candidates that agree in everything", _twins, count=3, public=1),
        Kind("one candidate", "a single candidate, which nothing beats", _single, count=1),
    ),
    oracle=_front,
    judge=Exact(),
    mistakes=(
        Mistake(
            "strictly better everywhere",
            "You keep a candidate unless another is strictly better in all three. Equal in one and better in another is enough.",
            lambda costs, accuracy: _front(costs, accuracy, strict=True),
        ),
        Mistake(
            "twins lost",
            "Of two equal candidates one is missing. Neither beats the other, as none is better in anything.",
            lambda costs, accuracy: _front(costs, accuracy, drop_twins=True),
        ),
        Mistake(
            "first cost only",
            "You compare the first cost and the accuracy. The second cost is a reason to stay, too.",
            lambda costs, accuracy: _front(costs, accuracy, columns=(0,)),
        ),
        Mistake(
            "costs upside down",
            "You treat high costs as good ones. Less is better for costs, more for accuracy.",
            lambda costs, accuracy: _front(costs, accuracy, larger=True),
        ),
    ),
)

# --- m10.q7 -----------------------------------------------------------------------------------------------------------


def _within_budgets(rng, number):
    inputs = _candidates(rng, number + 2)
    budgets = np.quantile(inputs["costs"], 0.6, axis=0).astype(np.int64)
    inputs["costs"][0] = budgets + np.array([1, 0])  # the first never fits, and one fits in any case
    inputs["costs"][number + 1] = budgets - 1
    return inputs | {"budgets": budgets}


def _met_exactly(rng, number):
    inputs = _candidates(rng, number + 2)
    best = int(np.argmax(inputs["accuracy"]))
    return inputs | {"budgets": inputs["costs"][best] + np.array([[0, 3], [5, 0], [0, 0]][number % 3])}


def _equal_accuracy(rng, number):
    """Four networks of the highest accuracy: over the budget, and within it in an order that no single rule finds."""
    top = [[90, 10], [60, 15], [40, 30], [40, 25], [40, 25]]
    order = rng.permutation(5)
    rest = rng.integers(1, 50, (3, 2))
    costs = np.concatenate([np.array(top)[order], rest])
    accuracy = np.concatenate([np.full(5, 90.0), rng.integers(70, 85, 3).astype(np.float64)])
    mixed = rng.permutation(8)
    return {"costs": costs[mixed], "accuracy": accuracy[mixed], "budgets": np.array([80, 40])}


def _none_fits(rng, number):
    inputs = _candidates(rng, number)
    least = inputs["costs"].min(0)
    return inputs | {"budgets": np.array([least[0] - 1, 1000]) if number % 2 else np.array([1000, least[1] - 1])}


def _best(costs, accuracy, budgets):
    fits = [i for i in range(len(costs)) if all(c <= b for c, b in zip(costs[i], budgets, strict=True))]
    return min(fits, key=lambda i: (-accuracy[i], costs[i][0], costs[i][1], i), default=-1)


def _choice(costs, accuracy, budgets, *, columns=(0, 1), strict=False, first=False, inside=False, order=(0, 1)):
    columns = list(columns)
    fits = np.all(costs[:, columns] < budgets[columns] if strict else costs[:, columns] <= budgets[columns], axis=1)
    places = np.flatnonzero(fits)
    if not len(places):
        return -1
    if first:
        best = int(np.argmax(accuracy[places]))
    else:
        best = int(np.lexsort((costs[places, order[1]], costs[places, order[0]], -accuracy[places]))[0])
    return best if inside else int(places[best])


CHOOSE = Task(
    name="m10.q7",
    title="The best that fits",
    function="best_feasible",
    points=4,
    minutes=8,
    source="docs/allocation.md, the problem; labkit/course/leaderboard.py, the order",
    kinds=(
        Kind("typical", "candidates of which some are over a budget", _within_budgets, count=5, public=2),
        Kind("met exactly", "budgets that the best candidate meets exactly", _met_exactly, count=3),
        Kind("equal accuracy", "several candidates of the highest accuracy", _equal_accuracy, count=5, public=3),
        Kind("none fits", "budgets that no candidate keeps to", _none_fits, count=4, public=2),
    ),
    oracle=_best,
    judge=Exact(),
    mistakes=(
        Mistake(
            "below, not within",
            "You refuse a candidate that meets a budget exactly. A budget may be spent.",
            lambda costs, accuracy, budgets: _choice(costs, accuracy, budgets, strict=True),
        ),
        Mistake(
            "first budget only",
            "Your choice keeps to the first budget only.",
            lambda costs, accuracy, budgets: _choice(costs, accuracy, budgets, columns=(0,)),
        ),
        Mistake(
            "first of the best",
            "Of several equally accurate networks you took the first. The one with the lower first cost is better, and so on.",
            lambda costs, accuracy, budgets: _choice(costs, accuracy, budgets, first=True),
        ),
        Mistake(
            "place among the fitting",
            "This is a place among the candidates that fit. The caller counts all candidates.",
            lambda costs, accuracy, budgets: _choice(costs, accuracy, budgets, inside=True),
        ),
    ),
)

# --- m10.c1 -----------------------------------------------------------------------------------------------------------


def _problem(rng, number, layers=None):
    rows = layers or 4 + number % 2
    weights = rng.integers(2, 40, rows) * 10
    macs = rng.integers(2, 40, rows) * 10
    bits = np.array([2, 3, 4, 8])
    sizes, operations = weights[:, None] * bits, macs[:, None] * bits
    losses = np.round(rng.uniform(0.5, 4, rows)[:, None] * 3.0**-bits * 100 * rng.uniform(0.7, 1.4, (rows, 4)), 6)
    return losses, sizes, operations


def _between(rng, costs, share):
    low, high = costs.min(1).sum(), costs.max(1).sum()
    return int(low + share * (high - low))


def _two_budgets(rng, number):
    losses, sizes, operations = _problem(rng, number)
    return {
        "losses": losses,
        "sizes": sizes,
        "operations": operations,
        "size_budget": _between(rng, sizes, [0.3, 0.5, 0.25][number % 3]),
        "operations_budget": _between(rng, operations, [0.35, 0.2, 0.5][number % 3]),
    }


def _spent_to_the_last(rng, number):
    inputs = _two_budgets(rng, number)
    rows = np.arange(len(inputs["losses"]))
    best = _solved(**inputs)
    inputs["size_budget"] = int(inputs["sizes"][rows, best].sum())
    inputs["operations_budget"] = int(inputs["operations"][rows, best].sum())
    return inputs


def _cheapest_only(rng, number):
    losses, sizes, operations = _problem(rng, number, 3)
    return {
        "losses": losses,
        "sizes": sizes,
        "operations": operations,
        "size_budget": int(sizes.min(1).sum()),
        "operations_budget": int(operations.max(1).sum()),
    }


def _solved(losses, sizes, operations, size_budget, operations_budget):
    """An integer program: one variable a choice, one choice a layer, two budgets."""
    rows, choices = losses.shape
    one_each = np.kron(np.eye(rows), np.ones(choices))
    found = milp(
        losses.reshape(-1),
        integrality=1,
        bounds=(0, 1),
        constraints=[
            LinearConstraint(one_each, 1, 1),
            LinearConstraint(sizes.reshape(1, -1), ub=size_budget + 0.5),
            LinearConstraint(operations.reshape(1, -1), ub=operations_budget + 0.5),
        ],
        options={"mip_rel_gap": 0, "presolve": False},
    )
    return np.rint(found.x).reshape(rows, choices).argmax(1)


def _greedy(losses, sizes, operations, size_budget, operations_budget):
    chosen = np.zeros(len(losses), int)
    rows = np.arange(len(losses))
    while True:
        steps = []
        for row in rows:
            if chosen[row] + 1 < losses.shape[1]:
                new = chosen.copy()
                new[row] += 1
                if sizes[rows, new].sum() <= size_budget and operations[rows, new].sum() <= operations_budget:
                    steps.append((losses[row, new[row]] - losses[row, chosen[row]], row))
        if not steps:
            return chosen
        chosen[min(steps)[1]] += 1


PLAN = Task(
    name="m10.c1",
    title="The best plan under two budgets",
    function="best_plan",
    points=6,
    minutes=20,
    source="HAWQ-V3's integer program (HAWQ slides); docs/allocation.md, the problem",
    kinds=(
        Kind("typical", "four or five layers with four choices each", _two_budgets, count=6, public=3),
        Kind("spent to the last", "budgets that the best plan uses up", _spent_to_the_last, count=3, public=1),
        Kind("cheapest only", "a size that only the smallest choice everywhere keeps to", _cheapest_only, count=2),
    ),
    oracle=_solved,
    judge=Exact(),
    mistakes=(
        Mistake(
            "greedy",
            "Step by step to the largest gain is a good guess and no proof: it may block a better combination. Try them all.",
            _greedy,
        ),
        Mistake(
            "size only",
            "Your plan keeps to the size and forgets the bit operations.",
            lambda losses, sizes, operations, size_budget, operations_budget: _solved(
                losses, sizes, operations, size_budget, operations.max(1).sum()
            ),
        ),
        Mistake(
            "below, not within",
            "You refuse a plan that uses a budget up. A budget may be spent.",
            lambda losses, sizes, operations, size_budget, operations_budget: _solved(
                losses, sizes, operations, size_budget - 1, operations_budget - 1
            ),
        ),
    ),
    library="labkit.allocation.allocate.allocate",
    equivalent=(
        Equivalent(
            "if fits and losses[rows, plan].sum() < least:",
            "if fits and losses[rows, plan].sum() <= least:",
            "No two plans within the budgets have the same loss.",
        ),
    ),
    seconds=5.0,  # SciPy's share of it is an import
)

# --- questions --------------------------------------------------------------------------------------------------------

UNSEEN = Question(
    name="m10.e1",
    title="Why not choose by the test images?",
    text="""
You compared your candidates on training images, and the leaderboard counts test images. Why is it wrong to
try twenty networks on the test images and to report the best of them? What does it cost that the network was trained on the
images that you choose by?
""",
    points=3,
    rubric=(
        (1, "The best of many was also the luckiest on these very images; its figure is too high (selection bias)."),
        (1, "The bias grows with the number tried and with the standard error; new images would not repeat it."),
        (
            1,
            "Training images make all accuracies too high and differences too small; only their order may still be useful.",
        ),
    ),
    minutes=6,
)

CHOICES = Question(
    name="m10.e2",
    title="Defend your entry",
    text="""
Which ranges, rounding, bits of weights and bits of activations did you choose, and why? Give at least two figures that you
measured, each with its error, and name one thing that you tried and that did not help. What would you do with half the budget?
""",
    points=6,
    rubric=(
        (2, "Names all four choices, each with a reason that uses what the course taught."),
        (2, "Two figures with their errors (paired where two networks are compared)."),
        (1, "An attempt that failed, honestly told."),
        (1, "A sound idea for half the budget: which layer gives first, and what makes up for it."),
    ),
    minutes=15,
)

MODULE = Module(
    name="m10",
    topic="capstone",
    title="Capstone: the best network under a budget",
    minutes=120,
    source="HAWQ slides, mixed precision and its tables; MPQCO supplement, sections 1 and 2; the whole course",
    tasks=(SIZE, WORK, SCORE, PAIRED, TEST, PARETO, CHOOSE, PLAN),
    questions=(UNSEEN, CHOICES),
)
