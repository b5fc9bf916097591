# %% [markdown]
# # {{m04}}
#
# The processor in a smoke detector has no floating point. It can add and multiply integers, and it can shift them. That is
# enough to run a neural network, if somebody says exactly what each integer operation shall do. In this module that somebody
# is you: you write the bound that rules out overflow, the multiplier that replaces a fraction, two of the six ways in which
# the world rounds, the layers themselves, and in the end LeNet runs through *your* functions and gives the same integers as
# labkit, every single one.
#
# **You will be able to**
#
# - say how many products a 32-bit sum can hold, and prove it for a given layer,
# - turn a real factor such as 0.00117 into an integer and a shift,
# - name the rounding rule of a runtime, write it, and find inputs on which two rules differ,
# - write a fully connected layer, a convolution and a residual connection in integers only,
# - store two 4-bit weights in a byte.
#
# Equations have the numbers of `docs/arithmetic.md`. What you need to know beforehand is eq. 1, $r = S\,(q - Z)$: an integer
# $q$ stands for the real number $r$; $S$ is the scale, $Z$ the zero point.

# %%
import labkit
import matplotlib.pyplot as plt
import numpy as np
import torch
from labkit.arithmetic.fixedpoint import FixedPointMultiplier
from labkit.arithmetic.requantize import RoundingRule, scale_and_round
from labkit.course import check
from labkit.course.look import BLUE, GREY, ORANGE, RED, play, use_look
from labkit.course.showcase import show_accuracy
from labkit.kernels.kernel_set import REFERENCE

use_look()
data = labkit.data.load("auto")
print(data.reason)
module = labkit.models.load("lenet", data=data.name)
net = labkit.quantize(module, data.calibration(256), weights=8, activations=8)
x, y = data.test(200)
trace = net.trace(x)  # the integers that leave every layer, by its name
print(net)

# %% [markdown]
# ## 1 Sums
#
# One output of a fully connected layer or a convolution is a sum of $K$ products and a bias. Put eq. 1 in for weights and
# inputs, take the scales out, and an integer is left:
#
# $$r_y = S_w S_x \cdot a, \qquad a = \sum_{k=1}^{K} (q_{w,k} - Z_w)(q_{x,k} - Z_x) + q_\beta \qquad \text{(eq. 7)}$$
#
# $a$ is called the *accumulator*. labkit's weights are symmetric, so $Z_w = 0$ from here on. Let us look at the accumulators
# of `fc1`, where each of 256 outputs sums 1,152 products.

# %%
layer = net.graph["fc1"]
weights, bias = layer.op.weight.values, layer.op.bias
x_spec, x_params = net.graph["flatten"].output.quantized
x_zero = int(x_params.zero_point)
q_x = trace["flatten"]
accumulators = (q_x.astype(int) - x_zero).dot(weights.T.astype(int)) + bias

print(f"inputs   {q_x.dtype} {q_x.shape}, zero point {x_zero}")
print(f"weights  {weights.dtype} {weights.shape}; no biases in this LeNet (they are kept as 0)")
print(f"accumulators of {len(x)} images: {accumulators.min():,} to {accumulators.max():,}")

# %% [markdown]
# How wide must the register be that holds $a$? A register of $n$ bits that overflows does not complain: it *wraps around*,
# and the largest number plus one is the most negative one. We can pretend that `fc1` had a narrower register and run the rest
# of the network as it is.


# %%
def wrapped(sums, width):
    """What a register of ``width`` bits holds after adding up to ``sums``."""
    return (sums + 2 ** (width - 1)) % 2**width - 2 ** (width - 1)


def rest_of_the_network(fc1_sums):
    """Logits from the accumulators of fc1, by labkit's own functions."""
    q = layer.op.requantizer.apply(fc1_sums)
    for name, before in (("fc2", "fc1"), ("fc3", "fc2")):
        op, zero = net.graph[name].op, int(net.graph[before].output.quantized[1].zero_point)
        q = REFERENCE["linear"](
            q,
            op.weight.values,
            op.bias,
            input_zero_point=zero,
            weight_zero_point=op.weight.params.zero_point,
            requantizer=op.requantizer,
        )
    return q


widths = np.arange(10, 25)
right = [
    100 * np.mean(rest_of_the_network(wrapped(accumulators, w)).argmax(1) == y) for w in widths
]

figure, place = plt.subplots(figsize=(7.5, 3.4))
place.plot(widths, right, "o-", color=BLUE)
place.axhline(10, color=GREY, linestyle=":", label="guessing")
place.set(
    title="LeNet with a narrow accumulator in fc1: not a slope, a cliff",
    xlabel="bits of the register",
    ylabel="images right, in %",
)
place.legend()
plt.show()

# %% [markdown]
# A bit too few and the network guesses. For these 200 images some width below 32 would do, but nobody can promise that for
# the next image. The promise comes from a bound. No sum, and no *partial* sum in whatever order the products are added, is
# larger than all magnitudes together:
#
# $$|a| \le \Bigl(\sum_{k} |q_{w,k}|\Bigr) \cdot \max|q_x - Z_x| + |q_\beta| \qquad \text{(eq. 9)}$$
#
# Here $q_x$ is any integer of the unsigned grid $0 \ldots 2^b - 1$.
#
# ### {{m04.q1}}
#
# Write the right-hand side of eq. 9 for every output channel of a layer. Beware: the bound of a layer that is *too* large for
# int32 must still come out right, and `np.abs` of an int8 array has a trap in it.


