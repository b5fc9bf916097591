"""m07, allocation: what is asked and how it is judged."""

from __future__ import annotations

import itertools
import math

import numpy as np

from labkit.allocation.exact import solve_exact
from labkit.allocation.greedy import solve_greedy
from labkit.allocation.hull import hull_steps
from labkit.allocation.ilp import solve_ilp
from labkit.allocation.pareto import hull_front
from labkit.allocation.problem import Mckp
from labkit.course.judges.allocation import BestPlanWithin, GreedyTrap
from labkit.course.judges.structural import BestPlan
from labkit.course.judges.values import Close, Exact, Items
from labkit.course.tasks import Equivalent, Kind, Mistake, Module, Question, Task

# --- problems ---------------------------------------------------------------------------------------------------------


def _net(rng, layers, choices):
    """Like a network: a loss that falls by about four a bit, a cost that rises with the bits."""
    bits = np.arange(1, choices + 1)
    sizes = rng.integers(2, 30, layers)
    losses = 100 * rng.lognormal(0, 1.2, (layers, 1)) * 4.0**-bits * rng.lognormal(0, 0.3, (layers, choices))
    return {"losses": np.round(losses, 4), "costs": sizes[:, None] * bits}


def _rough(rng, layers, choices):
    """Far from convex: losses and costs are sorted random numbers."""
    losses = -np.sort(-rng.uniform(0, 50, (layers, choices)), axis=1)
    steps = rng.integers(1, 25, (layers, choices))
    return {"losses": np.round(losses, 3), "costs": np.cumsum(steps, axis=1)}


def _wild(rng, layers, choices):
    """As `_rough`, but more bits may also do harm, as between 1 and 2 bits of a real network."""
    case = _rough(rng, layers, choices)
    return case | {"losses": np.round(rng.uniform(1, 50, (layers, choices)), 3)}


def _between(case, share):
    """``case`` with a budget so far on the way from the cheapest plan to the dearest."""
    low, high = int(case["costs"][:, 0].sum()), int(case["costs"][:, -1].sum())
    return case | {"budget": low + int(share * (high - low))}


_SHAPES = [(3, 3), (4, 3), (2, 4), (5, 2), (3, 4), (4, 2)]


def _typical(rng, number):
    make = (_net, _rough)[number % 2]
    return _between(make(rng, *_SHAPES[number % len(_SHAPES)]), rng.uniform(0.25, 0.75))


def _wild_case(rng, number):
    return _between(_wild(rng, *_SHAPES[number % len(_SHAPES)]), rng.uniform(0.2, 0.8))


def _cheapest_only(rng, number):
    return _between(_rough(rng, *_SHAPES[number % len(_SHAPES)]), 0.0)


def _roomy(rng, number):
    case = _between(_rough(rng, *_SHAPES[number % len(_SHAPES)]), 1.0)
    return case | {"budget": case["budget"] + int(rng.integers(0, 20))}


def _to_the_last_unit(rng, number):
    """The budget is exactly what the best plan costs."""
    case = _between(_rough(rng, *_SHAPES[number % len(_SHAPES)]), rng.uniform(0.3, 0.8))
    plan = _best(**case)
    return case | {"budget": int(case["costs"][np.arange(len(plan)), plan].sum())}


def _trapped(rng, number):
    """A problem on which the greedy's plan is not the best."""
    while True:
        case = _between(_rough(rng, *_SHAPES[number % len(_SHAPES)]), rng.uniform(0.3, 0.7))
        if _loss(case["losses"], _greedy(**case)) > _loss(case["losses"], _best(**case)) + 0.01:
            return case


def _free_choices(rng, number):
    """The cheapest choices cost nothing, and one layer's best choice costs all there is."""
    case = _rough(rng, *_SHAPES[number % len(_SHAPES)])
    costs, losses = case["costs"], case["losses"]
    costs[:, 0] = 0
    row = number % len(costs)
    losses[row, :-1] += 400.0
    return case | {"budget": int(costs[row, -1])}


def _problem(losses, costs, budget):
    layers, choices = losses.shape
    names, bits = tuple(f"layer {i}" for i in range(layers)), tuple(range(1, choices + 1))
    return Mckp(names, bits, losses, np.asarray(costs, np.float64)[None], (float(budget),))


def _plan_of(answer):
    return [bits - 1 for bits in answer.bits]


def _best(losses, costs, budget):
    return _plan_of(solve_exact(_problem(losses, costs, budget)))


def _greedy(losses, costs, budget, direction="up", hull=True):
    return _plan_of(solve_greedy(_problem(losses, costs, budget), direction, hull=hull))


