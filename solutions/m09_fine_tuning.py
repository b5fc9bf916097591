# %% [markdown]
# # {{m09}}
#
# At 8 bits rounding costs nothing, at 4 bits little. At 2 bits a weight is -1, 0 or +1 times a scale, and choosing ranges well is
# no longer enough. The way out is simple to say: **let the network see what rounding does to it, and go on training.** There
# is one obstacle. Training follows gradients, and the gradient of rounding is zero.
#
# **You will be able to**
#
# - simulate integers inside a float network (*fake quantization*) and give it a gradient (*straight-through*),
# - let scales and ranges learn along with the weights,
# - freeze a batch norm at the right moment, and learn from a teacher instead of from labels alone,
# - train a network of 2-bit weights yourself in a few seconds, and hand its integers to labkit's engine.
#
# Equation numbers are those of `docs/arithmetic.md`; `docs/fine-tuning.md` tells what labkit's own fine-tuning does.

# %%
import time
from dataclasses import replace

import labkit
import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from labkit.course import check
from labkit.course.look import BLUE, GREEN, GREY, ORANGE, RED, play, use_look
from scipy.special import log_softmax, softmax

use_look()
data = labkit.data.load("auto")
print(data.reason)
module = labkit.models.load("lenet", data=data.name)
images = data.calibration(256)
x, y = data.test(500)

# %% [markdown]
# ## 1 The cliff
#
# LeNet after training, its weights rounded to nearest with one scale for each output channel, activations of 4 bits, in labkit's
# integer engine. From 3 bits to 2 there is a cliff.

# %%
bits_tried = (8, 5, 4, 3, 2)
nets = [labkit.quantize(module, images, weights=bits, activations=4) for bits in bits_tried]
right = [100 * np.mean(net.run(x).argmax(1) == y) for net in nets]
with torch.no_grad():
    float_right = 100 * np.mean(module(torch.from_numpy(x)).numpy().argmax(1) == y)

figure, axes = plt.subplots(figsize=(6, 3))
bars = axes.bar([str(b) for b in bits_tried], right, color=[BLUE] * 4 + [ORANGE])
axes.bar_label(bars, fmt="%.1f", label_type="center", color="white")
axes.axhline(float_right, color=GREY, linestyle="--", label=f"float, {float_right:.1f} %")
axes.set(title=f"Rounded after training ({data.name}, {len(y)} test images)")
axes.set(xlabel="bits of a weight", ylabel="images right in %")
axes.set_ylim(0, 1.25 * float_right)
axes.legend(loc="upper right")
plt.show()

# %% [markdown]
# ## 2 Pretend to be an integer
#
# A network that is trained must stay a float network: its optimiser takes steps far smaller than a level. So each number
# makes a round trip. It goes to its level and comes back at once:
#
# $$\hat x = S \cdot \mathrm{clip}\bigl(\mathrm{RNE}(x / S),\ l_\min,\ l_\max\bigr)$$
#
# These are eqs. 2 and 1 in one line. A **level** $l$ is an integer less the zero point, so that the level 0 is real 0; 2-bit
# weights have the levels -1 to 1, and a 4-bit activation after a ReLU has 0 to 15. The result is a float32 number that has
# only a few values.
#
# ### {{m09.q1}}
#
# Write the round trip. Ties go to the even level.


# %%
def fake_quantize(x, scale, low, high):
    """x on its grid: each number becomes the scale times its nearest level.

    x: float32 array of any shape
    scale: a positive number, or a float32 array that broadcasts against x
    low, high: the first and the last level, integers
    Returns real numbers of the shape of x. A number halfway between two levels goes to the even one.
    """
    ### BEGIN SOLUTION
    return scale * np.clip(np.round(x / scale), low, high)
    ### END SOLUTION


# %%
check("m09.q1")

# %% [markdown]
# Here is what two bits leave of the weights of `conv2`, if the largest of them gets the last level.

# %%
conv2 = module.conv2.weight.detach().numpy()
widest = np.abs(conv2).max()
rounded = fake_quantize(conv2, widest, -1, 1)

figure, (left, right_axes) = plt.subplots(1, 2, figsize=(9, 3.2))
line = np.linspace(-1.15 * widest, 1.15 * widest, 1001, dtype=np.float32)
left.plot(line, line, color=GREY, label="x")
left.plot(line, fake_quantize(line, widest, -1, 1), color=BLUE, linewidth=2, label="2 bits")
left.plot(line, fake_quantize(line, widest / 7, -7, 7), color=ORANGE, linewidth=1, label="4 bits")
left.set(title="The staircase", xlabel="x (a weight, real number)", ylabel="x on its grid")
left.legend()
right_axes.hist(conv2.ravel(), bins=80, color=GREY, label="before")
for level in (-1, 0, 1):
    share = 100 * np.mean(np.isclose(rounded, level * widest))
    right_axes.axvline(
        level * widest, color=BLUE, linewidth=2, label=f"level {level}: {share:.1f} % of weights"
    )
