# %% [markdown]
# # {{m00}}
#
# A small network, a heap of images, and one question for the whole course: how few bits does it take to compute the
# same answers? Before anything is quantized you need to know the network you have, how good it is, how *sure* you are
# that it is that good, and what it costs. That is this module. At its end a function of your own will work inside an
# integer network, although nobody has told you yet what one is.
#
# **You will be able to**
#
# - bring pixels into the form that a network was trained on, and turn its logits into probabilities;
# - measure an accuracy and say how far to trust it;
# - count the weights and the multiplications of a layer, and say what 8 or 4 bits would save;
# - put a function of yours into labkit's integer engine and prove that it is the right one.
#
# In each task you write one small function. The cell after it runs `check`, which tries it on examples and says what
# went wrong. Your mark comes from other examples of the same kinds, so that it pays to understand the hint. Run cells
# with **Shift+Enter**, from top to bottom.

# %%
import labkit
import matplotlib.pyplot as plt
import numpy as np
import torch
from labkit.course import check
from labkit.course.look import BLUE, GREEN, GREY, ORANGE, RED, play, use_look

use_look()
data = labkit.data.load("auto")
print(data.reason)
print(data)

# %% [markdown]
# ## 1 Images
#
# An image is an array of shape (3, 32, 32): red, green and blue, each 32 x 32 pixels of eight bits, 0 to 255.

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
# Networks are not fed with 0 to 255. Training goes better when the numbers lie around 0, and this network was trained
# on pixels between -1 and 1: the straight line that sends 0 to -1 and 255 to 1. What a network was trained with it
# must be fed with, always.
#
# ### {{m00.q1}}
#
# Write `normalise`. Mind the type: pixels are `uint8`, in which 200 + 200 is 144.


# %%
def normalise(pixels):
    """Pixels as real numbers in [-1, 1]: 0 becomes -1, 255 becomes 1, on a straight line between them.

    pixels: uint8 array of any shape
    Returns real numbers of the same shape (float32).
    """
    ### BEGIN SOLUTION
    return pixels.astype(np.float32) / 255 * 2 - 1
    ### END SOLUTION


# %%
check("m00.q1")

# %%
images = data.test_images[:1000]
x, labels = data.test(1000)  # the same images, brought to [-1, 1] by labkit, and their classes
mine = normalise(images)
print("largest difference between your numbers and labkit's:", np.abs(mine - x).max())
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 2.8))
left.hist(images.ravel()[::7], bins=64, color=GREY)
left.set(
    title="Pixels as they are stored",
    xlabel="pixel (0 to 255)",
    ylabel="count, log scale",
    yscale="log",
)
right.hist(mine.ravel()[::7], bins=64, color=BLUE)
right.set(title="As the network gets them", xlabel="input (a real number)", yscale="log")
plt.show()

# %% [markdown]
# ## 2 A network
#
# The network is that of the EE219 lab (section I), a cousin of LeNet-5. None of its layers has a bias.
#
# | layer | type | input | output | then |
# |---|---|---|---|---|
# | conv1 | convolution, 5 x 5 | 3 x 32 x 32 | 12 x 28 x 28 | ReLU |
# | pool1 | max pooling, 2 x 2 | 12 x 28 x 28 | 12 x 14 x 14 | |
# | conv2 | convolution, 3 x 3 | 12 x 14 x 14 | 32 x 12 x 12 | ReLU |
# | pool2 | max pooling, 2 x 2 | 32 x 12 x 12 | 32 x 6 x 6 | |
# | fc1 | fully connected | 1152 | 256 | ReLU |
# | fc2 | fully connected | 256 | 64 | ReLU |
# | fc3 | fully connected | 64 | 10 | |
#
# labkit carries its trained weights. What comes out are ten **logits** for each image, one a class, real numbers of
# any size and sign.

# %%
module = labkit.models.load("lenet", data=data.name)


def float_network(x):
    with torch.no_grad():
        return module(torch.from_numpy(x)).numpy()