def _walk(losses, costs, budget, rate, stop=False, hull=True):
    """A greedy that goes by ``rate`` of (gain, cost), and ends where a step does not fit if told to ``stop``."""
    way = [_hull(*row) if hull else list(range(losses.shape[1])) for row in zip(losses, costs, strict=True)]
    at, left, open_layers = [0] * len(way), budget - costs[:, 0].sum(), set(range(len(way)))
    while steps := [
        (rate(losses[k, way[k][at[k]]] - losses[k, way[k][at[k] + 1]], more), k, more)
        for k in sorted(open_layers)
        if at[k] + 1 < len(way[k])
        for more in [costs[k, way[k][at[k] + 1]] - costs[k, way[k][at[k]]]]
    ]:
        _, k, more = max(steps)
        if more <= left:
            at[k], left = at[k] + 1, left - more
        elif stop:
            break
        else:
            open_layers.discard(k)
    return [way[k][at[k]] for k in range(len(way))]


# --- m07.q1: what bits cost -------------------------------------------------------------------------------------------


def _sizes(rng, number):
    layers = 1 + number % 4
    bits = [[2, 4, 8], [1, 3, 5, 6], [4, 8], [8]][number % 4]
    return {
        "weights": rng.integers(20, 9000, layers),
        "macs": rng.integers(500, 80000, layers),
        "input_bits": np.full(layers, 8),
        "bits": bits,
    }


def _mixed_inputs(rng, number):
    case = _sizes(rng, number + 1)
    return case | {"input_bits": rng.choice([2, 4, 6, 8], len(case["weights"]))}


def _tables(weights, macs, input_bits, bits):
    rows = list(zip(weights.tolist(), macs.tolist(), input_bits.tolist(), strict=True))
    return (
        np.array([[w * b / 8 for b in bits] for w, _, _ in rows]),
        np.array([[m * b * a for b in bits] for _, m, a in rows]),
    )


COSTS = Task(
    name="m07.q1",
    title="What bits cost",
    function="cost_tables",
    points=3,
    minutes=7,
    source="HAWQ slides (BOPS); docs/allocation.md, Costs",
    kinds=(
        Kind("typical", "several layers and candidate widths, inputs of 8 bits", _sizes, count=4, public=2),
        Kind("inputs", "layers whose inputs have bits of their own", _mixed_inputs, count=4, public=1),
    ),
    oracle=_tables,
    judge=Items((Close(1e-12), Close(1e-12))),
    mistakes=(
        Mistake(
            "bits for bytes",
            "Your first table counts bits. A byte has eight of them.",
            lambda weights, macs, input_bits, bits: (
                8 * _tables(weights, macs, input_bits, bits)[0],
                _tables(weights, macs, input_bits, bits)[1],
            ),
        ),
        Mistake(
            "whole bytes",
            "You rounded each layer to whole bytes, or each weight. The bits lie end to end; parts of a byte count.",
            lambda weights, macs, input_bits, bits: (
                np.ceil(np.outer(weights, np.array(bits)) / 8),
                _tables(weights, macs, input_bits, bits)[1],
            ),
        ),
        Mistake(
            "weight bits only",
            "A product has two factors. Bit operations count the bits of the weight times the bits of the layer's input.",
            lambda weights, macs, input_bits, bits: _tables(weights, macs, np.ones_like(input_bits), bits),
        ),
        Mistake(
            "weights for products",
            "A convolution uses each weight many times: your second table counts weights, not multiply-accumulates.",
            lambda weights, macs, input_bits, bits: _tables(weights, weights, input_bits, bits),
        ),
        Mistake(
            "turned round",
            "Your tables are turned round: one row a layer, one column a candidate.",
            lambda weights, macs, input_bits, bits: tuple(t.T for t in _tables(weights, macs, input_bits, bits)),
        ),
    ),
    library="labkit.allocation.costs.weight_bytes",
)

# --- m07.q2: every plan there is --------------------------------------------------------------------------------------


def _shifted_best(losses, costs, budget):
    """The best plan that stays below the budget; the cheapest one where there is none."""
    return _best(losses, costs, max(budget - 1, int(costs[:, 0].sum())))


