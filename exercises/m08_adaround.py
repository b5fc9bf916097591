"""m08, AdaRound: what is asked and how it is judged."""

from __future__ import annotations

import itertools

import numpy as np
import torch

from labkit.arithmetic.affine import QParams, QuantSpec
from labkit.course.judges.structural import RoundingChoice
from labkit.course.judges.values import Close, Exact, Items
from labkit.course.tasks import Equivalent, Kind, Mistake, Module, Question, Task
from labkit.quantization.weight_rounding import relaxation
from labkit.quantization.weight_rounding.grids import RowGrid
from labkit.quantization.weight_rounding.qubo import hessian_qubo
from labkit.quantization.weight_rounding.qubo_solvers import solve_exactly

RECTIFIED_SIGMOID = "labkit.quantization.weight_rounding.relaxation.rectified_sigmoid"


def _grid(rows):
    """A grid of 8-bit levels whose step is 1, so that levels are integers as they stand in this module."""
    return RowGrid(QuantSpec(8), QParams(np.float32(1), np.int32(0)), rows)


def _between(rng, shape, low=-7, high=7):
    """Real numbers in steps of the grid, each at least 0.02 away from a whole one."""
    return rng.integers(low, high, shape) + rng.uniform(0.02, 0.98, shape)


def _correlated(rng, n):
    """A quadratic form as of a layer whose inputs are neighbouring pixels."""
    x = rng.normal(rng.uniform(-1, 1), 1, (3 * n + 2, 1)) + rng.normal(0, 0.5, (3 * n + 2, n))
    return x.T @ x / len(x)


def _error(values, real, gram):
    d = np.atleast_2d(values - real)
    return float(np.einsum("ri,ij,rj->", d, gram, d))


# --- m08.q1 -----------------------------------------------------------------------------------------------------------


def _toy(rng, number):
    return {"fractions": rng.uniform(0.05, 0.95, 2), "coupling": float(rng.uniform(0.2, 0.9))}


def _negative_toy(rng, number):
    return {"fractions": rng.uniform(0.05, 0.95, 2), "coupling": -float(rng.uniform(0.2, 0.9))}


def _costs_by_matrix(fractions, coupling):
    hessian = np.array([[1, coupling], [coupling, 1]])
    costs = np.zeros((2, 2))
    for ups in itertools.product((0, 1), repeat=2):
        d = np.array(ups) - fractions
        costs[ups] = d @ hessian @ d / 2
    return costs


def _costs_with(product_factor, of=lambda d: d, half=0.5):
    def costs(fractions, coupling):
        a, b = np.meshgrid(of(np.array([0, 1]) - fractions[0]), of(np.array([0, 1]) - fractions[1]), indexing="ij")
        return half * (a * a + b * b) + product_factor * coupling * a * b

    return costs


TOY = Task(
    name="m08.q1",
    title="Four ways to round two weights",
    function="four_costs",
    points=4,
    minutes=8,
    source="AdaRound, section 2; docs/studies/adaround-toy",
    kinds=(
        Kind("typical", "two weights that push the loss the same way", _toy, count=4, public=2),
        Kind("negative coupling", "two weights that push against each other", _negative_toy, count=3, public=1),
    ),
    oracle=_costs_by_matrix,
    judge=Close(1e-6, 1e-9, of_largest=True),
    mistakes=(
        Mistake(
            "magnitudes only",
            "You seem to use how far each weight moves, and not which way. The product of the two moves has a sign.",
            _costs_with(1, of=np.abs),
        ),
        Mistake(
            "one corner of the matrix",
            "The off-diagonal entry stands in the Hessian twice, above and below the diagonal. You counted it once.",
            _costs_with(0.5),
        ),
        Mistake("no half", "The second-order term of a Taylor series has a factor of 1/2.", _costs_with(2, half=1)),
        Mistake(
            "swapped",
            "The first index of the result belongs to the first weight: costs[1, 0] is the first up, the second down.",
            lambda fractions, coupling: _costs_by_matrix(fractions, coupling).T,
        ),
    ),
)