# %%
def accumulator_bound(weight, bias, x_zero, bits):
    """The largest magnitude that a partial sum of each output can have (eq. 9).

    weight: int8 array [O, ...], -128 to 127, its zero point is 0; bias: int32 array [O]
    x_zero: the zero point Z_x of the input; bits: the input's grid is 0 ... 2**bits - 1
    Returns integers [O], which may be beyond int32.
    """
    ### BEGIN SOLUTION
    magnitude = np.abs(weight.astype(np.int64)).reshape(len(weight), -1).sum(axis=1)
    return magnitude * max(x_zero, 2**bits - 1 - x_zero) + np.abs(bias)
    ### END SOLUTION


# %%
check("m04.q1")

# %%
bounds = accumulator_bound(weights, bias, x_zero, 8)
largest = np.abs(accumulators).max(axis=0)
order = np.argsort(bounds)

figure, place = plt.subplots(figsize=(7.5, 3.6))
place.plot(bounds[order], color=ORANGE, label="bound, any image")
place.plot(largest[order], ".", color=BLUE, label=f"largest of {len(x)} images")
place.axhline(2**31 - 1, color=RED, linestyle="--", label="end of int32")
place.axhline(2**15 - 1, color=GREY, linestyle="--", label="end of int16")
place.set(
    title="Accumulators of fc1",
    xlabel="output channel, sorted by its bound",
    ylabel="magnitude of the sum",
    yscale="log",
)
place.legend(fontsize=9, ncols=2)
plt.show()
times = np.median(bounds / largest)
print(f"the bound is {times:.0f} times the largest sum seen (median of the channels)")

# %% [markdown]
# int32 has room to spare. int16 is too narrow even for sums that really occurred. Without looking at the weights the bound
# becomes $K \max|q_w| \max|q_x - Z_x|$, and turned round it says how many products are always safe:

# %%
print("weights              input           deepest safe sum, no bias")
for w_name, w_largest in (
    ("int8, -127..127", 127),
    ("int8, -128..127", 128),
    ("int4, -7..7", 7),
    ("one bit, -1 or 1", 1),
):
    for x_name, x_largest in (("affine 8 bits", 255), ("affine 4 bits", 15)):
        print(f"{w_name:<20} {x_name:<15} {(2**31 - 1) // (w_largest * x_largest):>16,}")

# %% [markdown]
# The deepest sum of ResNet-50 has 4,608 products. (The table in section 2 of `docs/arithmetic.md` has more rows.)
#
# ### {{m04.e1}}

# %%
m04_e1 = """
### BEGIN SOLUTION
The bound has to hold for every image that may ever come, and an input that is large where the weights are positive and at
the far end of its grid where they are negative reaches it: then nothing cancels. The order does matter for what happens on
the way: a partial sum can be larger than the final one, and a fast kernel adds eight lanes side by side, so its partial sums
are others than those of a textbook loop. Eq. 9 covers them all. An overflow gives no error: the register wraps around (or
saturates) and the output is grossly wrong.
### END SOLUTION
"""

# %%
check("m04.e1")

# %% [markdown]
# ## 2 A multiplier without a fraction
#
# The output wants a scale of its own, $r_y = S_y (q_y - Z_y)$. Together with eq. 7:
#
# $$q_y = \mathrm{clamp}\bigl(\mathrm{round}(M a) + Z_y\bigr), \qquad M = \frac{S_w S_x}{S_y} \qquad \text{(eq. 10)}$$
#
# $M$ is the only real number that is left in the layer, and it is known before the first image arrives. So it is written as
# an integer and a shift, once and for all:
#
# $$M \approx m \cdot 2^{\,e - 31}, \qquad 2^{30} \le m \le 2^{31} - 1 \qquad \text{(eq. 11)}$$
#
# To find the *mantissa* $m$ and the *exponent* $e$, split $M = f \cdot 2^e$ with $\tfrac12 \le f < 1$ (`math.frexp` does
# that, exactly) and round:
#
# $$m = \bigl\lfloor 2^{31} f + \tfrac12 \bigr\rfloor, \qquad \text{and where } m = 2^{31}: \quad m \leftarrow 2^{30},\ e
# \leftarrow e + 1 \qquad \text{(eq. 12)}$$
#
# Where $e < -31$ after that, $m = 0$ and $e = 0$ are used instead: with such an $M$ even the largest accumulator rounds to 0.
#
# ### {{m04.q2}}
#
# Write eq. 12, with the carry and the last sentence above.

# %%
import math


def fixed_point(M):
    """Mantissa and exponent of a positive real number (eqs. 11 and 12).

    M: float, above 0 and below 2**30
    Returns (m, e), two integers with M about m * 2**(e - 31): m is rounded to nearest, ties up, and
    lies in 2**30 ... 2**31 - 1; (0, 0) where e would be below -31, carry included.
    """
    ### BEGIN SOLUTION
    fraction, exponent = math.frexp(M)
    mantissa = math.floor(fraction * 2**31 + 0.5)
    if mantissa == 2**31:
        mantissa, exponent = 2**30, exponent + 1
    return (mantissa, exponent) if exponent >= -31 else (0, 0)
    ### END SOLUTION


