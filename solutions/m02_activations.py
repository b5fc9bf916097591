# %% [markdown]
# # {{m02}}
#
# In the last module weights became integers. Weights sit still: you can look at all of them, at leisure, before the network
# runs. **Activations** are what travels between the layers, and every image makes new ones. So before a camera or a phone can
# compute with small integers, somebody has to watch the network at work and decide, layer by layer, what one step of an
# integer shall be worth. In this module that is you. At its end a network runs in which nothing between the first and the
# last line is a real number, and every function in it is yours.
#
# **You will be able to**
#
# - watch a layer with a hook and say what range its activations have,
# - choose a scale and a zero point for any range, and move numbers onto the grid and back,
# - follow the factors through a network as the EE219 lab does, and find where its report goes wrong,
# - requantize: bring a sum of products back to 8 bits,
# - run a whole LeNet in integers, and say in how many integers it differs from labkit's engine.
#
# Equation numbers are those of `docs/arithmetic.md`.

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
x, y = data.test(200)
print(data.reason)

# %% [markdown]
# ## 1 One line for every number
#
# An integer of 8 bits is one of 256 signs. It means nothing until somebody says which real number it stands for. Everybody
# says it with a straight line:
#
# $$r = S\,(q - Z) \tag{1}$$
#
# $S$, the **scale**, is the size of one step, a real number. $Z$, the **zero point**, is the integer that stands for real 0.
# With $S = 0.5$ and $Z = 3$:
#
# | $q$ | 0 | 1 | 2 | 3 | 4 | 5 | ... | 255 |
# |---|---|---|---|---|---|---|---|---|
# | $r$ | -1.5 | -1.0 | -0.5 | 0.0 | 0.5 | 1.0 | ... | 126.0 |
#
# Weights had $Z = 0$, because they are spread evenly around 0. Activations are not, as you will see, and for them $Z$ is
# worth having.
#
# ### {{m02.q1}}
#
# Write eq. 1 as a function. (The report of the EE219 lab prints it as $r = (S \cdot q - Z)$. Decide for yourself.)


# %%
def to_real(q, scale, zero_point):
    """The real numbers that integers stand for (eq. 1).

    q: array of any shape, uint8 or int8; scale: positive float
    zero_point: int of the grid of q (0 to 255, or -128 to 127)
    Returns a float array of the shape of q.
    """
    ### BEGIN SOLUTION
    return scale * (q.astype(int) - zero_point)
    ### END SOLUTION


# %%
check("m02.q1")

# %% [markdown]
# There is a trap in this line, and nearly everybody meets it once. NumPy keeps the type of an array:

# %%
pixels = np.array([3, 5, 7], np.uint8)
print("3 - 5, 5 - 5, 7 - 5 in uint8:", pixels - 5)
print("and as real numbers         :", to_real(pixels, 0.5, 5))

# %% [markdown]
# ## 2 Watching a network at work
#
# PyTorch lets you hang a function on any layer, a **forward hook**. Whenever the layer has computed something, your function
# is called with the layer, its inputs (a tuple) and its output. Here is one that only talks:


# %%
def talk(layer, inputs, output):
    print(f"{layer}\n   in: {tuple(inputs[0].shape)}, out: {tuple(output.shape)}")


handle = module.conv1.register_forward_hook(talk)
with torch.no_grad():
    module(torch.from_numpy(x[:2]))
handle.remove()  # or it will talk for ever

# %% [markdown]
# Thousands of images do not fit into memory at once, so they come in batches, and the hook is called once for each batch. To
# profile a layer it has to *remember* something between the calls: the lowest and the highest output of **all** batches so
# far.
#
# ### {{m02.q2}}
#
# Fill in the body of `hook`. It is made by `watch(name)`, so that it knows its layer's `name`; what it finds belongs into
# `ranges[name]`, as a tuple (low, high) of two Python numbers. The rest is given.


# %%
def activation_ranges(module, names, batches):
    """The lowest and the highest output of some layers of a network over all batches.

    module: a torch module; names: names of some of its layers; batches: list of float32 arrays [N, ...]
    Returns a dict: by name, (low, high), two floats, over all outputs of that layer for all images of
    all batches.
    """
    ranges = {}

    def watch(name):
        def hook(layer, inputs, output):
            ### BEGIN SOLUTION
            low, high = output.min().item(), output.max().item()
            if name in ranges:
                low, high = min(low, ranges[name][0]), max(high, ranges[name][1])
            ranges[name] = (low, high)
            ### END SOLUTION

        return hook

    handles = [module.get_submodule(name).register_forward_hook(watch(name)) for name in names]
    with torch.no_grad():
        for batch in batches:
            module(torch.from_numpy(batch))
    for handle in handles:
        handle.remove()
    return ranges


