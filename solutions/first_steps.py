# %% [markdown]
# # First steps: a network in integers
#
# A trained network computes with 32-bit floating-point numbers. In the next fifteen minutes you will turn one into
# small integers, run it, look inside a layer, and prove that every integer is the right one.
#
# Run the cells from top to bottom with **Shift+Enter**. Lines that begin with **Try it** are invitations: change
# something, run the cell again, see what happens. This copy of the notebook is yours.

# %%
import labkit
import matplotlib.pyplot as plt
import numpy as np
import torch

plt.rcParams.update(
    {"figure.dpi": 110, "axes.grid": True, "grid.alpha": 0.3, "axes.axisbelow": True}
)
plt.rcParams.update(
    {"axes.spines.top": False, "axes.spines.right": False, "figure.constrained_layout.use": True}
)
BLUE, ORANGE, GREY = "#1d6fd1", "#c2410c", "#8fa3bd"
print("labkit", labkit.__version__)

# %% [markdown]
# ## 1. Images and a trained network
#
# `"auto"` takes CIFAR-10 where it finds it, and otherwise the 5,000 handwritten digits that come with labkit.
# Everything below works with both.

# %%
data = labkit.data.load("auto")
print(data.reason)
x, y = data.test(1000)
print(f"x: {x.dtype} {x.shape}, from {x.min():g} to {x.max():g};  y: {y.dtype} {y.shape}")

# %%
figure, axes = plt.subplots(2, 5, figsize=(7.5, 3.6))
for label, place in enumerate(axes.flat):
    first = int(np.flatnonzero(data.test_labels == label)[0])
    place.imshow(data.test_images[first].transpose(1, 2, 0))
    place.set_title(data.class_names[label], fontsize=11)
    place.axis("off")
figure.suptitle(f"One test image of each class ({data.name})")
plt.show()

# %% [markdown]
# The network is a small LeNet: two convolutions, three fully connected layers. labkit carries its trained weights.

# %%
module = labkit.models.load("lenet", data=data.name)
print(module)
with torch.no_grad():
    float_logits = module(torch.from_numpy(x)).numpy()


def accuracy(logits):
    return 100 * np.mean(logits.argmax(axis=1) == y)


print(f"\naccuracy of the float network: {accuracy(float_logits):.1f} % of {len(y)} images")

# %% [markdown]
# ## 2. What there is to quantize
#
# Two kinds of numbers: **weights**, which are fixed after training, and **activations**, which every new image makes
# afresh. Weights look like bells around 0. Activations after a ReLU are never negative, and many are exactly 0.

# %%
seen = {}
layers = {"conv1": module.conv1, "relu1": module.relu1, "relu3": module.relu3}
hooks = [
    layer.register_forward_hook(
        lambda _, __, result, name=name: seen.update({name: result.detach().numpy().copy()})
    )
    for name, layer in layers.items()
]
with torch.no_grad():
    module(torch.from_numpy(x[:200]))
for hook in hooks:
    hook.remove()

figure, axes = plt.subplots(2, 2, figsize=(8.5, 5.2))
panels = [
    (module.conv1.weight.detach().numpy(), "weights of conv1", BLUE),
    (module.fc1.weight.detach().numpy(), "weights of fc1", BLUE),
    (seen["relu1"], "activations after relu1, 200 images", ORANGE),
    (seen["relu3"], "activations after relu3, 200 images", ORANGE),
]
for place, (values, title, colour) in zip(axes.flat, panels, strict=True):
    place.hist(values.ravel(), bins=50, color=colour)
    place.set_yscale("log")
    place.set_title(
        f"{title}\n{values.size:,} numbers, {values.min():.2f} to {values.max():.2f}", fontsize=10
    )
    place.set(xlabel="value (a real number, no unit)", ylabel="count, log scale")
plt.show()

# %%
figure, axes = plt.subplots(2, 6, figsize=(8.5, 3.2))
for channel, place in enumerate(axes.flat):
    drawn = place.imshow(
        seen["relu1"][0, channel], cmap="viridis", vmin=0, vmax=seen["relu1"][0].max()
    )
    place.set_title(f"channel {channel}", fontsize=9)
    place.axis("off")
figure.colorbar(drawn, ax=axes, label="activation", shrink=0.9)
figure.suptitle(f"The first test image ({data.class_names[y[0]]}) after conv1 and ReLU")
plt.show()