_PLAN_MISTAKES = (
    Mistake(
        "no budget",
        "Your plan is the best of all plans, whatever they cost. Only those within the budget count.",
        lambda losses, costs, budget: losses.argmin(axis=1),
    ),
    Mistake(
        "below the budget",
        "A plan that costs exactly the budget is allowed, and you left it out.",
        _shifted_best,
    ),
    Mistake(
        "the greedy's plan",
        "This is what the greedy finds. Here it is not the best: another plan within the budget loses less.",
        lambda losses, costs, budget: _walk(losses, costs, budget, lambda gain, more: gain / more),
    ),
    Mistake(
        "spends the most",
        "Your plan spends as much of the budget as any plan can. The loss is what counts, and the dearest plan need not be best.",
        lambda losses, costs, budget: (
            min(
                (
                    plan
                    for plan in itertools.product(range(losses.shape[1]), repeat=len(losses))
                    if _cost(costs, plan) <= budget
                ),
                key=lambda plan: -_cost(costs, plan),
            )
            if losses.size <= 16
            else [0] * len(losses)
        ),
    ),
)


def _cost(costs, plan):
    return sum(costs[row, column] for row, column in enumerate(plan))


BRUTE_FORCE = Task(
    name="m07.q2",
    title="Every plan there is",
    function="try_all",
    points=4,
    minutes=7,
    source="MPQCO, supplement, section 2; docs/allocation.md, The problem",
    kinds=(
        Kind("typical", "a few layers with a few choices", _typical, count=6, public=2),
        Kind("trap", "problems on which the best rates do not lead to the best plan", _trapped, count=3, public=1),
        Kind(
            "to the last unit",
            "a budget that is exactly what the best plan costs",
            _to_the_last_unit,
            count=4,
            public=1,
        ),
        Kind("more bits, more loss", "losses that do not always fall with the bits", _wild_case, count=4, public=1),
    ),
    oracle=_best,
    judge=BestPlan(),
    mistakes=_PLAN_MISTAKES,
    library="labkit.allocation.exact.solve_exact",
    equivalent=(
        Equivalent(
            "loss = losses[rows, plans].sum(axis=1)",
            "loss = losses[rows, plans].mean(axis=1)",
            "The plan of the least sum is the plan of the least mean.",
        ),
    ),
)

# --- m07.q3: the lower convex hull ------------------------------------------------------------------------------------


def _hull(losses, costs):
    steps = hull_steps(np.asarray(losses)[None], np.asarray(costs, np.float64)[None])
    return [int(steps.start[0]), *steps.to.tolist()]


def _row(rng, number):
    case = (_rough, _net)[number % 2](rng, 1, [6, 5, 8, 4][number % 4])
    return {"losses": case["losses"][0], "costs": case["costs"][0]}


def _wild_row(rng, number):
    case = _wild(rng, 1, [7, 5, 6, 8][number % 4])
    losses = case["losses"][0]
    losses[0] = 50.0 if number % 2 else losses[0]
    if number % 3 == 2:  # the least loss twice
        losses[-1] = losses.min()
    return {"losses": losses, "costs": case["costs"][0]}


def _straight_row(rng, number):
    widths = np.cumsum(2 ** rng.integers(0, 4, 6))
    losses = 256.0 - 2.0 * widths
    losses[3] += [2.0, 0.0, 4.0, 0.0][number % 4]
    losses[5] -= [0.0, 8.0, 0.0, 0.0][number % 4]
    return {"losses": losses, "costs": widths}


def _bottom_row(rng, number):
    choices = [4, 2, 3][number % 3]
    case = _rough(rng, 1, choices)
    losses = np.sort(case["losses"][0])  # the cheapest is the best already
    losses[1] = losses[0] if number == 1 else losses[1]  # and another one as good
    return {"losses": losses, "costs": case["costs"][0]}


def _efficient_only(losses, costs):
    return [j for j in range(len(losses)) if all(losses[j] < losses[i] for i in range(j))]


def _with_rising_end(losses, costs):
    found = _hull(losses, costs)
    while found[-1] + 1 < len(losses):
        later = range(found[-1] + 1, len(losses))
        at = found[-1]
        found.append(min(later, key=lambda j: (losses[j] - losses[at]) / (costs[j] - costs[at])))
    return found


def _largest_fall(losses, costs):
    found = [0]
    while any(losses[j] < losses[found[-1]] for j in range(found[-1], len(losses))):
        found.append(min(range(found[-1] + 1, len(losses)), key=lambda j: losses[j]))
    return found


def _nearest_of_equal(losses, costs):
    found = [0]
    while any(losses[j] < losses[found[-1]] for j in range(found[-1], len(losses))):
        at = found[-1]
        found.append(min(range(at + 1, len(losses)), key=lambda j: (losses[j] - losses[at]) / (costs[j] - costs[at])))
    return found