logits = float_network(x)
print("logits of the first image:", np.round(logits[0], 1))
print("largest:", data.class_names[logits[0].argmax()], "- right:", data.class_names[labels[0]])

# %% [markdown]
# The predicted class is the one with the largest logit (`argmax`). Is the network *sure* of it? The **softmax** turns
# the logits $z$ of one image into shares that add up to 1:
#
# $$p_i = \frac{e^{z_i}}{\sum_k e^{z_k}}$$
#
# It never changes which one is the largest. But beware: $e^{89}$ is already more than float32 can hold. Numerator and
# denominator may be divided by the same number, and $e^{\max z}$ is a good choice: the largest exponent is 0 then.
# (labkit's integer softmax does the same with integers, eq. 25.)
#
# ### {{m00.q2}}
#
# Write `softmax` for many images at once, one image a row. Whatever the logits, no result may be infinite or NaN.


# %%
def softmax(logits):
    """The softmax of each row.

    logits: float32 array [N, K], numbers of any size
    Returns real numbers [N, K]; each row adds up to 1.
    """
    ### BEGIN SOLUTION
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)
    ### END SOLUTION


# %%
check("m00.q2")

# %% [markdown]
# With your softmax you can ask the network how sure it is. The slider goes from the image that it is least sure of
# upwards.

# %%
shares = softmax(logits)
by_sureness = np.argsort(shares.max(axis=1))


def draw_image(rank):
    i = by_sureness[rank]
    _, (left, right) = plt.subplots(1, 2, figsize=(8, 2.8), width_ratios=(1, 2.2))
    left.imshow(images[i].transpose(1, 2, 0))
    left.axis("off")
    left.set_title(f"test image {i}: {data.class_names[labels[i]]}", fontsize=10)
    colours = [GREEN if k == labels[i] else BLUE for k in range(len(data.class_names))]
    right.bar(data.class_names, 100 * shares[i], color=colours)
    right.set(
        title="What the network thinks (green: the right class)", ylabel="softmax, %", ylim=(0, 100)
    )
    right.tick_params(axis="x", rotation=45)
    plt.show()


play(
    draw_image,
    stills=[{"rank": 0}, {"rank": 40}],
    rank=(0, 1, 2, 3, 5, 10, 20, 40, 80, 150, 300, 600, 999),
)

# %% [markdown]
# Now the other end: the mistakes that it is *most* sure of. Would you have known better?

# %%
wrong = np.flatnonzero(logits.argmax(axis=1) != labels)
surest = wrong[np.argsort(-shares[wrong].max(axis=1))][:6]
figure, axes = plt.subplots(1, len(surest), figsize=(11, 2.4))
for place, i in zip(axes, surest, strict=True):
    guess = shares[i].argmax()
    place.imshow(images[i].transpose(1, 2, 0))
    place.set_title(
        f"{data.class_names[labels[i]]}, taken for\n{data.class_names[guess]} ({shares[i, guess]:.0%})",
        fontsize=9,
    )
    place.axis("off")
plt.show()

# %% [markdown]
# ## 3 How good is it, and how sure are you?
#
# The **accuracy** $p$ (more exactly, top-1 accuracy) is the share of images whose predicted class is right. Test
# images are a sample: other images would have given another number. Each image is right or wrong like a biased coin,
# and so the accuracy over $n$ images has the **standard error**
#
# $$\sqrt{\frac{p\,(1 - p)}{n}}$$
#
# Two times out of three the accuracy over endlessly many images lies within one standard error of what you measured,
# and 95 times of 100 within two.
#
# ### {{m00.q3}}
#
# Write `accuracy`. It returns both numbers, in per cent. Of equally large logits the lower class counts, as `argmax`
# has it.


# %%
def accuracy(logits, labels):
    """The top-1 accuracy and its standard error, both in per cent.

    logits: float32 array [N, K], N >= 1; labels: integer array [N], each in 0..K - 1
    Returns (accuracy, standard error), real numbers from 0 to 100. Of equally large logits the first is
    the predicted class.
    """
    ### BEGIN SOLUTION
    right = np.mean(logits.argmax(axis=1) == labels)
    return 100 * right, 100 * np.sqrt(right * (1 - right) / len(labels))
    ### END SOLUTION


