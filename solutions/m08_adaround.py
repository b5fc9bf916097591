# %% [markdown]
# # {{m08}}
#
# Every weight of a network lies between two integers of its grid: one below, one above. Which one should it become? "The
# nearer one" seems so obvious that for years nobody asked. In 2020 Nagel, Amjad, van Baalen, Louizos and Blankevoort did, and
# found that the obvious answer is not the best. With 4 bits, networks that rounding to nearest had ruined were nearly as good
# as new, without any training.
#
# In this module you find out why, and build their method step by step, until it rounds a whole network for labkit's integer
# engine. (Here sections, tables and equation numbers are those of their paper, *Up or Down?*)
#
# **You will be able to**
#
# - say when and why the nearest integer is the wrong one,
# - write the rounding of a layer as a problem over zeros and ones (QUBO), and solve small ones exactly,
# - search large ones with the cross-entropy method,
# - turn the choice into a smooth function, derive its gradient and run AdaRound,
# - judge what a rounding is worth in the integer engine.
#
# You need modules m01 (scales, integers of weights) and m02 (what a layer computes), and what a gradient is.

# %%
import itertools

import labkit
import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from labkit.course import check
from labkit.course.look import BLUE, GREY, ORANGE, RED, play, use_look

use_look()
data = labkit.data.load("auto")
module = labkit.models.load("lenet", data=data.name)
print(data.reason)

# %% [markdown]
# ## 1 Two weights
#
# Let $w$ be the weights of a trained network and $\Delta w$ what rounding adds to them. The loss changes by
#
# $$\Delta L \approx g^\top \Delta w + \tfrac12\, \Delta w^\top H\, \Delta w ,$$
#
# a Taylor series: $g$ is the gradient, $H$ the matrix of second derivatives. After training $g$ is nearly 0, so the second
# term is what rounding costs (section 2 of the paper). Take two weights, measured in steps of their grid, and
#
# $$H = \begin{bmatrix} 1 & c \\ c & 1 \end{bmatrix}.$$
#
# A weight that lies a fraction $f$ above its lower neighbour moves by $-f$ if it is rounded down and by $1 - f$ if it is
# rounded up. Both weights have this choice, so there are four roundings.
#
# ### {{m08.q1}}
#
# Write down what each of the four costs.


# %%
def four_costs(fractions, coupling):
    """The cost 1/2 d H d of the four roundings of two weights, H = [[1, coupling], [coupling, 1]].

    fractions: float64 [2], how far each weight lies above its lower neighbour, in steps, between
        0 and 1
    coupling: the number c, between -1 and 1
    Returns float64 [2, 2]: costs[0, 1] is with the first weight rounded down and the second
        rounded up.
    """
    ### BEGIN SOLUTION
    first = np.arange(2)[:, None] - fractions[0]
    second = np.arange(2) - fractions[1]
    return (first**2 + second**2) / 2 + coupling * first * second
    ### END SOLUTION


# %%
check("m08.q1")

# %% [markdown]
# Two weights, 0.42 and 0.45 steps above their lower neighbours. The nearest integers are both below. Look at the four
# costs, first without and then with a coupling:

# %%
fractions = np.array([0.42, 0.45])
for coupling in (0.0, 0.5):
    costs = four_costs(fractions, coupling)
    print(f"c = {coupling}")
    for up in np.ndindex(2, 2):
        names = " and ".join("up  " if u else "down" for u in up)
        best = "  <- the best" if costs[up] == costs.min() else ""
        print(f"   {names}  {costs[up]:.4f}{best}")

# %% [markdown]
# With a coupling, the cheapest rounding lifts the *second* weight by 0.55, although 0.45 down was nearer. One error then
# goes up, the other down, and the product of the two is negative: they pay for each other.
#
# How often does that happen? The figure tries every pair of fractions. Black lines enclose the places where the nearest
# integers are **not** the best choice. Move the slider: what changes with the sign of c?


# %%
def draw_regions(coupling):
    places = (np.arange(40) + 0.5) / 40
    best, wrong = np.zeros((40, 40), int), np.zeros((40, 40))
    for row, f2 in enumerate(places):
        for column, f1 in enumerate(places):
            costs = four_costs(np.array([f1, f2]), coupling)
            best[row, column] = costs.argmin()
            wrong[row, column] = costs.argmin() != 2 * (f1 > 0.5) + (f2 > 0.5)
    _, axes = plt.subplots(figsize=(5.6, 4.4))
    colours = plt.matplotlib.colors.ListedColormap(["#dbe7f6", "#f6dccb", "#d3ead9", "#f0e6a8"])
    axes.imshow(best, origin="lower", extent=(0, 1, 0, 1), cmap=colours, vmin=-0.5, vmax=3.5)
    axes.contour(places, places, wrong, levels=[0.5], colors="black", linewidths=1.5)
    for place, name in zip(
        [(0.12, 0.1), (0.12, 0.9), (0.88, 0.1), (0.88, 0.9)],
        ["both down", "2nd up", "1st up", "both up"],
        strict=True,
    ):
        axes.text(*place, name, ha="center", va="center")
    share = f"nearest is not the best at {wrong.mean():.1%}"
    axes.set_title(f"The best of four roundings, c = {coupling:+.1f}\n{share}")
    axes.set(
        xlabel="fraction of the first weight, in steps",
        ylabel="fraction of the second weight, in steps",
    )
    axes.grid(visible=False)
    plt.show()