def _to_the_last_of_equals(losses, costs):
    found = _hull(losses, costs)
    last = len(losses) - 1 - int(np.argmin(losses[::-1]))
    return found if last == found[-1] else [*found, last]


HULL = Task(
    name="m07.q3",
    title="The lower convex hull",
    function="hull_points",
    points=6,
    minutes=12,
    source="docs/allocation.md, The greedy, and when it fails; Kellerer, Pferschy and Pisinger 2004, chapter 11",
    kinds=(
        Kind("typical", "losses that fall from choice to choice", _row, count=6, public=2),
        Kind("more bits, more loss", "losses that do not always fall", _wild_row, count=6, public=3),
        Kind("straight", "several choices on one straight line", _straight_row, count=4, public=2),
        Kind("nothing to gain", "a cheapest choice that is the best already", _bottom_row, count=3),
    ),
    oracle=_hull,
    judge=Exact(),
    mistakes=(
        Mistake(
            "every better choice",
            "You kept every choice that loses less than all cheaper ones. Some lie above the line between two others.",
            _efficient_only,
        ),
        Mistake(
            "goes on upwards",
            "After the choice of the least loss your hull goes on to choices that cost more and lose more.",
            _with_rising_end,
        ),
        Mistake(
            "largest fall",
            "You went to where the loss falls most. The hull goes to where it falls most for a unit of cost.",
            _largest_fall,
        ),
        Mistake(
            "stops in between",
            "Of several choices on one straight line you took the nearest. Only the far end is a corner of the hull.",
            _nearest_of_equal,
        ),
        Mistake(
            "last of equals",
            "You went on from the least loss to a choice that costs more and loses the same. Nobody would pay for that.",
            _to_the_last_of_equals,
        ),
    ),
    library="labkit.allocation.hull.hull_steps",
)

# --- m07.q4: the greedy -----------------------------------------------------------------------------------------------


def _blocked(rng, number):
    """The best rate belongs to a step that does not fit, and a later one does."""
    case = _rough(rng, 3, 3)
    costs = case["costs"]
    large = int(rng.integers(60, 90))
    costs[number % 3] = [3, 3 + large, 3 + 2 * large]
    case["losses"][number % 3] = [9000.0, 200.0, 100.0]
    return case | {"budget": int(costs[:, 0].sum()) + large - 1 - number}


def _many_layers(rng, number):
    make = (_net, _rough)[number % 2]
    return _between(make(rng, 12 + number, 4), rng.uniform(0.3, 0.7))


GREEDY = Task(
    name="m07.q4",
    title="The greedy",
    function="greedy_plan",
    points=6,
    minutes=12,
    source="MPQCO, supplement, section 2; docs/allocation.md, The greedy, and when it fails",
    kinds=(
        Kind("typical", "a few layers with a few choices", _typical, count=6, public=2),
        Kind("blocked", "a good step that does not fit, and smaller ones that do", _blocked, count=4, public=1),
        Kind("more bits, more loss", "losses that do not always fall with the bits", _wild_case, count=4, public=1),
        Kind("many layers", "a dozen layers and more", _many_layers, count=4, public=1),
        Kind("ends", "budgets that allow only the cheapest plan", _cheapest_only, count=3),
        Kind("room", "budgets that allow every plan", _roomy, count=3),
    ),
    oracle=_greedy,
    judge=Exact(),
    mistakes=(
        Mistake(
            "largest gain",
            "You took the step that lowers the loss most. Divide by what it costs: the greedy goes by the rate.",
            lambda losses, costs, budget: _walk(losses, costs, budget, lambda gain, more: gain),
        ),
        Mistake(
            "stops too early",
            "You stopped at the first step that did not fit. Other layers may have smaller steps that still do.",
            lambda losses, costs, budget: _walk(losses, costs, budget, lambda gain, more: gain / more, stop=True),
        ),
        Mistake(
            "without the hull",
            "You went from each choice to the next one. A poor step then hides a good one behind it; step from corner to corner.",
            lambda losses, costs, budget: _walk(losses, costs, budget, lambda gain, more: gain / more, hull=False),
        ),
        Mistake(
            "cheapest step first",
            "You took the cheapest step. What counts is how much loss a unit of cost saves.",
            lambda losses, costs, budget: _walk(losses, costs, budget, lambda gain, more: -more),
        ),
        Mistake(
            "budget without the start",
            "The cheapest choices cost something, too. Take them off the budget before the first step.",
            lambda losses, costs, budget: _greedy(losses, costs, budget + costs[:, 0].sum()),
        ),
    ),
    given=("labkit.allocation.hull.hull_steps",),
    library="labkit.allocation.greedy.solve_greedy",
)