right_axes.set(
    title="Weights of conv2, one scale for the layer", xlabel="weight (real number)", ylabel="count"
)
right_axes.set_ylim(0, 1.5 * right_axes.get_ylim()[1])
right_axes.legend(fontsize=8, loc="upper center")
plt.show()

# %% [markdown]
# ## 3 A gradient for a staircase
#
# A staircase is flat nearly everywhere. PyTorch knows:

# %%
probe = torch.tensor([0.3, 1.2, -0.7], requires_grad=True)
(torch.round(probe) ** 2).sum().backward()
print("rounded", torch.round(probe).tolist(), "  gradient", probe.grad.tolist())

# %% [markdown]
# With this gradient no weight ever moves. But look at the staircase from afar: on average it climbs like the straight line
# $x$, whose derivative is 1, and it is flat beyond its ends. The **straight-through estimator** takes these derivatives in
# place of the true one (Bengio et al. 2013). It is a lie, and it works remarkably well.
#
# ### {{m09.q2}}
#
# During training a **slope** arrives from behind: how much the loss grows with each element of $\hat x$. Return how much it
# grows with each element of $x$. A number is clipped where its nearest integer $\mathrm{RNE}(x/S)$ lies outside `low..high`;
# there the answer is 0.


# %%
def straight_through(x, slope, scale, low, high):
    """The gradient by x: the slope where x was not clipped, else 0.

    x, scale, low, high: as for fake_quantize
    slope: float32 array of the shape of x, the gradient by the result
    Returns real numbers of the shape of x. x is clipped where the integer nearest to x / scale (ties
    to even) lies outside low..high.
    """
    ### BEGIN SOLUTION
    nearest = np.round(x / scale)
    return np.where((nearest >= low) & (nearest <= high), slope, 0)
    ### END SOLUTION


# %%
check("m09.q2")

# %%
line = np.linspace(-4, 4, 1601, dtype=np.float32)
figure, (left, right_axes) = plt.subplots(1, 2, figsize=(9, 3), sharex=True)
left.plot(
    line, fake_quantize(line, 1.0, -2, 2), color=BLUE, linewidth=2, label="forward: the staircase"
)
left.plot(
    line,
    np.clip(line, -2.5, 2.5),
    color=ORANGE,
    linestyle="--",
    label="backward pretends: this line",
)
left.set(
    title="What is computed, what is pretended", xlabel="x in steps of the scale", ylabel="result"
)
left.legend(fontsize=8)
right_axes.plot(
    line,
    np.gradient(fake_quantize(line, 1.0, -2, 2), line),
    color=BLUE,
    linewidth=1,
    label="true: spikes at the jumps",
)
ones = np.ones_like(line)
right_axes.plot(
    line,
    straight_through(line, ones, 1.0, -2, 2),
    color=ORANGE,
    linewidth=2,
    label="straight-through",
)
right_axes.set(
    title="The derivative", xlabel="x in steps of the scale", ylabel="derivative", ylim=(-0.2, 3)
)
right_axes.legend(fontsize=8)
plt.show()

# %% [markdown]
# **Play.** One weight, one wish: $\hat w$ shall be 0.35, and there is no such level. Watch the float weight (grey) and its
# rounded copy (blue), and the mean of the copy in the title. What happens if the rate is small? If the wish lies beyond the
# last level?


# %%
def one_weight(bits, rate, wish):
    last = 2 ** (bits - 1) - 1
    weight, kept, copies = np.float32([0.0]), [], []
    for _ in range(80):
        copy = fake_quantize(weight, 1 / last, -last, last)
        kept.append(weight[0])
        copies.append(copy[0])
        weight = weight - rate * straight_through(weight, 2 * (copy - wish), 1 / last, -last, last)
    _, axes = plt.subplots(figsize=(7.5, 2.8))
    axes.plot(kept, color=GREY, label="float weight")
    axes.step(range(80), copies, color=BLUE, where="mid", label="its rounded copy")
    axes.axhline(wish, color=ORANGE, linestyle="--", label=f"wish {wish:g}")
    mean = np.mean(copies[40:])
    axes.set(title=f"{bits} bits, rate {rate:g}: the mean copy of the last 40 steps is {mean:.2f}")
    axes.set(xlabel="step", ylabel="weight", ylim=(-0.3, 1.9))
    axes.legend(ncols=3, fontsize=8)
    plt.show()


play(
    one_weight,
    stills=[
        {"bits": 2, "rate": 0.1, "wish": 0.35},
        {"bits": 3, "rate": 0.02, "wish": 0.35},
        {"bits": 2, "rate": 0.1, "wish": 1.4},
    ],
    bits=[2, 3, 4],
    rate=[0.005, 0.02, 0.1, 0.3],
    wish=[0.1, 0.35, 0.6, 1.4],
)

