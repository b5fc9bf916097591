# %% [markdown]
# # {{m03}}
#
# A student of EE219 had a network of 316,000 weights that ran in 8 bits without losing a thing. Then the lab asked for one
# more step: give the last layer a bias. Ten numbers. The accuracy fell from 60.88 % to 57.07 %, and the equation in the
# report that should explain how to do it right is itself wrong. This module is about those ten numbers: what they are worth
# in a sum of integers, when 32 bits are too few for them, and where biases come from when nobody has asked for any.
#
# **You will be able to**
#
# - turn a bias into the integer that belongs into the sum, and say how wrong any other one is,
# - say how large a sum of products can become, before it does,
# - fold a batch norm into the layer before it, and say why this comes first,
# - deal with channels that have vanished, and with biases that do not fit,
# - use a bias to take back what rounding the weights did to a layer's mean.
#
# Equation numbers are those of `docs/arithmetic.md`.

# %%
import copy
from dataclasses import replace

import labkit
import matplotlib.pyplot as plt
import numpy as np
import torch
from labkit.course import check
from labkit.course.look import BLUE, GREEN, GREY, ORANGE, RED, play, use_look
from labkit.net import IntegerNet
from torch import nn

use_look()
data = labkit.data.load("auto")
module = labkit.models.load("lenet-bias", data=data.name)
x, y = data.test(500)
calibration = data.calibration(256)
print(data.reason)
print("the ten numbers:", module.fc3.bias.detach().numpy().round(3))

# %% [markdown]
# ## 1 What is a bias worth?
#
# Inside an integer layer there are no real numbers. There is a sum of products of integers, and each unit of it is worth one
# step of a weight times one step of an input:
#
# $$r_y = S_w S_x \Bigl( \underbrace{\sum_k q_{w,k}\,(q_{x,k} - Z_x) + q_\beta}_{\text{an integer}} \Bigr) \tag{7}$$
#
# So the bias has to be counted in units of $S_w S_x$ as well, with no zero point:
#
# $$q_\beta = \mathrm{RNE}\left(\frac{\beta}{S_w S_x}\right), \qquad S_\beta = S_w S_x \tag{8}$$
#
# It is kept in 32 bits. That is no luxury: a bias is added to *every* output of its channel, so its error would not average
# out as the errors of many weights do, and $S_w S_x$ is so fine that rounding to it costs nothing.
#
# ### {{m03.q1}}
#
# Write `quantize_bias`, for one weight scale and for one for each channel.


# %%
def quantize_bias(bias, s_w, s_x):
    """The integers that are added to a layer's sums for its bias (eq. 8).

    bias: float32 [O]; s_x: scale of the input, a float
    s_w: scale of the weights, a float or a float64 array [O]
    The quotient is taken in float64 (the integers may need 30 bits) and rounded to nearest, ties to
    even.
    Returns an int32 array [O].
    """
    ### BEGIN SOLUTION
    return np.rint(bias.astype(np.float64) / (s_w * s_x)).astype(np.int32)
    ### END SOLUTION


# %%
check("m03.q1")

# %% [markdown]
# Here are the ten numbers in LeNet's own units, beside the sums of products that they are added to.

# %%
net = labkit.quantize(module, calibration, weights=8, activations=8)
last = net.graph["fc3"]
s_w = last.op.weight.params.scale.astype(np.float64)
s_x = float(net.graph["fc2"].output.quantized[1].scale)
s_y = float(last.output.quantized[1].scale)
bias = module.fc3.bias.detach().numpy()
q_bias = quantize_bias(bias, s_w, s_x)

sums = net.trace(x)["fc2"].astype(np.int64) @ last.op.weight.values.astype(np.int64).T
figure, (left, right) = plt.subplots(1, 2, figsize=(9.5, 3.4))
left.boxplot(
    list(sums.T), positions=range(10), widths=0.5, showfliers=False, medianprops={"color": GREY}
)
left.scatter(range(10), q_bias, color=GREEN, zorder=3, label="right bias")
left.set(
    title="Sums of products in fc3 (box: half of the images)", xlabel="output", ylabel="integer"
)
left.legend(fontsize=9)
right.bar(
    np.arange(10) - 0.2,
    np.abs(q_bias),
    width=0.4,
    color=GREEN,
    label="right: bias / (S_w S_x), rounded",
)
right.bar(
    np.arange(10) + 0.2,
    np.abs(np.rint(bias)),
    width=0.4,
    color=RED,
    label="unscaled: bias, rounded (no bar: 0)",
)
right.set_yscale("symlog", linthresh=1)
right.set(
    title="The two biases",
    xlabel="output",
    xticks=range(10),
    ylabel="magnitude of the integer, log scale",
    ylim=(0, 2e5),
)
right.legend(fontsize=9, loc="upper right")
plt.show()
print("right   :", q_bias)
print("unscaled:", np.rint(bias).astype(int))