# %%
check("m02.q2")

# %% [markdown]
# Now profile LeNet on training images, never on test images: the ranges become a part of the network, and the test must stay
# unseen.

# %%
calibration = data.calibration(256)
batches = [calibration[start : start + 64] for start in range(0, len(calibration), 64)]
layers_watched = ["conv1", "relu1", "relu2", "relu3", "relu4", "fc3"]
ranges = activation_ranges(module, layers_watched, batches)
ranges["input"] = (float(calibration.min()), float(calibration.max()))
for name, (low, high) in ranges.items():
    print(f"{name:6s} {low:8.3f} to {high:7.3f}")

# %% [markdown]
# Two numbers do not say how a layer's activations are spread. The next cell keeps all of them for a few images, with a hook
# of the simplest kind.

# %%
seen = {"input": calibration[:100]}
handles = [
    module.get_submodule(name).register_forward_hook(
        lambda layer, inputs, output, name=name: seen.update({name: output.numpy().copy()})
    )
    for name in layers_watched
]
with torch.no_grad():
    module(torch.from_numpy(seen["input"]))
for handle in handles:
    handle.remove()

figure, axes = plt.subplots(2, 3, figsize=(9.5, 5))
for place, name in zip(
    axes.flat, ["input", "conv1", "relu1", "relu2", "relu3", "fc3"], strict=True
):
    values = seen[name].ravel()
    zeros = np.mean(values == 0)
    place.hist(
        values, bins=60, log=True, histtype="stepfilled", color=ORANGE if "relu" in name else BLUE
    )
    place.set_title(f"{name}: {100 * zeros:.0f} % are exactly 0", fontsize=10)
    place.set(xlabel="activation (a real number)", ylabel="count, log scale")
plt.show()

# %% [markdown]
# After a ReLU (orange) nothing is negative, most numbers are *exactly* 0, and a few are many times larger than the rest.
# Remember the zeros: this is why real 0 gets an integer of its own, without any error. (The `.copy()` in the cell matters:
# some ReLUs work in place and would overwrite what you kept.)
#
# ## 3 How much of the range is worth having?
#
# The lab also gives the 3-sigma range, mean plus and minus three standard deviations, which cuts outliers off. For
# activations after a ReLU it prints, for instance, $[-1.55,\ 2.49]$, where the values themselves are in $[0,\ 6.80]$.
# Integers for negative numbers that never occur are integers thrown away. And for the input the lab finds $[-1.52,\ 1.43]$,
# where pixels are in $[-1, 1]$. The remedy is the same at both ends: keep the part that the 3-sigma range and the actual
# range have **in common**.
#
# ### {{m02.q3}}
#
# Write `useful_range`, for values with negative numbers among them and without.


# %%
def useful_range(values):
    """The part that the 3-sigma range of values and their actual range have in common.

    values: float32 array of any shape, not all equal
    sigma is the standard deviation of all values (divide by n).
    Returns (low, high), two real numbers.
    """
    ### BEGIN SOLUTION
    mean, reach = values.mean(), 3 * values.std()
    return max(values.min(), mean - reach), min(values.max(), mean + reach)
    ### END SOLUTION


# %%
check("m02.q3")

# %%
names = ["input", "relu1", "relu2", "relu3", "relu4", "fc3"]
figure, place = plt.subplots(figsize=(8.5, 3.6))
for row, name in enumerate(names):
    values = seen[name]
    mean, sigma = values.mean(), values.std()
    spans = [
        (values.min(), values.max(), GREY),
        (mean - 3 * sigma, mean + 3 * sigma, RED),
        (*useful_range(values), GREEN),
    ]
    for shift, (low, high, colour) in zip((-0.26, 0, 0.26), spans, strict=True):
        place.plot(
            [low, high],
            [row + shift, row + shift],
            color=colour,
            linewidth=5,
            solid_capstyle="butt",
        )
place.axvline(0, color="black", linewidth=0.8)
for colour, label in ((GREY, "actual range"), (RED, "3 sigma"), (GREEN, "in common")):
    place.plot([], [], color=colour, linewidth=5, label=label)