# %% [markdown]
# It never settles: it jumps between the two neighbours, and *on average over time* it is right. That restlessness is useful
# among thousands of weights (each tries both of its levels in the company of the others), and it is why the rate falls to
# zero at the end. A weight that is clipped and wants to go further stays where it is.
#
# ### {{m09.q3}}
#
# Now a whole layer, and PyTorch finds the gradient. The trick: `value.detach()` is the same number to the forward pass and a
# constant to the gradient. So $v + (\mathrm{round}(v) - v)\texttt{.detach()}$ *is* $\mathrm{round}(v)$, and its derivative
# is that of $v$. Beyond its ends `torch.clamp` has the derivative 0 by itself.
#
# One step: round the weights, compute the layer $\hat y = x \hat w^T$, take the mean of all $(\hat y - \text{target})^2$, and
# move the **float** weights against the gradient. The first two lines are given: `weight`, `inputs` and `wanted` are tensors.


# %%
def training_step(w, x, target, scale, low, high, rate):
    """One step of gradient descent for a linear layer with rounded weights.

    w: float32 array [outputs, inputs]
    x: float32 array [images, inputs]; target: float32 array [images, outputs]
    scale: a positive number; low, high: the first and the last level; rate: the learning rate
    Returns (loss, new w): the mean square before the step, over all images and outputs, a number; and
    the moved float weights [outputs, inputs]. The gradient passes a weight unless the integer nearest
    to w / scale (ties to even) lies outside low..high.
    """
    weight = torch.tensor(w, requires_grad=True)
    inputs, wanted = torch.tensor(x), torch.tensor(target)
    ### BEGIN SOLUTION
    exact = weight / scale
    level = torch.clamp(exact + (torch.round(exact) - exact).detach(), low, high)
    loss = ((inputs @ (scale * level).T - wanted) ** 2).mean()
    loss.backward()
    return loss.item(), (weight - rate * weight.grad).detach().numpy()
    ### END SOLUTION


# %%
check("m09.q3")

# %% [markdown]
# Nine weights with three levels: that is $3^9 = 19683$ possible layers, few enough to try them all. The inputs are windows of
# 3 x 3 pixels of real images; neighbours resemble each other, so that errors of rounding add up. How good is rounding each
# weight to its nearest level, and can your steps do better?

# %%
windows = np.lib.stride_tricks.sliding_window_view(images[:64, 0, 6:26, 6:26], (3, 3), axis=(1, 2))
windows = np.ascontiguousarray(windows[:, ::4, ::4].reshape(-1, 9))
ideal = np.random.default_rng(8).normal(0, 0.3, (1, 9)).astype(np.float32)
goal = windows @ ideal.T
step_size = float(np.abs(ideal).max())

every = np.stack(np.meshgrid(*[[-1, 0, 1]] * 9), -1).reshape(-1, 9).astype(np.float32)
every_loss = np.mean((windows @ (step_size * every).T - goal) ** 2, axis=0)

weight, losses = ideal, []
for step in range(200):
    loss, weight = training_step(weight, windows, goal, step_size, -1, 1, 0.01 * (1 - step / 200))
    losses.append(loss)
for what, loss in (("rounded to nearest", losses[0]), ("the best while training", min(losses))):
    print(f"{what}: place {1 + np.sum(every_loss < 0.9999 * loss):,} of {len(every):,}")

figure, axes = plt.subplots(figsize=(7.5, 3))
axes.plot(losses, color=BLUE, label="your steps")
axes.axhline(losses[0], color=GREY, linestyle=":", label="rounded to nearest")
axes.axhline(every_loss.min(), color=GREEN, linestyle="--", label=f"the best of {len(every):,}")
axes.set(title="One layer of nine 2-bit weights", xlabel="step", ylabel="mean square")
axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
plt.show()

# %% [markdown]
# The steps see the error of all weights *together*; rounding to nearest sees one weight at a time. **Try it:** another seed
# than 8. For some layers the nearest levels are the best ones already, and nothing is to be gained.
#
# ## 4 Scales learn, ranges move
#
# In section 2 a single large weight chose the scale for all. What is a good scale? Let training say. The result is
# $\hat x = S\, l$, so where $x$ is **clipped** and $l$ is an end of the grid, the derivative by $S$ is just $l$. Elsewhere
# $l$ comes from $x / S$, which moves with $S$ as well; the straight-through estimator lets $l$ pass for $x/S$, whose
# derivative by $S$ is $-x / S^2$. Together (Esser et al. 2020):
#
# $$\frac{\partial \hat x}{\partial S} = \begin{cases} l - x / S & \text{not clipped} \\ l & \text{clipped} \end{cases}$$
#
# ### {{m09.q4}}
#
# Return this for each element. The same rule as before says what is clipped.