# %%
check("m00.q3")

# %%
measured, error = accuracy(logits, labels)
print(f"float network: {measured:.1f} % ± {error:.1f} of {len(labels)} images")

# %% [markdown]
# Is the formula true? Try it. We draw $n$ of the test images at random, measure, and do so 2,000 times. Blue is what
# comes out, and the line is the bell that your standard error promises. Move the slider: four times as many images,
# half the width.


# %%
def draw_spread(n):
    drawn = np.random.default_rng(0).integers(0, len(labels), (2000, n))
    right = logits.argmax(axis=1) == labels
    accuracies = 100 * right[drawn].mean(axis=1)
    error = 100 * np.sqrt(measured / 100 * (1 - measured / 100) / n)
    _, place = plt.subplots(figsize=(7, 3))
    step = 100 / n * max(1, round(error / 3 * n / 100))
    bins = np.arange(100 + step / 2, measured - 16, -step)[::-1]
    place.hist(accuracies, bins=bins, density=True, color=BLUE, alpha=0.7, label="2,000 samples")
    line = np.linspace(measured - 4 * error, measured + 4 * error, 200)
    bell = np.exp(-0.5 * ((line - measured) / error) ** 2) / (error * np.sqrt(2 * np.pi))
    place.plot(line, bell, color=ORANGE, linewidth=2, label=f"standard error {error:.2f} points")
    place.set(
        title=f"Accuracy over {n} images",
        xlabel="accuracy, %",
        ylabel="density",
        xlim=(measured - 16, min(101, measured + 16)),
    )
    place.legend(fontsize=9, loc="upper left")
    plt.show()


play(draw_spread, stills=[{"n": 100}, {"n": 1600}], n=(25, 50, 100, 200, 400, 800, 1600))

# %% [markdown]
# With few images and an accuracy close to 100 % the bell is no longer true: it promises accuracies above 100 %.
# Otherwise the formula is right.
#
# Keep this picture in mind when somebody reports an accuracy. The EE219 report measured 60.88 % in float, 60.9 % with
# quantized weights and 60.92 % with quantized activations as well, each on the same 10,000 images. Its standard error
# is $\sqrt{0.61 \cdot 0.39 / 10000}$, half a point: so nobody can say that quantization made that network *better*.
# But 57.07 %, which it reports for a bias that was left unquantized, is eight standard errors away and no accident.
# (What had happened you will find out in m03.)
#
# ## 4 What does it cost?
#
# Two things are counted. **Weights** have to be stored and loaded. **MACs** (multiply-accumulates, one product added
# to a sum) have to be computed, for every image.
#
# A convolution with $C$ input channels and a $k \times k$ kernel makes each number of its output from $C k^2$
# products. For each of its $O$ output channels it has one filter of $C k^2$ weights, which it uses at **every**
# position of the output. How many positions are there? With padding $P$ on both sides of an image of height $H$ and a
# window that moves by $s$ pixels,
#
# $$H' = \left\lfloor \frac{H + 2P - k}{s} \right\rfloor + 1$$
#
# and the same for the width. (What does not fit any more is left out, hence the floor.) A product with padding counts
# as well.
#
# ### {{m00.q4}}
#
# Write `convolution_costs`. All results are integers.


# %%
def convolution_costs(image, outputs, kernel, stride, padding):
    """Weights and multiply-accumulates of a convolution without bias, for one image.

    image: (channels, height, width) of the input; outputs: number of output channels
    kernel: side of the square window; stride: by how many pixels it moves; padding: pixels put on each
      of the four sides
    Returns (weights, MACs, (outputs, H', W')), all integers; the last is the shape of the output.
    """
    ### BEGIN SOLUTION
    channels, height, width = image
    high = (height + 2 * padding - kernel) // stride + 1
    wide = (width + 2 * padding - kernel) // stride + 1
    weights = outputs * channels * kernel**2
    return weights, weights * high * wide, (outputs, high, wide)
    ### END SOLUTION


