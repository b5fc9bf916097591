# %% [markdown]
# # {{m06}}
#
# Take a trained network and push a little on the weights of one layer. Sometimes nothing happens. Sometimes everything
# falls over. The slides of this module compare it with Jenga: some blocks can be pulled out and some hold the tower.
#
# Few bits mean large rounding errors, so it pays to know beforehand which layer can bear them. Trying is no way out: 50
# layers with 7 possible numbers of bits are $7^{50}$ networks. In this module you learn to *predict* the damage, from one
# float network, in seconds.
#
# **You will be able to**
#
# - say what rounding noise costs the loss, from a Taylor series,
# - multiply a vector with a Hessian that is far too large to write down, and estimate its trace, with an error bar,
# - tell the Hessian, the Gauss-Newton, the Fisher and the empirical Fisher matrix apart, and know which approximation
#   breaks when,
# - compute three published sensitivities (HAWQ-V2, MPQCO, Gauss-Newton), and hold them against the truth,
# - find the layer of LeNet that must not lose its bits, and see in the integer engine that you were right.
#
# You need module m01 (rounding weights), derivatives, and a little torch: `torch.autograd.grad`.

# %%
import labkit
import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from labkit.course import check
from labkit.course.look import BLUE, GREEN, GREY, ORANGE, RED, play, use_look

use_look()
data = labkit.data.load("auto")
module = labkit.models.load("lenet", data=data.name).requires_grad_(False)
print(data.reason)

# %% [markdown]
# ## 1 The parabola at the bottom
#
# Let the weights $w$ change by $\Delta w$. The loss changes by
#
# $$\Delta L \approx g^\top \Delta w + \tfrac12\, \Delta w^\top H\, \Delta w ,$$
#
# with the gradient $g$ and the Hessian $H$, the matrix of second derivatives.
#
# ### {{m06.q1}}


# %%
def taylor_change(gradient, hessian, change):
    """The change of the loss to second order.

    gradient: float64 [n]; hessian: float64 [n, n], symmetric; change: float64 [n], what is added
        to the weights
    Returns a number.
    """
    ### BEGIN SOLUTION
    return gradient @ change + change @ hessian @ change / 2
    ### END SOLUTION


# %%
check("m06.q1")

# %% [markdown]
# Now LeNet. As loss we take the **divergence** from the network's own answers: how much its probabilities differ from what
# they were before anything was rounded,
#
# $$L = \frac1N \sum_n \sum_c p_{nc} \log \frac{p_{nc}}{\hat p_{nc}} .$$
#
# It needs no labels, it is 0 for the float network, and it cannot be negative. So the float network sits at the very bottom
# of this loss: $g = 0$, and everything that rounding costs comes from $H$.

# %%
from labkit.arithmetic.affine import PerAxis, QuantSpec, dequantize, params_from_values, quantize

LAYERS = ("conv1", "conv2", "fc1", "fc2", "fc3")
images = torch.from_numpy(data.calibration(256))
own_answers = torch.log_softmax(module(images), 1)
WEIGHTS = {name: module.get_submodule(name).weight.numpy() for name in LAYERS}


def rounding_error(name, bits):
    """What rounding the layer's weights to so many bits adds to them, float32, one scale a channel."""
    weight = WEIGHTS[name]
    spec = QuantSpec(bits, signed=True, symmetric=True, narrow=True, granularity=PerAxis(0))
    params = params_from_values(weight, spec)
    return dequantize(quantize(weight, params, spec), params, spec) - weight


def logits_of(name, w, part=slice(None)):
    """The logits of a part of the images, if the layer had the weights w (a tensor)."""
    new = {f"{name}.weight": w.reshape(WEIGHTS[name].shape).float()}
    return torch.func.functional_call(module, new, (images[part],))


def divergence(name, w, part=slice(None)):
    """The loss of the text above, as a tensor that torch can differentiate."""
    found = torch.log_softmax(logits_of(name, w, part), 1)
    return F.kl_div(found, own_answers[part], log_target=True, reduction="batchmean")