# %% [markdown]
# Red is what the lab's network added at first: 0, or one or two units in a sum of tens of thousands. It might as well have
# been left out. (Is the right bias small on your data as well? Keep that in mind for the end.)
#
# ## 2 The report's equation
#
# The report derives its bias in factors $n = 1/S$ instead of scales, as m02 did, and prints as its equation (10)
#
# $$n_W W * n_{In} In * n_{Out} + n_{Out}\, \beta = n_W n_{In} n_{Out}\, Out \tag{lab 10}$$
#
# A check that needs no knowledge of networks at all: divide both sides by something, and see whether every term is still
# multiplied by the same.
#
# ### {{m03.e1}}

# %%
m03_e1 = r"""
### BEGIN SOLUTION
Take the real equation W * In + beta = Out and multiply it by n_W n_In n_Out: every term has all three factors. In the report the
bias has n_Out alone, so it is too small by n_W n_In. Right is (n_W W * n_In In + n_W n_In beta) n_Out = n_W n_In n_Out Out. The
integer added before the multiplication is round(n_W n_In beta) = round(beta / (S_w S_x)). Yes, the report's eq. 11 says the same
(S_bias = S_1 S_2), and contradicts its eq. 10.
### END SOLUTION
"""

# %%
check("m03.e1")

# %% [markdown]
# How much does it hurt? If the integer $\mathrm{RNE}(\beta)$ is added where $q_\beta$ belongs, then by (7) the output is off
# by a fixed amount, the same for every image. Express it in steps $S_y$ of the output's grid.
#
# ### {{m03.q2}}
#
# Write `unscaled_error`. What is an integer in the sum worth, in real units?


# %%
def unscaled_error(bias, s_w, s_x, s_y):
    """By how many steps of the output each channel is off when its bias is rounded, but not scaled.

    bias: float32 [O]; s_w: float64 [O], scales of the weights
    s_x, s_y: floats, scales of the input and of the output
    The integer added to the sum is the bias rounded to nearest, ties to even.
    Returns a float array [O]: (real number that is added - bias) / s_y.
    """
    ### BEGIN SOLUTION
    added = np.rint(bias) * s_w * s_x
    return (added - bias) / s_y
    ### END SOLUTION


# %%
check("m03.q2")

# %%
error = unscaled_error(bias, s_w, s_x, s_y)
figure, place = plt.subplots(figsize=(8.5, 3))
place.bar(range(10), error, color=RED, label="bias left unscaled")
place.axhspan(
    -0.5, 0.5, color=GREY, alpha=0.4, linewidth=0, label="what rounding the output costs anyway"
)
place.set(
    title="Error of each logit, the same for every image",
    xlabel="output",
    ylabel="steps of the output's grid",
)
place.set(xticks=range(10), ylim=1.1 * max(1, np.abs(error).max()) * np.array([-1, 1.4]))
place.legend(fontsize=9, ncols=2, loc="upper right")
plt.show()
correlation = np.corrcoef(error, -bias)[0, 1]
print(f"largest: {np.abs(error).max():.2f} steps of {s_y:.3f}")
print(f"correlation with the bias itself, sign turned: {correlation:.6f}")

