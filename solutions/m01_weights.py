# %% [markdown]
# # {{m01}}
#
# A trained network is a heap of 32-bit numbers, and most of its bytes are weights. In this module you turn them into
# integers of 8 bits and fewer, watch what breaks, and find out why. On the way you will catch a printed report in the
# act of contradicting itself, with nothing but its own numbers.
#
# **You will be able to**
#
# - read a layer's weights: their range, their 3-sigma range, their tails;
# - choose a scale, one for a layer or one for each channel, and say what a step is worth;
# - turn weights into integers, ties and clipping included, and back again;
# - measure the damage in decibels, and split it into what clipping does and what rounding does;
# - put your own integers into a network and read off what they cost.
#
# Equation numbers are those of `docs/arithmetic.md`. Run the cells from top to bottom with **Shift+Enter**; after
# each task a `check` says how it went.

# %%
import labkit
import matplotlib.pyplot as plt
import numpy as np
import torch
from labkit.course import check
from labkit.course.look import BLUE, GREEN, GREY, ORANGE, RED, play, use_look

use_look()
data = labkit.data.load("auto")
module = labkit.models.load("lenet", data=data.name)
print(data.reason)

weights = {
    name.removesuffix(".weight"): w.detach().numpy() for name, w in module.named_parameters()
}
for name, w in weights.items():
    print(f"{name}: {w.dtype} {w.shape!s:15} {w.size:7,} weights, {4 * w.size:9,} bytes")

# %% [markdown]
# ## 1 What do weights look like?
#
# The first axis of each array counts **output channels**: `conv1` has 12 filters of 3 x 5 x 5 numbers, `fc3` has 10
# rows of 64. Here are all weights of each layer. The counts are on a logarithmic scale, so that a single weight far
# from all others is still seen.

# %%
figure, axes = plt.subplots(1, 5, figsize=(13, 2.8), sharey=True)
for place, (name, w) in zip(axes, weights.items(), strict=True):
    place.hist(w.ravel(), bins=60, color=BLUE)
    place.set(title=f"{name}, {w.size:,} weights", xlabel="weight (a real number)", yscale="log")
axes[0].set_ylabel("count, log scale")
plt.show()

# %% [markdown]
# Two layers can have the same largest weight and yet look nothing alike: one has a long thin **tail**, the other
# stops like a wall. Two numbers tell them apart. The **actual range** goes from the smallest to the largest weight.
# The **3-sigma range** goes from $\mu - 3\sigma$ to $\mu + 3\sigma$, with the mean $\mu$ and the standard deviation
# $\sigma$ of all weights of the layer. Of a bell (a normal distribution) it holds 99.7 %.
#
# ### {{m01.q1}}
#
# Write `weight_ranges`. It returns a pair of pairs: the actual range, then the 3-sigma range.


# %%
def weight_ranges(w):
    """The actual range and the 3-sigma range of a layer's weights.

    w: float32 array of any shape
    Returns ((low, high), (mean - 3 sigma, mean + 3 sigma)), real numbers
    sigma is the standard deviation of these very weights: the root of the mean squared distance from
    their mean.
    """
    ### BEGIN SOLUTION
    mean, sigma = w.mean(), w.std()
    return (w.min(), w.max()), (mean - 3 * sigma, mean + 3 * sigma)
    ### END SOLUTION


# %%
check("m01.q1")

# %% [markdown]
# Now with your ranges: grey is the actual range, orange the 3-sigma range.

# %%
figure, axes = plt.subplots(1, 5, figsize=(13, 3.1), sharey=True)
print("layer   actual range          3-sigma range         ratio of widths   beyond 3 sigma")
for place, (name, w) in zip(axes, weights.items(), strict=True):
    (low, high), (left, right) = weight_ranges(w)
    beyond = np.mean((w < left) | (w > right))
    print(
        f"{name:6} [{low:8.4f}, {high:7.4f}]  [{left:8.4f}, {right:7.4f}]"
        f" {(right - left) / (high - low):12.0%} {beyond:17.2%}"
    )
    place.hist(w.ravel(), bins=60, color=BLUE)
    for end in (low, high):
        place.axvline(end, color=GREY, linewidth=2, label="actual range" if end == low else None)
    for end in (left, right):
        place.axvline(
            end,
            color=ORANGE,
            linestyle="--",
            linewidth=2,
            label="3-sigma range" if end == left else None,
        )
    place.set(title=name, xlabel="weight", yscale="log")
axes[0].set_ylabel("count, log scale")
axes[0].legend(fontsize=8, loc="lower center")
plt.show()