# --- m08.q2 -----------------------------------------------------------------------------------------------------------

_ROWS = [(6, 3), (4, 5), (9, 2), (2, 4), (12, 4)]


def _inputs(rng, number):
    rows, n = _ROWS[number % len(_ROWS)]
    return {"x": rng.normal(0.5, 1, (rows, n)).astype(np.float32)}


def _after_relu(rng, number):
    return {"x": np.maximum(rng.normal(0.4, 1, (5 + number, 4)), 0).astype(np.float32)}


def _one_row(rng, number):
    return {"x": rng.normal(0, 1, (1, 3)).astype(np.float32)}


def _mean_of_outer_products(x):
    return np.mean([np.outer(row, row) for row in np.asarray(x, np.float64)], axis=0)


GRAM = Task(
    name="m08.q2",
    title="The Gram matrix of a layer's inputs",
    function="gram_matrix",
    points=3,
    minutes=6,
    source="AdaRound, section 3.2; docs/calibration-and-rounding.md, Rounding of weights",
    kinds=(
        Kind("typical", "inputs of several shapes whose mean is not 0", _inputs, count=5, public=2),
        Kind("after a ReLU", "inputs that are never negative, some exactly 0", _after_relu, count=3, public=1),
        Kind("one row", "a single row of inputs", _one_row, count=2, public=0),
    ),
    oracle=_mean_of_outer_products,
    judge=Close(1e-5, 1e-6, of_largest=True),
    mistakes=(
        Mistake(
            "covariance",
            "You took the mean of the inputs out first. E[x x^T] keeps it: a shift of every input matters to the output.",
            lambda x: np.cov(x.T, bias=True),
        ),
        Mistake("a sum", "A mean over the rows is wanted; yours grows with the number of rows.", lambda x: x.T @ x),
        Mistake(
            "the other axis",
            "Your matrix compares rows with rows. It should compare inputs with inputs: as many rows as x has columns.",
            lambda x: x @ x.T / len(x),
        ),
        Mistake(
            "mean first",
            "The mean of products is not the product of means: multiply first, then take the mean over the rows.",
            lambda x: np.outer(x.mean(0), x.mean(0)),
        ),
    ),
)

# --- m08.q3 -----------------------------------------------------------------------------------------------------------


def _row(rng, number):
    n = [3, 5, 2, 6, 8][number % 5]
    return {"real": _between(rng, n, 0), "gram": _correlated(rng, n)}


def _negative_row(rng, number):
    return {"real": _between(rng, 4, -7, 0), "gram": _correlated(rng, 4)}


def _single(rng, number):
    return {"real": _between(rng, 1), "gram": _correlated(rng, 1)}


def _library_terms(real, gram):
    qubo, _ = hessian_qubo(real[None], _grid(1), 2 * gram)
    return qubo.linear, qubo.constant


def _terms_from(start):
    def terms(real, gram):
        d = start(real)
        return 2 * gram @ d, float(d @ gram @ d)

    return terms


QUBO = Task(
    name="m08.q3",
    title="Rounding as a QUBO",
    function="qubo_terms",
    points=5,
    minutes=10,
    source="AdaRound, section 3.1, eqs. 11 to 13, and section 3.2",
    kinds=(
        Kind("typical", "rows of several lengths", _row, count=5, public=2),
        Kind("negative", "weights below 0, whose lower neighbour is further from 0", _negative_row, count=3, public=1),
        Kind("one weight", "a row of one weight", _single, count=2, public=0),
    ),
    oracle=_library_terms,
    judge=Items((Close(1e-6, 1e-8, of_largest=True), Close(1e-6, 1e-8))),
    mistakes=(
        Mistake(
            "towards zero",
            "A negative weight's lower neighbour is the one further from 0. Cutting off the fraction goes the other way.",
            _terms_from(lambda real: np.trunc(real) - real),
        ),
        Mistake(
            "half of the linear term",
            "Multiply (a + z) G (a + z) out: the mixed product occurs twice.",
            lambda real, gram: (gram @ (np.floor(real) - real), _library_terms(real, gram)[1]),
        ),
        Mistake(
            "wrong sign",
            "The start is floor(real) - real, which is never above 0. You used its negative, so going up would cost most "
            "where it helps most.",
            _terms_from(lambda real: real - np.floor(real)),
        ),
        Mistake(
            "starts at the nearest",
            "z = 0 means that every weight is rounded down, also the ones whose nearest integer is above.",
            _terms_from(lambda real: np.rint(real) - real),
        ),
    ),
    library="labkit.quantization.weight_rounding.qubo.hessian_qubo",
)