# %% [markdown]
# An error of the same size in every image is worse than a random one: it favours the same wrong class again and again. What
# it costs depends on the network:
#
# | network, CIFAR-10 | bias right | bias left unscaled |
# |---|---|---|
# | the report's | 60.9 % | 57.07 % |
# | labkit's, trained for a short time (docs/studies/lenet-cifar10) | 61.26 % | 56.76 % |
# | labkit's, trained longer | 71.86 % | 71.11 % |
#
# ## 3 A bias that you cannot do without
#
# Ten numbers that a network hardly needs are a poor test. Here is a harder one, and it happens in every product. A camera
# does not deliver numbers in $[-1, 1]$. It delivers bytes $p$ from 0 to 255, and somebody computes $x = p / 127.5 - 1$ for
# every pixel before the network starts. That is wasted time: $x$ goes into a convolution, and a convolution is linear, so
#
# $$\sum_k w_k x_k = \sum_k w_k \left( \frac{p_k}{127.5} - 1 \right) = \sum_k \frac{w_k}{127.5}\, p_k - \sum_k w_k .$$
#
# The camera's bytes can go straight in, if conv1 gets other weights, and a bias that it never had. (There is no padding in
# conv1. With padding it would not be the same at the borders: why?)

# %%
pixels = np.rint((x + 1) * 127.5).astype(np.float32)
camera = copy.deepcopy(module)
camera.conv1 = nn.Conv2d(3, 12, 5)
with torch.no_grad():
    camera.conv1.weight.copy_(module.conv1.weight / 127.5)
    camera.conv1.bias.copy_(-module.conv1.weight.sum(dim=(1, 2, 3)))
    camera.eval()
    difference = (camera(torch.from_numpy(pixels)) - module(torch.from_numpy(x))).abs().max().item()
print(f"largest difference of a logit: {difference:.1e}")

camera_net = labkit.quantize(camera, np.rint((calibration + 1) * 127.5).astype(np.float32))
_, input_params = camera_net.graph["x"].output.quantized
print(f"the input's scale is {input_params.scale}, its zero point {input_params.zero_point}")
print("conv1's bias:", camera.conv1.bias.detach().numpy().round(2))

# %% [markdown]
# The same function, and the input does not even have to be quantized any more. But now look at what the integer bias has to
# be, and at what conv1 sees without it.

# %%
first = camera_net.graph["conv1"].op
camera_s_w = first.weight.params.scale.astype(np.float64)
camera_bias = camera.conv1.bias.detach().numpy()
my_camera_bias = quantize_bias(camera_bias, camera_s_w, float(input_params.scale))
print("yours   :", my_camera_bias)
print("unscaled:", np.rint(camera_bias).astype(int))
print("the same integers as labkit's:", np.array_equal(my_camera_bias, first.bias))


def with_bias(integer_net, layer, bias):
    """The same integer network with another integer bias in one layer."""
    nodes = tuple(
        replace(n, op=replace(n.op, bias=bias)) if n.name == layer else n
        for n in integer_net.graph.nodes
    )
    return IntegerNet(replace(integer_net.graph, nodes=nodes))


camera_unscaled = with_bias(camera_net, "conv1", np.rint(camera_bias).astype(np.int32))
shown = int(np.argmax(np.abs(camera_bias)))
figure, axes = plt.subplots(1, 3, figsize=(8.5, 3))
axes[0].imshow(pixels[0].transpose(1, 2, 0).astype(np.uint8))
axes[0].set_title(f"the camera's bytes: {data.class_names[y[0]]}", fontsize=9)
for place, net_shown, title in zip(
    axes[1:], (camera_net, camera_unscaled), ("right bias", "unscaled bias"), strict=True
):
    drawn = place.imshow(
        net_shown.trace(pixels[:1])["conv1"][0, shown], cmap="viridis", vmin=0, vmax=255
    )
    place.set_title(f"conv1, channel {shown}, {title}", fontsize=9)
figure.colorbar(drawn, ax=axes[1:], label="integer", shrink=0.8)
for place in axes:
    place.axis("off")
plt.show()

# %% [markdown]
# ## 4 When 32 bits are too few
#
# Conv1's new biases are thousands of units, and some a hundred thousand and more. The finer the scales, the larger the
# integer: a channel whose weights are all tiny has a tiny $S_w$, and an ordinary bias divided by a tiny $S_w S_x$ leaves
# int32. (Batch norm makes such channels; you will meet one.) In two's complement it would wrap around, and come back with
# the wrong sign.
#
# labkit gives the bias half of int32, up to $2^{30}$, and leaves the other half to the products. Where
# $|\beta| / (S_w S_x) > 2^{30}$, the weight scale of that channel is enlarged until the bias fits:
#
# $$S_w' = \text{the least float32 above } \mathrm{fl}_{32}\left(\frac{|\beta|}{2^{30}\, S_x}\right) \tag{8a}$$
#
# The weights of that channel are rounded more coarsely then, perhaps all to 0. It can spare them: one unit of its sum is
# $2^{-30}$ of its bias then.
#
# ### {{m03.q3}}
#
# Write `fitting_weight_scale`. `np.nextafter(a, b)` is the next float of the type of `a` in the direction of `b`.