# %%
check("m00.q4")

# %% [markdown]
# A fully connected layer is a convolution, too: with a 1 x 1 kernel on an image of one pixel. So your function counts
# the whole network.

# %%
layers = {  # image, outputs, kernel
    "conv1": ((3, 32, 32), 12, 5),
    "conv2": ((12, 14, 14), 32, 3),
    "fc1": ((1152, 1, 1), 256, 1),
    "fc2": ((256, 1, 1), 64, 1),
    "fc3": ((64, 1, 1), 10, 1),
}
counts = {name: convolution_costs(*layer, 1, 0) for name, layer in layers.items()}
print("layer   output              weights       MACs   MACs a weight")
for name, (n, macs, shape) in counts.items():
    print(f"{name:6}  {shape!s:14} {n:12,} {macs:10,} {macs // n:15,}")
print(
    f"sum {sum(n for n, _, _ in counts.values()):27,} {sum(macs for _, macs, _ in counts.values()):10,}"
)

# %%
figure, place = plt.subplots(figsize=(9, 2.4))
for row, (what, values) in enumerate(
    (("weights", [n for n, _, _ in counts.values()]), ("MACs", [m for _, m, _ in counts.values()]))
):
    start = 0.0
    for name, value, colour in zip(counts, values, (BLUE, ORANGE, GREEN, RED, GREY), strict=True):
        share = 100 * value / sum(values)
        place.barh(row, share, left=start, color=colour, label=name if row == 0 else None)
        if share > 4:
            place.text(
                start + share / 2,
                row,
                f"{share:.0f} %",
                ha="center",
                va="center",
                color="white",
                fontsize=9,
            )
        start += share
    place.text(-1, row, what, ha="right", va="center")
place.set(
    title="Where the weights are, and where the work is",
    xlabel="share, %",
    yticks=[],
    xlim=(0, 100),
)
place.invert_yaxis()
place.legend(ncols=1, fontsize=8, bbox_to_anchor=(1.01, 1), loc="upper left")
plt.show()

# %% [markdown]
# ### {{m00.e1}}

# %%
m00_e1 = """
### BEGIN SOLUTION
conv1 and conv2 make about four fifths of all products (47 and 33 %), and fc1 holds 93 % of the weights. A weight of a
convolution is used again at every position of the output, 784 times in conv1 and 144 times in conv2; a weight of a fully
connected layer is used once for each image. For a small file I would give 4 bits to fc1, since bytes go by the number of
weights. For a fast network I would take conv1, which has the most products (unless loading fc1's weights is what takes the
time, which can be so where memory is slow).
### END SOLUTION
"""

# %%
check("m00.e1")

# %% [markdown]
# ## 5 What could integers save?
#
# Float32 takes four bytes a weight. An integer of 5 to 8 bits takes one byte. Integers of 4 bits and fewer are
# **packed**, two to a byte (section 6 of `docs/arithmetic.md`). Each layer's weights begin with a byte of their own;
# where their number is odd, the last byte is half empty.
#
# ### {{m00.q5}}
#
# Write `network_bytes` for a network with a number of bits for each layer: 1 to 8, or 32 for float32.


# %%
def network_bytes(counts, bits):
    """Bytes of the weights of a network.

    counts: list with the number of weights of each layer
    bits: list with the bits of a weight in each layer: 1 to 4 (two weights to a byte, rounded up to
      whole bytes in each layer), 5 to 8 (a byte each) or 32 (four bytes each)
    Returns an integer.
    """
    ### BEGIN SOLUTION
    total = 0
    for layer, count in enumerate(counts):
        if bits[layer] <= 4:
            total += (count + 1) // 2
        elif bits[layer] == 32:
            total += 4 * count
        else:
            total += count
    return total
    ### END SOLUTION


# %%
check("m00.q5")