def measured(name, change):
    """The loss after `change` is added to the layer's weights."""
    with torch.no_grad():
        return max(float(divergence(name, torch.from_numpy(WEIGHTS[name] + change))), 1e-9)


# %% [markdown]
# Before you look at the next figure: LeNet has two convolutions and three fully connected layers. Which one will suffer
# most when it alone gets 2 bits? The one with the most weights? The first? The last?

# %%
BITS = (2, 3, 4, 6)
truth = {
    (name, bits): measured(name, rounding_error(name, bits)) for name in LAYERS for bits in BITS
}

_, axes = plt.subplots(figsize=(7.4, 3.6))
for place, (bits, colour) in enumerate(zip(BITS, (RED, ORANGE, GREEN, BLUE), strict=True)):
    at = np.arange(len(LAYERS)) + 0.2 * (place - 1.5)
    axes.bar(at, [truth[name, bits] for name in LAYERS], 0.18, color=colour, label=f"{bits} bits")
axes.set_yscale("log")
axes.set_xticks(range(len(LAYERS)), [f"{name}\n{WEIGHTS[name].size:,} weights" for name in LAYERS])
axes.set(title="The damage when one layer alone is rounded", ylabel="divergence, nats an image")
axes.set_ylim(top=20 * max(truth.values()))
axes.legend(ncols=4, loc="upper center")
plt.show()

# %% [markdown]
# ## 2 A matrix that nobody writes down
#
# The Hessian of `fc1` alone has 295 thousand rows and as many columns: 350 gigabytes in float32. But what we need is $H v$
# for some vector $v$, and that costs no more than two backward passes (Pearlmutter 1994):
#
# $$H v = \nabla_w \big( \nabla_w L \cdot v \big) .$$
#
# Differentiate the loss, multiply with $v$ (now it is a single number again), and differentiate that number.
#
# ### {{m06.q2}}
#
# `torch.autograd.grad(..., create_graph=True)` gives a gradient that can be differentiated again.


# %%
def hessian_vector_product(loss, w, v):
    """H v, for the Hessian H of the loss at w.

    loss: a function from a float64 tensor [n] to a loss, a tensor with one number
    w, v: float64 arrays [n]; the loss is not linear in w
    Returns real numbers [n], an array or a tensor.
    """
    ### BEGIN SOLUTION
    point = torch.tensor(w, requires_grad=True)
    (slope,) = torch.autograd.grad(loss(point), point, create_graph=True)
    (product,) = torch.autograd.grad(slope @ torch.from_numpy(v), point)
    return product.numpy()
    ### END SOLUTION


# %%
check("m06.q2")

# %% [markdown]
# With it the parabola can be drawn: the loss along the direction in which rounding moves the weights, from no rounding (0)
# to all of it (1) and beyond, and what the Taylor series predicts. Try the layers, and more and fewer bits. When does the
# prediction fail?


# %%
def draw_slice(layer, bits):
    w, change = (
        WEIGHTS[layer].astype(np.float64).ravel(),
        rounding_error(layer, bits).astype(np.float64).ravel(),
    )
    curved = np.asarray(hessian_vector_product(lambda point: divergence(layer, point), w, change))
    steps = np.linspace(-1.5, 1.5, 13)
    true = [
        measured(layer, (step * change).reshape(WEIGHTS[layer].shape).astype(np.float32))
        for step in steps
    ]
    _, axes = plt.subplots(figsize=(6.4, 3.4))
    axes.plot(steps, true, "o-", color=BLUE, label="measured")
    fine = np.linspace(-1.5, 1.5, 100)
    axes.plot(
        fine,
        fine**2 * (change @ curved) / 2,
        color=ORANGE,
        linewidth=2,
        label="predicted: a parabola",
    )
    axes.axvline(1, color=GREY, linestyle="--", label="rounded")
    axes.set(title=f"{layer} on its way to {bits} bits", xlabel="share of the rounding error")
    axes.set_ylabel("divergence, nats an image")
    axes.legend()
    plt.show()


play(
    draw_slice,
    stills=[{"layer": "conv2", "bits": 4}, {"layer": "conv1", "bits": 2}],
    layer=LAYERS,
    bits=[2, 3, 4, 5, 6, 8],
)