# %% [markdown]
# The ratio of widths is a measure of tails. Of `fc1` the 3-sigma range is less than half as wide as the actual range:
# a few weights lie far out, and most of the actual range is nearly empty. Where the ratio is near or above 100 %
# there is next to no tail; for weights spread evenly between two walls it would be 173 % (why? the $\sigma$ of an
# even spread is its width over $\sqrt{12}$).
#
# ## 2 A scale
#
# An integer $q$ stands for a real number through one factor, the **scale** $S$, the size of a step (eq. 1 with zero
# point 0; zero points come in m02):
#
# $$w \approx S\,q$$
#
# With $b$ bits, weights use the **narrow grid** of eq. 3,
#
# $$q \in [-q_{\max},\; q_{\max}], \qquad q_{\max} = 2^{b-1} - 1 ,$$
#
# that is -127 to 127 at 8 bits, -7 to 7 at 4 bits and -1, 0, 1 at 2 bits. All weights fit if the largest *magnitude*
# falls on the last integer (eq. 4):
#
# $$S = \frac{\max_i |w_i|}{q_{\max}}$$
#
# *Example.* Weights between -0.6 and 0.35 at 4 bits: $S = 0.6 / 7 = 0.0857$. The weight 0.35 is $0.35 / 0.0857 =
# 4.08$ steps long and becomes the integer 4, which stands for 0.343.
#
# ### {{m01.q2}}
#
# Write `symmetric_scale` for weights of any shape and 2 to 8 bits.


# %%
def symmetric_scale(w, bits):
    """The step S of a narrow grid whose largest integer stands for the largest magnitude (eq. 4).

    w: float32 array of any shape, not all zeros; bits: 2 to 8
    Returns a positive number.
    """
    ### BEGIN SOLUTION
    largest = 2 ** (bits - 1) - 1
    return np.abs(w).max() / largest
    ### END SOLUTION


# %%
check("m01.q2")

# %%
print("step of each layer, as a share of its sigma")
print("bits  " + "".join(f"{name:>9}" for name in weights))
for bits in (8, 4, 3, 2):
    print(
        f"{bits:4}  "
        + "".join(f"{symmetric_scale(w, bits) / w.std():9.3f}" for w in weights.values())
    )

# %% [markdown]
# Read this table slowly. At 8 bits a step is a few per cent of sigma: hardly a change. At 3 bits a step of `fc1` is
# *longer than two sigma*, so that most weights become 0. One far-away weight decides that, because it stretches the
# steps for all the others.
#
# ## 3 A report against its own numbers
#
# This course grew out of a lab report on exactly this network (EE219, 2022; that LeNet was trained on CIFAR-10 to
# 60.88 %). Its sections II.B and IV.B print the ranges of weights and of activations, and say of each layer how the
# 3-sigma range compares with the actual one. Its conclusion: "For quantization, **conv1** is a good choice as it has
# a larger 3-sigma range", and for activations the same of the input. Its scale (eq. 2 there) is "$|max| / 127$".
#
# You need no network to test that. A 3-sigma range lets slip what it was made of.
#
# ### {{m01.q3}}
#
# Write `audit` for one row of such a table. From the printed 3-sigma range work back to the mean and sigma. Compare
# the *widths* of the two ranges: `"ratio"` is the width of the 3-sigma range over that of the actual range, and
# `"holds"` says whether the claim is true: "larger" means a ratio above 1, "smaller" one below 1, and for equal
# widths neither is true. Last, take "$|max| / 127$" at its word: if the scale is $|high| / 127$, how many steps long
# is the farther end of the actual range? Leave this number unrounded and positive.


# %%
def audit(actual, three_sigma, said):
    """What one row of a table of ranges says about itself.

    actual: (low, high), the actual range, low <= 0 < high
    three_sigma: (left, right), the 3-sigma range, left < right
    said: "larger" or "smaller", how the 3-sigma range is said to compare with the actual one
    Returns a dict of
      "mean", "sigma": the mean and standard deviation that the 3-sigma range was made from
      "ratio": the width of the 3-sigma range over the width of the actual range
      "holds": True or False, whether what is said is true of the widths
      "reaches": max(|low|, |high|) in steps of |high| / 127, a real number
    """
    ### BEGIN SOLUTION
    (low, high), (left, right) = actual, three_sigma
    ratio = (right - left) / (high - low)
    return {
        "mean": (left + right) / 2,
        "sigma": (right - left) / 6,
        "ratio": ratio,
        "holds": ratio > 1 if said == "larger" else ratio < 1,
        "reaches": 127 * max(-low, high) / high,
    }
    ### END SOLUTION


