# %% [markdown]
# # {{m07}}
#
# A network has to fit into so many kilobytes. You may give each layer its own number of bits. Some layers hardly notice if
# you take bits away, others collapse; some are huge, others tiny. The authors of HAWQ compare it with the game of Jenga: pull
# out the blocks that carry nothing, and leave alone those on which the tower stands.
#
# LeNet has five layers and eight candidate widths, which makes 32,768 towers, and you can try them all. ResNet-20 has 22
# layers; $8^{22}$ is about $10^{20}$. This module is about what to do then, and how to *know* that it is right.
#
# **You will be able to**
#
# - count what a bit plan costs, in bytes and in bit operations,
# - state the choice of bits as a knapsack problem and solve it in three ways: all plans, a greedy, dynamic programming,
# - say how far a plan is from the best one without knowing the best one,
# - build a problem on which the greedy fails as badly as you like,
# - hand your plan to labkit and see what it does for a network of two bits.

# %%
import functools
import itertools
import time

import labkit
import matplotlib.pyplot as plt
import numpy as np
import torch
from labkit.allocation.allocate import allocate
from labkit.allocation.budgets import average_bits
from labkit.allocation.costs import layer_macs, weight_bytes
from labkit.course import check
from labkit.course.look import BLUE, GREEN, GREY, ORANGE, RED, play, use_look
from labkit.course.showcase import show_accuracy
from labkit.frontends.torch_fx import from_torch
from labkit.graph.passes import simplify
from labkit.quantization.plan import BitPlan
from labkit.sensitivity.candidates import nearest_candidates
from labkit.sensitivity.measure import measure_sensitivity

use_look()
data = labkit.data.load("auto")
print(data.reason)
module = labkit.models.load("lenet", data=data.name)
graph = simplify(from_torch(module, (3, 32, 32)))
images, sample = np.split(
    data.calibration(1024), 2
)  # to measure with, and to check with afterwards
widths = np.arange(1, 9)

# %% [markdown]
# ## 1 What a bit buys, and what it costs
#
# Before bits can be handed out, somebody must have measured what they do. `measure_sensitivity` quantizes one layer at a time
# and says how much worse the network's answers become: the divergence from the float network, in nats an image. (Module m06
# makes such tables; here one is simply given.)

# %%
table = measure_sensitivity(module, images, bits=widths.tolist(), method="direct")
layers, losses = table.layers, table.values
shape = {name: graph[name].op.weight.shape for name in layers}
weights = np.array([np.prod(shape[name]) for name in layers])
macs = np.array([layer_macs(graph)[name] for name in layers])

colours = dict(zip(layers, (BLUE, ORANGE, GREEN, RED, GREY), strict=True))
figure, place = plt.subplots(figsize=(7.5, 3.6))
for name, row in zip(layers, losses, strict=True):
    place.plot(
        widths, row, "o-", color=colours[name], label=f"{name}, {np.prod(shape[name]):,} weights"
    )
place.set(
    title="LeNet with one layer quantized at a time",
    xlabel="bits of that layer's weights",
    ylabel="loss, in nats an image",
)
place.set_yscale("log")
place.legend(fontsize=9)
plt.show()

# %% [markdown]
# Mostly each bit divides the loss by four: half the step, a quarter of the squared error. From one to two bits, though, some
# curves go *up*. That is no error of measurement: with rounding to nearest on $-1, 0, 1$ the largest weight sets the step and
# most weights become 0, while one bit has its own scale (the mean magnitude, eq. 6 of `docs/arithmetic.md`). More bits are
# not always better, and your functions have to stand that.
#
# What does a bit cost? If only the memory counts, a layer of $n$ weights takes $n b / 8$ bytes at $b$ bits. If the work
# counts, HAWQ-V3 uses *bit operations*: the multiply-accumulates of one image, times the bits of the weights, times the bits
# of the layer's input.
#
# ### {{m07.q1}}
#
# Write both tables, one row a layer, one column a candidate width.


# %%
def cost_tables(weights, macs, input_bits, bits):
    """Bytes and bit operations of each layer at each width.

    weights, macs, input_bits: integer arrays [L], the number of weights, the multiply-accumulates and
    the bits of the input of each layer; bits: a list of B candidate widths
    Returns (bytes, bit operations), two arrays [L, B]; bytes are not rounded to whole ones.
    """
    ### BEGIN SOLUTION
    return np.outer(weights, bits) / 8, np.outer(macs * input_bits, bits)
    ### END SOLUTION