# %%
check("m04.q2")

# %% [markdown]
# Every output channel has a weight scale of its own, hence an $M$ of its own. Are 31 bits of mantissa a luxury? Let us keep
# fewer and count the integers of `fc1` that change.

# %%
y_scale = layer.output.quantized[1].scale
M = layer.op.weight.params.scale.astype(np.float64) * x_params.scale / y_scale
pairs = np.array([fixed_point(float(value)) for value in M])
print("channel            M           m    e    m * 2**(e - 31)")
for channel in range(3):
    m, e = pairs[channel]
    print(f"{channel:7d}  {M[channel]:.9f}  {m:10d}  {e:3d}    {m * 2.0 ** (e - 31):.9f}")

exact = np.floor(accumulators * M + 0.5)
kept = np.arange(3, 25)
changed = []
for bits in kept:
    coarse = np.round(pairs[:, 0] / 2.0 ** (31 - bits)) * 2.0 ** (pairs[:, 1] - bits)
    changed.append(
        100
        * np.mean(np.clip(np.floor(accumulators * coarse + 0.5), 0, 255) != np.clip(exact, 0, 255))
    )

figure, place = plt.subplots(figsize=(7.5, 3.2))
place.plot(kept, np.maximum(changed, 1e-4), "o-", color=BLUE)
place.set(title="Integers of fc1 that change with a shorter mantissa", yscale="log")
place.set(xlabel="bits of the mantissa", ylabel="integers changed, in % (0 drawn as 0.0001)")
plt.show()

# %% [markdown]
# Each bit less doubles the damage. 31 bits cost nothing, since the product with a 32-bit accumulator just fits into 64 bits,
# and leave nothing to be seen.
#
# ## 3 Rounding: one word, six meanings
#
# What is left of eq. 10 is $\mathrm{round}(M a)$ with $M = m\,2^{e-31}$. Let $t = 31 - e$. labkit's default is the shortest
# rule there is: one exact product in 64 bits, half of the last step added, one shift to the right.
#
# $$\textbf{SINGLE:} \qquad \mathrm{round}(M a) = (a\, m + 2^{t-1}) \gg t \qquad \text{(eq. 13)}$$
#
# The shift `>>` of Python and NumPy rounds down, also below 0; so ties (exactly one half) go up, towards $+\infty$.
#
# ### {{m04.q3}}
#
# Write eq. 13 for arrays. Mantissa and exponent may be one number each, or arrays with one number for each column of `a`:
# NumPy's broadcasting does that for you if you let it. `np.int64(1) << k` is $2^k$, also for an array `k`.


# %%
def round_single(a, mantissa, exponent):
    """The rule SINGLE: one rounding, ties up (eq. 13).

    a: int32 or int64 array of any shape, within int32
    mantissa, exponent: integers, or int32 arrays that broadcast with a (eq. 11); exponent -31 to 30
    Returns an integer array of the shape of a, exact also where a * mantissa has 62 bits.
    """
    ### BEGIN SOLUTION
    shift = 31 - exponent
    return (a.astype(np.int64) * mantissa + (np.int64(1) << (shift - 1))) >> shift
    ### END SOLUTION


# %%
check("m04.q3")

# %% [markdown]
# The reference kernels of TensorFlow Lite have another rule, from the library gemmlowp. It was written for processors with
# 32-bit registers and an instruction that multiplies two 32-bit numbers and keeps the rounded upper half. So it rounds
# **twice**: first to that upper half $h$, then to an integer.
#
# $$\textbf{GEMMLOWP:} \qquad h = \mathrm{trunc}\left(\frac{a'\, m + \nu}{2^{31}}\right), \qquad a' = a \cdot 2^{\max(e, 0)},
# \qquad \nu = \begin{cases} 2^{30} & a'\, m \ge 0 \\ 1 - 2^{30} & a'\, m < 0 \end{cases}$$
#
# $$\mathrm{round}(M a) = \text{nearest integer to } h / 2^{\max(-e, 0)}, \text{ ties away from } 0 \qquad \text{(eq. 14)}$$
#
# $\mathrm{trunc}$ is the division of C: it cuts off towards 0.
#
# ### {{m04.q4}}
#
# Write eq. 14 for arrays, in integers: a product may need 62 bits, more than a float64 can hold. Two hints. The sign can be
# taken off and put back on (`np.sign`, `np.abs`), which turns both "towards 0" and "away from 0" into something simple. And
# $2^0 = 1$, of which half is 0.


# %%
def round_gemmlowp(a, mantissa, exponent):
    """The rule GEMMLOWP: two roundings, ties of the second away from zero (eq. 14).

    a: int32 or int64 array of any shape, within int32
    (so is a * 2**exponent where the exponent is positive)
    mantissa, exponent: integers, or int32 arrays that broadcast with a (eq. 11); exponent -31 to 30
    Returns an integer array of the shape of a.
    """
    ### BEGIN SOLUTION
    left, right = np.maximum(exponent, 0), np.maximum(-exponent, 0)
    product = (a.astype(np.int64) << left) * mantissa
    nudged = product + np.where(product >= 0, 2**30, 1 - 2**30)
    high = np.sign(nudged) * (np.abs(nudged) >> 31)
    return np.sign(high) * ((np.abs(high) + ((np.int64(1) << right) >> 1)) >> right)
    ### END SOLUTION