# %%
check("m01.q3")

# %% [markdown]
# Now the whole report, as it is printed. What catches your eye?

# %%
report = [  # kind, layer, actual range, 3-sigma range, what the report says of the 3-sigma range
    ("weights", "conv1", (-0.6182, 0.5482), (-0.5282, 0.5327), "larger"),
    ("weights", "conv2", (-0.3643, 0.4440), (-0.3343, 0.3052), "smaller"),
    ("weights", "fc1", (-0.1489, 0.1432), (-0.0728, 0.0701), "smaller"),
    ("weights", "fc2", (-0.2099, 0.2348), (-0.1491, 0.1513), "smaller"),
    ("weights", "fc3", (-0.5104, 0.5138), (-0.4914, 0.4905), "smaller"),
    ("activations", "input", (-1.0, 1.0), (-1.5247, 1.4301), "larger"),
    ("activations", "conv1", (0.0, 6.7950), (-1.5456, 2.4861), "smaller"),
    ("activations", "conv2", (0.0, 11.1239), (-1.7026, 2.4098), "smaller"),
    ("activations", "fc1", (0.0, 11.1450), (1.5848, 2.1411), "smaller"),
    ("activations", "fc2", (0.0, 7.7190), (1.9397, 2.8915), "smaller"),
    ("activations", "fc3", (-8.8538, 13.0640), (-8.2897, 8.2521), "smaller"),
]
print(
    "                   3-sigma range   ratio of        |max|/127  implied  implied  farthest value,"
)
print(
    "                   is said to be     widths  holds   reaches     mean    sigma  sigma from mean"
)
for kind, layer, actual, three_sigma, said in report:
    found = audit(actual, three_sigma, said)
    far = max(actual[1] - found["mean"], found["mean"] - actual[0]) / found["sigma"]
    print(
        f"{kind:11} {layer:6} {said:>12} {found['ratio']:12.0%} {found['holds']!s:>6}"
        f" {found['reaches']:9.1f} {found['mean']:8.3f} {found['sigma']:8.3f} {far:10.1f}"
    )

# %%
figure, axes = plt.subplots(1, 2, figsize=(12, 3.6))
for place, kind in zip(axes, ("weights", "activations"), strict=True):
    rows = [row for row in report if row[0] == kind]
    for i, (_, _, actual, three_sigma, _) in enumerate(rows):
        place.barh(
            i,
            actual[1] - actual[0],
            left=actual[0],
            height=0.7,
            color=GREY,
            label="actual range" if i == 0 else None,
        )
        width = three_sigma[1] - three_sigma[0]
        place.barh(
            i,
            width,
            left=three_sigma[0],
            height=0.3,
            color=ORANGE,
            label="3-sigma range" if i == 0 else None,
        )
    place.set_yticks(range(len(rows)), [f"{row[1]}, said: {row[4]}" for row in rows])
    place.invert_yaxis()
    place.set(title=f"The report's {kind}", xlabel="value (a real number)")
    place.axvline(0, color="black", linewidth=0.8)
axes[0].legend(fontsize=9, loc="center right")
plt.show()

# %% [markdown]
# A hint for the activations of `fc1` and `fc2`: they come out of a ReLU, which turns every negative number into
# exactly 0, often more than half of them. Can the mean be 1.86 with a sigma of 0.09 then? What would happen to mean
# and sigma if one sign in the printed range were different?
#
# ### {{m01.e1}}

# %%
m01_e1 = """
### BEGIN SOLUTION
1. "conv1's 3-sigma range is larger": [-0.5282, 0.5327] lies inside [-0.6182, 0.5482] and has 91 % of its width. It is
smaller.
2. "scale = |max| / 127": with the largest weight 0.5482 as |max|, conv1's smallest weight -0.6182 becomes -143, beyond
int8; fc1's becomes -132. It has to be the largest magnitude, max(|min|, |max|) / 127.
3. The activations of fc1 have a printed 3-sigma range of [1.58, 2.14]. That means a mean of 1.86 and a sigma of 0.09: the
largest value, 11.1, would be 100 sigma away, and next to no activation could be 0, right after a ReLU. The same with fc2
(2.42, 0.16, 33 sigma). With a minus sign, [-1.58, 2.14], mean and sigma are 0.28 and 0.62, and all is well.
A 3-sigma range larger than the actual one means that the values have no tails, so there is nothing to cut. It is no reason
to choose a layer, and using that range would waste integers: the input's steps would be 52 % wider and the integers above
83 never used.
### END SOLUTION
"""

