# %% [markdown]
# # {{m11}}
#
# *Advanced: nothing in the course depends on this module. You need m01, m02 and above all m04 (multipliers, shifts, rounding);
# the capstone m10 is not needed.*
#
# The networks so far were made of sums of products, and for those integers are enough: you saw it in m04. A transformer has
# sums of products, too. But between them it takes exponentials (softmax), a bell curve's area (GELU) and square roots (layer
# norm), and a chip without floating point has none of these. Many "integer" transformers therefore go back to floats
# at each of those places. In 2021 Kim, Gholami, Yao, Mahoney and Keutzer showed that nobody has to: two parabolas, a shift
# and an algorithm of Newton's will do. Their paper is called *I-BERT*, and in this module you rebuild it.
#
# **You will be able to**
#
# - turn the coefficients of a polynomial into integers that belong to a scale,
# - compute exponentials, softmax, GELU, square roots and layer norms without one real number,
# - say how many bits each intermediate needs, and why a transformer keeps 16 bits between its layers,
# - run a transformer in integers only, through your own functions.
#
# Equations have the numbers of `docs/arithmetic.md`, section 11; sections and algorithms are those of I-BERT. All scales are
# symmetric here: $x = S\,q$.

# %%
import labkit
import matplotlib.pyplot as plt
import numpy as np
import torch
from labkit.arithmetic.fixedpoint import FixedPointMultiplier
from labkit.arithmetic.ibert import exp_constants as labkits_constants
from labkit.arithmetic.ibert import gelu_constants
from labkit.course import check
from labkit.course.look import BLUE, GREEN, GREY, ORANGE, RED, play, use_look
from labkit.course.showcase import show_accuracy
from labkit.course.small_transformer import graph_of, patches_of, quantized, trained
from labkit.frontends.float_run import run_float
from labkit.kernels.kernel_set import REFERENCE

use_look()
torch.set_num_threads(1)
data = labkit.data.load("auto")
print(data.reason)

# %% [markdown]
# ## 1 A picture as a sentence
#
# A transformer reads a sequence of *tokens*. Ours reads a picture as a sentence of 16 tokens, its patches of 8 x 8 pixels. A
# patch of one colour says nothing; like the padding after a short sentence it is left out by a *mask*. The network has
# 15,626 weights, one layer with two heads of attention, and is trained in a few seconds:

# %%
module = trained(data)
x, labels = data.test(200)
sentences = patches_of(x)  # {"patches": float32 [N, 192, 16], "mask": uint8 [N, 16]}
graph = graph_of(module)
seen = run_float(graph, sentences)  # what every node puts out, in float32
right = 100 * np.mean(seen["head"].argmax(1) == labels)
print(f"{right:.1f} % of {len(x)} test images right")
print(f"a patch takes part in {100 * sentences['mask'].mean():.0f} % of all cases")
for name in ("scores", "shares", "up", "gelu", "sum1", "norm1"):
    values = seen[name]
    print(f"{name:<7}{values.shape[1:]!s:<13} {values.min():8.3f} ... {values.max():7.3f}")

# %% [markdown]
# Attention works like this. Each token asks a question (a *query* $q_i$) and offers a *key* $k_j$. Their product, over
# $\sqrt{d}$, is a *score*. The softmax of a row of scores says which *share* of its attention token $i$ gives to each
# token $j$:
#
# $$\mathrm{share}_{ij} = \frac{e^{x_{ij}}}{\sum_k e^{x_{ik}}}, \qquad x_{ij} = \frac{q_i^\top k_j}{\sqrt{d}}$$
#
# Let us see one row: the patch with the orange frame asks, and the brightness of the others is the share that they get.