# %%
check("m04.q4")

# %% [markdown]
# labkit knows these six rules by name, and one more. Here they are on the examples of section 4 of `docs/arithmetic.md`; the
# first two columns are yours.

# %%
rules = [rule for rule in RoundingRule if rule.name != "FLOAT32_TWICE"]  # a seventh, of oneDNN


def by_rule(a, M, rule):
    """round(M a) under one of the six rules: yours for SINGLE and GEMMLOWP, labkit's for the others."""
    if rule is RoundingRule.SINGLE:
        return round_single(a, *fixed_point(M))
    if rule is RoundingRule.GEMMLOWP:
        return round_gemmlowp(a, *fixed_point(M))
    multiplier = (
        FixedPointMultiplier.from_real(M) if rule.is_integer_only else np.asarray(M, np.float64)
    )
    if rule is RoundingRule.FLOAT32_EVEN:
        multiplier = multiplier.astype(np.float32)
    return scale_and_round(a, multiplier, rule)


examples = [
    (1 / 2, 1),
    (1 / 2, 5),
    (1 / 2, -1),
    (1 / 2, -3),
    (1 / 4, 1),
    (1 / 4, -2),
    (1 / 4, -6),
    (5 / 2**25, 2**24 + 1),
]
print(f"{'M a':>12}   " + "".join(f"{rule.name:>14}" for rule in rules))
for M_example, a in examples:
    row = [int(by_rule(np.array([a], np.int32), M_example, rule)[0]) for rule in rules]
    print(f"{M_example * a:>12.9g}   " + "".join(f"{value:>14}" for value in row))

# %% [markdown]
# All six give the nearest integer, except near a tie. One row is remarkable: $M a = 0.25$, exactly, and GEMMLOWP says 1.
# Rounding twice is not rounding once: 0.25 is half of a half, so $h = \mathrm{round}(0.5) = 1$ and then $\mathrm{round}(1/2)
# = 1$. In the last row it is float32 that forgets: $2^{24} + 1$ is no float32 number.
#
# Play with it. Filled points are integers that are *not* the nearest one; rings are ties, where rules may choose.


# %%
def draw_rule(rule, multiplier):
    """The integers that a rule gives for accumulators around 0."""
    top, bottom = (int(part) for part in multiplier.split("/"))
    reach = 4 * bottom // top
    a = np.arange(-reach, reach + 1).astype(np.int32)
    real = a * top / bottom
    given = by_rule(a, top / bottom, RoundingRule(rule))
    tie, far = np.abs(real - np.floor(real) - 0.5) < 1e-9, np.abs(given - real) > 0.5 + 1e-9
    _, place = plt.subplots(figsize=(7.5, 3.4))
    place.plot(a, real, color=GREY, label="M a")
    place.step(a, given, where="mid", color=BLUE, linewidth=1, label=f"rule {rule}")
    place.plot(
        a[tie],
        given[tie],
        "o",
        markerfacecolor="none",
        color=BLUE,
        markersize=9,
        label=f"ties ({tie.sum()})",
    )
    place.plot(a[far], given[far], "o", color=RED, label=f"not the nearest ({far.sum()})")
    place.set(title=f"{rule} with M = {multiplier}", xlabel="accumulator a", ylabel="round(M a)")
    place.legend(fontsize=9)
    plt.show()


play(
    draw_rule,
    stills=[{"rule": "gemmlowp", "multiplier": "1/4"}, {"rule": "dyadic", "multiplier": "1/2"}],
    rule=[rule.value for rule in rules],
    multiplier=["1/2", "1/4", "3/8", "1/8", "5/16", "1/16", "3/32"],
)

# %% [markdown]
# Does that ever happen in a network? Take the real accumulators of `fc1` and count where each rule differs from SINGLE: once
# with the real multipliers, once with multipliers rounded to the nearest power of two, so that ties occur.


# %%
def all_channels(multipliers, rule):
    """The accumulators of fc1, each channel times its multiplier, rounded by a rule."""
    return np.stack(
        [by_rule(accumulators[:, c], value, rule) for c, value in enumerate(multipliers)]
    )


groups = {"multipliers of the network": M, "powers of two": 2.0 ** np.round(np.log2(M))}
shares = {}
for name, multipliers in groups.items():
    single = all_channels(multipliers, RoundingRule.SINGLE)
    shares[name] = [100 * np.mean(all_channels(multipliers, rule) != single) for rule in rules[1:]]

figure, place = plt.subplots(figsize=(7.5, 3.6))
for at, (name, values) in enumerate(shares.items()):
    bars = place.bar(
        np.arange(len(values)) + 0.4 * at - 0.2, values, 0.38, color=(BLUE, ORANGE)[at], label=name
    )
    place.bar_label(bars, [f"{value:.3f}" if value else "0" for value in values], fontsize=9)
place.set_xticks(range(5), [rule.name for rule in rules[1:]], fontsize=8)
place.grid(axis="x", visible=False)
place.set(title="Integers of fc1 that differ from those of SINGLE", ylabel="share, in %")
place.legend()
plt.show()
print(f"2**e / 2 = {100 * np.mean(2.0 ** pairs[:, 1]) / 2:.2f} % on average over the channels")