play(
    draw_regions,
    stills=[{"coupling": 0.5}, {"coupling": -0.9}],
    coupling=[-0.9, -0.7, -0.5, -0.3, -0.1, 0.0, 0.1, 0.3, 0.5, 0.7, 0.9],
)

# %% [markdown]
# ## 2 Where the coupling comes from
#
# The Hessian of a whole network is far too large to write down. The paper's way out (section 3.2): let each layer keep
# **its own output** as it was. One output of a layer is a sum over its inputs, $y = w^\top x$, so rounding changes it by
# $\Delta w^\top x$, and the mean squared change over many inputs is
#
# $$E\big[(\Delta w^\top x)^2\big] = \Delta w^\top \underbrace{E[x x^\top]}_{G}\, \Delta w .$$
#
# This has the same form as before, with the *Gram matrix* $G$ in the place of the Hessian, and all that one needs to know
# is which inputs are large together. No labels, no gradients. A convolution is the same: $x$ is then the window of the
# image that the kernel looks at.
#
# ### {{m08.q2}}
#
# Each row of `x` is what the weights of one output are multiplied with.


# %%
def gram_matrix(x):
    """The mean of x x^T over the rows.

    x: float32 [rows, n]
    Returns real numbers [n, n]: entry [i, j] is the mean of input i times input j.
    """
    ### BEGIN SOLUTION
    return x.T @ x / len(x)
    ### END SOLUTION


# %%
check("m08.q2")

# %% [markdown]
# Now real data: the windows that LeNet's first convolution sees in 64 images. A window holds 3 colours x 5 x 5 pixels.

# %%
from labkit.frontends.float_run import run_float
from labkit.frontends.torch_fx import from_torch
from labkit.graph.passes import simplify

images = data.calibration(512)
graph = simplify(from_torch(module, images.shape[1:]))
results = run_float(graph, {graph.inputs[0]: images})  # what every layer puts out, by name
LAYERS = ("conv1", "conv2", "fc1", "fc2", "fc3")


def rows_into(name):
    """What the weights of the layer are multiplied with: float32 [rows, n]."""
    x = results[graph[name].inputs[0]]
    if x.ndim == 2:
        return x
    windows = F.unfold(torch.from_numpy(x[:64]), graph[name].op.weight.shape[2:])
    return windows.transpose(1, 2).flatten(0, 1)[::7].numpy()  # every 7th window will do


windows = rows_into("conv1")
gram = gram_matrix(windows).astype(np.float64)

figure, axes = plt.subplots(figsize=(5.2, 4.2))
drawn = axes.imshow(
    gram / np.sqrt(np.outer(gram.diagonal(), gram.diagonal())), vmin=-1, vmax=1, cmap="RdBu_r"
)
figure.colorbar(drawn, label="G[i, j], each input scaled to 1")
axes.set(
    title=f"Inputs of conv1 go together ({len(windows):,} windows)",
    xlabel="input j",
    ylabel="input i",
)
axes.grid(visible=False)
plt.show()

# %% [markdown]
# Hardly anything is 0. Neighbouring pixels are nearly equal and the three colours go together, so a layer's weights are
# coupled as strongly as can be. Nothing could be further from a diagonal matrix, for which rounding to nearest would be
# right.
#
# The paper's table 1 makes a bold test of this. Round the first layer *at random*: a weight that lies 0.3 above an integer
# goes up with probability 0.3. Do that 100 times, and compare with the nearest integers. Surely chance cannot win?

# %%
from labkit.arithmetic.affine import PerAxis, QuantSpec, params_from_values


def in_steps(name, bits):
    """The layer's weights in steps of their grid, float32 [outputs, n], and what the grid is."""
    weight = graph[name].op.weight
    spec = QuantSpec(bits, signed=True, symmetric=True, narrow=True, granularity=PerAxis(0))
    params = params_from_values(weight, spec)
    steps = weight.reshape(len(weight), -1) / params.scale.reshape(-1, 1)
    inside = np.clip(
        steps, spec.qmin + 1e-3, spec.qmax - 1e-3
    )  # two neighbours on the grid for each
    return inside, params, spec