# %%
check("m07.q1")

# %%
in_bytes, in_operations = cost_tables(weights, macs, np.full(len(layers), 8), widths.tolist())
assert np.array_equal(
    in_bytes, weight_bytes(graph, widths.tolist()).values
)  # labkit counts the same

figure, place = plt.subplots(figsize=(7.5, 2.6))
for row, costs in enumerate((in_bytes[:, 7], in_operations[:, 7])):
    left = 0.0
    for layer, share in zip(layers, 100 * costs / costs.sum(), strict=True):
        place.barh(row, share, left=left, color=colours[layer], label=layer if row == 0 else None)
        left += share
place.set_yticks([0, 1], ["bytes", "bit operations"])
place.set(title="Where the costs of LeNet are, all layers at 8 bits", xlabel="share, in %")
place.legend(ncols=5, fontsize=9, loc="upper center", bbox_to_anchor=(0.5, -0.35))
plt.show()

# %% [markdown]
# Two budgets, two different networks: nearly all bytes are in `fc1`, most of the work is in the convolutions. A plan for a
# small flash memory and a plan for a slow processor have little in common.
#
# ## 2 The problem
#
# Let $\Delta_{l b}$ be the loss of layer $l$ at $b$ bits and $c_{l b}$ its cost. Choose one $b_l$ for each layer:
#
# $$\min_{b} \sum_l \Delta_{l b_l} \quad\text{subject to}\quad \sum_l c_{l b_l} \le C$$
#
# This is the *multiple-choice knapsack problem* (MPQCO, supplement, section 2). A plan is a list of column numbers, one a
# layer: column 0 is the cheapest choice. Costs are whole numbers here; half-bytes will do for LeNet.
#
# ### {{m07.q2}}
#
# Start without any cleverness: go through all plans. `itertools.product(range(B), repeat=L)` lists them.


# %%
def try_all(losses, costs, budget):
    """The best plan within the budget, by trying all of them.

    losses: float array [L, B]; costs: integer array [L, B]
    budget: an integer that at least one plan meets; a plan may cost exactly as much
    Returns one column number for each layer, integers [L]; of equally good plans any.
    """
    ### BEGIN SOLUTION
    plans = np.array(list(itertools.product(range(losses.shape[1]), repeat=len(losses))))
    rows = np.arange(len(losses))
    loss = losses[rows, plans].sum(axis=1)
    loss[costs[rows, plans].sum(axis=1) > budget] = np.inf
    return plans[loss.argmin()]
    ### END SOLUTION


# %%
check("m07.q2")

# %% [markdown]
# Here are all 32,768 plans of LeNet, and what you found among those that are no larger than uniform 2 bits.

# %%
half_bytes = (2 * in_bytes).astype(int)


def total(values, plan):
    """The sum of one entry a layer."""
    return values[np.arange(len(plan)), plan].sum()


plans = np.indices((8,) * len(layers)).reshape(len(layers), -1).T
every_cost = functools.reduce(np.add.outer, half_bytes).ravel() / 2000
every_loss = functools.reduce(np.add.outer, losses).ravel()
budget = int(half_bytes[:, 1].sum())
found = np.array(try_all(losses, half_bytes, budget))

figure, place = plt.subplots(figsize=(7.5, 4))
place.plot(every_cost, every_loss, ",", color=GREY, alpha=0.5)
place.plot(
    half_bytes.sum(0) / 2000,
    losses.sum(0),
    "s-",
    color=ORANGE,
    linewidth=1,
    label="uniform, 1 to 8 bits",
)
place.plot(
    total(half_bytes, found) / 2000,
    total(losses, found),
    "*",
    color=RED,
    markersize=14,
    label="yours",
)
place.axvline(budget / 2000, color=RED, linestyle=":", label="budget: uniform 2 bits")
place.set(
    title="Every bit plan of LeNet",
    xlabel="size of the weights, in kB",
    ylabel="predicted loss, in nats an image",
)
place.set_yscale("log")
place.legend(fontsize=9)
plt.show()
print("bits by layer:", dict(zip(layers, widths[found].tolist(), strict=True)))
print(f"predicted loss {total(losses, found):.4f}, uniform 2 bits {losses[:, 1].sum():.4f}")