# --- m08.q4 -----------------------------------------------------------------------------------------------------------


def _nearest(real, gram):
    return np.rint(real).astype(int)


def _better_than_nearest(rng, n, low=-7, high=7):
    """A row of which rounding to nearest is not the best, by at least one per cent."""
    while True:
        real, gram = _between(rng, n, low, high), _correlated(rng, n)
        best = _best_by_library(real, gram)
        if _error(best, real, gram) < 0.99 * _error(np.rint(real), real, gram):
            return {"real": real, "gram": gram}


def _search(rng, number):
    return _better_than_nearest(rng, [4, 6, 3, 7, 5][number % 5])


def _search_negative(rng, number):
    return _better_than_nearest(rng, 5, -7, 0)


def _best_by_library(real, gram):
    qubo, _ = hessian_qubo(real[None], _grid(1), 2 * gram)
    return np.floor(real).astype(int) + solve_exactly(qubo)


def _over(candidates_of):
    def search(real, gram):
        return min(candidates_of(real), key=lambda q: _error(q, real, gram))

    return search


def _one_flip(real):
    start = np.rint(real).astype(int)
    other = np.where(start > real, start - 1, start + 1)
    for k in range(len(real)):
        yield np.where(np.arange(len(real)) == k, other, start)


def _in_turn(real, gram):
    q = np.rint(real).astype(int)
    for k in range(len(real)):
        pair = []
        for value in (np.floor(real[k]), np.ceil(real[k])):
            other = q.copy()
            other[k] = value
            pair.append(other)
        q = min(pair, key=lambda candidate: _error(candidate, real, gram))
    return q


EXACT = Task(
    name="m08.q4",
    title="Try every rounding",
    function="best_rounding",
    points=5,
    minutes=10,
    source="AdaRound, section 3.1, eq. 13",
    kinds=(
        Kind("typical", "rows of 3 to 7 weights where the nearest integers are not the best", _search, 5, 2, 2),
        Kind("negative", "rows of weights below 0", _search_negative, count=3, public=1),
        Kind("one weight", "a row of one weight, for which nearest is the best", _single, count=2, public=0),
    ),
    oracle=_best_by_library,
    judge=RoundingChoice("real", "gram", slack=1.0),
    mistakes=(
        Mistake("nearest", "This is rounding to nearest. It is the best choice for the diagonal of G alone.", _nearest),
        Mistake(
            "one change",
            "You changed one weight of the nearest rounding at a time. Two changes together can help where each alone hurts.",
            _over(_one_flip),
        ),
        Mistake(
            "towards zero",
            "Your lower neighbour of a negative number is the one nearer to 0. Look at what np.floor(-0.3) gives.",
            lambda real, gram: np.trunc(real).astype(int) + _best_by_library(real, gram) - np.floor(real).astype(int),
        ),
        Mistake(
            "one after the other",
            "You decided one weight after the other, and never went back. What is best for one depends on all the others.",
            _in_turn,
        ),
    ),
    library="labkit.quantization.weight_rounding.qubo_solvers.solve_exactly",
)

# --- m08.q5 -----------------------------------------------------------------------------------------------------------


def _sampled(rng, number):
    n, samples, elite = [(3, 8, 2), (4, 6, 3), (2, 9, 4), (5, 12, 3)][number % 4]
    return {
        "real": _between(rng, n),
        "gram": _correlated(rng, n),
        "chance": rng.uniform(0.2, 0.8, n),
        "uniforms": rng.random((samples, n)),
        "elite": elite,
    }