# %%
check("m01.e1")

# %% [markdown]
# Look back at your own table in section 1: is there a layer in *our* LeNet whose 3-sigma range really is wider than
# the actual one?
#
# ## 4 To integers and back
#
# Dividing by the scale gives a weight in steps. Three things are left to say (eq. 2 with zero point 0):
#
# $$q = \mathrm{clip}\bigl(\mathrm{RNE}(w / S),\; -q_{\max},\; q_{\max}\bigr)$$
#
# 1. **Round to the nearest** integer. To cut off the digits instead (which is what turning a float into an int does)
#    pulls every weight towards 0, and such errors add up in a sum.
# 2. **Ties go to the even neighbour** (RNE, round to nearest even): 0.5 to 0, 1.5 to 2, 2.5 to 2, -0.5 to 0. "Halves
#    up", as at school, would pull all ties in one direction.
# 3. **Clip** what lies outside the grid to its last integer. With the scale of eq. 4 nothing does, but soon you will
#    choose others.

# %%
ties = np.array([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5])
print("half-way          ", ties)
print("to nearest even   ", np.rint(ties))
print("cut off           ", ties.astype(int))
print(
    "the trap of int8:  200 as int8 is",
    np.array(200).astype(np.int8),
    "- a weight that changed its sign",
)

# %% [markdown]
# ### {{m01.q4}}
#
# Write `to_integers` for one scale. Weights may lie beyond the grid, so mind the order of steps.


# %%
def to_integers(w, scale, bits):
    """Weights as integers: divided by the scale, rounded to nearest with ties to even, and clipped to
    the narrow grid (eq. 2).

    w: float array of any shape; scale: a positive number; bits: 2 to 8
    Returns integers of the shape of w (dtype int8), each in [-(2**(bits-1) - 1), 2**(bits-1) - 1].
    """
    ### BEGIN SOLUTION
    largest = 2 ** (bits - 1) - 1
    return np.clip(np.rint(w / scale), -largest, largest).astype(np.int8)
    ### END SOLUTION


# %%
check("m01.q4")

# %% [markdown]
# Move the sliders. Grey is the histogram of the real weights, each blue stick an integer and how many weights it
# stands for.


# %%
def draw_grid(layer, bits):
    w = weights[layer]
    scale = symmetric_scale(w, bits)
    q = to_integers(w, scale, bits)
    integers, counts = np.unique(q, return_counts=True)
    _, place = plt.subplots(figsize=(8.5, 3.2))
    place.hist(w.ravel(), bins=120, color=GREY, alpha=0.6, label="real weights, in 120 bins")
    place.vlines(
        integers * scale, 0.5, counts, color=BLUE, linewidth=max(1.5, 7 - bits), label="integers"
    )
    zeros = np.mean(q == 0)
    used = f"{len(integers)} of {2**bits - 1} integers used, {zeros:.0%} of the weights became 0"
    place.set(
        title=f"{layer} at {bits} bits: {used}",
        xlabel="weight (integer times scale)",
        ylabel="count, log scale",
    )
    place.set_yscale("log")
    place.legend(fontsize=9)
    plt.show()


play(
    draw_grid,
    stills=[{"layer": "fc1", "bits": 4}, {"layer": "fc1", "bits": 3}, {"layer": "fc3", "bits": 3}],
    layer=tuple(weights),
    bits=(8, 7, 6, 5, 4, 3, 2),
)

# %% [markdown]
# ### {{m01.e2}}

# %%
m01_e2 = """
### BEGIN SOLUTION
With -127..127 the negative of every weight has an integer too, and both ends lie equally far from 0, so that one scale
max|w| / 127 uses the whole grid. It also keeps products and their sums smaller: |w| |x| is at most 127 * 127 or 127 * 255,
and two products fit into 16 bits where -128 would make them overflow.
### END SOLUTION
"""

# %%
check("m01.e2")

# %% [markdown]
# Back is easy: $S\,q$. It gets interesting when **each output channel has a scale of its own**. Then `scale` is an
# array with one number for each index of the *first* axis, and `q` may have two axes (a linear layer) or four (a
# convolution).
#
# ### {{m01.q5}}
#
# Write `to_reals` for both: one scale, or one for each channel. NumPy lines axes up from the *right*, and a square
# array will not complain when the wrong axis gets scaled.


# %%
def to_reals(q, scale):
    """What integers stand for: q times its scale (eq. 1 with zero point 0).

    q: int8 array [O, ...], one axis or more
    scale: a positive number for the whole array, or a float32 array [O] with one scale for each index
      of the first axis of q
    Returns real numbers of the shape of q.
    """
    ### BEGIN SOLUTION
    return (q.T * scale).T
    ### END SOLUTION