# %% [markdown]
# With the network's own multipliers a tie practically never occurs, and the rules with one rounding agree. The double
# rounding shows all the same, in about $2^e / 2$ of all integers: one $h$ in $2^{-e}$ is a tie of the second step, and half
# of those were made one by the first. A test that shall tell rules apart needs multipliers that are powers of two.
#
# ### {{m04.e2}}

# %%
m04_e2 = """
### BEGIN SOLUTION
Neither is wrong: both compute integers only and round to nearest, by rules with different names. 0.6 % is far more than exact
ties give, which for ordinary scales occur once in some hundred thousand, so I suspect double rounding: GEMMLOWP on one phone
and SINGLE on the other differ in about 2**e / 2 of the integers. The second explanation is a rule that differs in ties only
(up, away from zero, to even), or a product in float32 with sums beyond 2**24. A test: give both one layer with M = 1/4 and
a = 1, where only double rounding gives 1, and M = 1/2 with a = 1, -1, 5, -3, where the treatment of ties shows.
### END SOLUTION
"""

# %%
check("m04.e2")

# %% [markdown]
# ## 4 Layers
#
# A fully connected layer is now three lines: the sums of eq. 7, the rounding of your choice, and the end of eq. 10: add
# $Z_y$, then clamp. The clamp does two jobs. It keeps the result on the grid, and with its lower end raised to $Z_y$ (real 0)
# it *is* the ReLU, for free.
#
# ### {{m04.q5}}
#
# Write the layer with the rule SINGLE. You may call your `round_single`, or labkit's `scale_and_round(sums,
# FixedPointMultiplier(mantissa, exponent), RoundingRule.SINGLE)`, which does the same.


# %%
def linear_layer(x, weight, bias, x_zero, mantissa, exponent, y_zero, low, high):
    """A fully connected layer in integers (eqs. 7 and 10), rounded by the rule SINGLE.

    x: uint8 array [N, I], x_zero its zero point
    weight: int8 array [O, I], its zero point is 0; bias: int32 array [O]
    mantissa, exponent: int32 arrays [O], one multiplier for each output
    y_zero: zero point of the output
    low, high: the lowest and highest integer that may come out, zero point included
    Returns an integer array [N, O].
    """
    ### BEGIN SOLUTION
    sums = (x.astype(np.int64) - x_zero) @ weight.T + bias
    rounded = round_single(sums, mantissa, exponent)
    return np.clip(rounded + y_zero, low, high)
    ### END SOLUTION


# %%
check("m04.q5")

# %% [markdown]
# A convolution is the same sum with a window that moves. The one thing that is new is **padding**. A padded pixel stands for
# real 0, and real 0 is the integer $Z_x$, not 0. What goes wrong otherwise is easy to see: a constant grey image, a kernel
# that takes the mean of 3 x 3 pixels.

# %%
grey = np.full((6, 6), 140)
for_zero = {"padded with Z_x = 128": 128, "padded with the integer 0": 0}
figure, axes = plt.subplots(1, 2, figsize=(7.5, 3))
for place, (name, filling) in zip(axes, for_zero.items(), strict=True):
    wide = np.pad(grey, 1, constant_values=filling) - 128
    mean = sum(wide[i : i + 6, j : j + 6] for i in range(3) for j in range(3)) / 9
    shown = place.imshow(mean, cmap="RdBu", vmin=-75, vmax=75)
    place.set_title(f"{name}\ncorner {mean[0, 0]:.1f}, middle {mean[3, 3]:.1f}", fontsize=10)
    place.axis("off")
figure.colorbar(shown, ax=axes, label="mean of 3 x 3, in steps", shrink=0.9)
plt.show()

# %% [markdown]
# With the integer 0 the border of a slightly bright image becomes very dark: the pixels outside were taken for the real
# number $-S_x Z_x$.
#
# ### {{m04.q6}}
#
# Write the sums of a convolution; requantization comes later. For images [N, C, H, W] and kernels [O, C, k_h, k_w],
#
# $$a_{n,o,i,j} = q_{\beta,o} + \sum_{c,u,v} w_{o,c,u,v} \cdot (q_x - Z_x)_{n,\,c,\;i s + u,\;j s + v}$$
#
# with the stride $s$, after `padding` pixels of real 0 were put around the image; the output has $\lfloor (H + 2p - k_h) / s
# \rfloor + 1$ rows. Six nested loops would be right, but LeNet would take minutes. Loop over $u$ and $v$ only: for each place
# in the kernel, a slice of the image with step $s$ meets one matrix [O, C], and `np.einsum("nchw,oc->nohw", ...)` multiplies
# them.


# %%
def conv_sums(x, weight, bias, x_zero, stride, padding):
    """The accumulators of a convolution (eq. 7).

    x: uint8 array [N, C, H, W], x_zero its zero point
    weight: int8 array [O, C, kH, kW], its zero point is 0; bias: int32 array [O]
    stride: 1 or more, padding: 0 or more pixels on each of the four sides, which stand for real 0
    Returns an integer array [N, O, H', W'].
    """
    ### BEGIN SOLUTION
    edges = (padding, padding)
    centred = np.pad(x.astype(np.int64) - x_zero, ((0, 0), (0, 0), edges, edges))
    outputs, _, kernel_h, kernel_w = weight.shape
    height = (centred.shape[2] - kernel_h) // stride + 1
    width = (centred.shape[3] - kernel_w) // stride + 1
    sums = np.zeros((len(x), outputs, height, width), np.int64) + bias[:, None, None]
    for u in range(kernel_h):
        for v in range(kernel_w):
            seen = centred[:, :, u : u + stride * height : stride, v : v + stride * width : stride]
            sums += np.einsum("nchw,oc->nohw", seen, weight[:, :, u, v])
    return sums
    ### END SOLUTION