def layer_error(integers, real, gram):
    """The sum of d G d over the rows."""
    d = integers - real
    return float(np.sum((d @ gram) * d))


real, params, spec = in_steps("conv1", 4)
rng = np.random.default_rng(0)
nearest_error = layer_error(np.rint(real), real, gram)

_, axes = plt.subplots(figsize=(7.4, 3.6))
wins, gains = 0, []
for kernel, row in enumerate(real):
    own = layer_error(np.rint(row)[None], row, gram)
    ratios = [
        layer_error((np.floor(row) + (rng.random(75) < row % 1))[None], row, gram) / own
        for _ in range(100)
    ]
    axes.semilogy(np.full(100, kernel), ratios, ".", color=BLUE, alpha=0.3, markeredgewidth=0)
    axes.semilogy(kernel, min(ratios), "o", color=BLUE)
    wins += sum(ratio < 1 for ratio in ratios)
    gains.append(min(ratios))
axes.axhline(1, color=ORANGE, linewidth=2, label="nearest")
axes.set(
    title="100 random roundings of each kernel of conv1, 4 bits",
    xlabel="kernel (its best one is the full dot)",
)
axes.set_ylabel("output error, nearest = 1")
axes.legend()
plt.show()
print(f"{wins} of 1,200 random roundings are better than nearest,")
print(f"and the best of a hundred has {np.mean(gains):.2f} times its error")

# %% [markdown]
# Most random roundings are worse, some by a factor of fifty. But for most kernels a hundred throws are enough to beat the
# rule. (In the paper, where the accuracy of a ResNet-18 was compared, 48 of 100 did.) If dice find something better, a
# search should find something much better.
#
# ## 3 A problem of zeros and ones
#
# Write $z_i = 1$ for up and $z_i = 0$ for down. With $r$ for the weights in steps of the grid and $a = \lfloor r \rfloor -
# r$ for what rounding everything down would change, the change is $a + z$, and multiplying out gives
#
# $$(a + z)^\top G\, (a + z) = z^\top G\, z + \ell^\top z + \text{const} .$$
#
# That is a *quadratic unconstrained binary optimization problem*, QUBO for short: famous, and famously hard.
#
# ### {{m08.q3}}
#
# The quadratic part is $G$ itself. Find the vector $\ell$ and the constant. Mind weights below 0: the lower neighbour of
# -0.3 is -1.


# %%
def qubo_terms(real, gram):
    """What stands beside z G z when the error of a rounding is written with zeros and ones.

    real: float64 [n], weights in steps of the grid, of any sign; gram: float64 [n, n], symmetric
    Returns (linear, constant): float64 [n] and a number, so that for every z of zeros and ones
        and d = floor(real) + z - real
    d G d = z G z + linear . z + constant.
    """
    ### BEGIN SOLUTION
    start = np.floor(real) - real
    return 2 * gram @ start, start @ gram @ start
    ### END SOLUTION


# %%
check("m08.q3")

# %% [markdown]
# A few weights can be solved by brute force: with n weights there are $2^n$ roundings, so try them all.
#
# ### {{m08.q4}}
#
# Only the two neighbours of each weight are allowed. `itertools.product((0, 1), repeat=n)` gives every row of zeros and ones.


# %%
def best_rounding(real, gram):
    """The rounding with the least error d G d, d = integers - real, of all 2**n.

    real: float64 [n], weights in steps of the grid, none of them whole, n at most 10; gram:
        float64 [n, n]
    Returns integers [n], each the one next below or next above its weight.
    """
    ### BEGIN SOLUTION
    ups = np.array(list(itertools.product((0, 1), repeat=len(real))))
    changes = np.floor(real) + ups - real
    errors = np.einsum("ri,ij,rj->r", changes, gram, changes)
    return np.floor(real).astype(int) + ups[errors.argmin()]
    ### END SOLUTION


# %%
check("m08.q4")

# %% [markdown]
# Take the ten weights of a kernel of conv1 that are hardest to decide, those nearest to the middle between two integers.
# Here are all 1,024 roundings of them, sorted by their error (the other 65 weights stay as they are). Guess first: where is
# rounding to nearest?

# %%
few = np.argsort(np.abs(real[0] % 1 - 0.5))[:10]
part, part_gram = real[0, few].astype(np.float64), gram[np.ix_(few, few)]
every = np.floor(part) + np.array(list(itertools.product((0, 1), repeat=10)))
errors = np.array([layer_error(q, part, part_gram) for q in every])
of_nearest = layer_error(np.rint(part), part, part_gram)
rank = int(np.sum(errors < of_nearest)) + 1