# %%
def fitting_weight_scale(bias, s_w, s_x):
    """The weight scale of each channel, enlarged where its bias would need more than 2**30 (eq. 8a).

    bias: float32 [O], may hold zeros; s_w: float32 [O], the scales so far
    s_x: float, the input's scale (a float32 number)
    A channel whose |bias| / (s_w s_x) is at most 2**30 keeps its scale. The others get the least
    float32 that is greater than fl32(|bias| / (2**30 s_x)), the quotient rounded to float32.
    Returns a float32 array [O].
    """
    ### BEGIN SOLUTION
    needed = np.abs(bias) / (2.0**30 * s_x)
    enlarged = np.nextafter(needed.astype(np.float32), np.float32(np.inf))
    return np.where(needed > s_w, enlarged, s_w)
    ### END SOLUTION


# %%
check("m03.q3")

# %% [markdown]
# Play with a channel whose weights shrink by $2^{-n}$ while its bias stays 0.5. Watch the integer that the bias needs, what
# int32 would make of it, and what eq. 8a makes of it. **At which n does the wrapped bias first have the wrong sign, and at
# which n are all eight weights 0?**

# %%
eight_weights = np.array([1.0, -0.8, 0.6, -0.5, 0.3, 0.2, -0.1, 0.05], np.float32)
half = np.array([0.5], np.float32)


def draw(n):
    small = np.ldexp(eight_weights, -n)
    scale = np.abs(small).max(keepdims=True) / np.float32(127)
    fitting = fitting_weight_scale(half, scale, 0.04)
    needed = int(np.rint(0.5 / (float(scale[0]) * 0.04)))
    wrapped = (needed + 2**31) % 2**32 - 2**31
    taken = quantize_bias(half, fitting.astype(np.float64), 0.04)
    _, (left, right) = plt.subplots(1, 2, figsize=(9.5, 3))
    values = [needed, wrapped, int(taken[0])]
    left.barh(["needed", "wrapped to int32", "by eq. 8a"], values, color=[GREY, RED, GREEN])
    for edge in (-(2**31), 2**31):
        left.axvline(edge, color="black", linestyle=":")
    left.set(
        title=f"Bias integer, weights times 2^-{n}",
        xlabel="integer, log scale; dotted: the ends of int32",
    )
    left.set_xscale("symlog", linthresh=2**28)
    left.set_xlim(-(2.0**34), 2.0**42)
    left.set_xticks([-(2.0**31), 0, 2.0**31, 2.0**40], ["-2^31", "0", "2^31", "2^40"])
    left.invert_yaxis()
    right.bar(range(8), np.rint(small / scale), width=0.8, color=GREY, label="with their own scale")
    right.bar(
        range(8),
        np.rint(small / fitting),
        width=0.45,
        color=GREEN,
        label="with the scale of eq. 8a",
    )
    right.set(title="Weights as integers", xlabel="weight", ylabel="integer", ylim=(-130, 130))
    right.legend(fontsize=9)
    plt.show()


play(draw, stills=[{"n": 18}, {"n": 21}, {"n": 24}], n=list(range(14, 34)))

# %% [markdown]
# ## 5 How large can a sum become?
#
# Not only the bias has to fit. So has every sum on the way, in whatever order a processor adds the products. No partial sum
# is larger than the sum of all magnitudes:
#
# $$|a| \;\le\; \Bigl(\sum_k |q_{w,k}|\Bigr) \cdot \max|q_x - Z_x| + |q_\beta| \tag{9}$$
#
# where $q_x$ may be any integer of its grid, 0 to 255. labkit demands that this is at most $2^{31} - 1$ before a network may
# run.
#
# ### {{m03.q4}}
#
# Write `largest_accumulator`, the right side of eq. 9, for weights of two axes or four.