# %% [markdown]
# ## 3. One equation
#
# $$\text{real} = \text{scale} \cdot (q - \text{zero\_point})$$
#
# `q` is an integer of a few bits. The `scale` is the size of one step. The `zero_point` is the integer that stands for
# real 0, so that 0 (padding, a dead ReLU) has no error at all. With $b$ bits there are $2^b$ integers to share out over
# the interval from `low` to `high`.
#
# Here it is by hand on the output of conv1, before its ReLU, with only 3 bits so that the steps are easy to see.

# %%
real = seen["conv1"]
bits = 3
low, high = float(real.min()), float(real.max())

scale = np.float32((high - low) / (2**bits - 1))
zero_point = int(np.rint(0 - low / float(scale)))
q = np.clip(np.rint(real / scale) + zero_point, 0, 2**bits - 1).astype(np.uint8)
restored = scale * (q.astype(np.int32) - zero_point).astype(np.float32)

print(f"{low:.3f} to {high:.3f} in {2**bits} integers: scale {scale:.4f}, zero point {zero_point}")
print(f"largest error {np.abs(real - restored).max():.4f}, half a step is {scale / 2:.4f}")

# %% [markdown]
# labkit says the same with three nouns: a `QuantSpec` is the grid of integers, `QParams` are scale and zero point, and
# `quantize` does the rounding. The two must agree in every integer.

# %%
from labkit.arithmetic.affine import QuantSpec, dequantize, params_from_range, quantize

spec = QuantSpec(bits, signed=False, symmetric=False)
params = params_from_range(low, high, spec)
q_labkit = quantize(real, params, spec)

assert params.scale == scale
assert params.zero_point == zero_point
assert np.array_equal(q_labkit, q)
assert np.array_equal(dequantize(q_labkit, params, spec), restored)
print(
    f"{q.size:,} integers by hand, {q.size:,} by labkit, {np.count_nonzero(q != q_labkit)} of them differ"
)

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(8.5, 3.4))
line = np.linspace(1.15 * low, 1.15 * high, 2000, dtype=np.float32)
steps = dequantize(quantize(line, params, spec), params, spec)
left.plot(line, line, color=GREY, linewidth=1.5, label="real number")
left.plot(line, steps, color=BLUE, linewidth=2, label=f"restored from {bits} bits")
left.set(title="A staircase instead of a line", xlabel="real number", ylabel="restored number")
for place in (left, right):
    place.axvline(low, color="black", linestyle=":", linewidth=1, label="low and high")
    place.axvline(high, color="black", linestyle=":", linewidth=1)
left.legend(fontsize=9)
right.axhspan(
    -scale / 2, scale / 2, color=GREY, alpha=0.3, linewidth=0, label="half a step up or down"
)
right.plot(line, steps - line, color=ORANGE, linewidth=1.5, label="restored - real")
right.set(
    title="The error; it grows where clipping begins",
    xlabel="real number",
    ylabel="error (real number)",
)
right.legend(fontsize=9)
plt.show()

# %% [markdown]
# **Try it:** set `bits = 8` two cells up. How does the largest error change, and by what factor?
#
# ## 4. The whole network in integers
#
# One line does the main job: look at some training images to learn the interval of every activation (*calibration*),
# then turn weights and activations into integers. W4A8 means 4-bit weights and 8-bit activations.

# %%
images = data.calibration(512)
nets = {
    "W8A8": labkit.quantize(module, images, weights=8, activations=8),
    "W4A8": labkit.quantize(module, images, weights=4, activations=8),
    "W4A4": labkit.quantize(module, images, weights=4, activations=4),
}
logits = {name: net.run(x) for name, net in nets.items()}

print(f"{'float':<6} {accuracy(float_logits):5.1f} %")
for name, result in logits.items():
    changed = np.count_nonzero(result.argmax(axis=1) != float_logits.argmax(axis=1))
    print(f"{name:<6} {accuracy(result):5.1f} %   {changed} of {len(y)} predictions changed")

# %%
figure, axes = plt.subplots(1, len(nets), figsize=(3 * len(nets), 3.4), sharex=True, sharey=True)
ends = [float_logits.min(), float_logits.max()]
for place, (name, result) in zip(axes, logits.items(), strict=True):
    place.scatter(float_logits, result, s=3, color=BLUE, alpha=0.25, linewidths=0, rasterized=True)
    place.plot(ends, ends, color=ORANGE, linewidth=1)
    place.set(
        title=f"{name}, {accuracy(result):.1f} % correct", xlabel="logit of the float network"
    )