figure, axes = plt.subplots(figsize=(6.4, 3.4))
axes.semilogy(np.arange(1, 1025), np.sort(errors), color=GREY, linewidth=2)
axes.plot(rank, of_nearest, "o", color=ORANGE, label=f"nearest: number {rank:,} of 1,024")
best = layer_error(best_rounding(part, part_gram), part, part_gram)
axes.plot(
    1, best, "o", color=BLUE, label=f"the best, {best / of_nearest:.2f} times the error of nearest"
)
axes.set(
    title="All roundings of ten weights",
    xlabel="roundings, best first",
    ylabel="error d G d, steps² x input²",
)
axes.legend()
plt.show()

# %% [markdown]
# For these ten weights the rule could hardly have chosen worse: all its small errors add up in the output, while the best
# rounding lets them cancel. But a whole kernel has 75 weights. Trying its $2^{75}$ roundings, a billion in a second, would
# take a million years.
#
# ### {{m08.e1}}

# %%
m08_e1 = """
### BEGIN SOLUTION
The output adds the errors of all weights, each times its input. If two inputs go together (they are correlated, or their
mean is not 0), E[x_i x_j] is not 0, and the product of two errors counts: of opposite signs they cancel each other. It can
pay to make one error larger so that it cancels another. If the inputs were uncorrelated with mean 0, G would be diagonal,
the error a sum of squares, and rounding to nearest the best for each weight and for all.
### END SOLUTION
"""

# %%
check("m08.e1")

# %% [markdown]
# ## 4 Learning from the best guesses
#
# The paper solves its QUBO problems with the **cross-entropy method** (Rubinstein 1999). It keeps, for each weight, the
# chance of going up, beginning with the fraction $r - \lfloor r \rfloor$ as in random rounding. Then, again and again:
#
# 1. draw many roundings with these chances,
# 2. keep the few best of them, the *elite*,
# 3. move the chances towards the share of the elite that went up.
#
# ### {{m08.q5}}
#
# So that your answer is determined, the random numbers are an argument: weight i of a rounding goes up where its number is
# **below** `chance[i]`. The new chance is 0.7 times the share of ups among the elite plus 0.3 times the old chance. (The paper
# does not say how far to move; 0.7 is labkit's choice.)


# %%
def cross_entropy_step(real, gram, chance, uniforms, elite):
    """Draw roundings, and move the chances towards the best of them.

    real: float64 [n], weights in steps of the grid; gram: float64 [n, n]; chance: float64 [n], of
        going up
    uniforms: float64 [samples, n], random numbers in 0..1, a row for each rounding; elite: how
        many of the roundings to keep
    Returns (chance, integers): the new chances float64 [n], and the rounding with the least error
        of the sample, integers [n].
    """
    ### BEGIN SOLUTION
    ups = uniforms < chance
    changes = np.floor(real) + ups - real
    order = np.argsort(np.einsum("ri,ij,rj->r", changes, gram, changes))[:elite]
    share = np.mean(ups[order], axis=0)
    return 0.7 * share + 0.3 * chance, (np.floor(real) + ups[order[0]]).astype(int)
    ### END SOLUTION


# %%
check("m08.q5")

# %% [markdown]
# Watch it at work on a whole kernel of 75 weights. On the left each column is a weight: its chance begins somewhere between
# 0 and 1 and freezes, step by step, to a decision.

# %%
row = real[0].astype(np.float64)
chance, rng = row % 1, np.random.default_rng(0)
best_seen, least = np.rint(row), layer_error(np.rint(row), row, gram)
start_error, chances, curve = least, [chance], [1.0]
for _ in range(50):
    chance, found = cross_entropy_step(row, gram, chance, rng.random((256, len(row))), 26)
    if layer_error(found, row, gram) < least:  # the best ever seen, not the last
        best_seen, least = found, layer_error(found, row, gram)
    chances.append(chance)
    curve.append(least / start_error)

figure, (left, right) = plt.subplots(1, 2, figsize=(9.5, 3.6))
drawn = left.imshow(np.array(chances), aspect="auto", cmap="coolwarm", vmin=0, vmax=1)
figure.colorbar(drawn, ax=left, label="chance of going up")
left.set(title="75 decisions freeze", xlabel="weight of the kernel", ylabel="step")
left.grid(visible=False)
right.semilogy(curve, color=BLUE, linewidth=2)
right.axhline(1, color=ORANGE, linestyle="--", label="nearest")
right.set(title="Error of the best rounding seen", xlabel="step", ylabel="error, nearest = 1")
right.legend()
plt.show()
print(f"{np.sum(best_seen != np.rint(row))} of {len(row)} weights are not at their nearest integer")