# --- m07.q5: the best plan --------------------------------------------------------------------------------------------

EXACT = Task(
    name="m07.q5",
    title="The best plan, proved",
    function="best_plan",
    points=8,
    minutes=16,
    source="docs/allocation.md, Methods; Kellerer, Pferschy and Pisinger 2004, chapter 11",
    kinds=(
        Kind("typical", "a few layers with a few choices", _typical, count=6, public=2),
        Kind("trap", "problems on which the best rates do not lead to the best plan", _trapped, count=3, public=1),
        Kind("free", "choices that cost nothing, and one that costs the whole budget", _free_choices, count=6),
        Kind(
            "to the last unit",
            "a budget that is exactly what the best plan costs",
            _to_the_last_unit,
            count=6,
            public=1,
        ),
        Kind("more bits, more loss", "losses that do not always fall with the bits", _wild_case, count=4, public=1),
        Kind("many layers", "so many layers that nobody can try every plan", _many_layers, count=4, public=1),
        Kind("ends", "budgets that allow only the cheapest plan", _cheapest_only, count=3),
    ),
    oracle=_best,
    judge=BestPlan(),
    mistakes=_PLAN_MISTAKES,
    library="labkit.allocation.exact.solve_exact",
    equivalent=(
        Equivalent(
            "best = np.zeros(budget + 1)",
            "best = np.ones(budget + 1)",
            "The same number is added to the loss of every plan.",
        ),
        Equivalent(
            "best = np.zeros(budget + 1)",
            "best = np.zeros(budget + 2)",
            "Only the first budget + 1 elements are ever looked at.",
        ),
    ),
    seconds=8.0,
)

# --- m07.q6 and q7: a bound -------------------------------------------------------------------------------------------


def _priced(rng, number):
    case = _typical(rng, number)
    return case | {"price": float(np.round(rng.uniform(0.05, 2.0), 2))}


def _no_price(rng, number):
    return _typical(rng, number) | {"price": 0.0}


def _lagrangian(losses, costs, budget, price):
    plans = itertools.product(range(losses.shape[1]), repeat=len(losses))
    rows = np.arange(len(losses))
    return min(losses[rows, list(p)].sum() + price * (costs[rows, list(p)].sum() - budget) for p in plans)


LAGRANGIAN = Task(
    name="m07.q6",
    title="A price for the budget",
    function="lagrangian",
    points=3,
    minutes=7,
    source="docs/allocation.md, Methods; labkit/allocation/bound.py",
    kinds=(
        Kind("typical", "a few layers and a price above 0", _priced, count=5, public=2),
        Kind("no price", "a price of 0", _no_price, count=3, public=1),
    ),
    oracle=_lagrangian,
    judge=Close(1e-9, 1e-9, of_largest=True),
    mistakes=(
        Mistake(
            "keeps the budget's worth",
            "You left out what the budget itself is worth at that price. It is taken off at the end.",
            lambda losses, costs, budget, price: (losses + price * costs).min(axis=1).sum(),
        ),
        Mistake(
            "chooses without the price",
            "Each layer took its choice of the least loss and paid afterwards. It should choose knowing the price.",
            lambda losses, costs, budget, price: (
                losses.min(axis=1).sum() + price * (costs[np.arange(len(losses)), losses.argmin(axis=1)].sum() - budget)
            ),
        ),
        Mistake(
            "one minimum for all",
            "You took one minimum over the whole table. Every layer chooses for itself.",
            lambda losses, costs, budget, price: (losses + price * costs).min() - price * budget,
        ),
        Mistake(
            "least of each",
            "The least loss and the least cost of a layer may belong to two choices. Add first, then take the minimum.",
            lambda losses, costs, budget, price: losses.min(axis=1).sum() + price * (costs.min(axis=1).sum() - budget),
        ),
    ),
    library="labkit.allocation.bound.lagrangian",
)


def _relaxed(losses, costs, budget):
    """The linear relaxation, by a linear program: fractions of choices, one in all for each layer."""
    from scipy.optimize import linprog

    layers, choices = losses.shape
    one_each = np.kron(np.eye(layers), np.ones(choices))
    solved = linprog(
        losses.ravel(), A_ub=costs.ravel()[None], b_ub=[budget], A_eq=one_each, b_eq=np.ones(layers), method="highs"
    )
    return float(solved.fun)


def _loss(losses, plan):
    return float(losses[np.arange(len(losses)), plan].sum())


