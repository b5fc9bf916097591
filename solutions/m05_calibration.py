# %% [markdown]
# # {{m05}}
#
# Weights are known before a network runs. Activations are not: every new image makes new ones, and yet their scale has
# to be fixed in advance. So we look at some images, watch what flows through the network, and decide **how far the
# ruler shall reach**. That is *calibration*, and you may be surprised by how many respectable methods disagree about
# it.
#
# **You will be able to**
#
# - keep a moving average of ranges, and say why its start matters;
# - collect a histogram of magnitudes and take a percentile from it;
# - split the error of a threshold into clipping and rounding, and find the best trade between the two;
# - calibrate by KL divergence as in the lab's figure 5, step by step, and explain why four tools that do "the same"
#   differ;
# - calibrate LeNet with a function of your own and run it in integers.

# %%
import labkit
import matplotlib.pyplot as plt
import numpy as np
from labkit.course import check
from labkit.course.look import BLUE, GREEN, GREY, ORANGE, RED, play, use_look

use_look()
data = labkit.data.load("auto")
module = labkit.models.load("lenet", data=data.name)
print(data.reason)

# %% [markdown]
# ## 1 Watching activations
#
# A layer's integers are multiplied by $M = S_w S_x / S_y$ to become the next layer's integers (eq. 10; on the HAWQ
# slides it is $\text{Round}(\frac{S_x S_w}{S_y} y^{i32})$ in "Closer look at one layer"). $S_w$ comes from the weights.
# $S_x$ and $S_y$ are what calibration has to supply: one real number a tensor.
#
# In this module every grid is **symmetric** as in the lab: $n = 2^{b-1} - 1$ positive integers, and a **threshold** $T$
# that falls on the largest of them, so $S = T / n$ (eq. 4). Whatever lies beyond $T$ is clipped. So calibration means:
# choose $T$.
#
# `calibrate` runs the float network on a few hundred training images and counts what it sees.

# %%
from labkit.frontends.float_run import run_float
from labkit.frontends.torch_fx import from_torch
from labkit.graph.passes import simplify
from labkit.quantization.calibration import calibrate

graph = simplify(from_torch(module, (3, 32, 32)))
images = data.calibration(512)
seen = calibrate(graph, images, histograms=True)
print(seen)

# %%
LAYERS = {"conv1": BLUE, "conv2": GREEN, "fc1": ORANGE, "fc2": RED}  # each with its ReLU
values = run_float(graph, {graph.inputs[0]: images[:64]})

figure, axes = plt.subplots(1, 4, figsize=(11, 2.9))
for place, (name, colour) in zip(axes, LAYERS.items(), strict=True):
    x = values[name].ravel()
    place.hist(x, bins=60, color=colour)
    place.set(
        yscale="log", xlabel="activation", title=f"{name}: {100 * np.mean(x == 0):.0f} % zeros"
    )
    place.title.set_fontsize(10)
axes[0].set_ylabel("count (log scale)")
figure.suptitle("Activations after the ReLU, 64 images")
plt.show()

# %% [markdown]
# Look at the tails. The largest value stands alone, far from everybody else, and min-max calibration stretches the
# ruler up to it: most integers then wait for values that hardly ever come. Also note the spike at 0. It will play a
# villain later on. (With the digits, conv1 has a second spike: their background is the same everywhere, and so is what
# a filter makes of it.)
#
# ## 2 A ruler that follows slowly
#
# Jacob et al. collect ranges *during training*, batch by batch, and average them with weights that fall off into the
# past (the lab's section V.E (b), "learning quantization ranges"). With a momentum $\alpha$ close to 1, and the ends
# $m_t$ of batch $t$,
#
# $$\bar m_1 = m_1, \qquad \bar m_t = \alpha\, \bar m_{t-1} + (1 - \alpha)\, m_t .$$
#
# The first equation is easily forgotten. Without it the average climbs up from 0.
#
# ### {{m05.q1}}
#
# The smallest and the largest value of each batch are averaged separately, both by the formula above.


# %%
def ema_range(batches, momentum):
    """Moving averages of the batches' smallest and largest values.

    batches: list of one or more float32 arrays of any shapes, none of them empty
    momentum: in [0, 1), the weight of the average so far; the first batch is the average's start
    Returns (low, high), two real numbers.
    """
    ### BEGIN SOLUTION
    low, high = batches[0].min(), batches[0].max()
    for batch in batches[1:]:
        low = momentum * low + (1 - momentum) * batch.min()
        high = momentum * high + (1 - momentum) * batch.max()
    return low, high
    ### END SOLUTION