# %%
def largest_accumulator(weight, bias, zero_in):
    """The bound on every partial sum of each output channel (eq. 9), for inputs on the grid 0 .. 255.

    weight: int8 [O, ...], any number of axes, -128 may occur; bias: int32 [O], magnitudes up to 2**30;
    zero_in: int in 0 .. 255, zero point of the input
    Returns an int64 array [O].
    """
    ### BEGIN SOLUTION
    reach = max(zero_in, 255 - zero_in)
    magnitudes = np.abs(weight.astype(np.int64)).sum(axis=tuple(range(1, weight.ndim)))
    return magnitudes * reach + np.abs(bias)
    ### END SOLUTION


# %%
check("m03.q4")

# %%
trace = camera_net.trace(pixels)
names = ["conv1", "conv2", "fc1", "fc2", "fc3"]
bounds, reached, deepest = [], [], []
for name in names:
    node = camera_net.graph[name]
    _, given = camera_net.graph.inputs_of(node)[0].quantized
    bounds.append(
        largest_accumulator(node.op.weight.values, node.op.bias, int(given.zero_point)).max()
    )
    deepest.append(node.op.weight.values[0].size)
    if name.startswith("fc"):
        incoming = trace[node.inputs[0]].astype(np.int64) - int(given.zero_point)
        reached.append(
            np.abs(incoming @ node.op.weight.values.astype(np.int64).T + node.op.bias).max()
        )
    else:
        reached.append(np.nan)

figure, place = plt.subplots(figsize=(8.5, 3.2))
place.bar(np.arange(5) - 0.2, bounds, width=0.4, color=BLUE, label="bound, largest of all channels")
place.bar(
    np.arange(5) + 0.2,
    reached,
    width=0.4,
    color=ORANGE,
    label=f"reached on {len(x)} images (fc layers)",
)
place.axhline(2**31 - 1, color="black", linestyle=":", label="int32")
place.set_yscale("log")
place.set(
    title="How large the sums of an 8-bit LeNet may become",
    xticks=range(5),
    ylabel="magnitude, log scale",
)
place.set_xticklabels([f"{n}\n{d} products" for n, d in zip(names, deepest, strict=True)])
place.legend(fontsize=9, loc="upper left", bbox_to_anchor=(0.01, 0.86))
plt.show()

# %% [markdown]
# LeNet is two orders of magnitude away from int32, and real images do not come near the bound. It is reached only where all
# weights of a channel have one sign and every input lies at its far end. An engine has to be right for such an input, too.
#
# ## 6 Batch norm: the biases that nobody asked for
#
# Modern networks have a batch norm behind every convolution. While the network runs it is a straight line for each channel,
# with four frozen numbers:
#
# $$y = \gamma\, \frac{v - \mu}{\sqrt{\sigma^2 + \varepsilon}} + \beta$$
#
# and a straight line after a convolution $v = W x + b$ is a convolution with other numbers. With
# $g = \gamma / \sqrt{\sigma^2 + \varepsilon}$:
#
# $$W' = g\, W \tag{22}$$
#
# $$b' = \beta + (b - \mu)\, g \tag{23}$$
#
# Each $g$ multiplies the weights of its **output** channel. The batch norm is gone, and every convolution has a bias,
# although most had none.
#
# ### {{m03.q5}}
#
# Write `fold_batch_norm`, for layers with a bias of their own and without.


# %%
def fold_batch_norm(weight, bias, gamma, beta, mean, variance, epsilon):
    """Weights and bias of one layer that does what a layer and its batch norm do (eqs. 22 and 23).

    weight: float32 [O, ...], any number of axes; bias: float32 [O], or None for none
    gamma, beta, mean, variance: float32 [O]; epsilon: float, added to the variance
    Returns (weight', bias'), float arrays of the shapes of weight and [O].
    """
    ### BEGIN SOLUTION
    gain = gamma / np.sqrt(variance + epsilon)
    before = 0.0 if bias is None else bias
    return (weight.T * gain).T, beta + (before - mean) * gain
    ### END SOLUTION


# %%
check("m03.q5")

# %% [markdown]
# Try it on a real network: the first block of labkit's small MobileNetV2, a convolution of one filter for each channel and
# its batch norm.