# %% [markdown]
# 50 steps of 256 guesses, out of $2^{75}$, and most of the error is gone. But the method looks at one row at a time, and
# `fc1` has 256 rows of 1,152 weights. For that the authors had a better idea.
#
# ## 5 A dimmer instead of a switch
#
# Gradient descent cannot work on zeros and ones. So let each weight be anywhere between its neighbours for a while:
# $\lfloor r \rfloor + h$ with $h$ between 0 and 1, and make $h$ a smooth function of a free variable $v$. The authors take
# the *rectified sigmoid* (eq. 23)
#
# $$h(v) = \mathrm{clip}\big(\sigma(v)\,(\zeta - \gamma) + \gamma,\; 0,\; 1\big), \qquad \sigma(v) = \frac{1}{1 + e^{-v}},
# \quad \zeta = 1.1,\ \gamma = -0.1 .$$
#
# ### {{m08.q6}}


# %%
def rectified_sigmoid(v):
    """h(v), the sigmoid stretched from -0.1 to 1.1 and cut off at 0 and 1.

    v: real numbers, an array of any shape, of magnitude at most 50
    Returns real numbers of the same shape.
    """
    ### BEGIN SOLUTION
    return np.clip(1.2 / (1 + np.exp(-v)) - 0.1, 0, 1)
    ### END SOLUTION


# %%
check("m08.q6")

# %%
line = np.linspace(-6, 6, 400)
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4))
for curve, name, colour in (
    (1 / (1 + np.exp(-line)), "sigmoid", GREY),
    (rectified_sigmoid(line), "rectified sigmoid", BLUE),
):
    left.plot(line, curve, color=colour, linewidth=2, label=name)
    right.plot(line, np.gradient(curve, line), color=colour, linewidth=2, label=name)
left.set(title="The soft decision", xlabel="v", ylabel="h (0 down, 1 up)")
right.set(title="Its slope", xlabel="v", ylabel="dh / dv")
left.legend()
plt.show()

# %% [markdown]
# The plain sigmoid comes to 0 and 1 only at infinity, and crawls there. The rectified one arrives, with a slope to the last.
#
# Where should $v$ begin? Where nothing is rounded yet: $\lfloor r \rfloor + h(v) = r$.
#
# ### {{m08.q7}}
#
# Solve that equation for $v$.


# %%
def starting_v(real):
    """The v at which the soft weight floor(real) + h(v) is the weight itself.

    real: real numbers, an array of any shape, weights in steps of the grid, of any sign, none of
        them whole
    Returns real numbers of the same shape.
    """
    ### BEGIN SOLUTION
    fraction = real - np.floor(real)
    return -np.log(1.2 / (fraction + 0.1) - 1)
    ### END SOLUTION


# %%
check("m08.q7")

# %% [markdown]
# One thing is missing. Left alone, every $h$ would stay where the error is 0: between the integers. So a penalty (eq. 24) makes
# indecision expensive,
#
# $$f_\text{reg} = \sum_i 1 - |2 h_i - 1|^\beta ,$$
#
# and $\beta$ falls in the course of the search, in published programs from 20 to 2. Play with it: the arrows say where the
# penalty draws a weight, and how strongly.


# %%
def draw_penalty(beta):
    h = np.linspace(0, 1, 401)
    _, axes = plt.subplots(figsize=(6.4, 3.4))
    axes.plot(h, 1 - np.abs(2 * h - 1) ** beta, color=BLUE, linewidth=2)
    at = np.linspace(0.06, 0.94, 12)
    slope = 2 * beta * np.sign(2 * at - 1) * np.abs(2 * at - 1) ** (beta - 1)
    for place, pull in zip(at, slope, strict=True):
        length = 0.012 * pull
        if abs(length) > 0.002:
            arrow = {"arrowstyle": "->", "color": RED, "linewidth": 1.6}
            axes.annotate("", (place + length, 0.08), (place, 0.08), arrowprops=arrow)
    axes.set(
        title=f"The penalty of one weight, beta = {beta}",
        xlabel="h (0 down, 1 up)",
        ylabel="1 - |2h - 1|^beta",
    )
    axes.set_ylim(0, 1.08)
    plt.show()


play(draw_penalty, stills=[{"beta": 20}, {"beta": 2}], beta=[20, 16, 12, 8, 6, 4, 3, 2])

# %% [markdown]
# ### {{m08.e3}}