place.set(
    yticks=range(len(names)),
    yticklabels=names,
    xlabel="activation (a real number)",
    title="Three ranges of the same data",
)
place.invert_yaxis()
place.legend(loc="upper right", fontsize=9)
plt.show()

# %% [markdown]
# Red left of the black line is waste, except for `input` and `fc3`, which have negative values.
#
# ### {{m02.e1}}

# %%
m02_e1 = """
### BEGIN SOLUTION
(a) 1.55 / (1.55 + 2.49) = 38 %, some 98 of the 256 integers. They would stand for negative activations, which a ReLU never
gives, so they are used for nothing. (b) Better: the step shrinks from 6.80 / 255 to 2.49 / 255, so the many small activations
are rounded 2.7 times more finely. Worse: everything above 2.49 is clipped, an error of up to 4.31 for the few largest.
### END SOLUTION
"""

# %%
check("m02.e1")

# %% [markdown]
# ## 4 A grid for any range
#
# Given an interval $[r_{\min}, r_{\max}]$ and the $2^b$ integers from $q_{\min} = 0$ to $q_{\max} = 2^b - 1$, which line of
# the form (1) is the right one? First the interval is **widened to hold 0**, if it does not. Then its length is divided into
# as many steps as there are *between* the integers, and the zero point is nudged to the nearest integer:
#
# $$S = \mathrm{fl}_{32}\left(\frac{r_{\max} - r_{\min}}{q_{\max} - q_{\min}}\right), \qquad
# Z = \mathrm{RNE}\left(q_{\min} - \frac{r_{\min}}{S}\right) \tag{5}$$
#
# $\mathrm{fl}_{32}$ is one rounding to float32, the type in which the engine will keep $S$, and it is the **rounded** $S$
# that stands in the second half. $\mathrm{RNE}$ rounds to the nearest integer, and a tie (exactly one half) to the even one:
# 2.5 to 2, 3.5 to 4. That is what `np.rint` and `torch.round` do. (docs/arithmetic.md also clips $Z$ to the grid. Since the
# interval holds 0, it lies there anyway.)
#
# *Example.* $[-1, 2]$ at 8 bits: $S = 3/255 = 0.01176$, and $1/S = 85$ steps lie below 0, so $Z = 85$. For $[0.5, 2]$ the
# interval becomes $[0, 2]$: $S = 2/255$, $Z = 0$.
#
# ### {{m02.q4}}
#
# Write `affine_params`. The last digits decide here, as you will see, so mind the types.


# %%
def affine_params(low, high, bits):
    """Scale and zero point of the grid 0 .. 2**bits - 1 for the real interval [low, high] (eq. 5).

    low, high: floats, low < high; the interval need not hold 0; bits: 2 to 8
    Returns (scale, zero_point): scale a float, rounded once to float32 (np.float32) from a quotient in
    float64; zero_point an int, made with the rounded scale in float64, ties to even.
    """
    ### BEGIN SOLUTION
    low, high = min(low, 0.0), max(high, 0.0)
    scale = float(np.float32((high - low) / (2**bits - 1)))
    return scale, int(np.rint(-low / scale))
    ### END SOLUTION


# %%
check("m02.q4")

# %% [markdown]
# A small surprise waits in LeNet's own input. Pixels are in $[-1, 1]$, and with 255 steps real 0 would like to be the integer
# $127.5$: a tie, so it should go to 128, the even one. Does it?

# %%
scale, zero_point = affine_params(-1.0, 1.0, 8)
print(
    f"2 / 255 = {2 / 255:.12f}, as float32 {scale:.12f}; 1 / S = {1 / scale:.8f};"
    f" zero point {zero_point}"
)

# %% [markdown]
# The seventh digit of a scale decides about an integer. If two programs shall agree in every integer, they have to agree in
# things like this one, and so such things are written down.
#
# Now the way onto the grid. Divide, round, add the zero point, and clip what lies beyond:
#
# $$q = \mathrm{clip}\bigl(\mathrm{RNE}(r / S) + Z,\; q_{\min},\; q_{\max}\bigr) \tag{2}$$
#
# ### {{m02.q5}}
#
# Write `affine_quantize`. The order of its steps is that of eq. 2.


# %%
def affine_quantize(real, scale, zero_point, bits):
    """Real numbers as integers of the grid 0 .. 2**bits - 1 (eq. 2).

    real: float32 array of any shape; scale: positive float; zero_point: int of the grid; bits: 2 to 8
    The quotient alone is rounded, ties to even; then the zero point is added; then the sum is clipped
    to the grid.
    Returns a uint8 array of the shape of real.
    """
    ### BEGIN SOLUTION
    moved = np.rint(real / scale) + zero_point
    return np.clip(moved, 0, 2**bits - 1).astype(np.uint8)
    ### END SOLUTION