BOUND = Task(
    name="m07.q7",
    title="The best bound",
    function="best_bound",
    points=4,
    minutes=8,
    source="docs/allocation.md, Methods; labkit/allocation/bound.py",
    kinds=(
        Kind("typical", "a few layers with a few choices", _typical, count=6, public=2),
        Kind("more bits, more loss", "losses that do not always fall with the bits", _wild_case, count=4, public=1),
        Kind("room", "budgets that allow every plan, so that they are worth nothing", _roomy, count=3, public=1),
        Kind("many layers", "a dozen layers and more", _many_layers, count=3),
    ),
    oracle=_relaxed,
    judge=Close(1e-7, 1e-7, of_largest=True),
    mistakes=(
        Mistake(
            "no price at all",
            "With a price of 0 every layer takes its best choice, and the bound says nothing about the budget.",
            lambda losses, costs, budget: losses.min(axis=1).sum(),
        ),
        Mistake(
            "loss of a plan",
            "That is the loss of a plan: no bound from below, but from above.",
            lambda losses, costs, budget: _loss(losses, _greedy(losses, costs, budget)),
        ),
        Mistake(
            "least bound",
            "Every price gives a bound that holds. The best of them is the largest, not the smallest.",
            lambda losses, costs, budget: min(
                (losses + price * costs).min(axis=1).sum() - price * budget for price in _rates(losses, costs)
            ),
        ),
        Mistake(
            "no price of 0",
            "Where the budget pays for every layer's best choice it is worth nothing: 0 is a price, too.",
            lambda losses, costs, budget: max(
                (losses + price * costs).min(axis=1).sum() - price * budget for price in _rates(losses, costs)[:-1]
            ),
        ),
    ),
    given=("labkit.allocation.hull.hull_steps",),
    library="labkit.allocation.bound.lower_bound",
)


def _rates(losses, costs):
    steps = hull_steps(losses, np.asarray(costs, np.float64))
    return [*(-steps.values / steps.costs), 0.0]


# --- m07.q8: a trap ---------------------------------------------------------------------------------------------------


def _small_factor(rng, number):
    return {"factor": float(np.round(rng.uniform(1.5, 4), 2))}


def _large_factor(rng, number):
    return {"factor": float([1000, 64, 10**6, 17][number % 4])}


TRAP = Task(
    name="m07.q8",
    title="A trap for the greedy",
    function="greedy_trap",
    points=5,
    minutes=10,
    source="docs/allocation.md, The greedy, and when it fails",
    kinds=(
        Kind("small", "factors between 1.5 and 4", _small_factor, count=4, public=2),
        Kind("large", "factors up to a million", _large_factor, count=4, public=2),
    ),
    oracle=lambda factor: ([[1.1, 0.0], [1.2 * factor, 0.0]], [[0, 1], [0, 1.2 * factor]], 1.2 * factor),
    judge=GreedyTrap(),
    mistakes=(
        Mistake(
            "everything fits",
            "Your budget pays for every layer's best choice, so nothing has to be chosen.",
            lambda factor: ([[1.0, 0.5], [factor, 0.5]], [[0, 1], [0, 1]], 2),
        ),
        Mistake(
            "large step first",
            "The greedy takes your large step first, because it has the better rate, and finds the best plan.",
            lambda factor: ([[1.0, 0.0], [10 * factor, 0.0]], [[0, 1], [0, 2]], 2),
        ),
        Mistake(
            "no factor",
            "Your problem is a trap, but it does not grow with the factor that is asked for.",
            lambda factor: ([[1.0, 0.0], [1.4, 0.0]], [[0, 1], [0, 2]], 2),
        ),
        Mistake(
            "impossible",
            "Not even the cheapest plan is within your budget.",
            lambda factor: ([[1.0, 0.0], [factor, 0.0]], [[1, 2], [1, 2 + factor]], 1),
        ),
    ),
    equivalent=(
        Equivalent(
            "costs = [[0, 2 * factor], [0, 1]]",
            "costs = [[1, 2 * factor], [0, 1]]",
            "Another trap that is as good: the small step still has the better rate, and blocks the large one.",
        ),
    ),
)

# --- m07.q9: every budget at once -------------------------------------------------------------------------------------


def _sixteenths(losses):
    """``losses`` in sixteenths, whose sums are exact in any order, so that equal totals are equal."""
    return np.round(16 * losses) / 16


def _front_case(rng, number):
    case = (_net, _rough)[number % 2](rng, *_SHAPES[number % len(_SHAPES)])
    return {"losses": _sixteenths(case["losses"]), "costs": case["costs"]}