# %% [markdown]
# At 4 bits the parabola comes close up to the rounded weights. At 2 bits the changes are so large that higher terms count.
# All that follows is second order: for the lowest bits a prediction says *that* it hurts, and not exactly how much.
#
# For a tiny network the whole Hessian can be written down after all: multiply with one unit vector after the other. Here is
# one with 152 weights, for images of 4 x 4 grey pixels and three classes.

# %%
from labkit.course.ingredients.losses import tanh_net

CLASSES, HIDDEN = 3, 8
chosen = np.flatnonzero(data.train_labels < CLASSES)[:40]
pixels = (
    data.train_images[chosen]
    .astype(np.float64)
    .mean(1)
    .reshape(-1, 4, 8, 4, 8)
    .mean((2, 4))
    .reshape(-1, 16)
)
tiny_x = (pixels - pixels.mean()) / pixels.std()
tiny_y = data.train_labels[chosen]
tiny_loss = tanh_net(tiny_x, tiny_y, HIDDEN, CLASSES)
tiny_w = np.random.default_rng(0).normal(0, 0.5, HIDDEN * (16 + CLASSES))

hessian = np.array(
    [np.asarray(hessian_vector_product(tiny_loss, tiny_w, e)) for e in np.eye(len(tiny_w))]
)
by_torch = torch.autograd.functional.hessian(tiny_loss, torch.from_numpy(tiny_w)).numpy()
print(f"largest difference from torch's own: {np.abs(hessian - by_torch).max():.1e}")
print(f"trace: {np.trace(hessian):.4f}")

_, (left, right) = plt.subplots(1, 2, figsize=(9.5, 3.8))
reach = np.abs(hessian).max() / 4
left.imshow(hessian, cmap="RdBu_r", vmin=-reach, vmax=reach)
left.set(title="A whole Hessian", xlabel="weight (the last 24: second layer)", ylabel="weight")
left.grid(visible=False)
right.plot(np.linalg.eigvalsh(hessian)[::-1], ".", color=BLUE)
right.set(
    title="Its eigenvalues: a few directions are sharp",
    xlabel="number, largest first",
    ylabel="eigenvalue",
)
plt.show()

# %% [markdown]
# Most eigenvalues are nearly 0: in most directions nothing happens when the weights are moved. Some are negative, since
# this network is not trained yet.
#
# ## 3 The trace, by throwing dice
#
# HAWQ's idea: if $\Delta w$ points nowhere in particular, what counts is the *average* curvature, the mean of the
# eigenvalues, which is the trace of $H$ over $n$. And the trace needs no matrix (Hutchinson 1990): for random signs $v$,
# each element -1 or +1,
#
# $$E[v^\top H v] = \sum_{i,j} H_{ij}\, E[v_i v_j] = \sum_i H_{ii} = \mathrm{tr}(H),$$
#
# because $v_i v_j$ is 0 on average for $i \ne j$, and 1 for $i = j$.
#
# ### {{m06.q3}}
#
# An estimate without an error bar is a rumour. Return both: the mean over the probes, and its *standard error*, the
# standard deviation of the probes' values (with $m - 1$) divided by $\sqrt m$.


# %%
def hutchinson(product, probes):
    """The trace of H, estimated from probes, and the standard error of the estimate.

    product: the function v -> H v, for one float64 vector [n]; probes: float64 [m, n], a vector v
        in each row, m at least 2
    Returns (trace, error), two numbers.
    """
    ### BEGIN SOLUTION
    found = np.array([probe @ product(probe) for probe in probes])
    return found.mean(), found.std(ddof=1) / np.sqrt(len(probes))
    ### END SOLUTION


# %%
check("m06.q3")

# %% [markdown]
# Thirty people estimate the trace of the Hessian above, each with probes of their own. How many do they need? (Some tools
# stop when the estimate changes by less than 0.1 % from one probe to the next. Look at four probes, and imagine that rule.)