# %%
mobile = labkit.models.load("mobilenetv2-small", data=data.name)
layer, norm = mobile.features[1].layers[0][0], mobile.features[1].layers[0][1]
numbers = [
    t.detach().numpy() for t in (norm.weight, norm.bias, norm.running_mean, norm.running_var)
]
w = layer.weight.detach().numpy()
w_folded, b_folded = fold_batch_norm(w, None, *numbers, norm.eps)
patch = torch.randn(8, w.shape[0], 3, 3, generator=torch.Generator().manual_seed(0))
with torch.no_grad():
    wanted = norm(torch.conv2d(patch, layer.weight, groups=w.shape[0]))
    got = torch.conv2d(
        patch, torch.from_numpy(w_folded), torch.from_numpy(b_folded), groups=w.shape[0]
    )
difference = (wanted - got).abs().max().item()
print(f"largest difference: {difference:.1e} of values up to {wanted.abs().max().item():.1f}")
gains = np.abs(numbers[0]) / np.sqrt(numbers[3] + norm.eps)
ratio = gains.max() / gains.min()
print(
    f"gains from {gains.min():.2f} to {gains.max():.2f}: the largest is {ratio:.0f} times the smallest"
)

# %% [markdown]
# The gains differ widely. That is why **folding comes before ranges are chosen**. Below, the folded weights of each channel
# are turned into integers in three ways. A channel that uses the whole grid reaches 127.

# %%
tops = np.abs(w_folded).reshape(len(w), -1).max(axis=1)
ways = {
    "one scale, chosen before folding": np.full(len(w), np.abs(w).max() / 127),
    "one scale, chosen after folding": np.full(len(w), tops.max() / 127),
    "a scale for each channel, after folding": tops / 127,
}
order = np.argsort(tops)
figure, axes = plt.subplots(1, 3, figsize=(9.5, 3.2), sharey=True)
for place, (title, scales), colour in zip(axes, ways.items(), (RED, ORANGE, GREEN), strict=True):
    place.bar(range(len(w)), (tops / scales)[order], color=colour)
    place.axhline(127, color="black", linestyle=":")
    integers = np.clip(np.rint(w_folded.reshape(len(w), -1) / scales[:, None]), -127, 127)
    error = np.linalg.norm(integers * scales[:, None] - w_folded.reshape(len(w), -1), axis=1)
    relative = error / np.linalg.norm(w_folded.reshape(len(w), -1), axis=1)
    place.set_title(
        f"{title}\nerror of the worst channel: {100 * relative.max():.1f} %", fontsize=9
    )
    place.set(xlabel="channel, sorted by its largest weight")
axes[0].set_yscale("log")
axes[0].set(ylabel="largest integer wanted, log scale", ylim=(0.5, None))
plt.show()

# %% [markdown]
# Above the dotted line weights are clipped; far below it they are rounded to a handful of integers.
#
# ### {{m03.e2}}

# %%
m03_e2 = """
### BEGIN SOLUTION
The network runs with the folded weights g W, so their range is the one that the grid has to cover. With a scale from the unfolded
weights, a channel with a large gain leaves the grid and is clipped, and a channel with a small gain uses only a few integers
around 0, so its rounding error is large in proportion. A scale for each channel, chosen after folding, grows with g: then every
channel uses the whole grid, and g has no effect on its relative error.
### END SOLUTION
"""

# %%
check("m03.e2")

# %% [markdown]
# ## 7 Channels that have vanished
#
# Training with weight decay pulls $\gamma$ of a useless channel towards 0, epoch after epoch, until it is below the smallest
# normal float32 number. After folding nothing is left of its weights, while its shift is still there: the channel has become
# a constant. labkit says that a channel has **vanished** where
#
# $$\text{every } |W'| < 2^{-100}, \text{ while } W \text{ is not all } 0 . \tag{23a}$$
#
# Its weights are set to 0 and its scale is chosen by its bias, with (8a). A channel that was all zeros *before* the batch
# norm is another matter: that is a fault of the network, and it is refused.
#
# ### {{m03.q6}}
#
# Write `vanished_channels`.


# %%
def vanished_channels(weight, gain):
    """The output channels that folding takes away (eq. 23a).

    weight: float32 [O, I], before folding; gain: float64 [O], the g of eq. 22, of either sign
    Returns a list of ints, in rising order: the channels in which every |gain * weight| (in float64) is
    below 2**-100, and some weight is not 0.
    """
    ### BEGIN SOLUTION
    found = []
    for channel, w in enumerate(weight):
        if w.any() and np.abs(w * gain[channel]).max() < 2.0**-100:
            found.append(channel)
    return found
    ### END SOLUTION