# %%
def scale_derivative(x, scale, low, high):
    """The derivative of each result of fake_quantize by the scale.

    x, scale, low, high: as for fake_quantize
    Returns real numbers of the shape of x: the level less x / scale, and where x was clipped, the end
    of the grid (low or high).
    """
    ### BEGIN SOLUTION
    exact = x / scale
    level = np.clip(np.round(exact), low, high)
    return np.where(level == np.round(exact), level - exact, level)
    ### END SOLUTION


# %%
check("m09.q4")

# %%
line = np.linspace(-4, 4, 1601, dtype=np.float32)
figure, axes = plt.subplots(figsize=(7, 2.8))
axes.plot(line, scale_derivative(line, 1.0, -2, 2), color=BLUE)
axes.axvspan(-4, -2.5, color=GREY, alpha=0.25)
axes.axvspan(2.5, 4, color=GREY, alpha=0.25, label="clipped: a larger scale would reach further")
axes.set(title="A saw between two shelves", xlabel="x / scale", ylabel="derivative by the scale")
axes.legend(fontsize=8, loc="upper left")
plt.show()

# %% [markdown]
# Inside, the saw asks in turn for a larger and a smaller scale; the shelves at the ends pull where much is clipped. Training
# finds the balance. In the last section you will see where it lies. (PACT, Choi et al. 2018, learns from the shelves alone.)
#
# Activations have no fixed range: each batch makes others, and they shift while the weights move. Jacob et al. keep **moving
# averages** of the lowest and the highest value of each batch, with a momentum close to 1 (the lab, section V.E(b)):
#
# $$\text{average} \leftarrow \text{momentum} \cdot \text{average} + (1 - \text{momentum}) \cdot \text{batch}$$
#
# ### {{m09.q5}}
#
# Write one such step for both ends. The first batch has no average before it, and is the first average itself.


# %%
def moving_range(average, values, momentum):
    """The moving averages of the lowest and the highest activation after one more batch.

    average: (low, high) so far, or None before the first batch
    values: float32 array of any shape, the activations of the batch
    momentum: the share of the old average, at least 0 and below 1
    Returns (low, high), real numbers.
    """
    ### BEGIN SOLUTION
    low, high = values.min(), values.max()
    if average is None:
        return low, high
    return momentum * average[0] + (1 - momentum) * low, momentum * average[1] + (
        1 - momentum
    ) * high
    ### END SOLUTION


# %%
check("m09.q5")

# %% [markdown]
# While ranges still rush to their place, rounding to them would do harm. So activations are **observed only** for the first
# `delay` steps (the lab: "given significant delay"), and rounded from then on, on the affine grid of `bits` unsigned bits:
# eq. 5, with the range widened to hold 0 and the zero point $Z$ rounded to the nearest integer, ties to even.
#
# ### {{m09.q6}}
#
# Return the grid in the form that `fake_quantize` takes: the scale, and the levels $0 - Z$ and $2^b - 1 - Z$.


# %%
def activation_grid(average, bits, step, delay):
    """The grid of an activation at a step of training (eq. 5), as levels, and whether it is in use yet.

    average: (low, high), real numbers, low < high; bits: 2 to 8
    step: counted from 0; delay: so many steps only observe
    Returns a dict: "scale" (a number), "low" and "high" (levels, integers: the ends of the unsigned
    grid less the zero point), "on" (True where the activation is rounded at this step, else False). The
    range is widened to hold 0 first; the zero point is rounded to the nearest integer, ties to even.
    """
    ### BEGIN SOLUTION
    lowest, highest = min(average[0], 0), max(average[1], 0)
    largest = 2**bits - 1
    scale = (highest - lowest) / largest
    zero_point = round(-lowest / scale)
    return {"scale": scale, "low": -zero_point, "high": largest - zero_point, "on": step >= delay}
    ### END SOLUTION


# %%
check("m09.q6")

# %% [markdown]
# Sixty batches of 16 real images. From batch 20 on, all weights of `conv1` and `conv2` are rounded to 2 bits, and what leaves
# the second ReLU shifts at once. The momentum 0.5 runs after every batch, 0.99 sleeps through the change, 0.9 is a
# compromise.

# %%
from labkit.data.dataset import normalise

fine = [layer.weight.detach() for layer in (module.conv1, module.conv2)]
coarse = [
    torch.tensor(fake_quantize(w.numpy(), float(w.abs().max()), -1, 1), dtype=torch.float32)
    for w in fine
]
averages, grids, tops = dict.fromkeys((0.5, 0.9, 0.99)), {0.5: [], 0.9: [], 0.99: []}, []
for batch in range(60):
    values = torch.from_numpy(normalise(data.train_images[16 * batch : 16 * batch + 16]))
    first, second = fine if batch < 20 else coarse
    values = F.relu(F.conv2d(F.max_pool2d(F.relu(F.conv2d(values, first)), 2), second)).numpy()
    tops.append(values.max())
    for momentum in averages:
        averages[momentum] = moving_range(averages[momentum], values, momentum)
        grids[momentum].append(activation_grid(averages[momentum], 4, batch, 10))