axes[0].set_ylabel("logit of the integer network")
plt.show()

# %% [markdown]
# The closer to the orange line, the better. 4-bit weights and activations scatter the logits visibly, and yet the
# largest of the ten is mostly still the same one.
#
# **Try it:** add `"W2A2": labkit.quantize(module, images, weights=2, activations=2)` to `nets`.
#
# ## 5. Inside one layer
#
# Print a net and you see what it is made of: each layer with its integers, and the tensor that comes out with its
# scale `S` and zero point `Z`. Real numbers occur only at the two ends, `Quantize` and `Dequantize`.

# %%
net = nets["W8A8"]
print(net)

# %% [markdown]
# Take `fc2`. Its inputs and weights are integers, so their products and sums are integers too. They are kept in 32 bits
# and called *accumulators*:
#
# $$\text{acc} = \sum_k (q_x - Z_x)\, q_w + \text{bias}$$

# %%
layer = net.graph["fc2"]
trace = net.trace(x)  # the integers of every node
q_x, q_y = trace["fc1"], trace["fc2"]
x_spec, x_params = net.graph["fc1"].output.quantized
y_spec, y_params = layer.output.quantized
weight, bias = layer.op.weight, layer.op.bias

accumulators = (q_x.astype(np.int32) - x_params.zero_point) @ weight.values.astype(
    np.int32
).T + bias
print(f"inputs {q_x.dtype} {q_x.shape}, weights {weight.values.dtype} {weight.values.shape}")
print(
    f"accumulators {accumulators.dtype} {accumulators.shape}: {accumulators.min():,} to {accumulators.max():,}"
)
print(f"int32 holds {np.iinfo(np.int32).min:,} to {np.iinfo(np.int32).max:,}")

# %% [markdown]
# One step of an accumulator is worth $S_w S_x$, one step of the output $S_y$. So each accumulator must be multiplied by
# $M = S_w S_x / S_y$, a real number below 1, and the engine has no real numbers. The way out is to write
#
# $$M \approx \text{mantissa} \cdot 2^{\text{exponent} - 31}$$
#
# with an integer mantissa of 31 bits: one integer product, then one shift to the right. There is one `M` for each
# output channel, because each has its own weight scale.

# %%
multiplier = layer.op.requantizer.multiplier
M = weight.params.scale.astype(np.float64) * x_params.scale / y_params.scale

print("channel            M     mantissa  exponent  mantissa * 2**(exponent - 31)")
for channel in range(4):
    mantissa, exponent = int(multiplier.mantissa[channel]), int(multiplier.exponent[channel])
    print(
        f"{channel:7d}  {M[channel]:.9f}  {mantissa:11d}  {exponent:8d}  {mantissa * 2.0 ** (exponent - 31):.9f}"
    )
print(f"largest relative error of all {len(M)}: {np.max(np.abs(multiplier.to_real() / M - 1)):.1e}")

# %% [markdown]
# Adding half of the last step before the shift makes it round to nearest instead of down. What is too small or too
# large for the output's grid is clamped; the lower end of the clamp is also the ReLU.

# %%
shift = 31 - multiplier.exponent.astype(np.int64)
half = np.int64(1) << (shift - 1)
rounded = (accumulators.astype(np.int64) * multiplier.mantissa + half) >> shift
by_hand = np.clip(rounded + y_params.zero_point, *layer.op.requantizer.clamp)

print(
    f"{by_hand.size:,} outputs by hand, {np.count_nonzero(by_hand != q_y)} differ from the engine's"
)
assert np.array_equal(by_hand, q_y)

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(8.5, 3.4))
left.hist(accumulators.ravel() / 1000, bins=80, color=BLUE)
left.set(title="Accumulators of fc2", xlabel="accumulator, in thousands", ylabel="count")
channel = int(np.argmax(np.ptp(q_y, axis=0)))
near = np.abs(accumulators[:, channel]) < 12 / M[channel]
few = accumulators[near, channel]
line = np.linspace(-12 / M[channel], 12 / M[channel], 2)
right.plot(line / 1000, M[channel] * line, color=GREY, label="M * accumulator")
right.scatter(
    few / 1000,
    q_y[near, channel].astype(int) - int(y_params.zero_point),
    s=14,
    color=ORANGE,
    label="engine",
)
right.set(
    title=f"Channel {channel}, close to 0",
    xlabel="accumulator, in thousands",
    ylabel="output - zero point",
)
right.legend(fontsize=9)
plt.show()