# %%
check("m02.q5")

# %% [markdown]
# What does an activation look like after that? Here is one channel after conv1 and ReLU, there and back again at fewer and
# fewer bits.

# %%
channel = int(np.argmax(seen["relu1"][0].max(axis=(1, 2))))
picture = seen["relu1"][0, channel]
figure, axes = plt.subplots(1, 5, figsize=(9.5, 2.5))
axes[0].imshow(picture, cmap="viridis", vmin=0, vmax=picture.max())
axes[0].set_title("32-bit float", fontsize=10)
for place, bits in zip(axes[1:], (8, 4, 3, 2), strict=True):
    scale, zero_point = affine_params(*ranges["relu1"], bits)
    back = to_real(affine_quantize(picture, scale, zero_point, bits), scale, zero_point)
    place.imshow(back, cmap="viridis", vmin=0, vmax=picture.max())
    place.set_title(f"{bits} bits, {len(np.unique(back))} values used", fontsize=10)
for place in axes:
    place.axis("off")
plt.show()

# %% [markdown]
# And now play. The grid of `bits` bits covers $[0, \text{end}]$, where `end` is given in per cent of the largest activation
# after relu2. A small end clips many numbers, a large one makes coarse steps. **Find the end with the smallest error at 2, at
# 3, at 4 and at 8 bits.** Is it where you expected it?

# %%
relu2 = seen["relu2"].ravel()
sample = relu2[relu2 > 0][::17]
ends_in_percent = [10, 15, 20, 25, 30, 40, 50, 60, 70, 80, 90, 100]


def error_of(bits, end_in_percent):
    scale, zero_point = affine_params(0.0, relu2.max() * end_in_percent / 100, bits)
    back = to_real(affine_quantize(sample, scale, zero_point, bits), scale, zero_point)
    return np.sqrt(np.mean((back - sample) ** 2)), scale


def draw(bits, end):
    error, scale = error_of(bits, end)
    _, (left, right) = plt.subplots(1, 2, figsize=(9.5, 3.2))
    left.hist(sample, bins=80, log=True, histtype="stepfilled", color=ORANGE)
    for step in range(2**bits if bits < 5 else 0):
        left.axvline(step * scale, color=BLUE, linewidth=0.9)
    left.axvline(
        relu2.max() * end / 100, color="black", linestyle=":", label=f"end: {end} % of the largest"
    )
    left.set(
        title=f"Positive activations after relu2, {bits} bits",
        xlabel="activation (a real number)",
        ylabel="count, log scale",
    )
    left.legend(fontsize=9)
    right.plot(
        ends_in_percent, [error_of(bits, e)[0] for e in ends_in_percent], color=GREY, marker="."
    )
    right.plot(end, error, color=RED, marker="o", label=f"your end: {error:.4f}")
    right.set(
        title="What the grid costs",
        xlabel="end, in % of the largest activation",
        ylabel="root of the mean squared error",
        ylim=(0, None),
    )
    right.legend(fontsize=9)
    plt.show()


play(
    draw,
    stills=[{"bits": 3, "end": 100}, {"bits": 3, "end": 40}],
    bits=[2, 3, 4, 8],
    end=ends_in_percent,
)

# %% [markdown]
# At 8 bits (nearly) the whole range is a good choice; with few bits it pays to clip. Module m05 searches for such ends properly.
#
# ## 5 What a layer does to the factors
#
# The lab thinks in factors that it multiplies with, where eq. 1 divides by scales: $n = 1/S$, and all zero points are 0. Take
# one layer, a convolution or a matrix product, $W * In = Out$. Multiply the weights by $n_W$ and the input by $n_{In}$, such
# that both become integers of 8 bits. Since the layer is linear, its result is multiplied by both:
#
# $$n_W W * n_{In} In = n_W\, n_{In}\; Out$$
#
# The right side is far too large for 8 bits: it is a sum of many products of two 8-bit numbers. So it is multiplied by one
# more factor, $n_{Out}$, and this is the lab's equation (4):
#
# $$\bigl(n_W W * n_{In} In\bigr)\; n_{Out} = n_W\, n_{In}\, n_{Out}\; Out \tag{lab 4}$$
#
# Read the right side once more: what leaves the layer, and enters the next one, is $Out$ times a **product of three
# factors**. (ReLU and max-pool do not change that, since the factor is positive.) $n_{Out}$ has to be chosen such that the
# largest $|Out|$ ends at 127.
#
# ### {{m02.q6}}
#
# Write a function that goes through a network and returns the $n_{Out}$ of every layer.