# %%
check("m01.q5")

# %% [markdown]
# The filters of `conv1` can be looked at: each is a patch of 5 x 5 pixels in three colours. Can you see the
# difference between 32 bits and 8? Between 8 and 4? Where would you stop?

# %%
w = weights["conv1"]
shown = {"float": w} | {
    f"{b} bits": to_reals(to_integers(w, symmetric_scale(w, b), b), symmetric_scale(w, b))
    for b in (8, 4, 3, 2)
}
figure, axes = plt.subplots(len(shown), len(w), figsize=(9.5, 4.4))
for row, (name, values) in zip(axes, shown.items(), strict=True):
    for place, patch in zip(row, values, strict=True):
        place.imshow(np.clip(patch.transpose(1, 2, 0) / np.abs(w).max() / 2 + 0.5, 0, 1))
        place.set(xticks=[], yticks=[])
    row[0].set_ylabel(name, rotation=0, ha="right", va="center")
figure.suptitle("The 12 filters of conv1, one scale for the layer (mid-grey is 0)")
plt.show()

# %% [markdown]
# ## 5 What it costs, in decibels
#
# The error of a restored weight is its **noise**. To compare layers, put the energy of the weights over the energy of
# the noise, in decibels, the **signal-to-quantization-noise ratio**:
#
# $$\mathrm{SQNR} = 10 \log_{10} \frac{\sum_i w_i^2}{\sum_i (w_i - \tilde w_i)^2}\ \text{dB}$$
#
# 20 dB: the noise has 1 % of the energy. 0 dB: as much noise as weight, which is what you get by setting all weights
# to 0.
#
# ### {{m01.q6}}
#
# Write `sqnr`. Weights restored without any error have infinitely many decibels (NumPy's division by 0 gives just
# that, with a warning that you may ignore).


# %%
def sqnr(w, restored):
    """The signal-to-quantization-noise ratio in decibels.

    w: float32 array of any shape, not all zeros; restored: float32 array of the same shape
    Returns a real number; infinity where there is no error at all.
    """
    ### BEGIN SOLUTION
    return 10 * np.log10(np.square(w).sum() / np.square(w - restored).sum())
    ### END SOLUTION


# %%
check("m01.q6")

# %% [markdown]
# What should we expect? If a weight may lie anywhere between two grid points, its error is spread evenly over $[-S/2,
# S/2]$, and the mean square of that is $S^2 / 12$. One bit more halves the step, so the noise falls to a quarter: $10
# \log_{10} 4 = 6.02$ dB for **every bit**. Let us see.

# %%
all_bits = np.arange(2, 9)
by_layer = {
    name: [sqnr(w, to_reals(to_integers(w, s := symmetric_scale(w, b), b), s)) for b in all_bits]
    for name, w in weights.items()
}
figure, place = plt.subplots(figsize=(7, 4))
for (name, levels), colour in zip(
    by_layer.items(), (BLUE, ORANGE, GREEN, RED, "#7c3aed"), strict=True
):
    place.plot(all_bits, levels, "o-", color=colour, label=name)
place.plot(
    all_bits, by_layer["fc3"][-1] - 6.02 * (8 - all_bits), ":", color="black", label="6.02 dB a bit"
)
place.axhline(0, color=GREY, linewidth=1)
place.set(title="Weights, one scale for each layer", xlabel="bits", ylabel="SQNR, dB")
place.legend(fontsize=9)
plt.show()

# %% [markdown]
# From 8 down to about 5 bits the lines fall by the book. Below, the steps become as long as the weights and the
# assumption breaks: `fc1` comes close to 0 dB, where all is lost. At equal bits the layers differ by many decibels,
# and the order is (almost) that of the ratios in section 1: it is the **tails** that cost.
#
# ## 6 A scale for each channel
#
# Output channels do not share their weights' size. Here is the largest magnitude within each channel, which is what
# eq. 4 asks for.

# %%
figure, axes = plt.subplots(1, 5, figsize=(13, 2.8))
for place, (name, w) in zip(axes, weights.items(), strict=True):
    peaks = np.sort([np.abs(channel).max() for channel in w])[::-1]
    place.bar(range(len(peaks)), peaks, width=1.0, color=BLUE, edgecolor="white", linewidth=0.2)
    place.axhline(peaks[0], color=ORANGE, linestyle="--", label="sets the scale of the layer")
    place.set(
        title=f"{name}: largest over smallest {peaks[0] / peaks[-1]:.2g}",
        xlabel="output channel, sorted",
    )
    place.title.set_fontsize(9)