# %% [markdown]
# ## 6. Proof
#
# Is the engine right? `labkit.verify` derives everything a second time in PyTorch, from the float network and the
# calibration alone, without any of the engine's code. Then it compares every weight, bias, multiplier and activation.
# The tolerance is 0.

# %%
print(labkit.verify(net, module, x[:200]))

# %% [markdown]
# ## 7. Your own code in the engine
#
# A `KernelSet` names the function that computes each operation, and `with_override` swaps in yours. Below is a fully
# connected layer with a common mistake: it forgets to add `half`, so that the shift always rounds down.

# %%
from labkit.kernels.kernel_set import REFERENCE


def my_linear(x, weight, bias, *, input_zero_point, weight_zero_point, requantizer):
    """x: integers [N, I], weight: integers [O, I], bias: int32 [O]; returns integers [N, O]."""
    centred = x.astype(np.int32) - input_zero_point
    weights = weight.astype(np.int32) - weight_zero_point.reshape(-1, 1)
    accumulators = (centred @ weights.T + bias).astype(np.int64)
    shift = 31 - requantizer.multiplier.exponent.astype(np.int64)
    half = 0  # the mistake
    scaled = (accumulators * requantizer.multiplier.mantissa + half) >> shift
    return np.clip(scaled + requantizer.zero_point, *requantizer.clamp)


mine = REFERENCE.with_override("linear", my_linear)
print(
    f"accuracy with my_linear: {accuracy(net.run(x, kernels=mine)):.1f} %, before: {accuracy(logits['W8A8']):.1f} %"
)
report = labkit.verify(net, module, x[:200], kernels=mine)
print(report)

# %% [markdown]
# Look at the two results. The accuracy hardly notices; the comparison bit for bit finds the mistake at once and says
# where it begins. That is why labkit insists on tolerance 0: a wrong kernel can hide behind a good accuracy.

# %%
exact, wrong = net.trace(x[:200]), net.trace(x[:200], kernels=mine)
names = [node.name for node in net.graph if node.output.spec is not None]
change = [wrong[name].astype(int) - exact[name] for name in names]

figure, (left, right) = plt.subplots(1, 2, figsize=(8.5, 3.2))
left.bar(names, [100 * np.mean(c != 0) for c in change], color=ORANGE)
left.set(title="Integers that differ", ylabel="share in %")
right.bar(names, [np.mean(c) for c in change], color=ORANGE)
right.set(title="Always rounding down pulls one way", ylabel="mean difference in steps")
for place in (left, right):
    place.tick_params(axis="x", rotation=45)
    place.grid(axis="x", visible=False)
plt.show()

# %% [markdown]
# Nothing differs before the first fully connected layer. From there on the outputs are too low on average, and each
# layer passes its share on to the next.
#
# **Try it:** in `my_linear`, replace `half = 0` by `half = np.int64(1) << (shift - 1)` and run the cell again. The
# report must then say that 0 elements differ.
#
# ## 8. Keep it
#
# A `.lab` file holds the whole integer network. It loads and runs without PyTorch. Weights of 4 bits or fewer are
# packed two to a byte.

# %%
from pathlib import Path

for name, integer_net in nets.items():
    integer_net.save(f"lenet-{name.lower()}.lab")
    print(f"lenet-{name.lower()}.lab: {Path(f'lenet-{name.lower()}.lab').stat().st_size:,} bytes")
print(f"float weights: {4 * sum(p.numel() for p in module.parameters()):,} bytes")

again = labkit.load("lenet-w8a8.lab")
assert np.array_equal(again.run(x), logits["W8A8"])
print("loaded again: the same logits, to the last bit")

# %% [markdown]
# ## What comes next
#
# - **Change something.** Other bits, `per_channel=False`, `ranges="3sigma"`, `activation_scheme="symmetric"`: all are
#   arguments of `labkit.quantize`. What costs accuracy, and where does the error begin?
# - **Quantize a network of your own.** Any `torch.nn.Module` of convolutions, linear layers, batch norm, ReLU, pooling,
#   additions and concatenations goes into `labkit.quantize`; what it cannot take, it names.
# - **See a whole report.** `labkit demo` in a terminal writes one with histograms, errors layer by layer, and the
#   certificate.
# - **Read the kernels.** `labkit.kernels.reference` is plain NumPy, and every operation can be overridden as above.