# %%
def draw_estimates(probes):
    rng = np.random.default_rng(1)
    _, axes = plt.subplots(figsize=(7.4, 3.4))
    hits = 0
    for person in range(30):
        found, error = hutchinson(
            lambda v: hessian @ v, rng.choice([-1.0, 1.0], (probes, len(hessian)))
        )
        axes.errorbar(person, found, error, fmt="o", color=BLUE, capsize=2, markersize=4)
        hits += abs(found - np.trace(hessian)) <= error
    axes.axhline(np.trace(hessian), color=ORANGE, linewidth=2, label="the true trace")
    axes.set(
        title=f"{probes} probes: {hits} of 30 are within one standard error",
        xlabel="person",
        ylabel="trace",
    )
    axes.legend()
    plt.show()


play(draw_estimates, stills=[{"probes": 4}, {"probes": 64}], probes=[2, 4, 8, 16, 32, 64, 128, 256])

# %% [markdown]
# Four times the probes, half the error: that is what chance charges. About two of three error bars should reach the line,
# and with few probes fewer do.
#
# Now the five layers of LeNet. The trace of each, over its number of weights, is the average curvature that HAWQ looks at.

# %%
rng = np.random.default_rng(0)
traces = {}
for name in LAYERS:
    w = WEIGHTS[name].astype(np.float64).ravel()

    def product(v, name=name, w=w):
        return np.asarray(
            hessian_vector_product(lambda point: divergence(name, point, slice(48)), w, v)
        )

    traces[name] = hutchinson(product, rng.choice([-1.0, 1.0], (10, len(w))))

_, axes = plt.subplots(figsize=(6.4, 3.4))
for name in LAYERS:
    size = WEIGHTS[name].size
    axes.errorbar(
        name, traces[name][0] / size, traces[name][1] / size, fmt="o", color=BLUE, capsize=4
    )
axes.set_yscale("log")
axes.set(
    title="Average curvature of each layer, 10 probes", ylabel="trace / weights, nats an image"
)
plt.show()

# %% [markdown]
# The average curvatures differ by a factor of twenty to a hundred. The huge `fc1` is the flattest: its weights share the
# work. The small layers at the ends are sharp.
#
# ## 4 Four matrices that look alike
#
# Second derivatives are expensive, so papers replace $H$ by something made of first derivatives. Which one is easily mixed
# up. For one image let $f$ be the logits, $J$ the matrix of their derivatives by the weights, $p = \mathrm{softmax}(f)$,
# $y$ the label and $r = p - e_y$ the derivative of the loss by the logits ($e_y$ is 1 at the label and 0 elsewhere). The
# gradient of the image's loss is $g = J^\top r$, and
#
# | matrix | the mean over images of |
# |---|---|
# | Hessian $H$ (eq. 4) | $\nabla^2_w L = J^\top A J + \sum_c r_c \nabla^2 f_c$, with $A = \mathrm{diag}(p) - p p^\top$ |
# | Gauss-Newton | $J^\top A J$ |
# | Fisher $F$ (eq. 6) | $E_y[g g^\top]$, labels $y$ drawn from the model's own $p$ |
# | empirical Fisher $\tilde H$ (eq. 5) | $g g^\top$ with the image's given label |
#
# (Equation numbers of the MPQCO supplement.)
#
# ### {{m06.q4}}


# %%
def empirical_fisher(jacobian, probabilities, labels):
    """The mean over images of g g^T, g the gradient of the image's loss -log p(label).

    jacobian: float64 [N, C, n], derivatives of each image's C logits by the n weights
    probabilities: float64 [N, C], their softmax; labels: integers [N]
    Returns float64 [n, n].
    """
    ### BEGIN SOLUTION
    residuals = probabilities - np.eye(probabilities.shape[1])[labels]
    gradients = np.einsum("nc,ncw->nw", residuals, jacobian)
    return gradients.T @ gradients / len(labels)
    ### END SOLUTION


# %%
check("m06.q4")

# %% [markdown]
# ### {{m06.q5}}
#
# You may take $J^\top A J$ as it stands. Or use that it is the Fisher matrix as well (eqs. 6 to 8): the mean of $g g^\top$
# over *all* labels, each with its probability. Both pass.