figure, axes = plt.subplots(figsize=(8, 3.2))
axes.plot(tops, ".", color=GREY, label="largest value of the batch")
for momentum, colour in ((0.5, GREEN), (0.9, BLUE), (0.99, ORANGE)):
    ends = [grid["scale"] * grid["high"] for grid in grids[momentum]]
    axes.plot(ends, color=colour, label=f"end of the grid, momentum {momentum}")
observed = sum(not grid["on"] for grid in grids[0.9])
axes.axvspan(-0.5, observed - 0.5, color=GREY, alpha=0.2, label="observed only")
axes.set(
    title="Activations of conv2 while weights change",
    xlabel="batch",
    ylabel="activation (real number)",
)
axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
plt.show()

# %% [markdown]
# ## 5 Batch norm: freeze, fold, round
#
# LeNet has no batch norm; most networks have one behind every convolution. In training it subtracts the *batch's* mean and
# divides by the *batch's* deviation. The engine cannot: there, a batch norm is a frozen line that is folded into the weights
# (eqs. 22 and 23),
#
# $$g = \frac{\gamma}{\sqrt{\sigma^2 + \varepsilon}}, \qquad W' = g\, W, \qquad b' = \beta - \mu\, g$$
#
# (for a layer without a bias of its own). So sooner or later training must compute with the folded weights, rounded. HAWQ-V3
# first lets the statistics settle, then freezes and folds them, and trains on (HAWQ slides, *Integer-only quantization*).
#
# ### {{m09.q7}}
#
# Fold with frozen statistics, then round the folded weights on the symmetric narrow grid, **one scale for the whole layer**
# (eq. 4: the largest magnitude gets the level $2^{b-1} - 1$).


# %%
def folded_and_rounded(w, gamma, beta, mean, variance, epsilon, bits):
    """The weights and the bias of a layer with its frozen batch norm folded in, the weights rounded.

    w: float32 array [outputs, ...], 2 to 4 dimensions, of a layer without a bias
    gamma, beta, mean, variance: float32 arrays [outputs] of the batch norm
    epsilon: a positive number; bits: 2 to 8
    Returns (rounded weights, of the shape of w; bias [outputs]), real numbers. There is one scale for
    all folded weights: their largest magnitude gets the level 2**(bits - 1) - 1. Ties go to the even
    level. The bias is not rounded.
    """
    ### BEGIN SOLUTION
    gain = gamma / np.sqrt(variance + epsilon)
    folded = w * gain.reshape(len(w), *[1] * (w.ndim - 1))
    scale = np.abs(folded).max() / (2 ** (bits - 1) - 1)
    return scale * np.round(folded / scale), beta - mean * gain
    ### END SOLUTION


# %%
check("m09.q7")

# %% [markdown]
# The first layer of a ResNet-20 that was trained on CIFAR-10, once with 4 bits for its folded weights. Each point is a
# channel. Where the gain is small, all weights of the channel round to 0: what is left of it is its bias. (One scale for each
# channel saves it.)

# %%
resnet = labkit.models.load("resnet20", data="cifar10")
layer, norm = resnet.conv1, resnet.bn1
parts = [
    p.detach().numpy()
    for p in (layer.weight, norm.weight, norm.bias, norm.running_mean, norm.running_var)
]
folded4, bias4 = folded_and_rounded(*parts, norm.eps, 4)
gains = np.abs(parts[1]) / np.sqrt(parts[4] + norm.eps)
zeros = 100 * np.mean(folded4.reshape(len(gains), -1) == 0, axis=1)

figure, axes = plt.subplots(figsize=(6.5, 3))
axes.scatter(gains, zeros, color=BLUE, s=25)
axes.set(title=f"conv1 of ResNet-20: {len(gains)} channels, 4 bits, one scale", xscale="log")
axes.set(xlabel="gain |g| of the channel, log scale", ylabel="weights that become 0, in %")
plt.show()

# %% [markdown]
# ### {{m09.e1}}

# %%
m09_e1 = """
### BEGIN SOLUTION
Folding multiplies each weight of a row by g. The row's largest magnitude, and so its min-max scale, is multiplied by
|g|. The quotient w / S is therefore the same up to its sign; the grid is symmetric and ties go to even, so the levels
are the same up to that sign, and times the new scale they are g times the old result. labkit folds first because the
engine holds only folded weights, and because with one scale for a layer, or with learned scales, the order does
matter.
### END SOLUTION
"""

# %%
check("m09.e1")

# %% [markdown]
# ### {{m09.c1}}
#
# Before the freeze, the training network computes with rounded *folded* weights, and the batch norm must learn its statistics
# all the same. What it gets to see are sums that already hold the factor $f$ of the statistics so far, one number for each
# channel: $f$ times the sums of the layer itself. Update the running statistics as a batch norm would have, had it seen the
# layer's own sums.