# %%
check("m03.q6")

# %% [markdown]
# Follow one through to the end. Its shift is 0.8, its weights are gone, and before (8a) it gets the smallest scale there is,
# $2^{-126}$.

# %%
gone = np.array([[0.3, -0.2, 0.5]], np.float32)
print("vanished:", vanished_channels(gone, np.array([1e-34])))
smallest, shift = np.array([2.0**-126], np.float32), np.array([0.8], np.float32)
fitting = fitting_weight_scale(shift, smallest, 0.04)
constant = quantize_bias(shift, fitting.astype(np.float64), 0.04)
print(
    f"scale {smallest[0]:.3g} -> {fitting[0]:.3g}, bias integer {constant[0]:,} (2**30 is {2**30:,})"
)
print(f"what it puts out: {constant[0] * float(fitting[0]) * 0.04:.9f}, wanted {shift[0]:.9f}")

# %% [markdown]
# ## 8 A bias that takes back an error
#
# Rounding weights makes an error $E = \tilde W - W$, and the outputs are off by $E x$. After a ReLU no input is negative,
# so this does not average out: each channel is shifted by $E\,\mathbb{E}[x]$. A bias can take a shift back (Nagel et al.
# 2019): subtract it.
#
# ### {{m03.q7}}
#
# Write `corrected_bias`.


# %%
def corrected_bias(bias, weight, rounded, x):
    """A bias with which the rounded layer has the mean outputs of the original one, over some samples.

    bias: float32 [O], of the original layer; weight: float32 [O, I], its weights
    rounded: float32 [O, I], the real numbers that its rounded weights stand for
    x: float32 [N, I], inputs, a sample a row
    Returns a float array [O].
    """
    ### BEGIN SOLUTION
    return bias + (weight - rounded) @ x.mean(axis=0)
    ### END SOLUTION


# %%
check("m03.q7")

# %% [markdown]
# Three bits for the weights and one scale for a whole layer shall make it hard. The bias is found on calibration images and
# judged on test images.

# %%
inputs = {}
handles = [
    module.get_submodule(name).register_forward_hook(
        lambda _, given, __, name=name: inputs.update({name: given[0].numpy()})
    )
    for name in ("fc1", "fc2", "fc3")
]
with torch.no_grad():
    module(torch.from_numpy(x))
    on_test = dict(inputs)
    module(torch.from_numpy(calibration))
for handle in handles:
    handle.remove()

coarse_net = labkit.quantize(module, calibration, weights=3, per_channel=False)
corrected = copy.deepcopy(module)
for name in ("fc1", "fc2", "fc3"):
    layer = module.get_submodule(name)
    w = layer.weight.detach().numpy()
    rounded = coarse_net.graph[name].op.weight.dequantized()
    own = np.zeros(len(w), np.float32) if layer.bias is None else layer.bias.detach().numpy()
    new = nn.Linear(w.shape[1], w.shape[0])
    with torch.no_grad():
        new.weight.copy_(layer.weight)
        new.bias.copy_(
            torch.from_numpy(corrected_bias(own, w, rounded, inputs[name]).astype(np.float32))
        )
    corrected.add_module(name, new)
corrected_net = labkit.quantize(corrected.eval(), calibration, weights=3, per_channel=False)

w, rounded = module.fc1.weight.detach().numpy(), coarse_net.graph["fc1"].op.weight.dequantized()
before = (on_test["fc1"] @ (rounded - w).T).mean(axis=0)
after = before + corrected.fc1.bias.detach().numpy()
figure, place = plt.subplots(figsize=(8.5, 3))
place.plot(
    before,
    color=RED,
    linewidth=1,
    label=f"rounded weights, mean magnitude {np.abs(before).mean():.3f}",
)
place.plot(after, color=GREEN, linewidth=1, label=f"with your bias, {np.abs(after).mean():.3f}")
place.set(
    title="Shift of the mean output of fc1, on test images", xlabel="output", ylabel="real units"
)
place.legend(fontsize=9)
plt.show()