# %%
check("m05.q1")

# %% [markdown]
# Here it is at work on the output of conv1, in batches of 8 images.

# %%
batches = [values["conv1"][k : k + 8] for k in range(0, 64, 8)]
highs = [batch.max() for batch in batches]
steps = np.arange(1, len(batches) + 1)
figure, place = plt.subplots(figsize=(6.5, 3.2))
place.plot(steps, highs, "o", color=GREY, label="largest value of the batch")
place.plot(
    steps,
    np.maximum.accumulate(highs),
    color=RED,
    linestyle="--",
    label="largest value so far (min-max)",
)
for momentum, colour in ((0.9, BLUE), (0.5, GREEN)):
    place.plot(
        steps,
        [ema_range(batches[:k], momentum)[1] for k in steps],
        color=colour,
        label=f"average, momentum {momentum}",
    )
place.set(
    xlabel="batches seen",
    ylabel="high end of conv1's range",
    title="Averages forget; the maximum never does",
)
place.legend(fontsize=8)
plt.show()

# %% [markdown]
# The moving average ends *below* the largest value seen: it clips, without anybody having decided how much.
#
# ## 3 Counting instead of remembering
#
# To decide deliberately, we need to know how many values lie where. Keeping all activations of 512 images takes
# gigabytes for a large network; a histogram takes a few kilobytes. With a symmetric grid only magnitudes matter.
#
# ### {{m05.q2}}
#
# Divide the interval from 0 to $\max|x|$ into `bins` bins of equal width and count. Bin $k$ holds
# $k w \le |x| < (k + 1) w$; the largest magnitude itself lies on the outer edge of the last bin and belongs to that
# bin.


# %%
def magnitude_histogram(x, bins):
    """How many magnitudes of x lie in each of so many equal bins from 0 to the largest one.

    x: float32 array of any shape, not all zeros; bins: 1 or more
    Returns (counts, width): integers [bins], which add up to the number of values, and the width
        of a bin, a real number.
    """
    ### BEGIN SOLUTION
    magnitudes = np.abs(x)
    largest = magnitudes.max()
    counts, _ = np.histogram(magnitudes, bins, range=(0, largest))
    return counts, largest / bins
    ### END SOLUTION


# %%
check("m05.q2")

# %% [markdown]
# ### {{m05.q3}}
#
# The plainest deliberate threshold: keep a fixed **share** of the values, 99.9 % say, and cut off the rest. From a
# histogram we can only say it to the precision of one bin: return the *outer edge* of the first bin with which the
# share is reached, so that the promise holds. Add counts up and not shares: whole numbers add up exactly, while ten times
# 0.1 is not quite 1.


# %%
def percentile_threshold(counts, width, share):
    """The outer edge of the first bin k for which bins 0 to k hold the wanted share or more.

    counts: int64 [bins], not all zeros; width: of a bin, real; share: more than 0, at most 1
    Returns a real number, a multiple of width.
    """
    ### BEGIN SOLUTION
    within = np.cumsum(counts)
    return (np.argmax(within >= share * within[-1]) + 1) * width
    ### END SOLUTION


# %%
check("m05.q3")

# %%
counts, width = magnitude_histogram(values["conv1"], 2048)
print(
    "conv1:",
    " ".join(
        f"{100 * s:g} %: {percentile_threshold(counts, width, s):.2f} "
        for s in (0.99, 0.999, 0.9999, 1.0)
    ),
)

# %% [markdown]
# The last per cent of the values takes up more than half of the ruler. But is 99 % right, or 99.99 %? No percentile can
# know: it does not look at the number of bits.
#
# ## 4 Clipping against rounding
#
# A narrow range clips much and rounds finely; a wide one clips nothing and rounds coarsely. The mean squared error is
# the sum of both:
#
# $$\frac1N \sum_x \bigl(x - S\,q(x)\bigr)^2 \;=\; \underbrace{\frac1N \sum_{|x| > T} (\ldots)^2}_{\text{clipping}} \;+\;
# \underbrace{\frac1N \sum_{|x| \le T} (\ldots)^2}_{\text{rounding}},
# \qquad q(x) = \mathrm{clip}\bigl(\mathrm{RNE}(x / S),\, -n,\, n\bigr), \quad S = T / n .$$
#
# ### {{m05.q4}}