# %%
def output_factors(n_in, n_w, largest):
    """The factor n_Out of each layer of a network, in the lab's notation (lab 4).

    n_in: float, the factor of the network's input
    n_w: list of floats, the factor n_W of each layer's weights
    largest: list of floats as long, the largest |Out| of each layer in real units
    Returns a list of floats: n_Out of each layer, such that its largest |Out| becomes 127 when the
    input of each layer is the scaled output of the layer before it.
    """
    ### BEGIN SOLUTION
    factors = []
    for layer, top in enumerate(largest):
        carried = 127 / top
        factors.append(carried / (n_w[layer] * n_in))
        n_in = carried
    return factors
    ### END SOLUTION


# %%
check("m02.q6")

# %%
weights = {
    name: module.get_submodule(name).weight.detach().numpy()
    for name in ("conv1", "conv2", "fc1", "fc2", "fc3")
}
n_w = [127 / float(np.abs(w).max()) for w in weights.values()]
largest = [max(map(abs, ranges[name])) for name in ("relu1", "relu2", "relu3", "relu4", "fc3")]
factors = output_factors(127.0, n_w, largest)

print("layer       n_In      n_W       n_Out   n_W n_In n_Out = 127 / largest")
n_in = 127.0
for name, w, n_out in zip(weights, n_w, factors, strict=True):
    print(f"{name:6s} {n_in:9.3f} {w:8.2f} {n_out:11.8f}   {w * n_in * n_out:9.3f}")
    n_in = w * n_in * n_out

# %% [markdown]
# $n_{Out}$ is small, as it must be: it has to undo two large factors at once. Its name suggests that $1/n_{Out}$ is the scale
# of the output; only the last column is.
#
# ### {{m02.e2}}

# %%
m02_e2 = r"""
### BEGIN SOLUTION
It divides by the weight tensor of conv1, and a convolution has no such division; what enters conv2 is Out1, not In / W1. And the
factors n_W1 and n_Out1 were multiplied with, so they must stand as factors: each layer multiplies its input's factor by n_W and
n_Out. Right is n_W2 W2 * (n_W1 n_In n_Out1 Out1) * n_Out2 = n_W2 (n_W1 n_In n_Out1) n_Out2 Out2, that is (4) with
n_In2 = n_W1 n_In n_Out1.
### END SOLUTION
"""

# %%
check("m02.e2")

# %% [markdown]
# ## 6 Back to eight bits
#
# Translate (lab 4) into scales. With $n_W = 1/S_w$, $n_{In} = 1/S_x$ and $n_W n_{In} n_{Out} = 1/S_y$ it says
#
# $$n_{Out} = \frac{S_w S_x}{S_y} = M,$$
#
# which is the report's $M = S_1 S_2 / S_3$ (its equation 8). With zero points the same thought gives the equations that every
# integer engine computes. Put (1) in for weights, inputs and outputs, with $Z_w = 0$:
#
# $$a = \sum_k q_{w,k}\,(q_{x,k} - Z_x) \quad\text{(exact integers)}, \tag{7}$$
#
# $$q_y = \mathrm{clamp}\bigl(\mathrm{round}(M a) + Z_y\bigr), \qquad M = \frac{S_w S_x}{S_y} \tag{10}$$
#
# The second line is called **requantization**. The clamp is at least the grid. A **ReLU** costs nothing: real 0 is the
# integer $Z_y$, so the clamp begins there instead.
#
# A rule for ties has to be named, or two programs will not agree. Here: the product is taken in float64, and ties go to even.
#
# ### {{m02.q7}}
#
# Write `requantize`, for one multiplier and for one for each channel.


# %%
def requantize(acc, multiplier, zero_point, low, high):
    """Integers of the output grid from exact sums (eq. 10).

    acc: int32 array of any shape; zero_point: int; low, high: ints, the clamp, 0 <= low <= high <= 255
    multiplier: a float, or a float64 array with one for each index of the last axis of acc
    The product is taken in float64 and rounded to nearest, ties to even; then the zero point is added,
    then the clamp applied.
    Returns a uint8 array of the shape of acc.
    """
    ### BEGIN SOLUTION
    rounded = np.rint(multiplier * acc)
    return np.clip(rounded + zero_point, low, high).astype(np.uint8)
    ### END SOLUTION