# %%
def moved_statistics(sums, factor, mean, variance, momentum):
    """The running mean and variance of a batch norm after one batch of sums that hold its factor.

    sums: float32 array [images, channels] or [images, channels, height, width], factor times the
    layer's own sums
    factor: float32 array [channels]; mean, variance: float32 arrays [channels], the statistics so far
    momentum: the share of the new batch, as in torch.nn.BatchNorm2d
    Returns (mean, variance), real numbers [channels]. The batch's variance is the unbiased one, with
    n - 1 for the n sums of a channel. A channel with the factor 0 keeps its statistics.
    """
    ### BEGIN SOLUTION
    axes = (0, *range(2, sums.ndim))
    usable = factor != 0
    batch_mean = np.divide(sums.mean(axes), factor, out=mean.copy(), where=usable)
    batch_variance = np.divide(sums.var(axes, ddof=1), factor**2, out=variance.copy(), where=usable)
    return mean + momentum * (batch_mean - mean), variance + momentum * (batch_variance - variance)
    ### END SOLUTION


# %%
check("m09.c1")

# %% [markdown]
# ## 6 A teacher
#
# A label says "this is a 7". The float network says more: "a 7, and if not, rather a 9 than a 0". Dividing logits by a
# **temperature** $T$ before the softmax makes such whispers audible. This is the test image about which the float network is
# least sure:

# %%
with torch.no_grad():
    answers = module(torch.from_numpy(x)).numpy()
unsure = int(np.argmin(np.diff(np.sort(answers, axis=1)[:, -2:], axis=1)))
figure, (left, right_axes) = plt.subplots(1, 2, figsize=(9, 3), width_ratios=(1, 3))
left.imshow(data.test_images[unsure].transpose(1, 2, 0))
left.set_title(f"labelled {data.class_names[y[unsure]]}")
left.axis("off")
for place, (heat, colour) in enumerate(((1, GREY), (2, BLUE), (8, ORANGE))):
    right_axes.bar(
        np.arange(10) + 0.27 * (place - 1),
        softmax(answers[unsure] / heat),
        width=0.27,
        color=colour,
        label=f"T = {heat}",
    )
right_axes.set_xticks(range(10), data.class_names, rotation=45 if data.name == "cifar10" else 0)
right_axes.set(title="What the float network thinks", xlabel="class", ylabel="probability")
right_axes.legend()
plt.show()

# %% [markdown]
# In **distillation** (Hinton et al. 2015) the teacher is the float network, and the student the network that rounds. With the
# probabilities $p$ of the student and $t$ of the teacher, and $p^T$, $t^T$ those at the temperature $T$, the loss of one
# image with the label $k$ is
#
# $$(1 - \alpha) \bigl(-\log p_k\bigr) + \alpha\, T^2 \sum_c t^T_c \bigl(\log t^T_c - \log p^T_c\bigr)$$
#
# Its gradient by the student's logits is short (try to derive it): $(1 - \alpha) (p - e_k) + \alpha\, T\, (p^T - t^T)$, where
# $e_k$ is 1 at the label and 0 elsewhere. The sum's own gradient has the factor $1/T$ and is itself about as small again, and
# that is why there is $T^2$ before it: so both parts pull with like force at any temperature.
#
# ### {{m09.q8}}
#
# Return the loss and its gradient, both for the **mean over the images**. `softmax` and `log_softmax` of SciPy (imported
# above) are yours to use; they can also take logits so large that `exp` alone would overflow.


# %%
def distillation(logits, teacher, labels, share, temperature):
    """The loss of distillation, and its gradient by the logits.

    logits, teacher: float32 arrays [images, classes], of the network that learns and of its teacher
    labels: integers [images]
    share: alpha, from 0 (labels alone) to 1 (teacher alone); temperature: T, a positive number
    Returns (loss, gradient): the mean over the images, a number, and the gradient of this mean by the
    logits, real numbers [images, classes].
    """
    ### BEGIN SOLUTION
    each = np.arange(len(labels))
    soft, aim = (
        log_softmax(logits / temperature, axis=1),
        log_softmax(teacher / temperature, axis=1),
    )
    hard = -log_softmax(logits, axis=1)[each, labels].mean()
    gap = np.sum(np.exp(aim) * (aim - soft)) / len(labels)
    by_labels = softmax(logits, axis=1)
    by_labels[each, labels] -= 1
    by_teacher = temperature * (np.exp(soft) - np.exp(aim))
    loss = (1 - share) * hard + share * temperature**2 * gap
    return loss, ((1 - share) * by_labels + share * by_teacher) / len(labels)
    ### END SOLUTION


# %%
check("m09.q8")

# %% [markdown]
# ## 7 Yours in the engine: two bits
#
# All parts are there. `Rounded` makes one step of PyTorch of your `fake_quantize`, `straight_through` and `scale_derivative`.
# `RoundedLeNet` rounds where the integer engine rounds: 2-bit weights with a learned scale for each output channel, 4-bit
# activations with your moving ranges, 8 bits for the images and the logits.