# %%
def split_error(x, threshold, bits):
    """The mean squared error of a symmetric grid: what clipping makes, and what rounding makes.

    x: float32 array of any shape; threshold: T > 0, falls on the integer n = 2**(bits - 1) - 1;
        bits: 2 to 8
    Rounding is to the nearest integer, ties to even. Values with |x| > T are the clipped ones.
    Returns (clipping, rounding), real numbers; both sums of squares are divided by the number of
        all values of x.
    """
    ### BEGIN SOLUTION
    n = 2 ** (bits - 1) - 1
    step = threshold / n
    q = np.clip(np.rint(x / step), -n, n)
    squares = (x - step * q) ** 2
    clipped = np.abs(x) > threshold
    return np.sum(squares[clipped]) / x.size, np.sum(squares[~clipped]) / x.size
    ### END SOLUTION


# %%
check("m05.q4")

# %% [markdown]
# ### Play with the threshold
#
# Below, the ruler for the output of conv1. Move the threshold and watch the two errors work against each other; then
# change the bits. **Where is the lowest point at 8 bits, and where at 3?** (Without sliders you see three settings.)

# %%
sample = np.random.default_rng(0).choice(values["conv1"].ravel(), 20_000, replace=False)
top = float(np.abs(values["conv1"]).max())
shares = np.arange(4, 101, 4)
curves = {}


def draw(percent_of_the_range, bits):
    if bits not in curves:
        curves[bits] = np.array([split_error(sample, top * share / 100, bits) for share in shares])
    clipping, rounding = curves[bits].T
    threshold = top * percent_of_the_range / 100
    n = 2 ** (bits - 1) - 1
    _, (left, right) = plt.subplots(1, 2, figsize=(10, 3.3))
    left.hist(sample, bins=80, color=BLUE)
    for k in range(n + 1) if bits <= 5 else ():
        left.axvline(threshold * k / n, color=ORANGE, linewidth=0.8)
    left.axvspan(threshold, max(top, threshold), color=RED, alpha=0.12, label="clipped")
    left.axvline(threshold, color=RED, label=f"T = {threshold:.2f}")
    left.set(
        yscale="log",
        xlabel="activation of conv1",
        ylabel="count (log scale)",
        title=f"The grid of {bits} bits",
    )
    left.legend(fontsize=8)
    right.plot(top * shares / 100, clipping, color=RED, label="clipping")
    right.plot(top * shares / 100, rounding, color=ORANGE, label="rounding")
    right.plot(top * shares / 100, clipping + rounding, color="black", label="both")
    right.axvline(threshold, color=RED, linewidth=1)
    floor = max((clipping + rounding).min() / 30, 1e-9)
    right.set(yscale="log", ylim=(floor, None), xlabel="threshold T", ylabel="mean squared error")
    right.set_title(f"Error at T: {sum(split_error(sample, threshold, bits)):.2g}")
    right.legend(fontsize=8)
    plt.show()


play(
    draw,
    stills=[
        {"percent_of_the_range": 100, "bits": 4},
        {"percent_of_the_range": 60, "bits": 4},
        {"percent_of_the_range": 100, "bits": 8},
    ],
    percent_of_the_range=range(4, 101, 4),
    bits=(2, 3, 4, 5, 6, 8),
)

# %% [markdown]
# ### {{m05.q5}}
#
# Let the computer move the slider. The candidates are the whole range $\max|x|$ shortened by 0, 1, 2, ... whole per
# cents of itself: $T_k = \max|x| \cdot (1 - k / 100)$ for $k = 0, \ldots, \text{steps} - 1$. BRECQ searches like this
# with 80 steps.


# %%
def best_threshold(x, bits, steps):
    """The candidate threshold with the least mean squared error, clipping and rounding together.

    x: float32 array of any shape, not all zeros; bits: 2 to 8; steps: how many candidates, 1 to 100
    Returns a real number; no two candidates are equally good.
    """
    ### BEGIN SOLUTION
    candidates = np.abs(x).max() * (1 - np.arange(steps) / 100)
    errors = [sum(split_error(x, threshold, bits)) for threshold in candidates]
    return candidates[np.argmin(errors)]
    ### END SOLUTION


# %%
check("m05.q5")