def _wild_front(rng, number):
    case = _wild(rng, *_SHAPES[(number + 1) % len(_SHAPES)])
    return {"losses": _sixteenths(case["losses"]), "costs": case["costs"]}


def _equal_costs(rng, number):
    """Layers of one size: many plans have the same cost."""
    layers, choices = [(3, 3), (4, 2), (2, 4)][number % 3]
    losses = _sixteenths(rng.uniform(0, 50, (layers, choices)))
    return {"losses": losses, "costs": np.tile(7 * np.arange(1, choices + 1), (layers, 1))}


def _no_gain(rng, number):
    """Choices that cost more and lose the same."""
    layers, choices = [(3, 3), (2, 4), (4, 2)][number % 3]
    losses = -np.sort(-rng.integers(1, 6, (layers, choices)), axis=1).astype(np.float64)
    losses[0, 1] = losses[0, 0]
    return {"losses": losses, "costs": np.cumsum(rng.integers(1, 9, (layers, choices)), axis=1)}


def _totals(losses, costs):
    rows = np.arange(len(losses))
    plans = [list(p) for p in itertools.product(range(losses.shape[1]), repeat=len(losses))]
    return [(int(costs[rows, p].sum()), float(losses[rows, p].sum())) for p in plans]


def _front(losses, costs):
    """Of all plans, those that no other one beats: by comparing each with each."""
    totals = sorted(_totals(losses, costs))
    kept = [
        (c, v)
        for c, v in totals
        if not any((c2 <= c and v2 < v - 1e-9) or (c2 < c and v2 <= v + 1e-9) for c2, v2 in totals)
    ]
    kept = [point for at, point in enumerate(kept) if at == 0 or point[0] > kept[at - 1][0]]
    return [c for c, _ in kept], [v for _, v in kept]


def _hull_only(losses, costs):
    front = hull_front(_problem(losses, costs, costs[:, -1].sum()))
    return front.costs.astype(int), front.values


def _best_of_each_cost(losses, costs):
    best = {}
    for cost, loss in _totals(losses, costs):
        best[cost] = min(loss, best.get(cost, math.inf))
    return sorted(best), [best[cost] for cost in sorted(best)]


def _uniform_plans(losses, costs):
    return costs.sum(axis=0), losses.sum(axis=0)


FRONT = Task(
    name="m07.q9",
    title="Every budget at once",
    function="pareto_front",
    points=6,
    minutes=12,
    source="docs/allocation.md, Methods",
    kinds=(
        Kind("typical", "a few layers with a few choices", _front_case, count=5, public=2),
        Kind("more bits, more loss", "losses that do not always fall with the bits", _wild_front, count=4, public=1),
        Kind("equal costs", "layers of one size, so that many plans cost the same", _equal_costs, count=4, public=1),
        Kind("equal losses", "choices that cost more and lose the same", _no_gain, count=4, public=1),
    ),
    oracle=_front,
    judge=Items((Exact(), Close(1e-9, 1e-9))),
    mistakes=(
        Mistake(
            "only the hull",
            "These are the corners of the front's convex hull, which the greedy passes. Plans between them belong to it, too.",
            _hull_only,
        ),
        Mistake(
            "best of each cost",
            "You kept the best plan of every cost, also where a cheaper plan loses less.",
            _best_of_each_cost,
        ),
        Mistake(
            "uniform plans",
            "These are the plans in which all layers have the same bits. Layers may differ.",
            _uniform_plans,
        ),
    ),
    library="labkit.allocation.pareto.exact_front",
)

# --- m07.c1: several budgets ------------------------------------------------------------------------------------------


def _two_budgets(rng, number):
    layers, choices = [(4, 3), (3, 4), (5, 3), (3, 3)][number % 4]
    first, second = _rough(rng, layers, choices), _rough(rng, layers, choices)
    costs = np.stack([first["costs"], second["costs"]])
    low, high = costs[:, :, 0].sum(1), costs[:, :, -1].sum(1)
    return {
        "losses": first["losses"],
        "costs": costs,
        "budgets": (low + (high - low) * rng.uniform(0.3, 0.7, 2)).astype(int).tolist(),
    }


def _three_budgets(rng, number):
    case = _two_budgets(rng, number)
    third = _rough(rng, *case["losses"].shape)["costs"]
    budget = int(third[:, 0].sum() + 0.5 * (third[:, -1] - third[:, 0]).sum())
    return case | {"costs": np.concatenate([case["costs"], third[None]]), "budgets": [*case["budgets"], budget]}