# %%
def gauss_newton(jacobian, probabilities):
    """The mean over images of J^T A J, A = diag(p) - p p^T.

    jacobian: float64 [N, C, n], derivatives of each image's C logits by the n weights
    probabilities: float64 [N, C], their softmax
    Returns float64 [n, n].
    """
    ### BEGIN SOLUTION
    mean_row = np.einsum("nc,ncw->nw", probabilities, jacobian)
    spread = jacobian - mean_row[:, None]
    return np.einsum("nc,ncv,ncw->vw", probabilities, spread, spread) / len(probabilities)
    ### END SOLUTION


# %%
check("m06.q5")

# %% [markdown]
# The supplement's proposition 2 claims that $\tilde H$ becomes exact as the data is fitted. Let us watch. The tiny network
# learns its 40 images until they fit almost perfectly, by steps along $(G + \epsilon I)^{-1} g$ with *your* Gauss-Newton
# matrix $G$, and every few steps the three matrices are compared.


# %%
def tiny_logits(w):
    hidden = torch.tanh(torch.from_numpy(tiny_x) @ w[: HIDDEN * 16].reshape(HIDDEN, 16).T)
    return hidden @ w[HIDDEN * 16 :].reshape(CLASSES, HIDDEN).T


w, history = tiny_w.copy(), []
for step in range(34):
    point = torch.from_numpy(w)
    p = torch.softmax(tiny_logits(point), 1).numpy()
    jacobian = torch.autograd.functional.jacobian(tiny_logits, point, vectorize=True).numpy()
    by_model = gauss_newton(jacobian, p)
    if step % 3 == 0:
        exact = torch.autograd.functional.hessian(tiny_loss, point, vectorize=True).numpy()
        by_labels = empirical_fisher(jacobian, p, tiny_y)
        size, *gaps = (
            np.linalg.norm(matrix, 2) for matrix in (exact, exact - by_model, exact - by_labels)
        )
        history.append(
            (
                float(tiny_loss(point)),
                size,
                np.linalg.norm(by_model, 2),
                np.linalg.norm(by_labels, 2),
                *gaps,
            )
        )
    gradient = np.einsum("nc,ncw->w", p - np.eye(CLASSES)[tiny_y], jacobian) / len(p)
    move = np.linalg.solve(by_model + 1e-3 * np.trace(by_model) / len(w) * np.eye(len(w)), gradient)
    w = w - move * min(1.0, 1.0 / np.linalg.norm(move))

losses, size, of_model, of_labels, gap_model, gap_labels = np.array(history).T
_, (left, right) = plt.subplots(1, 2, figsize=(9.5, 3.8))
for values, name, colour in (
    (size, "Hessian", BLUE),
    (of_model, "Gauss-Newton", GREEN),
    (of_labels, "empirical Fisher", RED),
):
    left.loglog(losses, values, "o-", color=colour, label=name, alpha=0.7)
left.set(
    title="All shrink as the data is fitted",
    xlabel="loss (fitted: to the left)",
    ylabel="norm of the matrix",
)
right.loglog(losses, gap_model / size, "o-", color=GREEN, label="H - Gauss-Newton")
right.loglog(losses, gap_labels / size, "o-", color=RED, label="H - empirical Fisher")
right.axhline(1, color=GREY, linestyle="--", label="nothing of H is left")
right.set(
    title="How far they are from H",
    xlabel="loss (fitted: to the left)",
    ylabel="norm of the difference, H = 1",
)
left.legend()
right.legend()
plt.show()

# %% [markdown]
# Read the right-hand figure twice. What should become exact misses $H$ altogether, and the Gauss-Newton matrix, which
# nobody promised anything of, stays close. (labkit's study of this:
# [mpqco-matrices](../docs/studies/mpqco-matrices/README.md).)
#
# ### {{m06.e2}}