# %%
LAYERS = ("conv1", "conv2", "fc1", "fc2", "fc3")
DELAY = 15


def floats(values):
    return torch.from_numpy(np.asarray(values, np.float32))


class Rounded(torch.autograd.Function):
    @staticmethod
    def forward(ctx, numbers, scale, low, high):
        ctx.save_for_backward(numbers, scale)
        ctx.ends = low, high
        return floats(fake_quantize(numbers.detach().numpy(), scale.detach().numpy(), low, high))

    @staticmethod
    def backward(ctx, slope):
        numbers, scale = (saved.detach().numpy() for saved in ctx.saved_tensors)
        by_numbers = floats(straight_through(numbers, slope.numpy(), scale, *ctx.ends))
        if not ctx.needs_input_grad[1]:
            return by_numbers, None, None, None
        by_scale = (slope * floats(scale_derivative(numbers, scale, *ctx.ends))).sum_to_size(
            scale.shape
        )
        return by_numbers, by_scale * (scale.size / numbers.size) ** 0.5, None, None


class RoundedLeNet(torch.nn.Module):
    def __init__(self, lenet):
        super().__init__()
        parts = {name: getattr(lenet, name).weight.detach().clone() for name in LAYERS}
        starts = {
            name: 2 * part.abs().mean(tuple(range(1, part.ndim)), keepdim=True)
            for name, part in parts.items()
        }
        self.weights, self.scales = torch.nn.ParameterDict(parts), torch.nn.ParameterDict(starts)
        self.ranges, self.step = dict.fromkeys(("x", *LAYERS)), 0

    def weight(self, name):
        return Rounded.apply(self.weights[name], self.scales[name], -1, 1)

    def activation(self, name, values):
        if self.training:
            self.ranges[name] = moving_range(self.ranges[name], values.detach().numpy(), 0.9)
        grid = activation_grid(
            self.ranges[name], 8 if name in ("x", "fc3") else 4, self.step, DELAY
        )
        return (
            Rounded.apply(values, floats(grid["scale"]), grid["low"], grid["high"])
            if grid["on"]
            else values
        )

    def forward(self, x):
        x = self.activation("x", x)
        for name in ("conv1", "conv2"):
            x = F.max_pool2d(self.activation(name, F.relu(F.conv2d(x, self.weight(name)))), 2)
        x = x.flatten(1)
        for name in ("fc1", "fc2"):
            x = self.activation(name, F.relu(F.linear(x, self.weight(name))))
        return self.activation("fc3", F.linear(x, self.weight("fc3")))


# %% [markdown]
# The training takes as long as `seconds_to_spend()` says. It is the supplement's recipe in small: gradient descent with a
# momentum of 0.9, at a rate that begins at 0.005 and falls to 0 along half a cosine. Scales start at twice the mean magnitude
# of their row, and their gradients are divided by $\sqrt N$ for the $N$ weights that they serve (both from LSQ). Half of the
# loss is the teacher's.

# %%
from labkit.course.showcase import seconds_to_spend, show_accuracy

net, rng = RoundedLeNet(module), np.random.default_rng(0)
started = {name: scale.detach().clone() for name, scale in net.scales.items()}
speeds = {parameter: torch.zeros_like(parameter) for parameter in net.parameters()}
begun, done, losses = time.perf_counter(), 0.0, []
while done < 1 or net.step < 2 * DELAY:
    chosen = rng.integers(0, len(data.train_labels), 50)
    batch = torch.from_numpy(normalise(data.train_images[chosen]))
    with torch.no_grad():
        teacher = module(batch).numpy()
    logits = net(batch)
    loss, slope = distillation(
        logits.detach().numpy(), teacher, data.train_labels[chosen], 0.5, 2.0
    )
    net.zero_grad()
    logits.backward(floats(slope))
    with torch.no_grad():
        for parameter, speed in speeds.items():
            speed.mul_(0.9).add_(parameter.grad)
            parameter -= 0.005 * (1 + np.cos(np.pi * min(done, 1))) / 2 * speed
    losses.append(loss)
    net.step += 1
    done = (time.perf_counter() - begun) / seconds_to_spend()
net.eval()
print(f"{net.step} steps of 50 images in {time.perf_counter() - begun:.1f} s")

# %%
figure, (left, right_axes) = plt.subplots(1, 2, figsize=(9, 3))
left.plot(losses, color=GREY, linewidth=0.7, label="each step")
left.plot(
    np.arange(4, len(losses) - 4),
    np.convolve(losses, np.ones(9) / 9, "valid"),
    color=BLUE,
    label="mean of 9",
)
left.axvline(DELAY, color=ORANGE, linestyle=":", label="activations are rounded from here")
left.set(title="Training with two bits", xlabel="step", ylabel="loss")
left.legend(fontsize=8)
for name, colour in zip(LAYERS, (GREEN, BLUE, ORANGE, RED, GREY), strict=True):
    widest = module.get_submodule(name).weight.detach().abs().flatten(1).amax(1)
    right_axes.scatter(widest, net.scales[name].detach().flatten(), s=8, color=colour, label=name)