def _sampled_ties(rng, number):
    case = _sampled(rng, number)
    n = len(case["real"])
    steps = rng.integers(0, 4, case["uniforms"].shape)
    steps[:2] = [[2] * n, [1] * n]
    return case | {"chance": np.full(n, 0.5), "uniforms": steps / 4}


def _step_by_loop(real, gram, chance, uniforms, elite):
    drawn = []
    for row in uniforms:
        up = [1 if u < p else 0 for u, p in zip(row, chance, strict=True)]
        integers = np.floor(real).astype(int) + np.array(up)
        drawn.append((_error(integers, real, gram), up, integers))
    drawn.sort(key=lambda item: item[0])
    share = np.mean([up for _, up, _ in drawn[:elite]], axis=0)
    return 0.7 * share + 0.3 * np.asarray(chance), drawn[0][2]


def _wrong_step(change):
    def step(real, gram, chance, uniforms, elite):
        ups = uniforms < chance
        d = np.floor(real) + ups - real
        order = np.argsort(np.einsum("ri,ij,rj->r", d, gram, d), kind="stable")
        return change(ups, order, elite, chance), (np.floor(real) + ups[order[0]]).astype(int)

    return step


CROSS_ENTROPY = Task(
    name="m08.q5",
    title="One step of the cross-entropy method",
    function="cross_entropy_step",
    points=6,
    minutes=12,
    source="AdaRound, section 5.1 and appendix A",
    kinds=(
        Kind("typical", "rows of 2 to 5 weights", _sampled, count=5, public=2),
        Kind("ties", "random numbers that equal the chance exactly", _sampled_ties, count=3, public=1),
    ),
    oracle=_step_by_loop,
    judge=Items((Close(1e-6, 1e-9), Exact())),
    mistakes=(
        Mistake(
            "no memory",
            "You replaced the chances by the share of the kept roundings. Only 0.7 of the way is wanted.",
            _wrong_step(lambda ups, order, elite, chance: ups[order[:elite]].mean(0)),
        ),
        Mistake(
            "weights swapped",
            "You moved 0.3 of the way towards the kept roundings, and 0.7 is wanted.",
            _wrong_step(lambda ups, order, elite, chance: 0.3 * ups[order[:elite]].mean(0) + 0.7 * chance),
        ),
        Mistake(
            "keeps the worst",
            "The roundings that you keep have the largest errors of the sample.",
            _wrong_step(lambda ups, order, elite, chance: 0.7 * ups[order[-elite:]].mean(0) + 0.3 * chance),
        ),
        Mistake(
            "keeps them all",
            "The chances move towards the best roundings of the sample. You used all of the sample.",
            _wrong_step(lambda ups, order, elite, chance: 0.7 * ups.mean(0) + 0.3 * chance),
        ),
    ),
)

# --- m08.q6 -----------------------------------------------------------------------------------------------------------


def _variables(rng, number):
    return {"v": rng.uniform(-2.2, 2.2, [(4,), (2, 3), (7,)][number % 3])}


def _far(rng, number):
    return {"v": rng.choice([-1, 1], 6) * rng.uniform(2.5, 40, 6)}


def _sigmoid(v):
    return 1 / (1 + np.exp(-v))


SOFT = Task(
    name="m08.q6",
    title="The rectified sigmoid",
    function="rectified_sigmoid",
    points=3,
    minutes=5,
    source="AdaRound, section 3.3, eq. 23",
    kinds=(
        Kind("typical", "variables near 0", _variables, count=4, public=2),
        Kind("ends", "variables so large that the result is exactly 0 or 1", _far, count=3, public=1),
    ),
    oracle=lambda v: relaxation.rectified_sigmoid(v),
    judge=Close(1e-6, 1e-7),
    mistakes=(
        Mistake("plain sigmoid", "This is the sigmoid itself: it is not stretched beyond 0 and 1 yet.", _sigmoid),
        Mistake(
            "not cut off",
            "Your result leaves 0..1 at the ends. That is where 'rectified' comes in.",
            lambda v: 1.2 * _sigmoid(v) - 0.1,
        ),
        Mistake(
            "stretched by zeta alone",
            "At v = 0 the result must be 1/2, and yours is not. The sigmoid is stretched from gamma to zeta.",
            lambda v: np.clip(1.1 * _sigmoid(v) - 0.1, 0, 1),
        ),
    ),
    library=RECTIFIED_SIGMOID,
)