# %%
m08_e3 = """
### BEGIN SOLUTION
With beta = 20 the penalty is flat in the middle: at h = 0.5 (and 0.6, 0.7) it has no slope, so these weights go where the
error of the output is small, and only those near 0 or 1, such as h = 0.9, are drawn to the end. With beta = 2 the slope
grows with the distance from 1/2 and is there for everyone: h = 0.9 is driven to 1 hard, and only exactly 0.5 is in balance.
So the late, small beta forces decisions. With a strong penalty and beta = 2 from the start each weight would be driven at
once to the side on which it begins, and that is the nearest integer: nothing would be gained.
### END SOLUTION
"""

# %%
check("m08.e3")

# %% [markdown]
# ## 6 AdaRound
#
# The loss of a layer with soft weights is now (eq. 21, in steps of the grid)
#
# $$L(v) = \sum_\text{rows} d^\top G\, d + \lambda \sum 1 - |2 h - 1|^\beta, \qquad d = \lfloor r \rfloor + h(v) - r .$$
#
# ### {{m08.q8}}
#
# Derive the gradient of $L$ with respect to $v$, by hand: the chain rule through $d$, $h$ and $\sigma$, whose own
# derivative is $\sigma (1 - \sigma)$. Two hints: where $h$ is exactly 0 or 1, a small change of $v$ does nothing; and the
# derivative of $|t|^\beta$ is $\beta\, |t|^{\beta - 1}\, \mathrm{sign}(t)$. (Or let torch differentiate your loss. Both
# pass.)


# %%
def adaround_gradient(v, real, gram, strength, beta):
    """The gradient of sum(d G d) + strength * sum(1 - |2 h - 1|**beta) with respect to v.

    Here d = floor(real) + h(v) - real.

    v, real: real numbers [rows, n], the free variables and the weights in steps of the grid;
        gram: [n, n], symmetric
    strength: the factor lambda of the penalty, 0 or more; beta: its exponent, 2 or more
    Returns real numbers [rows, n]; 0 where h is exactly 0 or 1.
    """
    ### BEGIN SOLUTION
    h = rectified_sigmoid(v)
    apart = 2 * h - 1
    by_error = 2 * (np.floor(real) + h - real) @ gram
    by_penalty = -2 * strength * beta * np.copysign(np.abs(apart) ** (beta - 1), apart)
    inside = (h > 0) & (h < 1)
    return (by_error + by_penalty) * (h + 0.1) * (1.1 - h) / 1.2 * inside
    ### END SOLUTION


# %%
check("m08.q8")

# %% [markdown]
# The authors descend with Adam, which you know from training networks: it divides each step by how large the slope usually
# is. Here it is, ready to use.


# %%
def adam_step(v, slope, memory, rate):
    """One step of Adam with its usual settings (0.9, 0.999, 1e-8).

    v, slope: real numbers of one shape; memory: what the step before returned, None for the first
        step; rate: of learning
    Returns (v, memory), both new.
    """
    first, second, count = (0.0, 0.0, 0) if memory is None else memory
    first, second, count = 0.9 * first + 0.1 * slope, 0.999 * second + 0.001 * slope**2, count + 1
    move = (first / (1 - 0.9**count)) / (np.sqrt(second / (1 - 0.999**count)) + 1e-8)
    return v - rate * move, (first, second, count)


# %% [markdown]
# ### {{m08.q9}}
#
# Put it together: begin at `starting_v`, take `steps` steps of Adam, and decide. $\beta$ falls in a straight line: it is 20
# in the first step, and would be 2 in the step after the last. (Published programs leave the penalty out for the first fifth of
# the steps: they look at changing batches of images. Our loss begins at its very minimum, the unrounded weights, and without a
# penalty nothing would move.)
#
# At the end a weight goes up where $v \ge 0$. Your integers are judged by their error; `v` is compared with the right one,
# within 1e-4.
#
# Here float64 is needed, as the inputs have it. At the start the error has no slope, and a large $\beta$ hardly any, so the
# slope of a weight near the middle is rounding noise. Adam divides noise by its own size and adds 1e-8: noise of 1e-16 moves
# nothing then, but noise of 1e-7, that of float32, makes a full step in a random direction. That leads to integers as good,
# mostly even the same (in section 7 your function gets float32 arrays, which is twice as fast), but to another `v`.


# %%
def adaround(real, gram, steps, rate, strength):
    """AdaRound of one layer.

    real: float64 [rows, n], weights in steps of the grid, none of them whole; gram: float64 [n,
        n], symmetric
    steps: how many steps of Adam, 0 or more; rate: of Adam; strength: lambda, the factor of the
        penalty
    Returns (integers, v), both [rows, n]: the neighbours decided on, and the variables after the
        last step, computed in float64 where the inputs are float64.
    """
    ### BEGIN SOLUTION
    v, memory = starting_v(real), None
    for step in range(steps):
        slope = adaround_gradient(v, real, gram, strength, 20 - 18 * step / steps)
        v, memory = adam_step(v, slope, memory, rate)
    return (np.floor(real) + (v >= 0)).astype(int), v
    ### END SOLUTION