# %%
numbers = [n for n, _, _ in counts.values()]
macs = sum(m for _, m, _ in counts.values())
print("weights             bytes    of float32      bit operations, weights x inputs")
for name, widths in {
    "float32": [32] * 5,
    "8 bits": [8] * 5,
    "4 bits": [4] * 5,
    "fc1 alone 4 bits": [8, 8, 4, 8, 8],
}.items():
    size = network_bytes(numbers, widths)
    work = sum(
        m * w * (32 if w == 32 else 8) for (_, m, _), w in zip(counts.values(), widths, strict=True)
    )
    print(
        f"{name:17} {size:9,} {size / network_bytes(numbers, [32] * 5):11.1%}"
        f" {work / 1e6:18,.0f} million"
    )

# %% [markdown]
# The last column is the measure of the HAWQ papers: MACs times bits of the weight times bits of the input (here 8, or
# 32 for float). It is a rough measure of work in hardware, because a multiplier of $b$ bits needs about $b^2$ small
# cells. Measured energies tell the same story. Picojoules for one operation in a 45 nm chip (M. Horowitz,
# *Computing's energy problem*, ISSCC 2014):
#
# | | addition | multiplication |
# |---|---:|---:|
# | int8 | 0.03 | 0.2 |
# | int32 | 0.1 | 3.1 |
# | float32 | 0.9 | 3.7 |
#
# A MAC of two int8 numbers into an int32 sum costs 0.2 + 0.1 pJ, one in float32 costs 3.7 + 0.9 pJ: fifteen times as
# much. And fetching 64 bits from memory outside the chip costs more than 1,000 pJ, so that it counts how many bytes a
# weight has.
#
# All this is worth nothing if the answers get worse. That is what the course is about.
#
# ## 6 The first integer function
#
# Max pooling takes the largest number of each window. Our network has windows of 2 x 2 which do not overlap; rows or
# columns that do not fill a window at the end of the image are left out.
#
# ### {{m00.q6}}
#
# Write `max_pool` for arrays of integers with a window of any size. You may loop over the positions in a window, or
# use `reshape` (then draw the axes on paper first).


# %%
def max_pool(x, size):
    """The largest number of each window of size x size; windows do not overlap.

    x: integer array [N, C, H, W] (uint8 or int8); size: 1 or more, at most H and W
    Returns integers [N, C, H // size, W // size].
    """
    ### BEGIN SOLUTION
    n, c, h, w = x.shape
    h, w = h // size, w // size
    return x[:, :, : h * size, : w * size].reshape(n, c, h, size, w, size).max(axis=(3, 5))
    ### END SOLUTION


# %%
check("m00.q6")

# %% [markdown]
# One line makes an integer network out of the float network. How it does that is the matter of the modules to come;
# for now, look at what flows through it: integers, and nothing else.

# %%
net = labkit.quantize(module, data.calibration(256))
print(net)

# %%
trace = net.trace(x[:1])  # the integers that every layer puts out
before, after = trace["conv1"], trace["pool1"]
pooled = max_pool(before, 2)
print(f"after conv1: {before.dtype} {before.shape}, {before.min()} to {before.max()}")
print(f"after pool1: {after.dtype} {after.shape}")
print("your function gives the same integers:", np.array_equal(pooled, after))

busiest = int(before[0].std(axis=(1, 2)).argmax())
figure, axes = plt.subplots(1, 3, figsize=(9, 3))
for place, (title, picture) in zip(
    axes,
    {
        "the image": images[0].transpose(1, 2, 0),
        "conv1 and ReLU": before[0, busiest],
        "your max_pool": pooled[0, busiest],
    }.items(),
    strict=True,
):
    drawn = place.imshow(picture, cmap="viridis")
    place.set_title(f"{title}\n{' x '.join(map(str, picture.shape[:2]))}", fontsize=10)
    place.axis("off")
figure.colorbar(drawn, ax=axes, label="integer", shrink=0.8)
plt.show()

# %% [markdown]
# ### {{m00.e2}}