# %%
check("m02.q7")

# %%
acc = np.arange(-3000, 9000, 25)
figure, place = plt.subplots(figsize=(8.5, 3.2))
for zero_point, low, colour, label in (
    (40, 0, BLUE, "Z = 40"),
    (40, 40, ORANGE, "Z = 40 with a ReLU"),
):
    place.plot(
        acc,
        requantize(acc, 0.03, zero_point, low, 255),
        color=colour,
        linewidth=3 if low == 0 else 1.2,
        label=label,
    )
place.set(
    title="Requantization with M = 0.03",
    xlabel="accumulator a (an integer)",
    ylabel="output q (an integer)",
)
place.legend(fontsize=9)
plt.show()

# %% [markdown]
# ## 7 A layer in integers
#
# Eq. 7 and eq. 10 together are a fully connected layer: integers in, integers out. The scales are used once, for $M$.
#
# ### {{m02.q8}}
#
# Write `quantized_linear`. Your `requantize` is there to be called.


# %%
def quantized_linear(x, weight, s_w, s_x, s_y, zero_in, zero_out, relu):
    """A fully connected layer on integers (eqs. 7 and 10): exact sums, then M in float64, ties to even.

    x: uint8 [..., I], with scale s_x (a float) and zero point zero_in (an int)
    weight: int8 [O, I], with scale s_w (a float, or a float64 array [O]) and zero point 0
    s_y, zero_out: scale and zero point of the output; relu: whether a ReLU follows
    Returns a uint8 array [..., O], clamped to 0 .. 255; a ReLU raises the lower end of the clamp to the
    integer of real 0.
    """
    ### BEGIN SOLUTION
    acc = (x.astype(np.int64) - zero_in) @ weight.T
    return requantize(acc, s_w * s_x / s_y, zero_out, zero_out if relu else 0, 255)
    ### END SOLUTION


# %%
check("m02.q8")

# %% [markdown]
# Does it compute what the real layer computes? Take fc2 and its ReLU, with one weight scale for each output as in labkit.

# %%
real_in, real_out = seen["relu3"], seen["relu4"]
s_x, zero_in = affine_params(*ranges["relu3"], 8)
s_y, zero_out = affine_params(*ranges["relu4"], 8)
s_w = (np.abs(weights["fc2"]).max(axis=1) / np.float32(127)).astype(np.float64)
w_int = np.rint(weights["fc2"] / s_w[:, None]).astype(np.int8)
q_out = quantized_linear(
    affine_quantize(real_in, s_x, zero_in, 8), w_int, s_w, s_x, s_y, zero_in, zero_out, True
)
difference = (to_real(q_out, s_y, zero_out) - real_out) / s_y

figure, (left, right) = plt.subplots(1, 2, figsize=(9.5, 3.4))
left.plot([0, real_out.max()], [0, real_out.max()], color=ORANGE, linewidth=1)
left.scatter(
    real_out,
    to_real(q_out, s_y, zero_out),
    s=6,
    color=BLUE,
    alpha=0.4,
    linewidths=0,
    rasterized=True,
    zorder=3,
)
left.set(
    title="fc2 with its ReLU, 100 images",
    xlabel="float layer",
    ylabel="your integer layer, times S",
)
right.hist(difference[real_out > 0], bins=60, color=GREEN)
right.set(
    title="Error, where the output is positive",
    xlabel="error in steps of the output's grid",
    ylabel="count",
)
plt.show()

# %% [markdown]
# Most errors are below one step. Half a step comes from rounding the output, the rest from the rounded weights and inputs.
#
# ## 8 The whole network
#
# A convolution is a linear layer that is applied to every window of the image. The first of these two helpers cuts the
# windows out, as rows in the order of `weight.reshape(O, -1)`; the second is LeNet's pooling. Max-pool needs no scale: a
# larger integer stands for a larger number, so the largest integer is the right one.


# %%
def patches(q, size):
    """Every size x size window of images q [N, C, H, W] as a row.

    Returns an array [N, H - size + 1, W - size + 1, C * size * size].
    """
    windows = np.lib.stride_tricks.sliding_window_view(q, (size, size), axis=(2, 3))
    n, _, h, w = windows.shape[:4]
    return windows.transpose(0, 2, 3, 1, 4, 5).reshape(n, h, w, -1)