# %%
widths = (2, 3, 4, 5, 6, 7, 8)
figure, place = plt.subplots(figsize=(6.5, 3.3))
for name, colour in LAYERS.items():
    some = np.random.default_rng(1).choice(values[name].ravel(), 10_000)
    shares_kept = [100 * best_threshold(some, bits, 95) / np.abs(some).max() for bits in widths]
    place.plot(widths, shares_kept, "o-", color=colour, label=name)
place.set(xlabel="bits", ylabel="best threshold, % of the largest", ylim=(0, 105))
place.set_title("The fewer the bits, the more is worth cutting off")
place.legend(fontsize=8)
plt.show()

# %% [markdown]
# ## 5 Another idea: keep the distribution
#
# Is a squared error what matters? Migacz (the lab's [2]) argued differently: clipping and rounding turn the
# distribution $P$ of a tensor into another one, $Q$. Take the threshold for which $Q$ tells us least wrongly about $P$,
# measured by the **Kullback-Leibler divergence**
#
# $$\mathrm{KL}(P \,\|\, Q) = \sum_k P_k \ln \frac{P_k}{Q_k} .$$
#
# That needs a $Q$. The lab's figure 5 makes it from the histogram alone: merge the bins into as many groups as the grid
# has levels, then expand again, sharing each group's sum among those of its bins that were not empty. Its example, with
# 8 bins and 2 levels:
#
# | | | | | | | | | |
# |---|---|---|---|---|---|---|---|---|
# | $P$ | 1 | 0 | 2 | 3 | 5 | 3 | 1 | 7 |
# | merged | 6 | | | | 16 | | | |
# | $Q$ | 6/3 | 0 | 6/3 | 6/3 | 16/4 | 16/4 | 16/4 | 16/4 |
#
# ### {{m05.q6}}
#
# Every group has $\lfloor \text{bins} / \text{levels} \rfloor$ bins; what is left over at the end belongs to the last
# group.


# %%
def merge_and_expand(counts, levels):
    """The histogram as a grid of so many levels would tell it.

    counts: int64 [bins]; levels: 1 to bins. Groups have bins // levels bins each, and the last
        one takes the remainder.
    Returns real numbers [bins]: each group's sum, in equal shares for those of its bins that are
        not empty; 0 for empty bins.
    """
    ### BEGIN SOLUTION
    size = len(counts) // levels
    expanded = np.empty(len(counts))
    for level in range(levels):
        start = level * size
        end = len(counts) if level == levels - 1 else start + size
        filled = counts[start:end] > 0
        expanded[start:end] = filled * np.sum(counts[start:end]) / max(np.sum(filled), 1)
    return expanded
    ### END SOLUTION


# %%
check("m05.q6")

# %% [markdown]
# ### {{m05.q7}}
#
# Both are divided by their sums first. A term with $P_k = 0$ is 0, whatever $Q_k$ is. A term with $P_k > 0$ and
# $Q_k = 0$ is infinite, and so is the sum: $Q$ calls impossible what has happened. (Tools disagree exactly here. This
# is the slides' formula, taken at its word.)


# %%
def kl_divergence(p, q):
    """KL(P || Q) in nats, of two histograms.

    p, q: non-negative arrays of one length, integers or real numbers, neither all zeros; not
        normalised yet
    Returns a real number, float("inf") where some q is 0 and its p is not.
    """
    ### BEGIN SOLUTION
    present = p > 0
    if np.any(q[present] == 0):
        return float("inf")
    shares = p[present] / np.sum(p)
    return np.sum(shares * np.log(shares / (q[present] / np.sum(q))))
    ### END SOLUTION


# %%
check("m05.q7")