axes[0].set_ylabel("largest magnitude")
axes[0].legend(fontsize=8, loc="lower left")
plt.show()

# %% [markdown]
# A channel whose largest weight is a tenth of the layer's uses a tenth of the integers. The cure costs one number a
# channel: **give each output channel its own scale** (eq. 4 for each index of the first axis). The engine can do that
# for free, as each output channel is one sum of products with one factor in front.
#
# ### {{m01.q7}}
#
# Write `quantize_layer`: scales by channel, and the integers that go with them. Sometimes training leaves a channel
# of nothing but zeros; give it the scale 1, and integers 0. You may call your earlier functions.


# %%
def quantize_layer(w, bits):
    """A layer's integers with a scale for each output channel (eqs. 2 and 4, channel by channel).

    w: float32 array [O, ...] with two axes or more; bits: 2 to 8
    Returns (q, scales): integers of the shape of w on the narrow grid, rounded to nearest with ties to
    even; and real numbers [O], max|w| of the channel over the largest integer, or 1 for a channel of
    zeros.
    """
    ### BEGIN SOLUTION
    peaks = np.abs(w).max(axis=tuple(range(1, w.ndim)))
    scales = np.where(peaks == 0, 1, peaks / (2 ** (bits - 1) - 1))
    return to_integers((w.T / scales).T, 1, bits), scales
    ### END SOLUTION


# %%
check("m01.q7")

# %%
by_channel = {
    name: [sqnr(w, to_reals(*quantize_layer(w, int(b)))) for b in all_bits]
    for name, w in weights.items()
}
figure, place = plt.subplots(figsize=(8.5, 3.4))
gains = {name: np.array(by_channel[name]) - by_layer[name] for name in weights}
for i, bits in enumerate((8, 4, 3, 2)):
    place.bar(
        np.arange(5) + (i - 1.5) * 0.2,
        [g[bits - 2] for g in gains.values()],
        0.2,
        label=f"{bits} bits",
        color=f"C{i}",
    )
place.set_xticks(range(5), list(weights))
place.set(title="Gained by a scale for each channel", ylabel="SQNR gained, dB")
place.axhline(6.02, color="black", linestyle=":", label="one bit")
place.legend(fontsize=9, bbox_to_anchor=(1.01, 1), loc="upper left")
plt.show()

# %% [markdown]
# In some layers this is worth about one bit, and all it takes is one more number for each channel.
#
# ## 7 Clip or round?
#
# Nothing forces us to let the largest weight have its own integer. Choose a **limit** $\alpha$ below it, and the grid
# ends there: $S = \alpha / q_{\max}$. Weights beyond the limit are clipped to it and lose more; all the others get
# finer steps and lose less.
#
# The mean squared error has two parts, and they add up:
#
# $$\underbrace{\frac1n \sum_{|w_i| > \alpha} (w_i - \tilde w_i)^2}_{\text{clipping}} \;+\;
#   \underbrace{\frac1n \sum_{|w_i| \le \alpha} (w_i - \tilde w_i)^2}_{\text{rounding}}$$
#
# Here $n$ counts **all** weights, in both.
#
# ### {{m01.q8}}
#
# Write `clipping_and_rounding`, with one scale for all weights. You may use your own `to_integers` and `to_reals`, or
# labkit's `quantize` and `dequantize` as in the next cell: they do the same for a grid (`QuantSpec`) and a line
# (`QParams`: scale and zero point).

# %%
from labkit.arithmetic.affine import QParams, QuantSpec, dequantize, quantize

few = weights["fc3"][0, :6]
grid, line = QuantSpec(4, narrow=True), QParams(np.float32(0.05), np.int32(0))
print("real      ", few)
print("integers  ", quantize(few, line, grid))
print("restored  ", dequantize(quantize(few, line, grid), line, grid))


# %%
def clipping_and_rounding(w, limit, bits):
    """The two parts of the mean squared error of weights on a narrow grid that ends at a limit.

    w: float32 array of any shape; bits: 2 to 8
    limit: a positive number, which the largest integer stands for
    Returns (clipping, rounding): the squared errors of the weights with |w| > limit, and those of the
    others, both summed up and divided by the number of all weights.
    """
    ### BEGIN SOLUTION
    scale = limit / (2 ** (bits - 1) - 1)
    inside = np.clip(w, -limit, limit)
    rounded = to_reals(to_integers(inside, scale, bits), scale)
    return np.square(w - inside).mean(), np.square(inside - rounded).mean()
    ### END SOLUTION