# %%
check("m04.q6")

# %% [markdown]
# ## 5 A residual connection
#
# ResNets add the outputs of two branches, and each branch has its own scale. The authors of HAWQ-V3 warn that this is where
# simulated quantization and real integers part, because rounding is not linear:
#
# $$\mathrm{Int}(2.4 + 1.3) = 4 \qquad \text{but} \qquad \mathrm{Int}(2.4) + \mathrm{Int}(1.3) = 3$$
#
# In integers there are two ways to add. With $S_a / S_y = m_a / 2^s$ and $S_b / S_y = m_b / 2^s$ over one common power of
# two, *round once*:
#
# $$q_y = \mathrm{clamp}\Bigl( \bigl( (q_a - Z_a)\, m_a + (q_b - Z_b)\, m_b + 2^{s-1} \bigr) \gg s \;+\; Z_y \Bigr) \qquad
# \text{(eq. 19)}$$
#
# or *round each branch* and add the integers, as HAWQ-V3 does:
#
# $$q_y = \mathrm{clamp}\Bigl( \bigl((q_a - Z_a)\, m_a + 2^{s-1}\bigr) \gg s \;+\; \bigl((q_b - Z_b)\, m_b + 2^{s-1}\bigr) \gg
# s \;+\; Z_y \Bigr)$$
#
# (Each $\gg s$ belongs to the bracket before it.)
#
# ### {{m04.q7}}
#
# Return both, in this order.


# %%
def residual_add(a, b, a_zero, b_zero, m_a, m_b, shift, y_zero, low, high):
    """Two ways to add two branches: the sum rounded once (eq. 19), and each branch by itself; ties up.

    a, b: uint8 arrays of one shape, a_zero and b_zero their zero points
    m_a, m_b, shift: integers, S_a / S_y is m_a / 2**shift and S_b / S_y is m_b / 2**shift;
    0 < m_a, m_b < 2**31, 1 <= shift <= 62
    y_zero: zero point of the output; low, high: the clamp, applied once at the end, zero point included
    Returns (rounded once, each rounded), two integer arrays of the shape of a.
    """
    ### BEGIN SOLUTION
    left, right = (a.astype(np.int64) - a_zero) * m_a, (b.astype(np.int64) - b_zero) * m_b
    half = 1 << (shift - 1)
    once = (left + right + half) >> shift
    each = ((left + half) >> shift) + ((right + half) >> shift)
    return np.clip(once + y_zero, low, high), np.clip(each + y_zero, low, high)
    ### END SOLUTION


# %%
check("m04.q7")

# %% [markdown]
# How often do the two differ? Let the outputs of conv2 for two different images be the two branches, and take every pair of
# integers that occurs, once.

# %%
zero = int(net.graph["conv2"].output.quantized[1].zero_point)
occurring = np.unique(
    np.stack([trace["conv2"][:100].ravel(), trace["conv2"][100:].ravel()], axis=1), axis=0
)
branch_a, branch_b = occurring[(occurring != zero).all(axis=1)].T
ratios, shift = (0.618, 0.414), 30
m_a, m_b = (round(ratio * 2**shift) for ratio in ratios)
once, each = residual_add(branch_a, branch_b, zero, zero, m_a, m_b, shift, 0, 0, 255)
real = (branch_a.astype(int) - zero) * ratios[0] + (branch_b.astype(int) - zero) * ratios[1]
seen = real < 255  # beyond, the clamp decides

figure, place = plt.subplots(figsize=(7.5, 3.4))
bins = np.linspace(-1, 1, 81)
place.hist(
    (once - real)[seen],
    bins,
    density=True,
    histtype="step",
    color=BLUE,
    linewidth=2,
    label="rounded once",
)
place.hist(
    (each - real)[seen],
    bins,
    density=True,
    histtype="step",
    color=ORANGE,
    linewidth=2,
    label="each branch rounded",
)
place.set(
    title="Error of the sum of two branches",
    xlabel="error, in steps of the output",
    ylabel="density",
)
place.legend()
plt.show()
print(f"{100 * np.mean((once != each)[seen]):.1f} % of the integers differ (theory: a quarter)")
variances = [np.var((way - real)[seen]) for way in (once, each)]
print(
    f"variance of the error: {variances[0]:.4f} (1/12 = 0.0833) and {variances[1]:.4f} (1/6 = 0.1667)"
)

# %% [markdown]
# A box and a triangle: one rounding error is evenly spread over one step, the sum of two is not, and reaches a whole step. A
# quarter of all elements come out differently. Neither way is a mistake; to *mix them up* is one, for example by training
# with the first and shipping the second.
#
# ## 6 Half a byte a weight
#
# A 4-bit weight is still stored in int8, and half of the memory is air. Two share a byte: element $2i$ in the low four bits
# of byte $i$, element $2i + 1$ in the high four; if their number is odd, the last high half is 0. Negative numbers are kept
# in two's complement: the half-byte of $v$ is $v$ modulo 16.
#
# | integers | half-bytes | bytes |
# |---|---|---|
# | 1, -1, 7, -8, 3 | `1 f 7 8 3` | `f1 87 03` |
#
# ### {{m04.q8}}
#
# Write the packing. `&` with 15 keeps the low four bits, `<<` moves them up, `|` joins two halves.