# %% [markdown]
# The bands are the eight widths of `fc1`. Inside a band everything else is almost free, and the uniform plans waste it.
#
# ## 3 The greedy
#
# MPQCO solves the problem greedily. Its supplement tells how many steps that takes, but not in which order, so here is
# labkit's way: start with the cheapest plan and make one step at a time, always the one that lowers the loss most *for a unit
# of cost*. But steps from where to where? From 1 to 2 bits a layer may gain nothing and from 1 to 3 bits everything. The
# answer is a picture: draw a layer's loss over its cost and stretch a string below the points. The corners of the string are
# the *lower convex hull*. From each corner, the next one is the point to which the loss falls most steeply.
#
# ### {{m07.q3}}
#
# Write it for one layer: start at column 0; as long as some later column has a smaller loss, go to the one with the steepest
# fall of loss for a unit of cost. Where several lie on one straight line, go to the farthest.


# %%
def hull_points(losses, costs):
    """The corners of the lower convex hull of one layer.

    losses: float array [B]; costs: integer array [B], strictly rising
    Returns a list of column numbers, from 0 to the column of the least loss (of equal ones the first).
    """
    ### BEGIN SOLUTION
    found = [0]
    while losses[found[-1]] > losses.min():
        at = found[-1]
        rates = (losses[at + 1 :] - losses[at]) / (costs[at + 1 :] - costs[at])
        found.append(len(losses) - 1 - int(np.argmin(rates[::-1])))
    return found
    ### END SOLUTION


# %%
check("m07.q3")

# %%
resnet = simplify(from_torch(labkit.models.load("resnet20", data="cifar10"), (3, 32, 32)))
candidates = nearest_candidates(resnet, widths.tolist())
deep_weights = np.array([resnet[name].op.weight.size for name in candidates.weights])
deep_costs = np.outer(
    deep_weights // 16, widths
)  # units of 16 bits: every layer of ResNet-20 is a multiple
deep_losses = np.array(
    [
        [
            np.sum((w - resnet[name].op.weight) ** 2) / np.sum(resnet[name].op.weight ** 2)
            for w in by_bits.values()
        ]
        for name, by_bits in candidates.weights.items()
    ]
)

figure, axes = plt.subplots(1, 2, figsize=(8.5, 3.4))
examples = (
    ("LeNet, fc3", losses[4], half_bytes[4] / 2000),
    ("ResNet-20, layer 10", deep_losses[10], deep_costs[10] / 500),
)
for place, (name, row, cost) in zip(axes, examples, strict=True):
    corners = list(hull_points(row, cost))
    place.plot(cost, row, "o", color=GREY, label="1 to 8 bits")
    place.plot(cost[corners], row[corners], "o-", color=BLUE, label="hull")
    place.set(title=name, xlabel="size, in kB", ylabel="loss")
    place.legend(fontsize=9)
plt.show()

# %% [markdown]
# (For ResNet-20 we would need many photographs to measure losses. Its numbers here are a stand-in that needs none: the
# squared rounding error of each layer's trained weights, as a share of their squared size.)
#
# Two bits are above the string in both layers: whoever can afford two bits there should spend the money elsewhere, or save
# for three.
#
# ### {{m07.q4}}
#
# Write the greedy. Every layer starts at column 0. In each round look at the next corner of every layer's hull; of those
# steps that still fit into what is left of the budget, make the one with the best rate, (fall of the loss) / (rise of the
# cost). Stop when none fits. `hull_points` is yours to use; `hull_steps(losses, costs)` of `labkit.allocation.hull`, which
# sorts the steps of all layers by their rates, is there as well.


# %%
def greedy_plan(losses, costs, budget):
    """The greedy's plan: upwards from the cheapest choices, along the hulls, the best rate first.

    losses: float array [L, B]; costs: integer array [L, B], each row strictly rising
    budget: an integer that the cheapest plan meets
    A step is from one corner of a layer's hull to the next; it fits if the plan then costs at most the
    budget. No two rates are equal.
    Returns one column number for each layer, integers [L].
    """
    ### BEGIN SOLUTION
    hulls = [hull_points(losses[layer], costs[layer]) for layer in range(len(losses))]
    plan, left = [0] * len(losses), budget - costs[:, 0].sum()
    while True:
        steps = []
        for layer, hull in enumerate(hulls):
            for here, there in itertools.pairwise(hull):
                more = costs[layer, there] - costs[layer, here]
                if here == plan[layer] and more <= left:
                    steps.append(
                        ((losses[layer, here] - losses[layer, there]) / more, layer, there, more)
                    )
        if not steps:
            return plan
        _, layer, there, more = max(steps)
        plan[layer], left = there, left - more
    ### END SOLUTION