# %%
check("m01.q8")


# %%
def draw_trade(layer, bits):
    w = weights[layer]
    peak = np.abs(w).max()
    limits = np.linspace(0.02, 1.0, 50) * peak
    clipping, rounding = np.array([clipping_and_rounding(w, limit, bits) for limit in limits]).T
    total = clipping + rounding
    best = limits[np.argmin(total)]
    three_sigma = np.abs(weight_ranges(w)[1]).max()
    _, place = plt.subplots(figsize=(9.5, 3.6))
    place.plot(limits, clipping, color=ORANGE, label="clipping")
    place.plot(limits, rounding, color=BLUE, label="rounding")
    place.plot(limits, total, color="black", linewidth=2, label="both")
    place.axvline(
        best, color=GREEN, linestyle="--", label=f"least error, at {best / peak:.0%} of max |w|"
    )
    if three_sigma < peak:
        place.axvline(
            three_sigma, color=GREY, linestyle=":", label=f"3 sigma, at {three_sigma / peak:.0%}"
        )
    place.set(
        title=f"{layer} at {bits} bits",
        xlabel="limit",
        ylabel="mean squared error, log scale",
        yscale="log",
    )
    place.set_ylim(total.min() / 30, total.max() * 2)
    place.legend(fontsize=9, bbox_to_anchor=(1.01, 1), loc="upper left")
    plt.show()


play(
    draw_trade,
    stills=[{"layer": "fc1", "bits": 3}, {"layer": "fc1", "bits": 8}],
    layer=tuple(weights),
    bits=(8, 7, 6, 5, 4, 3, 2),
)

# %% [markdown]
# Slide from 8 bits to 2. The orange line stays where it is, while the blue one climbs by a factor of 4 with every bit
# that you take away, and pushes the best limit inwards.
#
# ### {{m01.e3}}

# %%
m01_e3 = """
### BEGIN SOLUTION
The rounding error is about S^2 / 12 and the step S is limit / (2^(bits - 1) - 1): it grows with the square of the limit,
and by a factor of 4 for every bit less. The clipping error depends on the tail beyond the limit alone, not on the bits. At
8 bits rounding costs next to nothing, so hardly any clipping is worth it; at 3 bits rounding dominates, and cutting a thin
tail is cheap compared with finer steps for all the others. The squared error counts every weight alike, but the network
does not: the few largest weights may carry the output, inputs differ in size, and some layers hurt more than others, so
that accuracy can fall although the error does.
### END SOLUTION
"""

# %%
check("m01.e3")

# %% [markdown]
# ### {{m01.c1}}
#
# The best limit need not be searched for by trying. Suppose that the integers $q_i$ are fixed. Then the squared error
# $\sum_i (w_i - S q_i)^2$ is a parabola in $S$, exactly as in the derivation after eq. 6, only that $q_i^2$ is no
# longer 1. Find its lowest point. With this new $S$ some weights round to other integers; these give another $S$; and
# so on. Neither step can raise the error, and there are only finitely many ways to round, so that it comes to rest.
#
# Write `fitted_scale`: begin with the integers of the given scale, repeat both steps until no integer changes, and
# return the scale that belongs to these integers. (It is a valley, not always the deepest one.)


# %%
def fitted_scale(w, scale, bits):
    """The scale at rest: the least-squares scale of the integers that it itself gives.

    w: float64 array [n]; bits: 2 to 8
    scale: where to begin, a positive number with which not all integers are 0
    Integers are rounded to nearest, ties to even, and clipped to the narrow grid (eq. 2).
    Returns a positive number.
    """
    ### BEGIN SOLUTION
    q = to_integers(w, scale, bits).astype(float)
    while True:
        fitted = (w @ q) / (q @ q)
        changed = to_integers(w, fitted, bits).astype(float)
        if np.array_equal(q, changed):
            return fitted
        q = changed
    ### END SOLUTION


# %%
check("m01.c1")

# %%
print("SQNR in dB at 3 bits     largest magnitude    fitted scale")
for name, w in weights.items():
    flat, first = w.ravel().astype(float), symmetric_scale(w, 3)
    fitted = fitted_scale(flat, first, 3)
    restored = to_reals(to_integers(flat, fitted, 3), fitted)
    print(f"{name:12} {by_layer[name][1]:24.1f} {sqnr(flat, restored):17.1f}")

# %% [markdown]
# ## 8 Your integers in the network
#
# Enough of single weights. Below, every layer's weights are quantized by *your* functions. labkit takes your integers
# and scales as they are, chooses 8-bit grids for the activations (that is m02), and its integer engine runs the
# network.