# %%
m06_e2 = """
### BEGIN SOLUTION
As the loss falls all three matrices tend to 0, but the empirical Fisher matrix much faster, so that H - H~ is all of H: the
relative gap tends to 1. The Gauss-Newton matrix keeps step with H; what it leaves out is sum r_c d2 f_c, which is
proportional to the residuals. The proposition's proof puts J^T r r^T J where the chain rule gives J^T A J. The two are
equal on average over labels drawn from the model (E[r r^T] = A), but here each image has one given label, the right one.
With 1 - p = e for it, A is of size e, while r r^T is of size e^2 and vanishes faster.
### END SOLUTION
"""

# %%
check("m06.e2")

# %% [markdown]
# ## 5 MPQCO: one backward pass for each image
#
# Why would anyone use $\tilde H$ then? Because it is so cheap. In the quadratic form it needs no matrix:
#
# $$\Delta L \approx \tfrac12\, \Delta w^\top \tilde H\, \Delta w = \frac{1}{2N} \sum_{n=1}^N (g_n \cdot \Delta w)^2 .$$
#
# All that is needed is the gradient of each image's own loss.
#
# ### {{m06.q6}}
#
# `losses` returns all images' losses at once. Differentiate them one by one (`retain_graph=True` keeps what the next one
# needs).


# %%
def sample_gradients(losses, w):
    """The gradient of every image's own loss.

    losses: a function from a float64 tensor [n] to the losses of N images, a tensor [N]; w:
        float64 array [n]
    Returns real numbers [N, n], an array or a tensor: row i is the gradient of loss i.
    """
    ### BEGIN SOLUTION
    point = torch.tensor(w, requires_grad=True)
    rows = []
    for loss in losses(point):
        (row,) = torch.autograd.grad(loss, point, retain_graph=True)
        rows.append(row)
    return torch.stack(rows).numpy()
    ### END SOLUTION


# %%
check("m06.q6")

# %% [markdown]
# ### {{m06.q7}}
#
# Mind the order of mean and square.


# %%
def loss_perturbation(gradients, change):
    """MPQCO's estimate of the loss change: 1/2 of the mean over images of (g_n . change)^2.

    gradients: real numbers [N, n], each image's own gradient; change: real numbers [n], what is
        added to the weights
    Returns a number.
    """
    ### BEGIN SOLUTION
    return np.mean((gradients @ change) ** 2) / 2
    ### END SOLUTION


# %%
check("m06.q7")

# %% [markdown]
# The labels decide what comes out. With labels *drawn from the model's probabilities* the estimate is right on average
# (proposition 1). So draw a label for each of 128 images. The second column shows the trap that "mind the order" meant.

# %%
drawn = torch.multinomial(own_answers.exp(), 1, generator=torch.Generator().manual_seed(0))[:, 0]
by_mpqco = {}
print("3 bits   mean of squares   square of the mean   measured")
for name in LAYERS:
    w = WEIGHTS[name].astype(np.float64).ravel()
    estimates, mean_gradient = [], 0.0
    # 16 images at a time: all gradients at once would fill the memory
    for start in range(0, 128, 16):
        part = slice(start, start + 16)

        def losses_of(point, name=name, part=part):
            return F.cross_entropy(logits_of(name, point, part), drawn[part], reduction="none")

        gradients = np.asarray(sample_gradients(losses_of, w))
        estimates.append(
            [loss_perturbation(gradients, rounding_error(name, bits).ravel()) for bits in BITS]
        )
        mean_gradient = mean_gradient + gradients.mean(0) / 8
    by_mpqco |= {
        (name, bits): value for bits, value in zip(BITS, np.mean(estimates, 0), strict=True)
    }
    trap = (mean_gradient @ rounding_error(name, 3).ravel()) ** 2 / 2
    print(f"{name:8} {by_mpqco[name, 3]:15.1e} {trap:20.1e} {truth[name, 3]:10.1e}")

# %% [markdown]
# ### {{m06.e1}}

# %%
m06_e1 = """
### BEGIN SOLUTION
Training ends where the gradient of the mean loss is about 0, so its product with any change is about 0, and so is the
square: the formula measures how well the network was trained and not how sensitive a layer is. The single images' gradients
are not 0, they only cancel in the mean. MPQCO squares each image's product first, so that nothing can cancel: it uses the
mean of g g^T and not g g^T of the mean g.
### END SOLUTION
"""