# %% [markdown]
# The shift is nearly gone, on images that the bias has never seen. Whether it wins accuracy you will see below: it removes
# one kind of error, and with few bits there are others.
#
# ## 9 Your bias in the engine
#
# First the certificate for the lab's network: your integers in place of labkit's, and every logit compared.

# %%
from labkit.course.showcase import show_accuracy

mine = with_bias(net, "fc3", quantize_bias(bias, s_w, s_x))
unscaled = with_bias(net, "fc3", np.rint(bias).astype(np.int32))
print(
    "ten integers, the same as labkit's:", np.array_equal(mine.graph["fc3"].op.bias, last.op.bias)
)
print("every logit the same, to the last bit:", np.array_equal(mine.run(x), net.run(x)))
moved = (unscaled.trace(x)["fc3"].astype(int) - net.trace(x)["fc3"]).mean(axis=0)
print("unscaled, the logits move by (steps):", moved.round(1))
print("and your m03.q2 said             :", unscaled_error(bias, s_w, s_x, s_y).round(1))

# %% [markdown]
# Then the accuracy, for both networks: the lab's, with its ten numbers, and the one behind the camera.

# %%
my_camera = with_bias(camera_net, "conv1", my_camera_bias)


def to_bytes(images):
    return np.rint((images + 1) * 127.5).astype(np.float32)


networks = {
    "float": lambda images: module(torch.from_numpy(images)),
    "lab's, your bias": mine.run,
    "lab's, bias left unscaled": unscaled.run,
    "camera, your bias": lambda images: my_camera.run(to_bytes(images)),
    "camera, bias left unscaled": lambda images: camera_unscaled.run(to_bytes(images)),
    "3 bits, one scale a layer": coarse_net.run,
    "3 bits, with your corrected bias": corrected_net.run,
}
show_accuracy(networks, data)

# %% [markdown]
# Read the table with its errors in mind. Where the ten biases of the last layer are small, as on the digits, nobody notices
# that they are missing: a good accuracy proves nothing about them. The camera's network needs its bias, and there it shows.
#
# ## 10 Challenge: folding the other way
#
# The camera's trick was a fold in the other direction: something linear *in front of* a layer went into it. Do it for a whole
# batch norm in front of a convolution without padding. Which axis does $g$ multiply now, and what becomes of the shift
# $\beta - \mu g$ of each input channel?
#
# ### {{m03.c1}}


# %%
def fold_norm_before(weight, bias, gamma, beta, mean, variance, epsilon):
    """Weights and bias of one convolution that does what a batch norm and the convolution after it do.

    weight: float32 [O, I, k, k], of a convolution without padding; bias: float32 [O]
    gamma, beta, mean, variance: float32 [I], of the batch norm of its input
    epsilon: float, added to the variance
    Returns (weight', bias'), float arrays of the shapes of weight and bias.
    """
    ### BEGIN SOLUTION
    gain = gamma / np.sqrt(variance + epsilon)
    offset = beta - mean * gain
    return weight * gain[:, None, None], bias + weight.sum(axis=(2, 3)) @ offset
    ### END SOLUTION


# %%
check("m03.c1")

# %% [markdown]
# The camera is a special case: $\gamma = 1/127.5$, $\beta = -1$, and a batch norm that has seen mean 0 and variance 1.

# %%
ones = np.ones(3, np.float32)
_, again = fold_norm_before(
    module.conv1.weight.detach().numpy(),
    np.zeros(12, np.float32),
    ones / 127.5,
    -ones,
    0 * ones,
    ones,
    0.0,
)
print("the camera's biases again:", np.allclose(again, camera_bias, atol=1e-5))

# %% [markdown]
# ## What you have now
#
# - A bias is counted in units of $S_w S_x$ (eq. 8), in 32 bits; where it does not fit, the weights give way (eq. 8a).
# - Every sum has a bound that is known before the network runs (eq. 9).
# - Batch norm is folded first (eqs. 22, 23), and leaves a bias in every layer; some channels are nothing else (eq. 23a).
# - A bias can take back the mean error of rounded weights.
#
# **To read:** docs/arithmetic.md, sections 2, 7 and 8; Jacob et al. 2018 (arXiv:1712.05877), sections 2.4 and 3.2; Nagel et
# al. 2019 (arXiv:1906.04721), section 4.2. **Next:** m04 builds the engine that adds all this up, without a single real
# number.