# %%
from IPython.display import display
from labkit.arithmetic.affine import PerAxis, QTensor
from labkit.course.showcase import show_accuracy
from labkit.frontends.torch_fx import from_torch
from labkit.graph.passes import simplify
from labkit.net import IntegerNet
from labkit.quantization.calibration import calibrate
from labkit.quantization.convert import convert
from labkit.quantization.plan import BitPlan
from labkit.quantization.rounded import RoundedLayer

graph = simplify(from_torch(module, (3, 32, 32)))
calibration = calibrate(graph, data.calibration(256))


def with_weights_of(quantizer, bits):
    """The integer network whose weights are what quantizer(w, bits) returns."""
    spec = QuantSpec(bits, narrow=True, granularity=PerAxis(0))
    layers = {}
    for name, w in weights.items():
        q, scales = quantizer(w, bits)
        params = QParams(np.asarray(scales, np.float32), np.zeros(len(w), np.int32))
        layers[name] = RoundedLayer(
            QTensor(q.astype(np.int8), params, spec), np.zeros(len(w), np.float32)
        )
    return IntegerNet(convert(graph, calibration, BitPlan.uniform(graph, bits, 8), rounded=layers))


def one_scale(w, bits):
    scale = symmetric_scale(w, bits)
    return to_integers(w, scale, bits), np.full(len(w), scale)


# %% [markdown]
# First the proof. At 8, 4 and 3 bits your integers and labkit's must be the same, all 316,292 of them, and so must be
# the logits.

# %%
x, _ = data.test(100)
for bits in (8, 4, 3):
    yours = with_weights_of(quantize_layer, bits)
    ours = labkit.quantize(module, data.calibration(256), weights=bits, activations=8)
    same = np.array_equal(yours.run(x), ours.run(x))
    pairs = [
        (yours.graph[name].op.weight.values, ours.graph[name].op.weight.values) for name in weights
    ]
    differ = sum(np.count_nonzero(a != b) for a, b in pairs)
    print(
        f"{bits} bits: {differ} of {sum(a.size for a, _ in pairs):,} integers differ;"
        f" logits of 100 images equal: {same}"
    )


# %%
def float_network(x):
    with torch.no_grad():
        return module(torch.from_numpy(x))


networks = {"float": float_network}
networks["labkit, 8 bits"] = labkit.quantize(module, data.calibration(256)).run
for bits in (8, 4, 3, 2):
    networks[f"yours, {bits} bits"] = with_weights_of(quantize_layer, bits).run
    networks[f"yours, {bits} bits, one scale a layer"] = with_weights_of(one_scale, bits).run
result = show_accuracy(networks, data)
display(result)

# %%
figure, place = plt.subplots(figsize=(6.5, 3.4))
for label, ending, colour in (
    ("a scale for each channel", "", BLUE),
    ("one scale a layer", ", one scale a layer", ORANGE),
):
    place.plot(
        (8, 4, 3, 2),
        [result.percent(f"yours, {b} bits{ending}") for b in (8, 4, 3, 2)],
        "o-",
        color=colour,
        label=label,
    )
place.axhline(result.percent("float"), color=GREY, linestyle="--", label="float")
place.set(
    title=f"Your weights in the network ({data.name})",
    xlabel="bits of the weights",
    ylabel="images right, %",
    ylim=(0, 100),
)
place.invert_xaxis()
place.legend(fontsize=9, loc="lower left")
plt.show()

# %% [markdown]
# A quarter of the bytes for nothing; an eighth for next to nothing, if each channel has its scale; and then a cliff.
# The EE219 lab found the same at 8 bits: 60.88 % in float, 60.9 % with its weights quantized (section III.B).
#
# **Try it:** put your `fitted_scale` into `one_scale`. What does it do at 3 bits, and what at 8? In labkit's own
# study of this question (`docs/studies/ee219-clipping-weights`) weights over a 3-sigma range, one scale a layer, lose
# 5 points at 8 bits and gain 5 at 3 bits.
#
# ## Where this comes from
#
# - EE219 lab report, sections II and III: ranges, histograms, eqs. 2 and 3. The slips that you found are found again
#   by code, with the figures, in `docs/studies/ee219-ranges`.
# - `docs/arithmetic.md`, section 1: eqs. 1 to 4 and 6. In labkit they are `labkit/arithmetic/affine.py`.
# - Limits for activations, chosen by looking at images, come in m05. That to round each weight to its *nearest*
#   integer is not the best either, you will see in m08.