# %%
check("m08.q9")

# %% [markdown]
# All twelve kernels of conv1 at once. G is divided by the mean of its diagonal, so that one strength of the penalty suits
# every layer. Each dot is a weight. Without AdaRound everything left of the middle would be down and everything right of it
# up. What do you expect at a strength of 0? And at 100?

# %%
unit_gram = gram / gram.diagonal().mean()


def draw_decisions(strength):
    integers, v = adaround(real.astype(np.float64), unit_gram, 200, 0.03, strength)
    h, fraction = rectified_sigmoid(v), real % 1
    other = integers != np.rint(real)
    share = layer_error(integers, real, gram) / nearest_error
    _, (left, right) = plt.subplots(1, 2, figsize=(9.5, 3.6), width_ratios=(3, 2))
    for which, name, colour in ((~other, "nearest", GREY), (other, "the other neighbour", ORANGE)):
        left.plot(fraction[which], h[which], ".", color=colour, label=name)
    left.set(
        title=f"strength {strength:g}: {other.mean():.0%} go the other way",
        xlabel="fraction of the weight",
    )
    left.set(ylabel="h after 200 steps (0 down, 1 up)", ylim=(-0.05, 1.3))
    left.legend(ncols=2, loc="upper center")
    right.hist(h.ravel(), bins=20, range=(0, 1), color=BLUE)
    right.set(title=f"error {share:.2f} x nearest", xlabel="h after 200 steps", ylabel="weights")
    plt.show()


play(
    draw_decisions,
    stills=[{"strength": 1.0}, {"strength": 0.0}, {"strength": 0.01}],
    strength=[0.0, 0.001, 0.01, 0.1, 1.0, 10.0, 100.0],
)

# %% [markdown]
# Without a penalty nothing moves, and the final cut at $v = 0$ is rounding to nearest. With a weak one many weights are
# still undecided when the steps are over, and the cut spoils their balance. A strong one does no harm, which may surprise
# you: at first $\beta$ is large and leaves the middle in peace, and Adam makes steps of about the same size whatever the
# strength. It is the fall of $\beta$ that matters.
#
# ### {{m08.c1}}
#
# Is all this needed? Try something simple: begin at the nearest integers, and compute for **every** weight how the error
# would change if it alone were flipped to its other neighbour. Flip the one that lowers the error most. Repeat until no
# flip lowers it. You will compare it with AdaRound below. (A flip's change can be computed from $G d$ for all weights at
# once.)


# %%
def steepest_rounding(real, gram):
    """Flip the weight whose flip lowers d G d the most, d = integers - real, until no flip lowers it.

    real: float64 [n], weights in steps of the grid, none of them whole; gram: float64 [n, n],
        symmetric
    Begins at the nearest integers, halves up. Of equally good flips the first one is taken.
    Returns integers [n].
    """
    ### BEGIN SOLUTION
    down = np.floor(real)
    up = real - down >= 0.5
    while True:
        change = np.where(up, -2, 2) * (gram @ (down + up - real)) + np.diag(gram)
        flip = change.argmin()
        if change[flip] >= 0:
            return (down + up).astype(int)
        up[flip] = ~up[flip]
    ### END SOLUTION


# %%
check("m08.c1")

# %% [markdown]
# ## 7 A whole network in the engine
#
# Now the real thing: **your** AdaRound rounds all five layers of LeNet. On the small digits 3 bits are hardly a challenge,
# so there the weights get 2 bits: three levels, -1, 0 and 1. A little of the unit matrix is added to G, as a ridge
# (question e2 asks why).

# %%
from labkit.arithmetic.affine import QTensor
from labkit.net import IntegerNet
from labkit.quantization.calibration import calibrate
from labkit.quantization.convert import convert
from labkit.quantization.plan import BitPlan
from labkit.quantization.rounded import RoundedLayer

calibration = calibrate(graph, images)
bits = 2 if data.name == "mnist5k" else 3


def rounded_net(bits, choose):
    """The integer network whose weights choose(real, gram) rounds, and these integers.

    Last, each layer's output error beside that of rounding to nearest.
    """
    layers, chosen, shares = {}, {}, {}
    for name in LAYERS:
        real, params, spec = in_steps(name, bits)
        gram = gram_matrix(rows_into(name))
        gram = gram / gram.diagonal().mean() + np.float32(0.03) * np.eye(
            len(gram), dtype=np.float32
        )
        integers = chosen[name] = choose(real, gram)
        shares[name] = layer_error(integers, real, gram) / layer_error(np.rint(real), real, gram)
        weight = QTensor(
            integers.astype(np.int8).reshape(graph[name].op.weight.shape), params, spec
        )
        no_bias = np.zeros(len(integers), np.float32)  # as this LeNet has it
        layers[name] = RoundedLayer(weight, no_bias)
    plan = BitPlan.uniform(graph, bits, 8)
    return IntegerNet(convert(graph, calibration, plan, {}, layers)), chosen, shares