# %%
check("m07.q4")

# %%
deep_budget = int(3.5 * deep_costs[:, 0].sum())  # 3.5 bits a weight on average
begun = time.perf_counter()
deep_greedy = np.array(greedy_plan(deep_losses, deep_costs, deep_budget))
print(f"ResNet-20 at 3.5 bits on average, greedy in {1000 * (time.perf_counter() - begun):.0f} ms")
print("bits:", widths[deep_greedy].tolist())
deep_rows = np.arange(len(deep_losses))
deep_loss = deep_losses[deep_rows, deep_greedy].sum()
three, four = deep_losses[:, 2].sum(), deep_losses[:, 3].sum()
print(f"loss {deep_loss:.4f}; uniform 3 bits {three:.4f}, uniform 4 bits {four:.4f}")

# %% [markdown]
# ## 4 The best plan, proved
#
# Is the greedy's plan the best one? For LeNet you can look. For ResNet-20 there is a better way than trying $10^{20}$ plans:
# **dynamic programming**. Let $f_l(C)$ be the least loss of the first $l$ layers for a cost of at most $C$. The last of these
# layers takes some column $j$, and the layers before it have the rest:
#
# $$f_l(C) = \min_j \bigl( \Delta_{l j} + f_{l-1}(C - c_{l j}) \bigr), \qquad f_0(C) = 0 \ \text{for}\ C \ge 0$$
#
# One array of length $C + 1$, updated once a layer, and a second table that remembers which $j$ was the best. At the end walk
# back from $C$ = budget: the table says what the last layer took, its cost is taken off, and so on.
#
# ### {{m07.q5}}
#
# Write it. NumPy handles all $C$ at once: for column $j$ the array $f_{l-1}$ moves right by $c_{l j}$ places. Some cases have
# a million million plans; do not try them all.


# %%
def best_plan(losses, costs, budget):
    """The best plan within the budget, by dynamic programming over the cost.

    losses: float array [L, B]; costs: integer array [L, B], 0 or more
    budget: an integer that at least one plan meets; a plan may cost exactly as much
    Returns one column number for each layer, integers [L]; of equally good plans any.
    """
    ### BEGIN SOLUTION
    best = np.zeros(budget + 1)
    taken = []
    for layer in range(len(losses)):
        options = np.full((len(costs[layer]), budget + 1), np.inf)
        for column, cost in enumerate(costs[layer]):
            if cost <= budget:
                options[column, cost:] = best[: budget + 1 - cost] + losses[layer, column]
        taken.append(options.argmin(axis=0))
        best = options.min(axis=0)
    plan = []
    for layer in reversed(range(len(losses))):
        plan.insert(0, int(taken[layer][budget]))
        budget -= costs[layer, plan[0]]
    return plan
    ### END SOLUTION


# %%
check("m07.q5")

# %%
assert np.isclose(
    total(losses, best_plan(losses, half_bytes, budget)), total(losses, found)
)  # LeNet: the same as trying all
begun = time.perf_counter()
deep_best = np.array(best_plan(deep_losses, deep_costs, deep_budget))
print(f"ResNet-20, the best of 8**22 plans in {1000 * (time.perf_counter() - begun):.0f} ms")
print("best:  ", widths[deep_best].tolist(), f"loss {deep_losses[deep_rows, deep_best].sum():.6f}")
print("greedy:", widths[deep_greedy].tolist(), f"loss {deep_loss:.6f}")

# %% [markdown]
# Play with the budget. Which layers get the first bits, and where do greedy and best part?


# %%
def draw_plans(average_bits):
    """The plans of greedy and dynamic programming for ResNet-20."""
    budget = int(average_bits * deep_costs[:, 0].sum())
    _, place = plt.subplots(figsize=(8.5, 3.2))
    for shift, name, colour, make in (
        (-0.2, "greedy", ORANGE, greedy_plan),
        (0.2, "best", BLUE, best_plan),
    ):
        plan = np.array(make(deep_losses, deep_costs, budget))
        loss = deep_losses[deep_rows, plan].sum()
        place.bar(
            deep_rows + shift, widths[plan], 0.4, color=colour, label=f"{name}, loss {loss:.4g}"
        )
    place.set(
        title=f"ResNet-20, {average_bits:g} bits a weight on average",
        xlabel="layer",
        ylabel="bits",
        ylim=(0, 9.5),
    )
    place.set_xticks(deep_rows)
    place.grid(axis="x", visible=False)
    place.legend(ncols=2, fontsize=9)
    plt.show()