# --- m08.q7 -----------------------------------------------------------------------------------------------------------


def _reals(rng, number):
    return {"real": _between(rng, [(5,), (2, 3), (1, 6)][number % 3], 0)}


def _negative_reals(rng, number):
    return {"real": _between(rng, (2, 4), -7, 0)}


def _start_at(fraction):
    return lambda real: -np.log(1.2 / (fraction(real) + 0.1) - 1)


START = Task(
    name="m08.q7",
    title="Where the variables begin",
    function="starting_v",
    points=4,
    minutes=8,
    source="AdaRound, section 3.3, eqs. 22 and 23",
    kinds=(
        Kind("typical", "weights above 0", _reals, count=4, public=2),
        Kind("negative", "weights below 0", _negative_reals, count=3, public=1),
    ),
    oracle=lambda real: relaxation.initial_variables(np.atleast_2d(real), _grid(len(np.atleast_2d(real)))).reshape(
        real.shape
    ),
    judge=Close(1e-5, 1e-5),
    mistakes=(
        Mistake(
            "inverse of the plain sigmoid",
            "This inverts the plain sigmoid. The stretch from -0.1 to 1.1 has to be undone first.",
            lambda real: -np.log(1 / (real - np.floor(real)) - 1),
        ),
        Mistake(
            "wrong sign",
            "A weight just above an integer should begin near 'down', where v is negative. Yours begins at the other end.",
            lambda real: np.log(1.2 / (real - np.floor(real) + 0.1) - 1),
        ),
        Mistake(
            "fraction of the magnitude",
            "For a negative weight the distance to the lower neighbour is wanted: -0.3 lies 0.7 above -1.",
            _start_at(lambda real: np.abs(real) % 1),
        ),
    ),
    library="labkit.quantization.weight_rounding.relaxation.initial_variables",
)

# --- m08.q8 -----------------------------------------------------------------------------------------------------------


def _descending(rng, number):
    rows, n = [(2, 3), (1, 4), (3, 2)][number % 3]
    return {
        "v": rng.uniform(-2, 2, (rows, n)),
        "real": _between(rng, (rows, n)),
        "gram": _correlated(rng, n),
        "strength": float(rng.uniform(0.3, 1)),
        "beta": [2.5, 6.0, 3.5][number % 3],
    }


def _cut_off(rng, number):
    case = _descending(rng, number)
    case["v"][0, :2] = [rng.uniform(2.6, 5), -rng.uniform(2.6, 5)]
    return case


def _no_penalty(rng, number):
    return _descending(rng, number) | {"strength": 0.0, "beta": 20.0}


def _soft_loss(v, real, gram, strength, beta):
    h = torch.clamp(1.2 * torch.sigmoid(v) - 0.1, 0, 1)
    d = torch.floor(real) + h - real
    return ((d @ gram) * d).sum() + strength * (1 - (2 * h - 1).abs() ** beta).sum()


def _gradient_by_torch(v, real, gram, strength, beta):
    variable = torch.tensor(v, dtype=torch.float64, requires_grad=True)
    loss = _soft_loss(variable, torch.from_numpy(real), torch.from_numpy(gram), strength, beta)
    loss.backward()
    return variable.grad.numpy()