# %%
def pack_int4(values):
    """Two integers to a byte, the low half first.

    values: int8 array of any shape, -8 to 7, taken in C order
    Returns a uint8 array [ceil(number of values / 2)].
    """
    ### BEGIN SOLUTION
    halves = np.zeros(values.size + values.size % 2, np.uint8)
    halves[: values.size] = values.ravel() & 15
    return halves[0::2] | halves[1::2] << 4
    ### END SOLUTION


# %%
check("m04.q8")

# %% [markdown]
# On the way back the sign must be found again: the half-bytes 8 to 15 stand for -8 to -1. There is a trick without a
# comparison, $(n \oplus 8) - 8$ with the exclusive or `^`; any other way is fine, too.
#
# ### {{m04.q9}}
#
# Write the way back, signs and all.


# %%
def unpack_int4(packed, count):
    """The integers that were packed two to a byte.

    packed: uint8 array [ceil(count / 2)]; count: how many integers there are
    Returns an integer array [count] of -8 to 7.
    """
    ### BEGIN SOLUTION
    halves = np.stack([packed & 15, packed >> 4], axis=1).ravel()[:count]
    return (halves.astype(np.int8) ^ 8) - 8
    ### END SOLUTION


# %%
check("m04.q9")

# %%
small = labkit.quantize(module, data.calibration(256), weights=4, activations=8)
four_bit = {node.name: node.op.weight.values for node in small.graph if hasattr(node.op, "weight")}
for name, values in four_bit.items():
    packed = pack_int4(values)
    back = unpack_int4(packed, values.size).reshape(values.shape)
    same = np.array_equal(back, values)
    sizes = f"{values.size:>7,} weights in {packed.size:>7,} bytes"
    print(f"{name:<5} {sizes}, the same after unpacking: {same}")

# %% [markdown]
# ## 7 Your functions in the engine
#
# A `KernelSet` names the function that computes each operation of a network, and `with_override` puts yours in its place. The
# engine hands over a requantizer, in which mantissas, exponents, $Z_y$ and the clamp are kept; two adapters take it apart.


# %%
def my_conv2d(
    x,
    weight,
    bias,
    *,
    input_zero_point,
    weight_zero_point,
    requantizer,
    stride,
    padding,
    dilation,
    groups,
):
    """labkit's conv2d by conv_sums and round_single; one stride, one padding, one group."""
    assert dilation == (1, 1) and groups == 1 and not np.any(weight_zero_point)
    sums = conv_sums(x, weight, bias, input_zero_point, stride[0], padding[0][0])
    multiplier = requantizer.multiplier
    channels_last = sums.transpose(0, 2, 3, 1)  # so that the channels are the columns
    scaled = round_single(channels_last, multiplier.mantissa, multiplier.exponent).transpose(
        0, 3, 1, 2
    )
    return np.clip(scaled + requantizer.zero_point, *requantizer.clamp)


def my_linear(x, weight, bias, *, input_zero_point, weight_zero_point, requantizer):
    """labkit's linear by linear_layer."""
    assert not np.any(weight_zero_point)
    m, e = requantizer.multiplier.mantissa, requantizer.multiplier.exponent
    return linear_layer(
        x, weight, bias, input_zero_point, m, e, requantizer.zero_point, *requantizer.clamp
    )


mine = REFERENCE.with_override("conv2d", my_conv2d).with_override("linear", my_linear)
theirs, yours = net.trace(x[:50]), net.trace(x[:50], kernels=mine)
for node in net.graph:
    same = np.array_equal(theirs[node.name], yours[node.name])
    verdict = "all the same" if same else "NOT the same"
    print(f"{node.name:<12} {theirs[node.name].size:>9,} numbers, {verdict}")
    assert same

# %% [markdown]
# That is the certificate: not close, the same. And what would another rounding rule have cost? Below, the last network rounds
# its fully connected layers by your GEMMLOWP where labkit rounds by SINGLE.


# %%
def their_linear(x, weight, bias, *, input_zero_point, weight_zero_point, requantizer):
    """A fully connected layer that rounds by your round_gemmlowp."""
    sums = (x.astype(int) - input_zero_point).dot(weight.T.astype(int)) + bias
    m, e = requantizer.multiplier.mantissa, requantizer.multiplier.exponent
    return np.clip(round_gemmlowp(sums, m, e) + requantizer.zero_point, *requantizer.clamp)


other_rule = mine.with_override("linear", their_linear)
show_accuracy(
    {
        "float": lambda images: module(torch.from_numpy(images)),
        "labkit": net.run,
        "yours": lambda images: net.run(images, kernels=mine),
        "yours, GEMMLOWP in linear layers": lambda images: net.run(images, kernels=other_rule),
    },
    data,
)