play(
    draw_plans,
    stills=[{"average_bits": 3.5}, {"average_bits": 1.25}],
    average_bits=[1.05, 1.25, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 5.0, 6.0],
)

# %% [markdown]
# The small layers get many bits, the large ones few; that is the whole secret of mixed precision. Mostly the two plans nearly
# agree. At 3.5 bits they do not: the greedy bought bits for the small layers early and then could not pay for the large step
# of layer 17.
#
# ## 5 How far from the best, without knowing the best?
#
# Dynamic programming needs whole numbers and one budget. What if there were neither? Turn the budget into a **price**: every
# unit of cost is paid for with $m \ge 0$ units of loss, and what the budget is worth is paid back.
#
# $$L(m) = \sum_l \min_j \bigl( \Delta_{l j} + m\, c_{l j} \bigr) - m\, C$$
#
# Every layer now chooses for itself, which is easy. And $L(m)$ is never above the loss of any plan within the budget: such a
# plan pays $m \sum c \le m\,C$ and gets $m\,C$ back, so for it the price is a gift; and the minimum over all plans can only
# be lower.
#
# ### {{m07.q6}}
#
# Write $L(m)$ for one given price.


# %%
def lagrangian(losses, costs, budget, price):
    """L(price), a lower bound of the loss of every plan within the budget.

    losses: float array [L, B]; costs: integer array [L, B]; budget: an integer
    price: 0 or more, in units of loss for a unit of cost
    Returns a number.
    """
    ### BEGIN SOLUTION
    return (losses + price * costs).min(axis=1).sum() - price * budget
    ### END SOLUTION


# %%
check("m07.q6")

# %%
prices = np.linspace(0, 1.2e-4, 400)
curve = [lagrangian(deep_losses, deep_costs, deep_budget, price) for price in prices]
figure, place = plt.subplots(figsize=(7.5, 3.4))
place.plot(prices * 1e5, curve, color=BLUE, label="L(price)")
place.axhline(
    deep_losses[deep_rows, deep_best].sum(),
    color=RED,
    linestyle="--",
    label="loss of the best plan",
)
place.set(
    title="Every price gives a bound (ResNet-20, 3.5 bits on average)",
    xlabel="price of a unit of 16 bits, in 1/100,000",
    ylabel="loss",
)
place.legend()
plt.show()

# %% [markdown]
# The curve is a roof of straight pieces: between two bends every layer keeps its choice. A layer changes its mind exactly
# when the price passes the rate of one of its hull's steps. So the top of the roof is at one of these rates, or at 0 where
# the budget is so large that it is worth nothing. The top is also the value of the *linear relaxation*, in which layers may
# take fractions of choices.
#
# ### {{m07.q7}}
#
# Find the top. `hull_points` gives the corners of each layer's hull, and a step's rate is (fall of the loss) / (rise of the
# cost).


# %%
def best_bound(losses, costs, budget):
    """The largest L(price) over all prices of 0 and more.

    losses: float array [L, B]; costs: integer array [L, B], each row strictly rising
    budget: an integer that the cheapest plan meets
    Returns a number.
    """
    ### BEGIN SOLUTION
    prices = [0.0]
    for layer in range(len(losses)):
        corners = hull_points(losses[layer], costs[layer])
        prices.extend(-np.diff(losses[layer, corners]) / np.diff(costs[layer, corners]))
    return max(lagrangian(losses, costs, budget, price) for price in prices)
    ### END SOLUTION


# %%
check("m07.q7")

# %% [markdown]
# Now every plan carries its certificate: the *gap* between its loss and the bound. The best plan lies in between.

# %%
averages = np.array([1.05, 1.2, 1.5, 2, 2.5, 3, 3.5, 4, 5])
above = {"greedy": [], "best": []}
for average in averages:
    amount = int(average * deep_costs[:, 0].sum())
    bound = best_bound(deep_losses, deep_costs, amount)
    for name, make in (("greedy", greedy_plan), ("best", best_plan)):
        plan = make(deep_losses, deep_costs, amount)
        above[name].append(100 * (deep_losses[deep_rows, plan].sum() / bound - 1))