def _wrong_gradient(quadratic=2.0, penalty=-2.0, chain=True, stretch=1.2, cut=True):
    def gradient(v, real, gram, strength, beta):
        squashed = _sigmoid(v)
        h = np.clip(1.2 * squashed - 0.1, 0, 1)
        apart = 2 * h - 1
        slope = quadratic * (np.floor(real) + h - real) @ gram
        slope = slope + penalty * strength * beta * np.sign(apart) * np.abs(apart) ** (beta - 1)
        inside = (h > 0) & (h < 1) if cut else 1
        return slope * (stretch * squashed * (1 - squashed) if chain else 1) * inside

    return gradient


GRADIENT = Task(
    name="m08.q8",
    title="The gradient of AdaRound's loss",
    function="adaround_gradient",
    points=7,
    minutes=15,
    source="AdaRound, section 3.3, eqs. 21 to 24",
    kinds=(
        Kind("typical", "one to three rows of weights", _descending, count=4, public=2),
        Kind("cut off", "rows of which some weights have h exactly 0 or 1", _cut_off, count=3, public=1),
        Kind("no penalty", "a strength of 0", _no_penalty, count=2, public=0),
    ),
    oracle=_gradient_by_torch,
    judge=Close(1e-5, 1e-7, of_largest=True),
    mistakes=(
        Mistake(
            "stops at h",
            "This is the gradient with respect to h. One more factor leads from h to v.",
            _wrong_gradient(chain=False),
        ),
        Mistake(
            "goes on where h is cut off",
            "Where h is exactly 0 or 1 a small change of v changes nothing, so the gradient there is 0.",
            _wrong_gradient(cut=False),
        ),
        Mistake(
            "half of the quadratic part",
            "The gradient of d G d is 2 d G for a symmetric G; a factor of 2 is missing.",
            _wrong_gradient(quadratic=1.0),
        ),
        Mistake(
            "wrong sign of the penalty",
            "Your penalty pushes h towards 1/2. It should draw h to 0 or 1: look at the sign of 1 - |2h - 1|^beta.",
            _wrong_gradient(penalty=2.0),
        ),
        Mistake(
            "inner derivative of the penalty",
            "2h - 1 changes by 2 when h changes by 1: the penalty's part is half of what it should be.",
            _wrong_gradient(penalty=-1.0),
        ),
        Mistake(
            "slope of the plain sigmoid",
            "The sigmoid is stretched by zeta - gamma = 1.2, and so is its slope.",
            _wrong_gradient(stretch=1.0),
        ),
    ),
    given=(RECTIFIED_SIGMOID,),
)

# --- m08.q9 -----------------------------------------------------------------------------------------------------------


def _small_layer(rng, number):
    rows, n, steps = [(2, 3, 20), (1, 5, 30), (3, 3, 25), (2, 4, 16)][number % 4]
    return {
        "real": _between(rng, (rows, n)),
        "gram": _correlated(rng, n),
        "steps": steps,
        "rate": 0.2,
        "strength": 0.5,
    }


def _layer(rng, number):
    """A layer of which AdaRound finds something better than the nearest integers."""
    while True:
        case = _small_layer(rng, number)
        found = _error(_adaround_by_torch(**case)[0], case["real"], case["gram"])
        if found < 0.9 * _error(np.rint(case["real"]), case["real"], case["gram"]):
            return case


def _gentle(rng, number):
    return _small_layer(rng, number) | {"steps": 20, "rate": 0.03, "strength": 1.5}


def _at_once(rng, number):
    return _small_layer(rng, number) | {"steps": 0}


def _adaround_by_torch(real, gram, steps, rate, strength, beta_at=lambda done: 2 + 18 * (1 - done)):
    fraction = real - np.floor(real)
    v = torch.tensor(-np.log(1.2 / (fraction + 0.1) - 1), requires_grad=True)
    optimizer = torch.optim.Adam([v], lr=rate)
    for step in range(steps):
        optimizer.zero_grad()
        loss = _soft_loss(v, torch.from_numpy(real), torch.from_numpy(gram), strength, beta_at(step / steps))
        loss.backward()
        optimizer.step()
    found = v.detach().numpy()
    return (np.floor(real) + (found >= 0)).astype(int), found