# %%
check("m06.e1")

# %% [markdown]
# ## 6 Two more predictions, and the truth
#
# ### {{m06.q8}}
#
# HAWQ-V2 multiplies the average curvature with the squared length of the change: $\Omega = \frac{\mathrm{tr}(H)}{n}\,
# \|Q(w) - w\|^2$.


# %%
def hawq_v2(trace, weights, quantized):
    """HAWQ-V2's sensitivity of a layer.

    trace: a number, the trace of the layer's Hessian; weights, quantized: float32 of one shape
    Returns a number: the trace over the number of weights, times the sum of squared differences.
    """
    ### BEGIN SOLUTION
    return trace / weights.size * np.sum((quantized - weights) ** 2)
    ### END SOLUTION


# %%
check("m06.q8")

# %% [markdown]
# The last one needs no matrix and no random numbers. In $\frac12 \Delta w^\top J^\top A J \Delta w$ the product $u = J
# \Delta w$ says how the logits move, and that is one pass forwards. What remains is $\frac12 u^\top A u$ for each image,
# with $A = \mathrm{diag}(p) - p p^\top$. Multiply it out:
#
# $$u^\top A u = \sum_c p_c u_c^2 - \Big(\sum_c p_c u_c\Big)^2 = \sum_c p_c (u_c - \bar u)^2, \qquad \bar u = \sum_c p_c u_c .$$
#
# It is the *variance* of the logits' moves, under the model's own probabilities.
#
# ### {{m06.q9}}


# %%
def logit_cost(moves, probabilities):
    """Half of the variance of each image's logit moves under its probabilities; a mean over images.

    moves: real numbers [N, C], u; probabilities: real numbers [N, C], each row adds up to 1
    Returns a number.
    """
    ### BEGIN SOLUTION
    mean_move = np.sum(probabilities * moves, axis=1, keepdims=True)
    return np.mean(np.sum(probabilities * (moves - mean_move) ** 2, axis=1)) / 2
    ### END SOLUTION


# %%
check("m06.q9")

# %% [markdown]
# Three predictions for 5 layers at 4 numbers of bits, beside the measured damage. On the diagonal a prediction is perfect.

# %%
by_hawq, by_logits = {}, {}
for name in LAYERS:
    w = torch.from_numpy(WEIGHTS[name])
    for bits in BITS:
        change = rounding_error(name, bits)
        by_hawq[name, bits] = hawq_v2(traces[name][0], WEIGHTS[name], WEIGHTS[name] + change) / 2
        with torch.no_grad():
            _, moves = torch.func.jvp(
                lambda point, name=name: logits_of(name, point), (w,), (torch.from_numpy(change),)
            )
        by_logits[name, bits] = logit_cost(moves.numpy(), own_answers.exp().numpy())

_, places = plt.subplots(1, 3, figsize=(11, 3.9), sharex=True, sharey=True)
ends = np.array([min(truth.values()) / 3, max(truth.values()) * 3])
for axes, (title, found) in zip(
    places,
    (("HAWQ-V2, 10 probes", by_hawq), ("MPQCO, 128 images", by_mpqco), ("Gauss-Newton", by_logits)),
    strict=True,
):
    for name, colour in zip(LAYERS, (BLUE, GREEN, RED, ORANGE, GREY), strict=True):
        axes.loglog(
            [truth[name, b] for b in BITS],
            [found[name, b] for b in BITS],
            "o-",
            color=colour,
            label=name,
        )
    axes.plot(ends, ends, color="black", linewidth=1)
    axes.set(title=title, xlabel="measured divergence, nats", ylim=ends)
    axes.minorticks_off()
places[0].set_ylabel("predicted, nats")
places[0].legend()
plt.show()

# %% [markdown]
# - **HAWQ-V2** knows how sharp the layer is, but not which way rounding pushes it.
# - **MPQCO** knows the direction, and on CIFAR-10 it comes close. On the digits the network is so sure that nearly every
#   drawn label is the one it expects, whose gradient says almost nothing; what counts are rare labels, and 128 images hold
#   few of them.
# - **Gauss-Newton** lies on the line until, at 2 bits, the second order ends.
#
# Does labkit find the same numbers by its own code?