figure, place = plt.subplots(figsize=(7.5, 3.4))
for (name, values), colour in zip(above.items(), (ORANGE, BLUE), strict=True):
    place.plot(averages, values, "o-", color=colour, label=name)
place.set(
    title="Above the bound (ResNet-20)",
    xlabel="budget, in bits a weight on average",
    ylabel="loss above the bound, in %",
)
place.legend()
plt.show()

# %% [markdown]
# ### {{m07.e2}}

# %%
m07_e2 = """
### BEGIN SOLUTION
The best plan's loss lies between the bound and the greedy's loss, 0.0147 to 0.0150, so that it is at most 2 % below the
greedy's. That is less than the error of most sensitivities, so a better plan on paper would hardly be a better network; the exact
method is quick, but not much is to be expected of it. A large gap would not prove the greedy bad: the bound belongs to the
relaxation, which may take half a layer at one width and half at another, and may itself be far below the best plan.
### END SOLUTION
"""

# %%
check("m07.e2")

# %% [markdown]
# ## 6 A trap for the greedy
#
# On ResNet-20 the greedy loses a few per cent at worst. Can it be worse? Think of two layers and a budget that pays for one
# large step, but not for a small one besides. If the small step has the better *rate*, the greedy takes it, and the large one
# does not fit any more.
#
# ### {{m07.q8}}
#
# Build a problem on which the greedy (upwards, on the hull, as in m07.q4) loses at least `factor` times what the best plan
# loses. No factor may be too large for you. The check runs labkit's greedy and labkit's exact method on your problem, so
# there are many right answers.


# %%
def greedy_trap(factor):
    """An allocation problem on which the greedy fails.

    factor: a number of 1.5 or more
    Returns (losses, costs, budget): two tables (lists or arrays) of 1 to 6 layers by 2 to 8 choices,
    not negative, the costs of each layer strictly rising, and a number that the cheapest plan meets.
    The best plan loses more than 0, and the greedy's plan at least factor times as much.
    """
    ### BEGIN SOLUTION
    losses = [[factor, 0], [1, 0]]
    costs = [[0, 2 * factor], [0, 1]]
    return losses, costs, 2 * factor
    ### END SOLUTION


# %%
check("m07.q8")

# %%
trap_losses, trap_costs, trap_budget = (np.array(part) for part in greedy_trap(100.0))
walked, optimal = (
    greedy_plan(trap_losses, trap_costs, trap_budget),
    try_all(trap_losses, trap_costs, trap_budget),
)
for name, plan in (("greedy", walked), ("best", optimal)):
    print(f"{name:<6} {list(map(int, plan))}: loss {total(trap_losses, plan):g}")
print(f"bound: {best_bound(trap_losses, trap_costs, trap_budget):g}")

# %% [markdown]
# The bound gives it away: the gap between it and the greedy is as large as the failure, or larger. So a small gap is a
# proof, and a large one a reason to look closer.
#
# Why does it not happen in ResNet-20? Because there are many layers of similar size: when a step does not fit, there is
# always another that fills the gap. Where one layer is as large as all others together, as LeNet's `fc1`, be careful.
#
# ## 7 Every budget at once
#
# Often nobody knows the budget yet. Then one wants the **Pareto front**: all plans that are not beaten, for which no other
# plan is both at least as cheap and at least as good, and better in one of the two. It can be built layer by layer: take
# every point so far with every choice of the next layer, sort by cost, and throw away each point that does not lose less than
# all cheaper ones.
#
# ### {{m07.q9}}
#
# Write it. Keep costs and losses only; which plan a point belongs to can be found afterwards, with the point's cost as the
# budget.


# %%
def pareto_front(losses, costs):
    """Cost and loss of all plans that no other plan beats.

    losses: float array [L, B]; costs: integer array [L, B], above 0
    Returns (costs, losses), two lists or arrays of one length: total costs, integers, strictly rising,
    and total losses, strictly falling. Of plans with equal cost only the best counts.
    """
    ### BEGIN SOLUTION
    points = [(0, 0)]
    for layer in range(len(losses)):
        choices = [(costs[layer, j], losses[layer, j]) for j in range(losses.shape[1])]
        sums = sorted((c + more, v + loss) for c, v in points for more, loss in choices)
        points = []
        for cost, loss in sums:
            if not points or loss < points[-1][1]:
                points.append((cost, loss))
    return [cost for cost, _ in points], [loss for _, loss in points]
    ### END SOLUTION