# %% [markdown]
# Two rules, the same accuracy, other integers. This is why a certificate must name its rounding rule, and why accuracy alone
# proves nothing.
#
# **Try it:** let `conv_sums` pad with the integer 0 and run the section again. What happens to the certificate? (Look at
# LeNet's padding first.)
#
# ## 8 Challenge: how fast can it be?
#
# NumPy walks through memory once for every one of the kernel's places. Numba compiles Python loops to machine code, so that
# an accumulator can stay in a register while its products are added.
#
# ### {{m04.c1}}
#
# Write a whole layer as loops in the subset of Python that Numba compiles: sums, SINGLE, zero point, clamp. No stride, no
# padding. First make it right (`check`), then make it fast: the order of the loops decides. Numba knows `np.empty`, `range`,
# `min` and `max`; integers are int64 by themselves, but a uint8 pixel should become `np.int64(...)` or `np.int32(...)` before
# you subtract.

# %%
from numba import njit


@njit
def fast_conv2d(x, weight, bias, x_zero, mantissa, exponent, y_zero, low, high):
    """A convolution with stride 1 and no padding, requantized by the rule SINGLE (eqs. 7, 10 and 13).

    x: uint8 array [N, C, H, W], x_zero its zero point
    weight: int8 array [O, C, kH, kW], its zero point is 0; bias: int32 array [O]
    mantissa, exponent: int32 arrays [O]; y_zero: zero point of the output
    low, high: the clamp, zero point included
    Returns an integer array [N, O, H - kH + 1, W - kW + 1].
    """
    ### BEGIN SOLUTION
    images, channels, image_h, image_w = x.shape
    outputs, _, kernel_h, kernel_w = weight.shape
    height, width = image_h - kernel_h + 1, image_w - kernel_w + 1
    y = np.empty((images, outputs, height, width), np.int32)
    sums = np.empty(width, np.int32)
    for n in range(images):
        for o in range(outputs):
            shift = 31 - exponent[o]
            half = np.int64(1) << (shift - 1)
            for i in range(height):
                sums[:] = bias[o]
                for c in range(channels):
                    for u in range(kernel_h):
                        for v in range(kernel_w):
                            w = np.int32(weight[o, c, u, v])
                            for j in range(width):
                                sums[j] += w * (np.int32(x[n, c, i + u, j + v]) - np.int32(x_zero))
                for j in range(width):
                    scaled = (np.int64(sums[j]) * mantissa[o] + half) >> shift
                    y[n, o, i, j] = min(max(scaled + y_zero, low), high)
    return y
    ### END SOLUTION


# %%
check("m04.c1")

# %% [markdown]
# Timing has rules, too. Compare in *pairs*, one run of each in turn, so that a busy computer slows both alike; report the
# median of the ratios; and refuse to time a wrong answer. labkit's side of the pair is conv1 with its ReLU as a network of
# its own, compiled; it also quantizes the image and turns the result back into real numbers, which yours need not.

# %%
import time


def median_ratio(first, second, rounds=15):
    """The median of the first function's time over the second's, run in turns."""
    ratios = []
    for turn in range(rounds):
        spent = {}
        for function in (first, second) if turn % 2 else (second, first):
            begun = time.perf_counter()
            function()
            spent[function] = time.perf_counter() - begun
        ratios.append(spent[first] / spent[second])
    return float(np.median(ratios))


alone = labkit.quantize(torch.nn.Sequential(module.conv1, module.relu1), data.calibration(64))
[conv] = [node for node in alone.graph if hasattr(node.op, "weight")]
source = next(node for node in alone.graph if node.name == conv.inputs[0])
picture = alone.trace(x[:8])
multiplier, requantizer = conv.op.requantizer.multiplier, conv.op.requantizer
arguments = (
    picture[source.name],
    conv.op.weight.values,
    conv.op.bias,
    int(source.output.quantized[1].zero_point),
    multiplier.mantissa,
    multiplier.exponent,
    requantizer.zero_point,
    *requantizer.clamp,
)
if np.array_equal(fast_conv2d(*arguments), picture[conv.name]):
    numpy_way = median_ratio(
        lambda: alone.run(x[:8], kernels="reference"), lambda: fast_conv2d(*arguments)
    )
    labkit_way = median_ratio(lambda: fast_conv2d(*arguments), lambda: alone.run(x[:8]))
    print(f"your kernel is {numpy_way:.1f} times as fast as labkit's NumPy tier")
    print(f"and takes {labkit_way:.1f} times as long as its compiled one")
else:
    print("Your kernel gives other integers than labkit. A wrong answer is not timed.")

# %% [markdown]
# labkit's compiled tier keeps a tile of outputs in vector registers and multiplies pairs of int16 in one instruction;
# `docs/kernels.md` tells how.
#
# ## What to take away
#
# - Integers are exact, so "the same" is a meaningful word. The price is to say everything: bound, multiplier, rule, clamp,
#   order of clamp and zero point.
# - 32 bits of accumulator are enough for every network of this course, and eq. 9 proves it for yours.
# - "Round to nearest" is not a definition. There are six of them on the market, and they show in ties and in double rounding.
#
# **Read on:** `docs/arithmetic.md`, sections 2 to 6; B. Jacob et al., *Quantization and Training of Neural Networks for
# Efficient Integer-Arithmetic-Only Inference*, CVPR 2018; Z. Yao et al., *HAWQ-V3: Dyadic Neural Network Quantization*, ICML
# 2021.