def _with_plain_descent(real, gram, steps, rate, strength):
    v = -np.log(1.2 / (real - np.floor(real) + 0.1) - 1)
    for step in range(steps):
        v = v - rate * _wrong_gradient()(v, real, gram, strength, 20 - 18 * step / steps)
    return (np.floor(real) + (v >= 0)).astype(int), v


def _nearest_of_rows(real, gram, steps, rate, strength):
    return np.floor(real + 0.5).astype(int), _adaround_by_torch(real, gram, steps, rate, strength)[1]


ADAROUND = Task(
    name="m08.q9",
    title="AdaRound",
    function="adaround",
    points=8,
    minutes=15,
    source="AdaRound, section 3.3, eq. 21, and figure 2",
    kinds=(
        Kind("typical", "small layers and 16 to 30 steps", _layer, count=4, public=2, weight=2),
        Kind("slow and strict", "a small rate and a strong penalty", _gentle, count=3, public=1),
        Kind("no steps", "0 steps, which leaves v where it begins", _at_once, count=2, public=0),
    ),
    oracle=_adaround_by_torch,
    judge=Items((RoundingChoice("real", "gram", slack=1.01), Close(1e-4, 1e-4))),
    mistakes=(
        Mistake(
            "beta is constant",
            "beta should fall from 20 to 2 in the course of the steps, and yours is 2 from the start.",
            lambda **case: _adaround_by_torch(**case, beta_at=lambda done: 2.0),
        ),
        Mistake(
            "beta rises",
            "beta should fall from 20 to 2, and yours rises. A large beta leaves most weights in peace; that comes first.",
            lambda **case: _adaround_by_torch(**case, beta_at=lambda done: 2 + 18 * done),
        ),
        Mistake(
            "plain gradient descent",
            "You took steps along the gradient itself. Adam's steps are asked for: adam_step is there for it.",
            _with_plain_descent,
        ),
        Mistake(
            "integers of the start",
            "v is right, but your integers are the nearest ones to the weights. The sign of the final v decides.",
            _nearest_of_rows,
        ),
    ),
    given=(RECTIFIED_SIGMOID,),
    equivalent=(
        Equivalent(
            "return ((np.floor(real) + (v >= 0)).astype(int), v)",
            "return ((np.floor(real) + (v > 0)).astype(int), v)",
            "v comes out of hundreds of float64 operations and is never exactly 0.",
        ),
    ),
)

# --- m08.c1 -----------------------------------------------------------------------------------------------------------


def _exact_row(rng, number):
    """Numbers whose products are exact in float64, so that flips are equally good to the last bit."""
    n = 3 + number
    x = rng.integers(0, 3, (4, n)).astype(float)
    return {"real": rng.integers(-3, 3, n) + rng.integers(1, 4, n) / 4, "gram": x.T @ x / 4 + np.eye(n) / 2}


def _half_way(rng, number):
    return {"real": np.array([rng.integers(-3, 3) + 0.5]), "gram": np.array([[2.0]])}


def _flips(real, gram, choose, start=lambda real: np.floor(real + 0.5), most=1000):
    down, q = np.floor(real), start(real)
    for _ in range(most):
        now = _error(q, real, gram)
        found = []
        for k in range(len(real)):
            other = q.copy()
            other[k] = 2 * down[k] + 1 - q[k]
            found.append(_error(other, real, gram) - now)
        helpful = [k for k, change in enumerate(found) if change < -1e-12]
        if not helpful:
            break
        k = choose(helpful, found)
        q[k] = 2 * down[k] + 1 - q[k]
    return q.astype(int)


def _several_flips(rng, number):
    """A row for which the descent needs at least two flips."""
    while True:
        case = _search(rng, number)
        if np.any(_flips(**case, choose=_steepest) != _flips(**case, choose=_steepest, most=1)):
            return case


def _steepest(helpful, found):
    return min(helpful, key=lambda k: (round(found[k], 12), k))