def max_pool(q):
    """The largest of each 2 x 2 square of images q [N, C, H, W], without a last odd row or column."""
    n, c, h, w = q.shape
    return q[:, :, : h // 2 * 2, : w // 2 * 2].reshape(n, c, h // 2, 2, w // 2, 2).max(axis=(3, 5))


# %% [markdown]
# ### {{m02.q9}}
#
# Chain the layers. Each is a dict: `layer["kind"]` is `"conv"`, `"pool"` or `"linear"`. Layers with weights have `"weight"`,
# `"s_w"`, `"s_y"`, `"zero_out"` and `"relu"`, which mean what they meant in `quantized_linear`. What they do not have is the
# scale and zero point of their input, and you know why.


# %%
def integer_forward(q, scale, zero_point, layers):
    """The integers that leave a network, layer after layer (eqs. 7 and 10; ties to even).

    q: uint8 [N, C, H, W] (or [N, I] where the first layer is linear), with scale (a float) and
      zero_point (an int)
    layers: list of dicts
      {"kind": "pool"}: max_pool
      {"kind": "conv", "weight": int8 [O, C, k, k], ...}: a convolution with stride 1 and no padding;
        its result is [N, O, H - k + 1, W - k + 1]
      {"kind": "linear", "weight": int8 [O, I], ...}: a fully connected layer, before which images are
        flattened to [N, I]
      "..." stands for "s_w" (float64 [O]), "s_y" (float), "zero_out" (int) and "relu" (bool).
    Returns the uint8 array that the last layer gives.
    """
    ### BEGIN SOLUTION
    for layer in layers:
        if layer["kind"] == "pool":
            q = max_pool(q)
            continue
        weight = layer["weight"]
        is_conv = layer["kind"] == "conv"
        rows = patches(q, weight.shape[-1]) if is_conv else q.reshape(len(q), weight.shape[1])
        flat = weight.reshape(len(weight), rows.shape[-1])
        out = quantized_linear(
            rows,
            flat,
            layer["s_w"],
            scale,
            layer["s_y"],
            zero_point,
            layer["zero_out"],
            layer["relu"],
        )
        q = out.transpose(0, 3, 1, 2) if is_conv else out
        scale, zero_point = layer["s_y"], layer["zero_out"]
    return q
    ### END SOLUTION


# %%
check("m02.q9")

# %% [markdown]
# Here is your own 8-bit LeNet: ranges by your hook, grids by your eq. 5, pixels by your eq. 2, layers by your loop.

# %%
plan = [("conv1", "relu1"), ("conv2", "relu2"), ("fc1", "relu3"), ("fc2", "relu4"), ("fc3", "fc3")]
my_layers = []
for name, output in plan:
    w = weights[name]
    channel_scale = (np.abs(w).reshape(len(w), -1).max(axis=1) / np.float32(127)).astype(np.float64)
    integers = np.rint(w / channel_scale.reshape([-1] + [1] * (w.ndim - 1))).astype(np.int8)
    s_y, zero_out = affine_params(*ranges[output], 8)
    kind = "conv" if w.ndim == 4 else "linear"
    my_layers.append(
        {
            "kind": kind,
            "weight": integers,
            "s_w": channel_scale,
            "s_y": s_y,
            "zero_out": zero_out,
            "relu": output != name,
        }
    )
    if kind == "conv":
        my_layers.append({"kind": "pool"})

s_in, zero_in = affine_params(*ranges["input"], 8)
q_logits = integer_forward(affine_quantize(x, s_in, zero_in, 8), s_in, zero_in, my_layers)
with torch.no_grad():
    float_logits = module(torch.from_numpy(x)).numpy()
my_logits = to_real(q_logits, my_layers[-1]["s_y"], my_layers[-1]["zero_out"])
print(f"float network: {100 * np.mean(float_logits.argmax(1) == y):.1f} % of {len(y)} test images")
print(f"your integers: {100 * np.mean(my_logits.argmax(1) == y):.1f} %")
worst = np.abs(my_logits - float_logits).max()
print(f"largest error of a logit: {worst:.2f}, one step is {my_layers[-1]['s_y']:.2f}")

# %%
figure, place = plt.subplots(figsize=(4.2, 4))
ends = [float_logits.min(), float_logits.max()]
place.plot(ends, ends, color=ORANGE, linewidth=1)
place.scatter(
    float_logits, my_logits, s=6, color=BLUE, alpha=0.4, linewidths=0, rasterized=True, zorder=3
)
place.set(title="Logits of 200 test images", xlabel="float network", ylabel="your integer network")
plt.show()

# %% [markdown]
# ## 9 Your function in labkit's engine
#
# labkit quantizes the same network with its own code. Its engine computes with an integer multiplier, $M = m\, 2^{e-31}$, and
# its ties go up; module m04 is about that. With `with_override` your `quantized_linear` takes the place of its fully
# connected layer. The engine hands over $M$ whole, so $M$ goes in as `s_w`, and 1 for the other two scales. (This LeNet has
# no bias; the next module adds one.)

# %%
from labkit.course.showcase import show_accuracy
from labkit.kernels.kernel_set import REFERENCE

net = labkit.quantize(module, calibration, weights=8, activations=8)


def my_linear(x, weight, bias, *, input_zero_point, weight_zero_point, requantizer):
    relu = requantizer.clamp[0] == requantizer.zero_point
    m = requantizer.multiplier.to_real()
    return quantized_linear(x, weight, m, 1.0, 1.0, input_zero_point, requantizer.zero_point, relu)


mine = REFERENCE.with_override("linear", my_linear)

# %% [markdown]
# First the certificate. Are the integers the same, one by one? The two rules differ on ties, so this is worth counting.

# %%
theirs, yours = net.trace(x), net.trace(x, kernels=mine)
for name in ("fc1", "fc2", "fc3"):
    differ = np.count_nonzero(theirs[name] != yours[name])
    print(f"{name}: {differ} of {theirs[name].size:,} integers differ")
print("the same logits, to the last bit:", np.array_equal(theirs["output"], yours["output"]))

# %% [markdown]
# Then the accuracy, on as many images as fit into the time. `your forward pass` is the network of section 8, which owes
# labkit nothing.


# %%
def my_network(images):
    return integer_forward(affine_quantize(images, s_in, zero_in, 8), s_in, zero_in, my_layers)


networks = {
    "float": lambda images: module(torch.from_numpy(images)),
    "labkit, 8 bits": net.run,
    "labkit with your linear layer": lambda images: net.run(images, kernels=mine),
    "your forward pass": my_network,
}
show_accuracy(networks, data)

# %% [markdown]
# Not one integer differs, although ties go up in one and to even in the other. Luck? The challenge says why.
#
# ### {{m02.c1}}
#
# For a multiplier $M$ (a Python float, so exactly some integer over a power of two: `M.as_integer_ratio()`), find the
# smallest positive accumulator $a$ for which "nearest, ties up" and "nearest, ties to even" give different integers for the
# exact product $M a$. If there is none up to $2^{31} - 1$, the answer is `None`. Trying all of them takes too long; a few
# lines with pencil and paper make it short.


# %%
def first_disagreement(multiplier):
    """The smallest accumulator on which the two rules differ.

    multiplier: positive float, exactly p / 2**k with integers p and k
    Returns the smallest int a with 1 <= a <= 2**31 - 1 where floor(M a + 1/2) and RNE(M a) differ, with
    M a exact; or None.
    """
    ### BEGIN SOLUTION
    numerator, denominator = multiplier.as_integer_ratio()
    if denominator == 1:
        return None
    first = denominator // 2 * (1 if numerator % 4 == 1 else 3)
    return first if first < 2**31 else None
    ### END SOLUTION


# %%
check("m02.c1")

# %%
for name in ("fc1", "fc2", "fc3"):
    firsts = [
        first_disagreement(float(m)) for m in net.graph[name].op.requantizer.multiplier.to_real()
    ]
    found = [a for a in firsts if a is not None]
    least = f"the smallest is {min(found):,}" if found else "none fits int32"
    print(f"{name}: {len(found)} of {len(firsts)} channels have such an accumulator; {least}")

# %% [markdown]
# Where there is such an accumulator at all, it is a large power of two, or three times one: hundreds of millions, while the
# sums of LeNet stay below one million. Scales that are powers of two are another matter, and that is why the public cases of
# your tasks had them.
#
# ## What you have now
#
# - Eq. 1 and eq. 2 move numbers off and onto a grid; eq. 5 chooses the grid; eq. 10 brings sums of products back.
# - The only real numbers of a quantized network are its scales, and each layer needs only one number of them, $M$.
# - Ties are rare, and they are why a rule has a name.
#
# **To read:** docs/arithmetic.md, sections 1 to 4 (the equations) and 8 (the lab's notation); Jacob et al. 2018
# (arXiv:1712.05877), section 2. **Next:** m03 gives the last layer a bias, and the lab's accuracy drops to 57 %.