# %%
from labkit.sensitivity.measure import measure_sensitivity

table = measure_sensitivity(module, images, bits=BITS, method="gauss-newton")
own = np.array([[by_logits[name, bits] for bits in BITS] for name in table.layers])
print(table)
print(f"\nlargest relative difference from yours: {np.max(np.abs(own / table.values - 1)):.1e}")

# %% [markdown]
# ### {{m06.c1}}
#
# The trace is the sum of all eigenvalues. The largest alone says how sharp the sharpest direction is, and *power iteration*
# finds it: multiply a vector with $H$ again and again. Begin with `start` scaled to length 1; in each step multiply with
# $H$ and scale to length 1 again. In the end return $v^\top H v$.


# %%
def top_eigenvalue(product, start, steps):
    """The eigenvalue of the largest magnitude, by power iteration.

    product: the function v -> H v, for one float64 vector [n]; start: float64 [n], of any length
        but 0; steps: 0 or more
    Returns v . H v for the v of length 1 after so many steps; a number that may be negative.
    """
    ### BEGIN SOLUTION
    v = start / np.linalg.norm(start)
    for _ in range(steps):
        image = product(v)
        v = image / np.linalg.norm(image)
    return v @ product(v)
    ### END SOLUTION


# %%
check("m06.c1")

# %%
try:
    sharpest = top_eigenvalue(
        lambda v: hessian @ v, np.random.default_rng(0).normal(0, 1, len(hessian)), 300
    )
    print(
        f"power iteration {sharpest:.6f}, numpy's eigenvalues {np.linalg.eigvalsh(hessian)[-1]:.6f}"
    )
except NotImplementedError as unsolved:
    print(unsolved)

# %% [markdown]
# ## 7 The ranking in the engine
#
# Time for the test. Rank the layers by **your** Gauss-Newton prediction at 2 bits. Then build integer networks in which all
# layers have 8 bits but one: first the one that you found least sensitive, then the most sensitive.

# %%
from dataclasses import replace

from labkit.course.showcase import show_accuracy
from labkit.frontends.torch_fx import from_torch
from labkit.graph.passes import simplify
from labkit.quantization.plan import BitPlan

ranking = sorted(LAYERS, key=lambda name: by_logits[name, 2])
print("least sensitive first:", ", ".join(ranking))
all_eight = BitPlan.uniform(simplify(from_torch(module, images.shape[1:])), 8, 8)


def net_with(name):
    """The integer network in which this layer alone has 2-bit weights."""
    return labkit.quantize(
        module, images, plan=replace(all_eight, weights={**all_eight.weights, name: 2})
    )


def float_net(x):
    return module(torch.from_numpy(x))


least, most = ranking[0], ranking[-1]
networks = {
    "float": float_net,
    "all 8 bits": labkit.quantize(module, images).run,
    f"{least} 2 bits (least sensitive)": net_with(least).run,
    f"{most} 2 bits (most sensitive)": net_with(most).run,
}
show_accuracy(networks, data)

# %% [markdown]
# Your ranking took neither a label nor a run of the rounded network: one pass forwards for each layer, and a variance. Compare
# the sizes of the two layers: it is not the number of weights that makes a layer fragile.
#
# ## What to take with you
#
# - Rounding noise costs $\frac12 \Delta w^\top H \Delta w$; below about 3 bits this is a hint rather than a number.
# - The Hessian can be *used* without being written down: products, traces with error bars, eigenvalues.
# - The empirical Fisher matrix is not the Hessian, and least of all for data that is fitted well. Gauss-Newton is the safe
#   choice.
# - Whatever is squared, square it image by image.
#
# In module m07 these numbers are spent: which layers get which bits, under a budget. All methods, with their costs and
# traps: [docs/sensitivity.md](../docs/sensitivity.md). **Try it:** 2 or 200 probes in section 3; in section 5 the likeliest
# label in place of a drawn one (`drawn = own_answers.argmax(1)`); the other layers in section 7.