nearest_net, _, _ = rounded_net(bits, lambda real, gram: np.rint(real))
your_net, yours, shares = rounded_net(
    bits, lambda real, gram: adaround(real, gram, 300, 0.03, 1.0)[0]
)

figure, axes = plt.subplots(figsize=(6, 3.2))
axes.bar(shares.keys(), shares.values(), color=BLUE)
axes.axhline(1, color=ORANGE, linewidth=2, label="nearest")
axes.set(
    title=f"Your AdaRound, {bits}-bit weights", xlabel="layer", ylabel="output error, nearest = 1"
)
axes.legend()
plt.show()

# %% [markdown]
# The local errors have fallen in every layer. Does the network care? The two rounded networks below run in the integer
# engine, on the same images; the nearest and the rounded ones differ in nothing but the choice of neighbours.

# %%
from labkit.course.showcase import show_accuracy


def float_net(x):
    with torch.no_grad():
        return module(torch.from_numpy(x))


names = {
    "float": float_net,
    f"nearest, {bits} bits": nearest_net.run,
    f"your AdaRound, {bits} bits": your_net.run,
}
show_accuracy(names, data)

# %% [markdown]
# Nobody trained anything, nobody looked at a label, and no weight moved further than one step. Is it really your function
# that makes the difference? A look into the network: the scales are those of rounding to nearest, and the integers are
# yours, all of them.

# %%
for name in LAYERS:
    mine, usual = your_net.graph[name].op.weight, nearest_net.graph[name].op.weight
    assert np.array_equal(mine.params.scale, usual.params.scale)
    assert np.array_equal(mine.values.reshape(yours[name].shape), yours[name])
    moved = np.mean(mine.values != usual.values)
    print(f"{name}: {moved:.1%} of {mine.values.size:,} weights are not at their nearest integer")

# %% [markdown]
# And the challenge? If you solved it, run this cell: steepest descent, row by row, on the two convolutions and the last two
# layers, beside AdaRound. The result may surprise you. AdaRound's strength lies elsewhere: it needs no matrix G, so it can
# look at batches of images, at the activation function behind the layer and at inputs from the layers rounded before it
# (eq. 25), where flipping bits one by one would be hopeless.

# %%
for name in ("conv1", "conv2", "fc2", "fc3"):
    real, params, spec = in_steps(name, bits)
    gram = gram_matrix(rows_into(name)).astype(np.float64)
    gram = gram / gram.diagonal().mean() + 0.03 * np.eye(len(gram))
    try:
        by_flips = np.array([steepest_rounding(row, gram) for row in real.astype(np.float64)])
    except NotImplementedError as unsolved:
        print(unsolved)
        break
    ratio = layer_error(by_flips, real, gram) / layer_error(np.rint(real), real, gram)
    print(
        f"{name}: error of steepest descent {ratio:.2f}, of AdaRound {shares[name]:.2f} times nearest's"
    )

# %% [markdown]
# ### {{m08.e2}}

# %%
m08_e2 = """
### BEGIN SOLUTION
At most 512: each image adds x x^T, a matrix of rank 1. In the other 640 directions d G d is 0 whatever the error, so a
strong search uses them freely: the error on the 512 images becomes tiny, while on new images, which do point in these
directions, the output is wrong. That is overfitting. A ridge gives every direction a small cost, a |d|^2, so that where the
images say nothing the weights stay near their original values, as rounding to nearest would have them.
### END SOLUTION
"""

# %%
check("m08.e2")

# %% [markdown]
# ## What to take with you
#
# - The sum of rounding errors counts, not each. The Gram matrix of the inputs says which errors add up and which cancel.
# - Choosing neighbours is a QUBO; dice, elites, flips and gradients all find better answers than rounding to nearest.
# - The fewer the bits, the more it matters: at 8 bits it is worth nothing, at 2 it decides whether the network works at all.
#
# `labkit.quantize(module, images, weights=2, rounding="adaround")` is the library's own, with every method of this module
# and more behind the name `rounding` ([docs/calibration-and-rounding.md](../docs/calibration-and-rounding.md)). The paper's
# tables, done again with labkit, are in [docs/studies](../docs/studies/README.md). **Try it:** `bits = 4` and `bits = 8` in
# section 7; a Gram matrix from 16 images; no ridge.