def _below_zero(rng, number):
    case = _two_budgets(rng, number)
    return case | {"losses": np.round(case["losses"] - 45.0, 3)}


def _two_large(rng, number):
    case = _net(rng, 10, 4)
    second = rng.integers(1, 30, 10)[:, None] * np.arange(1, 5)
    costs = np.stack([case["costs"], second])
    low, high = costs[:, :, 0].sum(1), costs[:, :, -1].sum(1)
    return {"losses": case["losses"], "costs": costs, "budgets": (low + (high - low) * 0.45).astype(int).tolist()}


def _best_within(losses, costs, budgets):
    layers, choices = losses.shape
    if choices**layers > 1000:
        names, bits = tuple(f"layer {i}" for i in range(layers)), tuple(range(1, choices + 1))
        answer = solve_ilp(Mckp(names, bits, losses, np.asarray(costs, np.float64), tuple(map(float, budgets))))
        return _plan_of(answer)
    rows = np.arange(layers)
    plans = (list(p) for p in itertools.product(range(choices), repeat=layers))
    fitting = [p for p in plans if np.all(costs[:, rows, p].sum(1) <= budgets)]
    return min(fitting, key=lambda p: losses[rows, p].sum())


SEVERAL = Task(
    name="m07.c1",
    title="Size and work at once",
    function="best_within",
    points=8,
    minutes=25,
    source="docs/allocation.md, The problem (the integer program of HAWQ-V3)",
    kinds=(
        Kind("two budgets", "a few layers and two budgets", _two_budgets, count=5, public=2),
        Kind("three budgets", "a few layers and three budgets", _three_budgets, count=3, public=1),
        Kind("below zero", "losses that are negative in places, as an estimate may be", _below_zero, count=4),
        Kind("many layers", "ten layers, more plans than one can try", _two_large, count=3),
    ),
    oracle=_best_within,
    judge=BestPlanWithin(slack=1.0005),
    mistakes=(
        Mistake(
            "first budget only",
            "Your plan keeps the first budget only. Every row of costs has a budget of its own.",
            lambda losses, costs, budgets: _best(losses, costs[0], budgets[0]),
        ),
        Mistake(
            "sum of the budgets",
            "You added the costs and the budgets. A plan within their sum may exceed one of them.",
            lambda losses, costs, budgets: _best(losses, costs.sum(axis=0), sum(budgets)),
        ),
        Mistake(
            "no budget",
            "Your plan is the best of all plans, whatever they cost.",
            lambda losses, costs, budgets: losses.argmin(axis=1),
        ),
    ),
    library="labkit.allocation.ilp.solve_ilp",
    seconds=10.0,
)

# --- questions --------------------------------------------------------------------------------------------------------

ADDITIVE = Question(
    name="m07.e1",
    title="Do losses add up?",
    text=(
        "Every method here assumes that the damage of several quantized layers is the sum of the damages of the single ones. "
        "Give a reason why that may be wrong, say when it is nearly right, and propose how to check a chosen plan."
    ),
    points=3,
    rubric=(
        (
            1,
            "A reason: layers act on each other; the second-order form has terms between layers; errors may cancel or multiply.",
        ),
        (
            1,
            "Nearly right where changes are small (many bits), so that second order suffices and cross terms average out.",
        ),
        (
            1,
            "Check: run the whole network with the plan and compare measured with predicted loss, also for other plans.",
        ),
    ),
)

GAP = Question(
    name="m07.e2",
    title="What does a gap say?",
    text=(
        "For a network of 200 layers your greedy found a plan with a predicted loss of 0.0150, and the bound is 0.0147. What do "
        "you know about the best plan without computing it? Is it worth computing? And if the gap were large, would the greedy "
        "be bad?"
    ),
    points=3,
    rubric=(
        (1, "The best plan loses between 0.0147 and 0.0150: at most 2 % less than the greedy's."),
        (
            1,
            "Hardly worth it: sensitivities have larger errors than that (or: exact is fast, so do it, but expect nothing).",
        ),
        (1, "No: the bound belongs to the relaxation and may be the one that is far off; a large gap leaves it open."),
    ),
)

MODULE = Module(
    name="m07",
    topic="allocation",
    title="Allocation: which layer gets how many bits",
    minutes=120,
    source="MPQCO, supplement, section 2; HAWQ slides (mixed precision); docs/allocation.md",
    tasks=(COSTS, BRUTE_FORCE, HULL, GREEDY, EXACT, LAGRANGIAN, BOUND, TRAP, FRONT, SEVERAL),
    questions=(ADDITIVE, GAP),
)