# %%
check("m07.q9")

# %%
front_costs, front_losses = (np.array(part) for part in pareto_front(losses, half_bytes))
walk = [
    greedy_plan(losses, half_bytes, int(amount))
    for amount in np.linspace(front_costs[0], front_costs[-1], 150)
]

figure, place = plt.subplots(figsize=(7.5, 4))
place.plot(every_cost, every_loss, ",", color=GREY, alpha=0.4)
place.step(
    front_costs / 2000,
    front_losses,
    where="post",
    color=BLUE,
    label=f"front, {len(front_costs)} of {len(plans):,} plans",
)
place.plot(
    [total(half_bytes, plan) / 2000 for plan in walk],
    [total(losses, plan) for plan in walk],
    ".",
    color=RED,
    label="greedy",
)
place.plot(half_bytes.sum(0) / 2000, losses.sum(0), "s", color=ORANGE, label="uniform")
place.set(
    title="The Pareto front of LeNet",
    xlabel="size of the weights, in kB",
    ylabel="predicted loss, in nats an image",
)
place.set_yscale("log")
place.legend(fontsize=9)
plt.show()

# %% [markdown]
# The front falls in cliffs, one for each bit of `fc1`. The greedy (150 budgets, and only these few different plans) jumps
# from the foot of one cliff to the foot of the next: at a budget in between it stays where it is, even where the front has
# fallen already.

# %%
amounts = np.linspace(front_costs[0], front_costs[-1], 150)
possible = front_losses[np.searchsorted(front_costs, amounts, side="right") - 1]
times = np.array([total(losses, plan) for plan in walk]) / possible
worst = int(times.argmax())
print(
    f"at {amounts[worst] / 2000:.0f} kB the greedy loses {times[worst]:.1f} times what the best loses,"
)
print(f"at {np.mean(times < 1.05):.0%} of the budgets less than 5 % more")

# %% [markdown]
# ## 8 Your plan in the engine
#
# So far everything was a prediction. Does the loss of a plan, with all layers quantized at once, come out as the sum that was
# predicted?

# %%
with torch.no_grad():
    reference = torch.log_softmax(module(torch.from_numpy(sample)), 1).numpy()


def network_of(plan):
    """LeNet in integers with the weight bits of a plan and activations of 8 bits."""
    bits = {name: int(widths[column]) for name, column in zip(layers, plan, strict=True)}
    return labkit.quantize(
        module, images[:256], plan=BitPlan(bits, BitPlan.uniform(graph).activations)
    )


def measured(net):
    """Divergence of a network's answers from the float network's, in nats an image."""
    answers = torch.log_softmax(torch.from_numpy(net.run(sample)), 1).numpy()
    return float((np.exp(reference) * (reference - answers)).sum(1).mean())


rng = np.random.default_rng(0)
drawn = plans[rng.choice(len(plans), 12, replace=False)]
predicted = [total(losses, plan) for plan in drawn]
came_out = [measured(network_of(plan)) for plan in drawn]
figure, place = plt.subplots(figsize=(5, 4))
place.loglog(predicted, came_out, "o", color=BLUE)
ends = [min(predicted), max(predicted)]
place.plot(ends, ends, color=GREY, label="equal")
place.set(
    title="12 random plans of LeNet",
    xlabel="predicted loss, in nats an image",
    ylabel="measured on other images",
)
place.legend()
plt.show()

# %% [markdown]
# ### {{m07.e1}}

# %%
m07_e1 = """
### BEGIN SOLUTION
Layers act on each other: the error that one layer makes passes through the next one, which is not the one it was measured with
any more. In the second-order picture the quadratic form has terms between the layers, and these are left out. They are small,
and cancel on average, when all changes are small, that is at three bits and more; at one or two bits the errors are large and
may add up to more than the sum. To check a plan, run the whole network with it on images that were not used for the table, and
compare the measured loss with the predicted one, also for plans of the same size.
### END SOLUTION
"""

# %%
check("m07.e1")

# %% [markdown]
# Now the real thing: the budget is the size of uniform 2 bits, your `best_plan` chooses, labkit quantizes, the integer engine
# counts.