# %%
def show_shares(shares, titles, picture=0, asks=None):
    """Pictures of the shares [2 heads, 16, 16] of some networks, of one asking patch."""
    mask = sentences["mask"][picture].astype(bool)
    asks = int(np.flatnonzero(mask)[mask.sum() // 2]) if asks is None else asks
    figure, axes = plt.subplots(1, 1 + 2 * len(shares), figsize=(2.6 + 2.1 * 2 * len(shares), 2.9))
    axes[0].imshow(np.clip(x[picture].transpose(1, 2, 0) / 2 + 0.5, 0, 1))
    axes[0].set_title(f"the picture\n({data.class_names[labels[picture]]})", fontsize=10)
    places = [(place, head) for place in range(len(shares)) for head in range(2)]
    for axis, (place, head) in zip(axes[1:], places, strict=True):
        row = np.where(mask, shares[place][head, asks], np.nan).reshape(4, 4)
        drawn = axis.imshow(row, vmin=0, vmax=1, cmap="viridis", extent=(0, 32, 32, 0))
        axis.set_title(f"{titles[place]}\nhead {head + 1}", fontsize=10)
    for axis in axes:
        corner = (8 * (asks % 4) - 0.3, 8 * (asks // 4) - 0.3)
        axis.add_patch(plt.Rectangle(corner, 8, 8, fill=False, color=ORANGE, linewidth=2.5))
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
        axis.grid(visible=False)
    figure.colorbar(drawn, ax=axes[1:], shrink=0.75, label="share (white: masked)")
    plt.show()


show_shares([seen["shares"][0]], ["in float"])

# %% [markdown]
# ## 2 A parabola for the exponential
#
# Softmax does not change when the largest score of a row is subtracted from all of them, so that we need $e^x$ for $x \le 0$
# only. Halving is free in integers: it is a shift. So take $\ln 2$ off as often as it goes, $z$ times, and $e^x$ is $e^p$
# halved $z$ times:
#
# $$x = -z \ln 2 + p, \qquad -\ln 2 < p \le 0, \qquad e^x = \frac{e^p}{2^z}$$
#
# On this short piece a parabola is close enough: $e^p \approx a p^2 + \beta p + 1$ with $a = 0.35815147$ and $\beta =
# 0.96963238$. (These are the digits of the authors' code; the paper prints $0.3585\,(p + 1.353)^2 + 0.344$.) Look at it, and at
# what becomes of it outside of its piece:

# %%
A, B, LN_2 = 0.35815147, 0.96963238, 0.6931  # the digits of I-BERT's authors

p = np.linspace(-2.2, 0.6, 300)
parabola = A * p**2 + B * p + 1
inside = np.linspace(-LN_2, 0, 300)

figure, (left, right_place) = plt.subplots(1, 2, figsize=(9, 3.2))
left.plot(p, np.exp(p), color=GREY, linewidth=4, label="exp(p)")
left.plot(p, parabola, color=BLUE, label="the parabola")
left.axvspan(-LN_2, 0, color=ORANGE, alpha=0.15, label="where it is used")
left.set(title="An exponential and a parabola", xlabel="p", ylabel="value", ylim=(0, 2))
left.legend(fontsize=9)
error = A * inside**2 + B * inside + 1 - np.exp(inside)
right_place.plot(inside, 1000 * error, color=RED)
right_place.set(title="Its error where it is used", xlabel="p", ylabel="error, in thousandths")
plt.show()

# %% [markdown]
# Now in integers. With $p = S r$ take $a S^2$ out of the parabola, so that the square has no factor any more:
#
# $$a S^2 r^2 + \beta S r + 1 = a S^2 \Bigl( r^2 + \frac{\beta}{a S}\, r + \frac{1}{a S^2} \Bigr) \approx a S^2 \bigl((r + b)\,
# r + c \bigr), \qquad b = \Bigl\lfloor \frac{\beta}{a S} \Bigr\rfloor, \quad c = \Bigl\lfloor \frac{1}{a S^2} \Bigr\rfloor$$
#
# $a S^2$ is the scale of the result and waits outside. $\ln 2$ becomes an integer, too, a negative one: $\ell = \lfloor
# -0.6931 / S \rfloor$. All three are rounded *down* ($\lfloor\ \rfloor$ is the floor, also below 0), once and for all when
# the network is converted. For $S = 0.1$:
#
# | | real | integer |
# |---|---|---|
# | $\ell$ | -6.931 | -7 |
# | $b$ | 27.07 | 27 |
# | $c$ | 279.2 | 279 |
#
# ### {{m11.q1}}
#
# Write the three constants. `A`, `B` (this is $\beta$) and `LN_2` are defined above; put the numbers themselves into your
# function if you like.

# %%
import math


def exp_constants(scale):
    """The integers of i-exp for an input of this scale (eq. 46).

    scale: float S, above 0 and below 0.6931
    Returns (l, b, c), three integers, each rounded down: l is -0.6931 / S (negative), b is
    0.96963238 / (0.35815147 S), c is 1 / (0.35815147 S**2).
    """
    ### BEGIN SOLUTION
    a, beta = 0.35815147, 0.96963238
    return math.floor(-0.6931 / scale), math.floor(beta / a / scale), math.floor(1 / a / scale**2)
    ### END SOLUTION


# %%
check("m11.q1")

# %% [markdown]
# With these an exponential is one division, a subtraction, a product and two sums (algorithm 3 of I-BERT):
#
# $$z = \lfloor q / \ell \rfloor, \qquad r = q - z\,\ell, \qquad P = (r + b)\, r + c, \qquad e^x \approx a S^2\, \frac{P}{2^z}
# \qquad \text{(eq. 46)}$$
#
# With $S = 0.1$, so that $\ell = -7$, $b = 27$, $c = 279$ and $a S^2 = 0.0035815$:
#
# | $q$ | $x$ | $z$ | $r$ | $P$ | $a S^2 P / 2^z$ | $e^x$ |
# |---|---|---|---|---|---|---|
# | 0 | 0 | 0 | 0 | 279 | 0.9992 | 1 |
# | -3 | -0.3 | 0 | -3 | 207 | 0.7414 | 0.7408 |
# | -10 | -1.0 | 1 | -3 | 207 | 0.3707 | 0.3679 |
# | -14 | -1.4 | 2 | 0 | 279 | 0.2498 | 0.2466 |
#
# $z$ must not grow without end. Inputs below $30\,\ell$ count as $30\,\ell$: who is smaller than $2^{-30}$ may stay there.
#
# ### {{m11.q2}}
#
# Write it for arrays. Return $P$ and $z$, not the quotient: what $2^z$ divides is decided later. `//` rounds down for
# integers of either sign.


# %%
def i_exp(q, ln2, b, c):
    """exp of q <= 0, as a polynomial's integer P and a number of halvings z (eq. 46).

    q: int32 array of any shape, 0 or negative; below 30 * ln2 it counts as 30 * ln2
    ln2, b, c: integers, as exp_constants returns them (ln2 is the negative one)
    Returns (P, z), two integer arrays of the shape of q; z is 0 ... 30, and P may need more than
    32 bits.
    """
    ### BEGIN SOLUTION
    q = np.maximum(q.astype(np.int64), 30 * ln2)
    z = q // ln2
    r = q - z * ln2
    return (r + b) * r + c, z
    ### END SOLUTION


# %%
check("m11.q2")

# %% [markdown]
# How good is it? That depends on the scale. Choose how many bits the range -8 ... 0 gets:


# %%
def draw_exp(bits):
    """exp and your i_exp on a range of -8 ... 0 with so many bits."""
    scale = 8 / 2**bits
    q = np.arange(-(2**bits), 1, max(1, 2**bits // 2000)).astype(np.int32)
    constants = exp_constants(scale)
    P, z = i_exp(q, *constants)
    yours, real = A * scale**2 * P / 2.0**z, np.exp(scale * q)
    _, (left, right) = plt.subplots(1, 2, figsize=(9, 3.1))
    left.plot(scale * q, real, color=GREY, linewidth=4, label="exp(x)")
    left.plot(scale * q, yours, color=BLUE, drawstyle="steps-mid", label="your i_exp")
    left.set(title=f"{bits} bits: S = {scale:.3g}, l = {constants[0]}", xlabel="x", ylabel="value")
    left.legend(fontsize=9)
    right.plot(scale * q, yours - real, color=RED)
    largest = np.abs(yours - real).max()
    right.set(title=f"error, at most {largest:.4f}", xlabel="x", ylabel="error")
    plt.show()


play(draw_exp, stills=[{"bits": 12}, {"bits": 5}], bits=[4, 5, 6, 7, 8, 10, 12, 14, 16])

# %% [markdown]
# From about 10 bits on, all that is left is the error of the parabola, 0.0019 at most, as the paper says. With 5 bits $\ln 2$ is
# not even three steps long; $\ell$ is rounded to three, and each halving adds to the relative error.
#
# ## 3 Softmax
#
# A row of scores becomes a row of shares in five steps (section 3.5):
#
# 1. The largest score *that takes part* is subtracted from all of them. (A mask of False leaves an element out.)
# 2. i-exp gives $P_i$ and $z_i$.
# 3. They become integers of 16 bits, at which 1 is about 32767. $32767\, a S^2$ is written as a mantissa $m$ and an exponent
#    $e$ as in m04 (eq. 11), and with $s = 31 - e$:
#    $$E_i = \bigl(P_i\, m + 2^{\,s + z_i - 1}\bigr) \gg (s + z_i)$$
#    Where $s + z_i$ passes 62, $E_i = 0$ (nothing is left of it anyway, and no int64 can be shifted so far). Elements that
#    take no part have $E_i = 0$.
# 4. One division for the row: $F = \lfloor 2^{32} / \sum_j E_j \rfloor$. The sum counts as 1 where it is 0.
# 5. The share, with $b$ bits, at the scale $2^{-b}$:
#    $$q_{y,i} = \min\bigl( (E_i F + 2^{31 - b}) \gg (32 - b),\; 2^b - 1 \bigr) \qquad \text{(eq. 47)}$$
#
# By hand, for three scores $q = (5, 2, -5)$ with $S = 0.1$ and $b = 8$. Less 5 they are 0, -3 and -10, which the table above
# knows. Here 32767 times 0.0035815 is about 117.36:
#
# | | first | second | third |
# |---|---|---|---|
# | $P$, $z$ | 279, 0 | 207, 0 | 207, 1 |
# | $E$ | 32742 | 24293 | 12146 |
# | $F = \lfloor 2^{32} / 69181 \rfloor = 62083$, share | 121 | 90 | 45 |
# | $256 \times$ the exact share | 121.4 | 89.9 | 44.7 |
#
# ### {{m11.q3}}
#
# Write it for the last axis of an array. The mask may be None (everybody takes part). The shares of a row in which nobody
# takes part are all 0. You may use your `i_exp`; if it does not work yet, labkit's is
# `labkit.kernels.reference_transformer.i_exp(q, ExpConstants(ln2, b, c, 1.0))`. `np.int64(1) << k` is $2^k$ for an array `k`.


# %%
def i_softmax(x, mask, constants, multiplier, bits):
    """Shares along the last axis (eq. 47), each rounded to nearest, ties up.

    x: int32 array [..., n], the scores, n at least 1
    mask: bool array that broadcasts to the shape of x, False for what takes no part; or None
    constants: (ln2, b, c) for the scale of x; multiplier: (m, e), 32767 a S**2 about m * 2**(e - 31)
    bits: 2 ... 16
    Returns an integer array of the shape of x, 0 ... 2**bits - 1; 0 where mask is False.
    """
    ### BEGIN SOLUTION
    seen = np.broadcast_to(True if mask is None else mask, x.shape)
    x = np.where(seen, x.astype(np.int64), np.iinfo(np.int32).min)
    P, z = i_exp(x - x.max(axis=-1, keepdims=True), *constants)
    m, e = multiplier
    shift = 31 - e + z
    E = (P * m + (np.int64(1) << (shift - 1))) >> shift
    E = np.where(seen & (shift <= 62), E, 0)
    factor = 2**32 // np.maximum(E.sum(axis=-1, keepdims=True), 1)
    return np.minimum((E * factor + (1 << (31 - bits))) >> (32 - bits), 2**bits - 1)
    ### END SOLUTION


# %%
check("m11.q3")

# %% [markdown]
# Your softmax on the real scores of the network: 16 bits in, 8 bits out.


# %%
def numbers_for(scale):
    """Constants and multiplier of a softmax whose scores have this scale."""
    found = labkits_constants(scale)
    short = FixedPointMultiplier.from_real(found.scale * 32767)
    return (found.ln2, found.b, found.c), (int(short.mantissa), int(short.exponent))


scores = seen["scores"]
scale = float(np.abs(scores).max() / 32767)
q_scores = np.rint(scores / scale).astype(np.int32)
everyone = sentences["mask"][:, None, None, :].astype(
    bool
)  # one mask a sentence, for all heads and rows
shares = i_softmax(q_scores, everyone, *numbers_for(scale), 8)

show_shares([seen["shares"][0], shares[0] / 256], ["in float", "yours"])
show_shares([seen["shares"][1], shares[1] / 256], ["in float", "yours"], picture=1)
print(
    f"largest difference: {np.abs(shares / 256 - seen['shares']).max():.4f}; a step is {1 / 256:.4f}"
)
sums, counts = np.unique(shares.sum(axis=-1), return_counts=True)
print("sums of the rows (256 stands for 1):")
print("  ".join(f"{total}: {count}" for total, count in zip(sums, counts, strict=True)))

# %% [markdown]
# You cannot tell them apart, and you should not: hardly a share is off by more than half a step (only one of almost 1, which
# becomes 255, by nearly a whole one). But the rows do not all add up to 256 any more.
#
# ### {{m11.e1}}

# %%
m11_e1 = """
### BEGIN SOLUTION
Every share is rounded by itself, so each may be wrong by half a step, and nobody looks at the sum. The reciprocal of the
sum of exponentials is rounded down, which makes all shares a little too small; and a share of almost 1 is cut to
2**b - 1. In a row of 512 equal scores each share is 1/512, half a step of 1/256: all of them are rounded to the same side,
so the row adds up to 0 or to 512, nothing or twice as much as there is. More bits for the shares help (16 bits: the step is
1/65536); so does keeping the product with the values wide and dividing at its end.
### END SOLUTION
"""

# %%
check("m11.e1")

# %% [markdown]
# Now a sentence that *is* a sentence. Where the extra `labkit[text]` is installed, MiniLM, a transformer with six layers that was
# trained on a billion pairs of sentences, hands you the scores of one of its heads. Who is "it" in this sentence?

# %%
from labkit.errors import ModelError
from labkit.models.sentence_encoder import load_minilm, minilm_folder

try:
    from tokenizers import Tokenizer

    minilm = load_minilm()
except (ModelError, ImportError) as error:
    minilm = None
    print(f"MiniLM is not here, and nothing in this module needs it. ({error})")


def scores_of_minilm(sentence, layer, head):
    """The words of a sentence, and the scores float32 [T, T] of one head of MiniLM."""
    tokenizer = Tokenizer.from_file(str(minilm_folder() / "tokenizer.json"))
    tokenizer.no_padding()
    read = tokenizer.encode(sentence)
    attention, heard = minilm.encoder["layer"][layer].attention["self"], {}
    hooks = [
        getattr(attention, name).register_forward_hook(
            lambda _, __, result, name=name: heard.update({name: result[0].numpy()})
        )
        for name in ("query", "key")
    ]
    ids = torch.tensor([read.ids])
    with torch.no_grad():
        minilm(ids, torch.ones_like(ids, dtype=torch.bool))
    for hook in hooks:
        hook.remove()
    width = heard["key"].shape[1] // attention.heads
    part = slice(head * width, (head + 1) * width)
    return read.tokens, heard["query"][:, part] @ heard["key"][:, part].T / width**0.5


if minilm is not None:
    sentence = "The animal did not cross the street because it was too tired."
    words, real = scores_of_minilm(sentence, layer=3, head=1)
    scale = float(np.abs(real).max() / 32767)
    yours = i_softmax(np.rint(real / scale).astype(np.int32), None, *numbers_for(scale), 8) / 256
    exact = torch.from_numpy(real).softmax(-1).numpy()
    figure, places = plt.subplots(1, 2, figsize=(10, 4.6), sharey=True)
    for place, values, title in zip(places, (exact, yours), ("in float", "yours"), strict=True):
        drawn = place.imshow(values, vmin=0, vmax=0.5, cmap="viridis")
        place.set(title=f"Shares, {title}", xlabel="word looked at", xticks=range(len(words)))
        place.set_xticklabels(words, rotation=90)
        place.grid(visible=False)
    places[0].set(ylabel="word that asks", yticks=range(len(words)), yticklabels=words)
    figure.colorbar(drawn, ax=places, label="share", extend="max")
    plt.show()
    asks = words.index("it")
    for title, row in (("in float", exact[asks]), ("yours", yours[asks])):
        top = np.argsort(-row)[:4]
        print(f"{title:<8} 'it' looks at " + ", ".join(f"{words[k]} ({row[k]:.3f})" for k in top))
    print(f"largest difference: {np.abs(yours - exact).max():.4f}")

# %% [markdown]
# (A head that has nothing to say about a word looks at the first token, `[CLS]`.)
#
# ## 4 GELU
#
# Where LeNet has a ReLU, transformers have $\mathrm{GELU}(x) = \tfrac{x}{2} \bigl(1 + \mathrm{erf}(x / \sqrt 2)\bigr)$. The
# error function erf runs from -1 to 1, and again a parabola stands in for it (section 3.4), with the sign taken off and $|x|$
# held where the parabola has its top:
#
# $$\mathrm{erf}(x) \approx \mathrm{sign}(x) \bigl( a\,(\min(|x|, -\beta) + \beta)^2 + 1 \bigr), \qquad a = -0.2888, \quad
# \beta = -1.769$$
#
# The same trick with the scale $S_k = S / 1.4142$ of $x / \sqrt 2$ gives the integers $b = \lfloor \beta / S_k \rfloor$ and
# $c = \lfloor 1 / (a S_k^2) \rfloor$, both negative, and
#
# $$L = \bigl(\mathrm{sign}(q) \bigl((\min(|q|, -b) + b)^2 + c\bigr)\bigr) \gg 14, \qquad y = q\,(-L - o) \qquad \text{(eq. 48)}$$
#
# $L$ is erf at the scale $2^{14} a S_k^2$, and $o = \lfloor 1 / (2^{14} a S_k^2) \rfloor$ is 1 at that scale. The scale is
# negative, because $a$ is, so $L$ and $o$ are negative where erf and 1 are positive, and the minus signs put that right. Why
# the shift? To keep the product short: you will see. For $S = 0.0005$ we have $b = -5004$, $c = -27700300$, $o = -1691$:
#
# | $q$ | $x$ | $(\ldots)^2 + c$ | $L$ | $y$ | $-\tfrac12\, 2^{14} a S_k^2 S\, y$ | GELU |
# |---|---|---|---|---|---|---|
# | 2000 | 1.0 | -18676284 | -1140 | 5662000 | 0.8372 | 0.8413 |
# | -2000 | -1.0 | -18676284 | 1139 | -1104000 | -0.1632 | -0.1587 |
# | 20000 | 10.0 | -27700300 | -1691 | 67640000 | 10.0018 | 10.0000 |
#
# ### {{m11.q4}}
#
# Write eq. 48. The shift comes after the sign, and rounds down.


# %%
def i_gelu(q, b, c, one):
    """GELU by a polynomial for the error function (eq. 48).

    q: int16 array of any shape, -32767 ... 32767
    b, c, one: negative integers, the constants for the scale of q; one is o
    Returns an integer array of the shape of q: y = q * (-L - one), which may need 64 bits.
    """
    ### BEGIN SOLUTION
    q = q.astype(np.int64)
    near = np.minimum(np.abs(q), -b) + b
    L = (np.sign(q) * (near * near + c)) >> 14
    return q * (-L - one)
    ### END SOLUTION


# %%
check("m11.q4")

# %% [markdown]
# Now turn the knob that I-BERT leaves to the reader: the scale of the input.


# %%
def scale_after(S):
    """Constants by the formulas above, and the scale of y; labkit refuses an S above 0.001."""
    step = S / 1.4142
    unit = -0.2888 * step**2
    integers = math.floor(-1.769 / step), math.floor(1 / unit), math.floor(1 / (unit * 2**14))
    return integers, -unit * 2**14 * S / 2


def gelu_error(S):
    """Inputs in -5 ... 5, your GELU of them, and the exact one."""
    q = np.unique(np.rint(np.linspace(-5, 5, 2001) / S)).clip(-32767, 32767).astype(np.int16)
    integers, unit = scale_after(S)
    exact = torch.nn.functional.gelu(torch.from_numpy(S * q.astype(float))).numpy()
    return S * q.astype(float), unit * i_gelu(q, *integers), exact


def draw_gelu(scale):
    """GELU and yours at a scale of the input."""
    real, yours, exact = gelu_error(scale)
    _, (left, right) = plt.subplots(1, 2, figsize=(9, 3.1))
    left.plot(real, exact, color=GREY, linewidth=4, label="GELU")
    left.plot(real, yours, color=BLUE, label="your i_gelu")
    left.set(title=f"S = {scale:g}, one = {scale_after(scale)[0][2]}", xlabel="x", ylabel="value")
    left.legend(fontsize=9)
    right.plot(real, yours - exact, color=RED)
    right.set(title=f"error, at most {np.abs(yours - exact).max():.3f}", xlabel="x", ylabel="error")
    plt.show()


play(
    draw_gelu,
    stills=[{"scale": 0.0005}, {"scale": 0.01}],
    scale=[0.0002, 0.00025, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.06],
)

# %% [markdown]
# At a coarse scale the polynomial is a small number, and a shift by 14 bits leaves almost nothing of it: at $S = 0.01$ the
# integer that stands for 1 is -5. At a fine scale it is a huge number. Both in one figure:

# %%
scales = np.geomspace(2e-5, 0.05, 60)
errors = []
for S in scales:
    _, yours, exact = gelu_error(S)
    errors.append(np.abs(yours - exact).max())
square = np.log2(1 / (0.2888 * (scales / 1.4142) ** 2)) + 1
product = np.log2(2 * 32767 / (2**14 * 0.2888 * (scales / 1.4142) ** 2)) + 1

figure, (left, right_place) = plt.subplots(1, 2, figsize=(9, 3.4))
left.loglog(scales, errors, color=RED)
left.set(title="Error of i-GELU", xlabel="scale S of the input", ylabel="largest error")
right_place.semilogx(scales, square, color=BLUE, label="polynomial, before the shift")
right_place.semilogx(scales, product, color=GREEN, label="product, input of 16 bits")
right_place.axhline(32, color=GREY, linestyle="--", label="int32")
right_place.set(title="Bits that i-GELU needs", xlabel="scale S of the input", ylabel="bits")
right_place.set(ylim=(10, 55))
for place, corner in ((left, "upper left"), (right_place, "upper right")):
    place.axvline(8 / 127, color=ORANGE, linestyle=":", label="-8 ... 8 in 8 bits")
    place.axvline(8.2 / 32767, color=ORANGE, label="-8.2 ... 8.2 in 16 bits")
    place.legend(fontsize=8, loc=corner)
plt.show()

# %% [markdown]
# (The step down at the left end of the error curve is no success: with so fine a scale 16 bits do not reach the inputs beyond
# 2, where the parabola is worst.)
#
# ### {{m11.e2}}

# %%
m11_e2 = """
### BEGIN SOLUTION
The polynomial has the size 1 / S**2, and the shift by 14 drops bits of it. With 8 bits over -8 ... 8 the scale is about
0.06, the whole polynomial is a number below 2,000, and the shift leaves nothing. With 16 bits the scale is 0.00025 and
erf still has about 13 bits after the shift. A finer scale does not make the result better (the error of the parabola is
what is left) but longer: below about 0.0001 the product of a 16-bit input with L no longer fits int32. int64 is needed
elsewhere: for P * m in i-softmax, up to 62 bits, and in the layer norm for y times 2**31 / sigma and for sums of squares.
### END SOLUTION
"""

# %%
check("m11.e2")

# %% [markdown]
# ## 5 A square root
#
# A layer norm divides by a standard deviation, so it needs a square root. Newton's method finds it with integer divisions
# only (algorithm 4). From a guess $g$ above $\sqrt n$ the next is
#
# $$g' = \Bigl\lfloor \frac{g + \lfloor n / g \rfloor}{2} \Bigr\rfloor,$$
#
# and as long as it falls it comes closer. When it does not fall any more, $g = \lfloor \sqrt n \rfloor$. To begin above the
# root and near it: a number with $k$ bits is less than $2^k$, so $2^{\lceil k / 2 \rceil}$ will do. For $n = 1000$, which has
# 10 bits, the guesses are 32 and 31; then $\lfloor (31 + 32) / 2 \rfloor = 31$ does not fall, and 31 is the root. For
# $n = 200$ (8 bits) they are 16 and 14.
#
# ### {{m11.q5}}
#
# Return all guesses, so that we can watch. `n.bit_length()` is the number of bits of a Python integer.


# %%
def root_guesses(n):
    """Newton's guesses for the square root of n, in integers.

    n: Python integer, 0 ... 2**62
    Returns a list of integers: first 2**ceil(k / 2) for an n of k bits, then every next guess that
    is smaller than the one before; the last one is floor(sqrt(n)). For n = 0 the list is [0].
    """
    ### BEGIN SOLUTION
    if n == 0:
        return [0]
    guesses = [1 << (n.bit_length() + 1) // 2]
    while (lower := (guesses[-1] + n // guesses[-1]) // 2) < guesses[-1]:
        guesses.append(lower)
    return guesses
    ### END SOLUTION


# %%
check("m11.q5")

# %%
figure, place = plt.subplots(figsize=(7.5, 3.2))
for n, colour in ((2**21 + 7, BLUE), (3_000_000_000, ORANGE), (2**61 - 1, GREEN)):
    guesses = root_guesses(n)
    digits = [max((guess - math.isqrt(n)) / math.isqrt(n), 1e-10) for guess in guesses]
    place.semilogy(digits, "o-", color=colour, label=f"n = {n:,}: {guesses[-1]:,}")
place.set(title="Each step doubles the number of right digits", xlabel="step", xticks=range(5))
place.set(ylabel="relative error (0 drawn as 1e-10)")
place.legend(fontsize=9)
plt.show()

# %% [markdown]
# ## 6 Layer norm
#
# A layer norm takes the mean of a token's $D$ features away and divides by their standard deviation. In integers (section
# 3.6) the scale $S$ of the input drops out altogether, because numerator and denominator have it both:
#
# $$y = q - \mu, \qquad \sigma = \max\Bigl(\bigl\lfloor \sqrt{\textstyle\sum y^2}\, \bigr\rfloor, 1\Bigr), \qquad \hat y =
# \Bigl(y\, \Bigl\lfloor \frac{2^{31}}{\sigma} \Bigr\rfloor\Bigr) \gg 1 \qquad \text{(eq. 49)}$$
#
# $\mu$ is the mean, rounded to the nearest integer, a tie to the even one. The sum is not divided by $D$: the result has the
# scale $\sqrt D / 2^{30}$. For $q = (10, 20, 30, 62)$ the mean is 30.5, a tie, so $\mu = 30$. Then
# $\sum y^2 = 1524$, $\sigma = 39$ and $\lfloor 2^{31} / 39 \rfloor = 55063683$:
#
# | $q$ | 10 | 20 | 30 | 62 |
# |---|---|---|---|---|
# | $y$ | -20 | -10 | 0 | 32 |
# | $\hat y$ | -550636830 | -275318415 | 0 | 881018928 |
# | $\hat y \cdot \sqrt 4 / 2^{30}$ | -1.026 | -0.513 | 0 | 1.641 |
# | in real numbers | -1.051 | -0.538 | -0.026 | 1.615 |
#
# ### {{m11.q6}}
#
# Write eq. 49 for the last axis. Use your `root_guesses` for each row (labkit's
# `labkit.kernels.reference_transformer.integer_sqrt` is a fine replacement: it takes and returns an array). Take care that
# nothing wraps around; sums of squares are below $2^{62}$ here.


# %%
def i_layer_norm(x):
    """Each row less its mean, over its standard deviation (eq. 49).

    x: int16 or int32 array [..., D]; sums and sums of squares fit 62 bits; there may be no rows
    Returns an integer array of the shape of x, at the scale sqrt(D) / 2**30. The mean is rounded to
    nearest, ties to even. A row of equal numbers gives zeros.
    """
    ### BEGIN SOLUTION
    x = x.astype(np.int64)
    y = x - np.rint(x.mean(axis=-1, keepdims=True)).astype(np.int64)
    squares = (y * y).sum(axis=-1, keepdims=True)
    roots = [root_guesses(int(n))[-1] for n in squares.ravel()]
    sigma = np.maximum(np.array(roots, np.int64).reshape(squares.shape), 1)
    return (y * (2**31 // sigma)) >> 1
    ### END SOLUTION


# %%
check("m11.q6")

# %% [markdown]
# What is the rounded mean worth? Give the sums before the second layer norm of our network 6 to 16 bits, and compare with the
# exact layer norm.

# %%
sums = np.ascontiguousarray(seen["sum1"][:40].transpose(0, 2, 1))  # [images, tokens, features]
deviation = sums.std(axis=-1, keepdims=True)
exact = (sums - sums.mean(axis=-1, keepdims=True)) / deviation
bits_tried, worst, typical = np.arange(5, 17), [], []
for bits in bits_tried:
    step = np.abs(sums).max() / (2 ** (bits - 1) - 1)
    given = np.rint(sums / step).astype(np.int16)
    wrong = np.abs(i_layer_norm(given) * np.sqrt(sums.shape[-1]) / 2**30 - exact)
    worst.append(wrong.max())
    typical.append(np.median(wrong))

figure, place = plt.subplots(figsize=(7.5, 3.2))
place.semilogy(bits_tried, worst, "o-", color=RED, label="largest")
place.semilogy(bits_tried, typical, "o-", color=BLUE, label="median")
place.set(title="Error of i-LayerNorm", xlabel="bits of its input", ylabel="error, in deviations")
place.legend()
plt.show()

# %% [markdown]
# Each bit less doubles the error. With 8 bits some numbers are off by hundredths of a standard deviation, and a real transformer
# has a dozen or more layer norms, one behind the other. This is why the sums between the layers (the *residual*) keep 16 bits
# in labkit, while everything that is multiplied has 8.
#
# ## 7 Challenge: a ledger of bits
#
# Whoever builds the chip asks: how wide must each register be? The figure of section 4 was an estimate. Now exactly, for
# i-GELU: a register with $n$ bits holds $-2^{n-1} \ldots 2^{n-1} - 1$, so -128 fits into 8 bits and 128 does not.
#
# ### {{m11.c1}}
#
# For all inputs from `low` to `high`, return the smallest number of bits, sign included, of a register that can hold
# each of these: the square $(\min(|q|, -b) + b)^2$; the polynomial with its sign, before the shift; $L$; and $y$. Trying all
# inputs is allowed.


# %%
def gelu_bits(low, high, b, c, one):
    """How wide the registers of i-GELU must be (eq. 48).

    low, high: the input is any integer low ... high; -32767 <= low <= high <= 32767
    b, c, one: negative integers, constants as in i_gelu; nothing here passes 62 bits
    Returns four integers, a tuple: bits with sign of the square, of the polynomial with the sign of
    q before the shift, of L, and of y.
    """
    ### BEGIN SOLUTION
    q = np.arange(low, high + 1)
    near = np.minimum(np.abs(q), -b) + b
    polynomial = np.sign(q) * (near * near + c)
    L = polynomial >> 14
    ledger = []
    for values in (near * near, polynomial, L, q * (-L - one)):
        reach = np.maximum(
            values, ~values
        ).max()  # ~v is -v - 1, so that -128 reaches as far as 127
        ledger.append(int(reach).bit_length() + 1)
    return tuple(ledger)
    ### END SOLUTION


# %%
check("m11.c1")

# %%
print("bits of the input      S    square  polynomial    L    y")
for bits, S in ((16, 8.2 / 32767), (16, 16 / 32767), (16, 1e-4), (16, 3e-5), (12, 1e-3)):
    found = gelu_constants(S)
    end = 2 ** (bits - 1) - 1
    ledger = gelu_bits(-end, end, found.b, found.c, found.one)
    print(f"{bits:>17}  {S:.2e}  {ledger[0]:>5}  {ledger[1]:>10}  {ledger[2]:>3}  {ledger[3]:>3}")

# %% [markdown]
# ## 8 Your functions in the engine
#
# Now the whole transformer in integers: weights and whatever is multiplied in 8 bits, 16 bits between the layers, shares of 8
# bits. Three adapters fit your functions to what labkit's engine calls. (Its i-GELU keeps the sign of the scale, and its layer
# norm can add a bias, which is 0 here: gamma and beta follow as an integer multiplication, eq. 50.)

# %%
net = quantized(graph, patches_of(data.calibration(256)))
print(
    "\n".join(line for line in str(net).split("\n") if "Polynomial" in line or "LayerNorm" in line)
)


def my_softmax(x, *, mask, constants, multiplier, bits, rounds):
    """labkit's i_softmax by i_softmax."""
    assert rounds
    pair = int(multiplier.mantissa), int(multiplier.exponent)
    return i_softmax(x, mask, (constants.ln2, constants.b, constants.c), pair, bits)


def my_gelu(x, constants):
    """labkit's i_gelu by i_gelu."""
    return -i_gelu(x, constants.b, constants.c, constants.one)


def my_layer_norm(x, *, bias, shift):
    """labkit's i_layer_norm by i_layer_norm."""
    assert shift == 0
    return i_layer_norm(x) + bias


mine = (
    REFERENCE.with_override("i_softmax", my_softmax)
    .with_override("i_gelu", my_gelu)
    .with_override("i_layer_norm", my_layer_norm)
)
few = {name: array[:25] for name, array in sentences.items()}
theirs, yours = net.trace(few, kernels="reference"), net.trace(few, kernels=mine)
for node in net.graph:
    same = np.array_equal(theirs[node.name], yours[node.name])
    if node.name in ("norm0", "shares", "norm1", "gelu", "norm2", "output") or not same:
        size = theirs[node.name].size
        print(f"{node.name:<7} {size:>7,} numbers, {'all the same' if same else 'NOT the same'}")
    assert same
total = sum(values.size for values in theirs.values())
print(f"all {len(theirs)} tensors: {total:,} numbers, 0 differ")

# %% [markdown]
# That is the certificate: every integer of the transformer is the one that labkit computes. And is it a good transformer?
# Beside it run the network with shares rounded *down*, as I-BERT prints it, and one that forgets the mask.


# %%
def rounded_down(x, **given):
    """I-BERT's own shares."""
    return REFERENCE["i_softmax"](x, **{**given, "rounds": False})


def without_mask(x, **given):
    """Your softmax, with everybody taking part."""
    return my_softmax(x, **{**given, "mask": None})


def float_logits(images):
    given = {name: torch.from_numpy(array) for name, array in patches_of(images).items()}
    with torch.no_grad():
        return module(given["patches"], given["mask"])


show_accuracy(
    {
        "float": float_logits,
        "labkit": lambda images: net.run(patches_of(images), kernels="reference"),
        "yours": lambda images: net.run(patches_of(images), kernels=mine),
        "shares rounded down": lambda images: net.run(
            patches_of(images), kernels=mine.with_override("i_softmax", rounded_down)
        ),
        "mask forgotten": lambda images: net.run(
            patches_of(images), kernels=mine.with_override("i_softmax", without_mask)
        ),
    },
    data,
)

# %% [markdown]
# No float between the first and the last line, and the accuracy is that of the float network within its error. With 16 tokens
# it does not matter much how a share is rounded; with hundreds of tokens, whose shares are a few steps each, it does. The mask
# is another matter on digits, where half of all patches are empty. (Photographs have no empty patches, so there it does
# nothing.)
#
# ## 9 A real one
#
# Where MiniLM is installed, your functions run that, too: six layers, 22.7 million weights, 13 layer norms, 72 heads. It turns a
# sentence into 384 numbers, so that sentences that mean the same point the same way. The cosines of the angles between four of
# them, in float and in integers only:

# %%
from labkit.models.sentence_encoder import encoder_graph, pooled, tokenize

pairs = [
    "The animal did not cross the street because it was too tired.",
    "A weary creature stayed on its side of the road.",
    "Shares lost ground at the start of the week.",
    "Stock prices fell on Monday.",
]
others = [  # to calibrate with: other sentences, each a batch, so that none needs padding
    "A woman is slicing vegetables in the kitchen.",
    "Two dogs run through the snow.",
    "The plane landed an hour late because of the storm!",
    "He had never seen the sea before.",
    "Scientists found a new kind of frog, no larger than a coin.",
    "Is there any bread left?",
]
if minilm is None:
    print("MiniLM is not here.")
else:
    read = [{"ids": tokens.ids, "mask": tokens.mask} for tokens in tokenize(others, batch=1)]
    encoder = labkit.quantize(encoder_graph(minilm, 16), read)  # W8A8
    (tokens,) = tokenize(pairs)
    given = {"ids": tokens.ids.astype(np.int32), "mask": tokens.mask.astype(np.uint8)}
    fitting = encoder.at_length(tokens.ids.shape[1])
    theirs, yours = fitting.trace(given, kernels="reference"), fitting.trace(given, kernels=mine)
    wrong = sum(int(np.count_nonzero(theirs[name] != yours[name])) for name in theirs)
    size = sum(values.size for values in theirs.values())
    print(f"{len(theirs)} tensors, {size:,} numbers: {wrong} of yours differ from labkit's")
    assert wrong == 0

    with torch.no_grad():
        real = minilm(torch.from_numpy(tokens.ids), torch.from_numpy(tokens.mask)).numpy()
    in_order = np.argsort(tokens.rows)  # tokenize sorts by length
    figure, places = plt.subplots(1, 2, figsize=(8, 3.6))
    numbers = {"in float": real, "yours": yours[fitting.graph.outputs[0]]}
    for place, (title, states) in zip(places, numbers.items(), strict=True):
        directions = pooled(states, tokens.mask)[in_order]
        cosines = directions @ directions.T
        drawn = place.imshow(cosines, vmin=0, vmax=1, cmap="viridis")
        for i, j in np.ndindex(4, 4):
            colour = "black" if cosines[i, j] > 0.5 else "white"
            place.text(j, i, f"{cosines[i, j]:.3f}", ha="center", va="center", color=colour)
        place.set(title=f"Cosines, {title}", xticks=range(4), yticks=range(4))
        place.set_xticklabels(["animal", "creature", "shares", "stocks"])
        place.set_yticklabels(["animal", "creature", "shares", "stocks"])
        place.grid(visible=False)
    figure.colorbar(drawn, ax=places, label="cosine")
    plt.show()

# %% [markdown]
# Whoever looks for the sentence that means the same finds the same one, without a float. (Six sentences
# are few to calibrate with; take more, and see.)
#
# **Try it:** give the shares `bits - 4` in `my_softmax` and shift the result by 4 to the left. How coarse may attention be?
#
# ## What to take away
#
# - A nonlinear function in integers is a polynomial on a short piece, and something cheap (a shift, a sign, a symmetry) that
#   brings every input to that piece.
# - Scales go into the constants, once, before the first sentence. What runs later knows integers only.
# - Write the ledger: how large can this become? int32 holds i-GELU at the right scale; softmax and layer norm need int64.
# - 8 bits are enough for what is multiplied. What is added up from layer to layer wants 16.
#
# **Read on:** S. Kim et al., *I-BERT: Integer-only BERT Quantization*, ICML 2021 (arXiv:2101.01321); `docs/arithmetic.md`,
# section 11; labkit's own kernels in `labkit/kernels/reference_transformer.py`.