end = right_axes.get_ylim()[1]
right_axes.plot([0, end], [0, end], color="black", linewidth=0.8)
right_axes.set(title="Learned scales", xlabel="largest weight of the channel", ylabel="its scale")
right_axes.legend(fontsize=7, loc="lower right")
plt.show()
moved = {
    name: 100 * float((scale.detach() / started[name] - 1).abs().mean())
    for name, scale in net.scales.items()
}
print(
    "moved by learning, mean:",
    ", ".join(f"{name} {percent:.1f} %" for name, percent in moved.items()),
)

# %% [markdown]
# On the black line a scale would be the largest weight of its channel. The learned ones lie below it: two bits clip the
# few to serve the many. LSQ's start is already so good that a few seconds move it by some per cent.
#
# Now the float copies have done their work. `quantize_tensor` makes integers of the weights and of your learned scales, and
# `convert` builds the network of the engine from these integers and your ranges. The `assert` is the certificate for the
# weights: your simulation and the engine mean the same numbers, to the last bit.

# %%
from labkit.arithmetic.affine import QParams, quantize_tensor
from labkit.frontends.torch_fx import from_torch
from labkit.graph.passes import simplify
from labkit.net import IntegerNet
from labkit.quantization.calibration import calibrate
from labkit.quantization.convert import convert
from labkit.quantization.plan import BitPlan
from labkit.quantization.rounded import RoundedLayer

graph = simplify(from_torch(module, (3, 32, 32)))
plan = BitPlan.uniform(graph, weights=2, activations=4)
my_ranges = {name: (float(low), float(high)) for name, (low, high) in net.ranges.items()}
calibration = replace(calibrate(graph, images), ranges=my_ranges, method="m09")
my_layers = {}
for name in LAYERS:
    weight, scale = net.weights[name].detach().numpy(), net.scales[name].detach().numpy()
    integers = quantize_tensor(
        weight, QParams(scale.ravel(), np.zeros(len(scale), np.int32)), plan.weight_spec(name)
    )
    assert np.array_equal(
        integers.dequantized(), np.asarray(fake_quantize(weight, scale, -1, 1), np.float32)
    )
    my_layers[name] = RoundedLayer(integers, np.zeros(len(weight), np.float32))
mine = IntegerNet(convert(graph, calibration, plan, rounded=my_layers))

with torch.no_grad():
    simulated = net(torch.from_numpy(x)).numpy()
computed = mine.run(x)
step_size = float(mine.graph["fc3"].output.params.scale)
apart = np.rint((simulated - computed) / step_size)
other = np.count_nonzero(simulated.argmax(1) != computed.argmax(1))
print(f"{100 * np.mean(apart == 0):.2f} % of the logits are the same, simulated and in integers")
print(f"largest difference: {np.abs(apart).max():.0f} of 256 steps")
print(f"{other} of {len(x)} images get another class")

# %% [markdown]
# Where a logit differs, some number inside lay at a tie: a float32 sum fell on one side of the half, the exact integer sum on
# the other. That is rare because you rounded wherever the engine rounds, with the same scales. The HAWQ slides (*Integer-only
# quantization*) plot how large the gap becomes where a simulation leaves parts in floating point.
#
# And here is what it was for: both integer networks have 2-bit weights and 4-bit activations.

# %%
nearest = labkit.quantize(module, images, weights=2, activations=4)


def run_float(pixels):
    with torch.no_grad():
        return module(torch.from_numpy(pixels))


show_accuracy(
    {"float": run_float, "labkit, rounded to nearest": nearest.run, "yours, fine-tuned": mine.run},
    data,
)

# %% [markdown]
# **Try it:** set `LABKIT_COURSE_SECONDS` to 60 before you start Jupyter, or train without the teacher (a share of 0), or with
# `DELAY = 0`. What helps most?
#
# labkit's own `labkit fine-tune` does the same with faster kernels, a better start and batch norms. `docs/fine-tuning.md` has
# its recipes (Jacob's, PACT, LSQ, the supplement's), its traps, and what six epochs bring ResNet-20 on CIFAR-10.
#
# ### {{m09.e2}}

# %%
m09_e2 = """
### BEGIN SOLUTION
First, the 2-bit network was trained further, and the float network would also get better from more training, so this
compares training times, not bits. Second, 0.4 points of 1,000 images are 4 images, and one standard error is about
0.5 points; another seed may turn it round. To decide, train the float network for as many steps with the same data,
loss and rate, and compare both on many more test images or over several seeds.
### END SOLUTION
"""

# %%
check("m09.e2")