# %%
m00_e2 = """
### BEGIN SOLUTION
An integer stands for scale times (integer minus zero point) with a positive scale, so the real number grows with its
integer: the largest integer of a window stands for the largest real number. The result is one of the inputs, therefore it
lies on the grid already, has the same scale and zero point, and nothing is rounded. An addition or a convolution is
different: its result is a sum (of products), which lies between the points of the output's grid in general, and has to be
brought to another scale and rounded.
### END SOLUTION
"""

# %%
check("m00.e2")

# %% [markdown]
# ## 7 Your function in the integer network
#
# A `KernelSet` names the function that computes each operation, and `with_override` swaps one of them for yours. The
# engine calls `max_pool2d` with a few more arguments, which this network does not need (its windows do not overlap
# and there is no padding).

# %%
from labkit.kernels.kernel_set import REFERENCE


def my_max_pool2d(x, *, kernel, **_):
    return max_pool(x, kernel[0])


mine = REFERENCE.with_override("max_pool2d", my_max_pool2d)

# %% [markdown]
# First the proof. `labkit.verify` computes every integer of the network a second time, in PyTorch and in another way,
# and compares all of them with tolerance 0. Your function is part of what is compared.

# %%
print(labkit.verify(net, module, x[:50], kernels=mine))

# %% [markdown]
# Then the accuracy: the float network, labkit's integer network, and the integer network with your function in it.

# %%
from labkit.course.showcase import show_accuracy

show_accuracy(
    {
        "float": float_network,
        "labkit, integers": net.run,
        "integers, with yours": lambda x: net.run(x, kernels=mine),
    },
    data,
)

# %% [markdown]
# The last two must agree to the last image. A quarter of the bytes, and integers all the way: what did it cost? To
# answer *that*, two standard errors side by side are too blunt a tool, as both networks saw the same images and share
# most of their luck.
#
# ### {{m00.c1}}
#
# Only the images on which exactly one of the two networks is right tell them apart. Let $b$ of $n$ images be those
# that only the second network gets right, and $c$ those that only the first one does. The accuracy changes by $(b -
# c) / n$, and if the networks are equally good, each of these $b + c$ images falls to one side or the other like a
# fair coin: the standard error of the change is $\sqrt{b + c} / n$ (McNemar 1947).
#
# Write `paired_change`, in percentage points.


# %%
def paired_change(logits, others, labels):
    """How the accuracy changes from one network to another, and the standard error of the change.

    logits, others: float32 arrays [N, K], of the first and of the second network, for the same images
    labels: integer array [N]
    Returns (change, standard error) in percentage points: accuracy of the second less that of the
    first, and 100 sqrt(b + c) / N, where exactly one of the two is right about b + c images.
    """
    ### BEGIN SOLUTION
    first = logits.argmax(axis=1) == labels
    second = others.argmax(axis=1) == labels
    change = 100 * (second.mean() - first.mean())
    return change, 100 * np.sqrt(np.sum(first != second)) / len(labels)
    ### END SOLUTION


# %%
check("m00.c1")

# %%
for weights in (8, 4, 3, 2):
    quantized = labkit.quantize(module, data.calibration(256), weights=weights)
    change, error = paired_change(logits, quantized.run(x), labels)
    alone = accuracy(quantized.run(x), labels)
    print(
        f"weights of {weights} bits: {alone[0]:5.1f} % ± {alone[1]:.1f};"
        f" change against float {change:+5.1f} ± {error:.1f} points"
    )

# %% [markdown]
# Compare the two columns of errors: the paired one is the sharper tool, as long as the networks agree on most images.
# At how many bits does quantization cost something *for certain*?
#
# **Try it:** `labkit.quantize(module, data.calibration(256), weights=8, activations=4)`. Are weights or activations
# the harder ones?
#
# ## Where this comes from
#
# - EE219 lab report, section I: the network. Its accuracies are in sections I, III.B, V.D and VI;
#   `docs/studies/ee219-accuracy` measures them again.
# - Costs: `labkit/graph/costs.py`, where bit operations are counted as in the slides on HAWQ-V3. `docs/networks.md`
#   has the same numbers for larger networks.
# - Next: **m01** turns the weights into integers, by your own functions.