# %%
chosen = np.array(best_plan(losses, half_bytes, budget))
nets = {
    "uniform 2 bits": network_of([1] * len(layers)),
    "your plan, no larger": network_of(chosen),
    "uniform 3 bits": network_of([2] * len(layers)),
}
labkits = allocate(table, weight_bytes(graph, widths.tolist()), average_bits(2), graph=graph)
assert np.isclose(
    total(losses, chosen), labkits.allocation.value
)  # the certificate: labkit's exact method agrees
print(
    "your plan:",
    dict(zip(layers, widths[chosen].tolist(), strict=True)),
    "- as good as labkit's, and proved best",
)
for name, plan in (("uniform 2 bits", [1] * 5), ("your plan", chosen), ("uniform 3 bits", [2] * 5)):
    print(f"{name:<15} {total(in_bytes, plan):>9,.0f} bytes of weights")

# %%
show_accuracy(
    {"float": lambda batch: module(torch.from_numpy(batch))}
    | {name: net.run for name, net in nets.items()},
    data,
)

# %% [markdown]
# No larger, and another network. The trick: `fc1`, with nine tenths of the weights, goes down to one bit. That costs little
# and pays for many bits everywhere else.
#
# **Try it:** labkit can round weights more cleverly than to the nearest integer (`method="best"` in `labkit.quantize`). Add
# it in `network_of`. How much of the difference is left? The study in `docs/studies/allocation-and-rounding` asks the same.
#
# ## 9 Challenge: size and work at once
#
# HAWQ-V3 has several budgets: size, bit operations and latency. That is an *integer linear program*: a variable $x_{l j} \in
# \{0, 1\}$ for each layer and choice,
#
# $$\min \sum_{l, j} \Delta_{l j}\, x_{l j} \qquad \sum_j x_{l j} = 1 \ \text{for each layer}, \qquad \sum_{l, j} c^{(k)}_{l
# j}\, x_{l j} \le C^{(k)} \ \text{for each budget}$$
#
# ### {{m07.c1}}
#
# Solve it. `scipy.optimize.milp` takes exactly such programs; dynamic programming over lists of partial plans works as well.

# %%
from scipy.optimize import LinearConstraint, milp


def best_within(losses, costs, budgets):
    """The best plan within several budgets.

    losses: float array [L, B], which may be negative
    costs: integer array [K, L, B], 0 or more, one table for each budget
    budgets: a list of K integers, which some plan meets all together
    Returns one column number for each layer, integers [L]; its loss may be 0.05 % above the least.
    """
    ### BEGIN SOLUTION
    one_each = np.kron(np.eye(len(losses)), np.ones(losses.shape[1]))
    found = milp(
        losses.ravel(),
        integrality=np.ones(losses.size),
        constraints=[
            LinearConstraint(one_each, 1, 1),
            LinearConstraint([cost.ravel() for cost in costs], ub=budgets),
        ],
    )
    return found.x.reshape(losses.shape).argmax(axis=1)
    ### END SOLUTION


# %%
check("m07.c1")

# %%
work = in_operations.astype(int)
both = np.stack([half_bytes, work])
print("no larger than uniform 4 bits, and")
for share in (1.0, 0.6, 0.4):
    limits = [int(half_bytes[:, 3].sum()), int(share * work[:, 7].sum())]
    plan = np.array(best_within(losses, both, limits))
    used = total(work, plan) / work[:, 7].sum()
    print(f"at most {share:4.0%} of the work of 8 bits: {widths[plan].tolist()}, uses {used:.0%}")

# %% [markdown]
# With a budget for the work the convolutions have to give, too.
#
# ## What to take away
#
# - Bits belong where they buy most loss for a unit of cost: to small, sensitive layers.
# - A heuristic without a bound is a hope. A price gives a bound for nothing, and for one budget the exact answer takes
#   milliseconds.
# - The prediction is a sum of single measurements. Run the network before you believe it.
#
# **Read on:** `docs/allocation.md`; W. Chen et al., *Towards Mixed-Precision Quantization of Neural Networks via Constrained
# Optimization*, ICCV 2021 (MPQCO); Z. Yao et al., *HAWQ-V3*, ICML 2021; H. Kellerer, U. Pferschy, D. Pisinger, *Knapsack
# Problems*, 2004, chapter 11.