DESCENT = Task(
    name="m08.c1",
    title="Steepest descent beats the gradient?",
    function="steepest_rounding",
    points=6,
    minutes=15,
    source="AdaRound, section 3.2; labkit/quantization/weight_rounding/descent.py",
    kinds=(
        Kind("typical", "rows of 3 to 7 weights for which it takes several flips", _several_flips, 6, 3),
        Kind("ties", "numbers with exact halves and quarters, and flips that are equally good", _exact_row, 5, 2),
        Kind("half-way", "one weight exactly between its neighbours", _half_way, count=2, public=0),
    ),
    oracle=lambda real, gram: _flips(real, gram, _steepest),
    judge=Exact(),
    mistakes=(
        Mistake(
            "one flip",
            "You stopped after the first flip. Go on until no flip lowers the error any more.",
            lambda real, gram: _flips(real, gram, _steepest, most=1),
        ),
        Mistake(
            "first flip that helps",
            "You take the first flip that lowers the error. The one that lowers it most is asked for.",
            lambda real, gram: _flips(real, gram, lambda helpful, found: helpful[0]),
        ),
        Mistake(
            "starts below",
            "The descent begins at the nearest integers, and yours begins with everything rounded down.",
            lambda real, gram: _flips(real, gram, _steepest, start=np.floor),
        ),
        Mistake("nearest", "These are the nearest integers. The descent begins there.", _nearest),
    ),
)

# --- questions --------------------------------------------------------------------------------------------------------

WHY = Question(
    name="m08.e1",
    title="Wrong for each, right for all",
    text=(
        "Rounding to nearest makes the error of every single weight as small as it can be. Explain how the error of the layer's "
        "*output* can still become smaller when some weights are rounded to the integer further away. What must the inputs be "
        "like for that, and what inputs would make rounding to nearest the best?"
    ),
    points=3,
    rubric=(
        (
            1,
            "Errors of several weights add up in the output and can cancel each other (the off-diagonal part of d G d).",
        ),
        (1, "That needs inputs that are correlated, or whose mean is not 0, so that E[x_i x_j] is not 0."),
        (1, "With a diagonal G (uncorrelated inputs of mean 0) each weight is on its own, and nearest is the best."),
    ),
)

FEW_IMAGES = Question(
    name="m08.e2",
    title="More weights than images",
    text=(
        "A row of `fc1` has 1,152 weights, and the notebook gathers its Gram matrix from 512 images. What is the rank of that "
        "matrix at most? What would a search that is very good at making `d G d` small do with the other directions, and "
        "what does adding a small multiple of the unit matrix to G change?"
    ),
    points=4,
    minutes=6,
    rubric=(
        (1, "The rank is at most 512: G is a sum of 512 matrices of rank 1."),
        (2, "In the other directions any error is free, so the search fits the 512 images and may hurt on new ones."),
        (
            1,
            "The ridge makes every change cost something, so weights stay near their values where the images say nothing.",
        ),
    ),
)

PENALTY = Question(
    name="m08.e3",
    title="Early and late",
    text=(
        "Why does AdaRound begin with a large beta and end with a small one? Say what the penalty does to a weight with "
        "h = 0.5 and to one with h = 0.9 in both cases, and what would go wrong with a strong penalty and beta = 2 from the "
        "start."
    ),
    points=3,
    rubric=(
        (
            1,
            "At large beta the penalty is flat in the middle: h = 0.5 feels almost nothing and follows the error alone.",
        ),
        (1, "At beta = 2 it has a slope everywhere but at 1/2: h = 0.9 and all others are driven to 0 or 1."),
        (1, "Strong with beta = 2 from the start, it decides by where v begins, which is rounding to nearest."),
    ),
)

MODULE = Module(
    name="m08",
    topic="adaround",
    title="AdaRound: up or down?",
    minutes=120,
    source="Nagel et al. 2020, *Up or Down? Adaptive Rounding for Post-Training Quantization*",
    tasks=(TOY, GRAM, QUBO, EXACT, CROSS_ENTROPY, SOFT, START, GRADIENT, ADAROUND, DESCENT),
    questions=(WHY, FEW_IMAGES, PENALTY),
)