# %%
example = np.array([1, 0, 2, 3, 5, 3, 1, 7])
figure, axes = plt.subplots(1, 3, figsize=(10, 2.8), sharey=True)
for place, levels in zip(axes, (2, 4, 8), strict=True):
    expanded = merge_and_expand(example, levels)
    place.bar(np.arange(8) - 0.2, example, 0.4, color=BLUE, label="P")
    place.bar(np.arange(8) + 0.2, expanded, 0.4, color=ORANGE, label="Q")
    place.set(xlabel="bin", title=f"{levels} levels: {kl_divergence(example, expanded):.4f} nats")
    for border in range(0, 8, 8 // levels):
        place.axvline(border - 0.5, color=GREY, linewidth=1)
axes[0].set_ylabel("count")
axes[0].legend(fontsize=8, loc="upper left")
figure.suptitle("The lab's example: fewer levels say less about P")
plt.show()

# %% [markdown]
# ### {{m05.q8}}
#
# Now a candidate range that ends after bin $i - 1$:
#
# - $P$ is what the layer will see after clipping: the bins $0 \ldots i - 1$, with **all counts beyond them (the
#   outliers) added to bin** $i - 1$;
# - $Q$ is what the grid can tell: the bins $0 \ldots i - 1$ **without the outliers**, merged and expanded.
#
# The outliers are in $P$ and not in $Q$. That difference is the price of clipping. You may call the functions that you
# have written (when this is graded, labkit's own of the same names stand by).


# %%
def candidate_divergence(counts, i, levels):
    """KL(P || Q) for the range that ends after bin i - 1.

    counts: int64 [bins]; i: levels to bins; levels: of the grid
    Returns a real number or infinity. counts is not changed.
    """
    ### BEGIN SOLUTION
    p = counts[:i].copy()
    p[-1] += np.sum(counts[i:])
    return kl_divergence(p, merge_and_expand(counts[:i], levels))
    ### END SOLUTION


# %%
check("m05.q8")

# %% [markdown]
# ### {{m05.q9}}
#
# The loop of the slides: try every $i = \text{start}, \ldots, B - 1$ (they take 128 to 2047), and put the threshold
# into the middle of bin $i$ for the best: $T = (i + \tfrac12) w$. What they leave open: if **every** candidate is
# infinite, nothing should be clipped, $T = B w$.


# %%
def kl_threshold(counts, width, levels, start):
    """The KL threshold as on the slides.

    counts: int64 [B]; width: of a bin, real; levels: of the grid; start: the first i to try,
        levels to B - 1
    Returns (i + 0.5) * width for the i in start..B - 1 of least divergence, or B * width where
        all are infinite.
    """
    ### BEGIN SOLUTION
    divergences = [candidate_divergence(counts, i, levels) for i in range(start, len(counts))]
    if np.isinf(np.min(divergences)):
        return len(counts) * width
    return (start + np.argmin(divergences) + 0.5) * width
    ### END SOLUTION


# %%
check("m05.q9")

# %% [markdown]
# ### {{m05.e1}}

# %%
m05_e1 = """
### BEGIN SOLUTION
Only in bin i - 1: if it was empty, Q is 0 there, but P holds the outliers. In all other bins Q is 0 only where P is 0,
too. (a) Infinite refuses this candidate, and the search goes on with its neighbours. (b) Skipping leaves the outliers out
of the sum, so the candidate looks much better than it is, and the search clips for free. (c) A tiny number makes it
expensive: P ln(P/eps). How expensive depends on eps, so tools with 1e-4 and 1e-30 choose differently.
### END SOLUTION
"""

# %%
check("m05.e1")

# %% [markdown]
# ## 6 Four tools, one name
#
# "Entropy calibration" is in every quantization tool. labkit has re-implemented four from their sources, differences
# included (docs/calibration-and-rounding.md; the files are in labkit/quantization/clipping):
#
# | | slides (`tensorrt`) | NVIDIA toolkit | onnxruntime | PPQ |
# |---|---|---|---|---|
# | histogram | magnitudes | magnitudes, **bin 0 := bin 1** | **both signs** | magnitudes, **first 0.2 % emptied** |
# | groups | equal, the last takes the rest | even, to one bin | the rest is merged, never expanded | multiples of `levels` only |
# | candidates | start ... B - 1 | start ... **B** | levels/2 ... B/2 each side | levels, 2 levels, ... |
# | Q = 0 < P | open (here: refused) | infinite | both smoothed by **1e-4** | Q counts as **1e-30** |
# | threshold | **(i + 1/2) w** | i w | an edge | i w |
# | of equals | the first | **the last** | the first | the first |
#
# Which of these matters? Let them all look at the same activations.

# %%
from labkit.arithmetic.affine import QuantSpec
from labkit.quantization.clipping.kl import VARIANTS, kl_curve, kl_range

TOOLS = dict(zip(VARIANTS, (RED, BLUE, GREEN, ORANGE), strict=True))
grid = QuantSpec(4, narrow=True)
figure, axes = plt.subplots(2, 2, figsize=(10, 5.6))
for place, name in zip(axes.flat, LAYERS, strict=True):
    histogram = seen.histograms[name].coarsened(512)
    magnitudes = histogram.magnitudes()
    place.fill_between(
        np.arange(len(magnitudes)) * histogram.width,
        magnitudes,
        0.5,
        step="post",
        color=GREY,
        alpha=0.5,
    )
    for tool, colour in TOOLS.items():
        threshold = kl_range(seen.histograms[name], grid, tool)[1]
        place.axvline(threshold, color=colour, linewidth=2, label=f"{tool}: {threshold:.2f}")
    place.set(
        yscale="log",
        ylim=(0.7, None),
        xlabel=f"magnitude after {name} and ReLU",
        ylabel="count (log scale)",
    )
    place.legend(fontsize=8, title="KL threshold, 4 bits", title_fontsize=8)
figure.suptitle("Four searches called entropy calibration, the same activations")
plt.show()

# %%
figure, axes = plt.subplots(1, 2, figsize=(10, 3.4))
for place, bits in zip(axes, (8, 4), strict=True):
    for tool, colour in TOOLS.items():
        curve = kl_curve(seen.histograms["conv1"], QuantSpec(bits, narrow=True), tool)
        finite = np.isfinite(curve.divergence)
        low, high = curve.divergence[finite].min(), curve.divergence[finite].max()
        place.plot(
            curve.high[finite],
            (curve.divergence[finite] - low) / (high - low),
            color=colour,
            label=tool,
            linewidth=1,
        )
        place.plot(curve.chosen[1], 0, "v", color=colour, markersize=9, clip_on=False)
    place.set(xlabel="threshold", title=f"conv1, {bits} bits", ylim=(0, 0.6))
axes[0].set_ylabel("divergence, lowest 0, highest 1")
axes[0].legend(fontsize=8)
figure.suptitle("Each tool's own divergence; the triangle is what it chooses")
plt.show()

# %% [markdown]
# The slides' loop goes far to the left of the others. On its curve at 8 bits there are cliffs: they come wherever
# $\lfloor i / \text{levels} \rfloor$ jumps, because then all groups get one bin more. Your own function can show what
# the spike of zeros has to do with it: the same histogram, with the zeros in it and without. (PPQ at 4 bits also likes
# to end next to 0, where all of P sits in its last bin and nothing seems lost. `kl_range`, which drew the lines above,
# passes over ranges that cut off more than half of the values that are not 0; the curves show what each tool would do
# by itself. With the digits, see also where the toolkit ends at 8 bits: at their second spike.)

# %%
coarse = seen.histograms["conv1"].coarsened(512)
with_zeros = coarse.magnitudes()
without = with_zeros.copy()
without[0] -= coarse.zeros
for title, histogram in (("with the zeros", with_zeros), ("without the zeros", without)):
    print(f"{title:<18} T = {kl_threshold(histogram, coarse.width, levels=8, start=32):.2f}")

# %% [markdown]
# ### {{m05.e2}}

# %%
m05_e2 = """
### BEGIN SOLUTION
The first group's sum, zeros included, is spread evenly over all of its bins. So Q has too few zeros in bin 0 and far too
much in the bins beside it, and as zeros are the most frequent value this one group dominates the divergence. A smaller i
means smaller groups (i // levels bins); with one bin in the first group the spike is exact. The search therefore pays any
amount of clipping for a narrow first group. But real 0 is exactly an integer on every grid, so zeros never have an error
and the threshold does not matter to them. A tool may leave them out.
### END SOLUTION
"""

# %%
check("m05.e2")

# %% [markdown]
# ### {{m05.c1}}
#
# For those who want it: the search of NVIDIA's toolkit, which mends the slides' loop. In this order:
#
# - bin 0 is given the count of bin 1 (in a copy; the caller's histogram stays as it is);
# - every $i = \text{start}, \ldots, B$ is tried, the whole range included;
# - $P$ is as before; for $Q$, bin $j$ belongs to group $\lfloor j \cdot \text{levels} / i \rfloor$, so that groups
#   differ by at most one bin;
# - the threshold is the edge $i w$ of the least divergence.


# %%
def toolkit_threshold(counts, width, levels, start):
    """The KL threshold as NVIDIA's pytorch-quantization finds it.

    counts: int64 [B]; width: of a bin, real; levels: of the grid; start: the first i to try,
        levels to B
    Returns i * width for the i in start..B of least divergence; no two candidates are equally good.
    """
    ### BEGIN SOLUTION
    bins = counts.copy()
    bins[0] = bins[1]
    divergences = []
    for i in range(start, len(bins) + 1):
        group = np.arange(i) * levels // i
        sums = np.bincount(group, bins[:i])
        filled = np.bincount(group, bins[:i] > 0)
        q = (bins[:i] > 0) * sums[group] / np.maximum(filled[group], 1)
        p = bins[:i].copy()
        p[-1] += np.sum(bins[i:])
        divergences.append(kl_divergence(p, q))
    return (start + np.argmin(divergences)) * width
    ### END SOLUTION


# %%
check("m05.c1")

# %% [markdown]
# ## 7 Your thresholds in the engine
#
# Now the real thing: your functions choose the thresholds of LeNet's four inner activations, labkit's pipeline turns
# network and thresholds into integers, and the integer engine counts how many test images come out right. Weights have
# 8 bits; input and logits keep their whole range at 8 bits, as the tools do; symmetric grids as in the lab.

# %%
from dataclasses import replace

from labkit.course.showcase import show_accuracy
from labkit.net import IntegerNet
from labkit.quantization.convert import convert
from labkit.quantization.plan import BitPlan


def integer_net(ranges, bits):
    """LeNet in integers: the (low, high) of some activations, and the bits of the inner ones."""
    plan = BitPlan.uniform(graph, weights=8, activations=bits, activation_scheme="symmetric")
    return IntegerNet(
        convert(graph, replace(seen, ranges={**seen.ranges, **ranges}), plan, {"ranges": "mine"})
    )


def by_squares(name, bits):
    some = np.random.default_rng(2).choice(values[name].ravel(), 20_000)
    return best_threshold(some, bits, 95)


def by_slides(name, bits):
    # a quarter of the slides' 2,048 bins, hence a quarter of their 128
    histogram = seen.histograms[name].coarsened(512)
    return kl_threshold(histogram.magnitudes(), histogram.width, levels=2 ** (bits - 1), start=32)


thresholds = {}
for title, method, bits in (
    ("your squares", by_squares, 8),
    ("your squares", by_squares, 4),
    ("your KL loop", by_slides, 4),
    ("your squares", by_squares, 3),
    ("your KL loop", by_slides, 3),
):
    thresholds[bits, title] = {name: float(method(name, bits)) for name in LAYERS}
    print(
        f"{bits} bits, {title}:",
        "  ".join(f"{name} {t:5.2f}" for name, t in thresholds[bits, title].items()),
    )

# %%
float_output = graph.outputs[0]
contestants = {
    "float": lambda x: run_float(graph, {graph.inputs[0]: x}, only_outputs=True)[float_output]
}
for bits in (8, 4, 3):
    contestants[f"{bits} bits, min-max"] = integer_net({}, bits).run
    for (of, title), chosen in thresholds.items():
        if of == bits:
            contestants[f"{bits} bits, {title}"] = integer_net(
                {name: (-t, t) for name, t in chosen.items()}, bits
            ).run
show_accuracy(contestants, data, batch=100)

# %% [markdown]
# At 8 bits there is little to gain or to lose. At 4 and 3 bits the threshold decides: compare yours of least squared
# error with min-max, and then look at what the famous loop does. The digits are an easy task, so the differences are
# small until the bits get scarce. On CIFAR-10 they are larger. On a ResNet-20 with activations of 4 bits min-max loses
# half of all answers and the slides' loop nearly as many, where least squares and NVIDIA's search lose six or seven
# points of a hundred (docs/studies/ee219-clipping, docs/studies/ee219-kl).
#
# One thing is left to prove: that the numbers above are your function's and not a lucky accident of mine. labkit's own
# search on the *same* histogram must give the very same threshold, and therefore the very same integers for every
# image.

# %%
from labkit.quantization.clipping.kl_tensorrt import tensorrt_curve

own = {}
for name in LAYERS:
    histogram = seen.histograms[name].coarsened(512)
    own[name] = tensorrt_curve(histogram.magnitudes(), histogram.width, levels=8, start=32).chosen
x, _ = data.test(200)
same = np.array_equal(integer_net(own, 4).run(x), contestants["4 bits, your KL loop"](x))
print(
    "the logits of 200 images, labkit's search beside yours:",
    "all equal" if same else "they differ",
)
assert same

# %% [markdown]
# **Try it:** solve the challenge and add `"NVIDIA's search"` to the methods above. Or change `best_threshold` to the
# exponent 2.4 that BRECQ uses. The contest is open: the capstone, module m10, lets you enter with any range you like.
