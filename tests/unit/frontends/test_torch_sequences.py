"""Transformers from PyTorch: the graph computes what the module does, in the layout of sequences, and nothing else is taken."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from unit.frontends.encoders import ATTENTIONS, POSITIONS, UNMASKED, Bert, VisionTransformer, randomised

from labkit.errors import InputError, LabkitError, ModelError, UnsupportedOperation
from labkit.frontends.float_run import run_float
from labkit.frontends.onnx.float_graph_module import graph_digest
from labkit.frontends.torch_fx import from_torch
from labkit.graph import float_ops
from labkit.graph.float_ops import InputKind
from labkit.graph.ir import FloatGraph, FloatNode
from labkit.graph.lengths import at_length
from labkit.graph.passes import simplify
from labkit.models.sentence_encoder import EncoderSizes, SentenceEncoder, encoder_graph
from labkit.quantization.weight_rounding.blocks import find_blocks

VIEWS = ATTENTIONS["views and masked_fill"]


def example(length: int, mask: torch.dtype | None = torch.bool) -> dict[str, torch.Tensor]:
    ids = torch.arange(2 * length).reshape(2, length) % 30
    return {"ids": ids} if mask is None else {"ids": ids, "mask": torch.ones(2, length).to(mask)}


def sentences(number: int, length: int, seed: int, words: int = 30) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(number, length, generator=generator) < 0.6
    mask[:, seed % length] = True
    return torch.randint(words, (number, length), generator=generator), mask


def assert_computes(
    graph: FloatGraph, module: nn.Module, length: int, seed: int, mask_type: torch.dtype = torch.bool, words: int = 30
) -> None:
    ids, mask = sentences(5, length, seed, words)
    with torch.inference_mode():
        expected = module(ids, mask.to(mask_type)).numpy()
    for made in (graph, simplify(graph)):
        given = {"ids": ids.numpy(), "mask": mask.numpy()}
        (got,) = run_float(made, {name: given[name] for name in made.inputs}, only_outputs=True).values()
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5)


def kinds(graph: FloatGraph) -> list[str]:
    return [type(node.op).__name__ for node in graph]


@pytest.mark.parametrize("length", [1, 2, 7, 20])
@pytest.mark.parametrize(("width", "heads", "layers"), [(24, 3, 2), (8, 1, 1), (16, 16, 1), (20, 4, 3)])
def test_random_encoders(width: int, heads: int, layers: int, length: int) -> None:
    torch.manual_seed(width + length)
    sizes = EncoderSizes(50, 32, width, heads, layers, inner=2 * width - 3)
    encoder = randomised(SentenceEncoder(sizes), length)
    graph = encoder_graph(encoder, length)  # type: ignore[arg-type]
    assert graph.inputs == ("ids", "mask")
    for seed in range(3):
        assert_computes(graph, encoder, length, seed, words=50)


def test_layout_of_an_encoder() -> None:
    graph = encoder_graph(SentenceEncoder(EncoderSizes(50, 32, 24, 3, 2, 40)).eval(), 9)
    layer = [
        *("Conv2d", "Reshape") * 2,
        *("MatMul", "MaskedSoftmax", "Conv2d", "Reshape", "MatMul", "Reshape", "Conv2d"),
        *("Add", "LayerNorm", "Conv2d", "Gelu", "Conv2d", "Add", "LayerNorm"),
    ]
    begin = ["Input", "Input", "Embedding", "Constant", "Add", "LayerNorm"]
    assert kinds(graph) == [*begin, *layer, *layer, "Transpose"], "one Transpose, at the very end"
    inputs = [graph[name].op for name in graph.inputs]
    assert [(op.shape, op.kind) for op in inputs] == [((9,), InputKind.INDEX), ((9,), InputKind.MASK)]  # type: ignore[union-attr]
    scores, context = (node for node in graph.nodes[:22] if isinstance(node.op, float_ops.MatMul))
    assert vars(scores.op) == {"transpose_a": True, "transpose_b": False, "factor": 8**-0.5}
    assert vars(context.op) == {"transpose_a": False, "transpose_b": True, "factor": 1.0}
    (shares,) = (node for node in graph.nodes[:22] if isinstance(node.op, float_ops.MaskedSoftmax))
    assert shares.inputs == (scores.name, "mask")
    assert context.inputs[1] == shares.name
    assert graph["encoder.layer.1.output.dense"].op.weight.shape == (24, 40, 1, 1)  # type: ignore[union-attr]
    results = run_float(graph, {"ids": np.zeros((1, 9), int), "mask": np.ones((1, 9), bool)})
    assert results["embeddings.LayerNorm"].shape == (1, 24, 9)
    assert results[scores.name].shape == (1, 3, 9, 9)
    assert results[context.name].shape == (1, 3, 8, 9)
    assert results[graph.outputs[0]].shape == (1, 9, 24)


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize(
    ("positions", "first", "head", "length"),
    [
        ("table", False, "", 7),
        ("parameter", True, "mean", 5),
        ("sinusoids", True, "tokens", 1),
        ("table", False, "first", 20),
    ],
)
def test_encoders_of_ones_own(attention: str, positions: str, first: bool, head: str, length: int) -> None:
    torch.manual_seed(length)
    module = randomised(Bert(ATTENTIONS[attention], positions, first, head), length)
    whole = attention != "scaled queries and where"  # torch.where wants booleans
    mask_type = torch.int64 if whole and length % 2 else torch.bool
    graph = from_torch(module, example(length, mask_type))
    for seed in range(3):
        assert_computes(graph, module, length, seed, mask_type)
    moved = kinds(graph).count("Transpose")
    assert moved == (head in ("", "tokens")) + 2 * (attention == "keys before queries")
    assert "BatchNorm2d" not in kinds(graph), "factors are in the weights and in the products"
    assert kinds(graph).count("Constant") == 1


@pytest.mark.parametrize("positions", POSITIONS)
def test_an_input_that_is_left_out_keeps_its_default(positions: str) -> None:
    torch.manual_seed(0)
    module = randomised(Bert(UNMASKED, positions), 0)
    graph = from_torch(module, example(6, None))
    assert graph.inputs == ("ids",)
    assert kinds(graph).count("Softmax") == 2
    assert_computes(graph, module, 6, 0)


def test_a_vision_transformer() -> None:
    torch.manual_seed(0)
    module = randomised(VisionTransformer(), 0)
    graph = from_torch(module, (3, 8, 8))
    x = torch.randn(5, 3, 8, 8)
    with torch.inference_mode():
        expected = module(x).numpy()
    for made in (graph, simplify(graph)):
        (got,) = run_float(made, {"x": x.numpy()}, only_outputs=True).values()
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5)
    assert "Transpose" not in kinds(graph)


@pytest.mark.parametrize("bias", [True, False])
def test_attention_to_keys_of_another_width(bias: bool) -> None:
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(6, 2, bias=bias, kdim=4, vdim=5, batch_first=True)
    module = Layer(
        lambda s, x: s.attention(x, s.k(x), s.v(x))[0], attention=attention, k=nn.Linear(6, 4), v=nn.Linear(6, 5)
    )
    graph = from_torch(module.eval(), example(7, None))
    ids, _ = sentences(5, 7, 0)
    with torch.inference_mode():
        expected = module(ids).numpy()
    (got,) = run_float(simplify(graph), {"ids": ids.numpy()}, only_outputs=True).values()
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5)


def test_a_digest_knows_the_parameters_of_a_transformer() -> None:
    """Not only those of layers: a constant and a norm count too."""
    torch.manual_seed(0)
    module = randomised(VisionTransformer(), 0)
    digests = {graph_digest(from_torch(module, (3, 8, 8)))}
    for parameter in (module.place, module.norm.bias, module.blocks[0].norm1.weight, module.head.weight):  # type: ignore
        parameter.data.reshape(-1)[0] += 1
        digests.add(graph_digest(from_torch(module, (3, 8, 8))))
    assert len(digests) == 5
    assert graph_digest(from_torch(module, (3, 8, 8))) in digests


def test_indices_are_exact() -> None:
    """2**24 + 1 is no float32: an index that passes through one finds its neighbour."""
    table = np.arange(2**24 + 2, dtype=np.int8).astype(np.float32)[:, None]
    nodes = (
        float_ops.Input((2,), InputKind.INDEX),
        float_ops.Embedding(table),
    )
    graph = FloatGraph((FloatNode("ids", nodes[0]), FloatNode("look", nodes[1], ("ids",))), ("look",))
    (got,) = run_float(graph, {"ids": np.array([[2**24 + 1, 2**24]])}, only_outputs=True).values()
    assert got.tolist() == [[[1.0, 0.0]]]


# ------------------------------------------------------------------------------------------- what depends on what


class Sum(nn.Module):
    """``make`` of the module, the ids and the mask, added to the words."""

    def __init__(self, make: Callable[..., Any]) -> None:
        super().__init__()
        self.words, self.kinds = nn.Embedding(30, 6), nn.Embedding(2, 6)
        self.make = make

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return self.words(ids) + self.make(self, ids, mask)


CONSTANT: dict[str, Callable[..., Any]] = {
    "token types": lambda s, ids, mask: s.kinds(torch.zeros_like(ids)),
    "one in the place of an index": lambda s, ids, mask: s.kinds(torch.ones_like(ids))[:, :1],
    "positions": lambda s, ids, mask: torch.arange(ids.shape[1])[:, None].float(),
    "positions of a mask": lambda s, ids, mask: torch.linspace(0, 1, mask.size(-1))[None, :, None],
    "new zeros": lambda s, ids, mask: s.kinds(ids.new_zeros(ids.shape)) * 3,
    "a number": lambda s, ids, mask: 0.25,
    "a row of a table": lambda s, ids, mask: s.kinds.weight[1],
    "two of them": lambda s, ids, mask: s.kinds(torch.zeros_like(ids)) + torch.arange(ids.shape[1]).view(1, -1, 1),
    "an expanded row": lambda s, ids, mask: s.kinds.weight[:1].unsqueeze(0).expand(*ids.shape, -1),
}


def written(s: Sum, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """A constant that is overwritten by what depends on the mask, and read again under its old name."""
    bias = torch.zeros(1, ids.shape[1], 1)
    bias.masked_fill_(~mask[:1, :, None], 5.0)
    return bias


DEPENDENT: dict[str, tuple[Callable[..., Any], str]] = {
    "the indices": (lambda s, ids, mask: ids[:, :, None].float(), "inputs' indices.*an nn.Embedding"),
    "padding found in the indices": (
        lambda s, ids, mask: (ids != 0)[:, :, None].float(),
        "inputs' indices.*hand them in",
    ),
    "running positions": (lambda s, ids, mask: s.kinds(torch.cumsum(mask, 1) % 2), "a mask must be an input"),
    "indices changed": (lambda s, ids, mask: s.kinds(ids % 2), "takes inputs' indices.*only be looked up"),
    "the indices through their own zeros": (
        lambda s, ids, mask: s.kinds(torch.full_like(ids, 1) * (ids > 4)),
        "takes inputs' indices.*only be looked up",
    ),
    "the mask": (lambda s, ids, mask: mask[:, :, None].float(), "a mask must be an input"),
    "the length of each sentence": (lambda s, ids, mask: mask.sum(1)[:, None, None] * 1.0, "a mask must be an input"),
    "a mask written into a constant": (written, "computes something else|overwrites"),
    "a difference between images": (
        lambda s, ids, mask: torch.arange(ids.shape[0])[:, None, None] * 1.0,
        "differs from image to image|works for batches of 2",
    ),
}


@pytest.mark.parametrize("name", CONSTANT)
def test_what_depends_on_no_value_is_one_constant(name: str) -> None:
    torch.manual_seed(1)
    module = Sum(CONSTANT[name]).eval()
    graph = from_torch(module, example(7))
    assert kinds(graph)[2:] == ["Embedding", "Constant", "Add", "Transpose"]
    for seed in range(3):
        assert_computes(graph, module, 7, seed)


@pytest.mark.parametrize("name", DEPENDENT)
def test_what_depends_on_a_value_is_never_folded(name: str) -> None:
    make, words = DEPENDENT[name]
    with pytest.raises(UnsupportedOperation, match=words):
        from_torch(Sum(make).eval(), example(7))


def test_constants_do_not_follow_the_example() -> None:
    """Whatever the example holds, the graph is the same: it depends on shapes and types alone."""
    torch.manual_seed(2)
    module = randomised(Bert(VIEWS), 2)
    ids, mask = sentences(4, 6, seed=9)
    first = from_torch(module, example(6))
    second = from_torch(module, {"mask": mask.numpy(), "ids": ids})
    assert second.inputs == ("ids", "mask")
    assert str(first) == str(second)
    for a, b in zip(first, second, strict=True):
        for label, value in vars(a.op).items():
            assert np.array_equal(value, vars(b.op)[label]), (a.name, label)


# ------------------------------------------------------------------------------------------- masks and products


class Scores(nn.Module):
    """Attention of one head in which ``shares`` makes the shares of the scores (N, T, T) and the mask."""

    def __init__(self, shares: Callable[..., Any]) -> None:
        super().__init__()
        self.words, self.q, self.k = nn.Embedding(30, 6), nn.Linear(6, 6), nn.Linear(6, 6)
        self.shares = shares

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        x = self.words(ids)
        y: torch.Tensor = self.shares(self.q(x) @ self.k(x).mT, mask) @ x
        return y


def infinite(mask: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(mask[:, None], dtype=torch.float32).masked_fill(~mask[:, None], -torch.inf)


MASKS: dict[str, Callable[..., Any]] = {
    "added, infinite": lambda y, m: (y + infinite(m)).softmax(-1),
    "added before a factor": lambda y, m: ((y + torch.where(m, 0.0, -1e9)[:, None]) / 2).softmax(-1),
    "subtracted factor": lambda y, m: (-torch.neg(y) + (m[:, None].float() - 1) * 1e6).softmax(-1),
    "filled twice by one mask": lambda y, m: y.masked_fill(~m[:, None], -1e9).masked_fill(~m[:, None], -1e9).softmax(-1),
    "filled where it is not": lambda y, m: torch.where(~m[:, None], -1e9, y).softmax(-1),
    "a method": lambda y, m: y.where(m[:, None], torch.tensor(-1e9)).softmax(-1),
    "a bias of places before": lambda y, m: (y + torch.eye(y.shape[1])).masked_fill(~m[:, None], -1e9).softmax(-1),
    "a bias of places after": lambda y, m: (y.masked_fill(~m[:, None], -1e9) + torch.eye(y.shape[1])).softmax(-1),
}  # fmt: skip
NO_MASKS: dict[str, tuple[Callable[..., Any], str]] = {
    "queries": (lambda y, m: (y + torch.where(m, 0.0, -1e9)[:, :, None]).softmax(-1), "a mask must be an input"),
    "both": (lambda y, m: y.masked_fill(~(m[:, None] & m[:, :, None]), -1e9).softmax(-1), "a mask must be an input"),
    "not low": (lambda y, m: (y + torch.where(m, 0.0, -10.0)[:, None]).softmax(-1), "a mask must be an input"),
    "filled with little": (lambda y, m: y.masked_fill(~m[:, None], -5.0).softmax(-1), "at most -1000 can be filled in"),
    "turned round": (lambda y, m: y.masked_fill(m[:, None], -1e9).softmax(-1), "a mask must be an input"),
    "causal": (lambda y, m: y.masked_fill(torch.ones(7, 7).triu(1).bool(), -1e9).softmax(-1), "a mask must be an input"),
    "without a softmax": (lambda y, m: F.relu(y.masked_fill(~m[:, None], -1e9)), "only a softmax along their last axis"),
    "along another axis": (lambda y, m: y.masked_fill(~m[:, None], -1e9).softmax(1), "softmax along their last axis, got dim=1"),
    "over the sentences": (lambda y, m: y.softmax(0), "softmax needs an axis, and not the batch axis"),
    "a product": (lambda y, m: y.softmax(-1) * m[:, None], "masks as if they were activations.*mean of the tokens"),
    "minus infinity times": (lambda y, m: -(y.masked_fill(~m[:, None], -1e9)).softmax(-1) / y, "only be divided by a number"),
}  # fmt: skip


@pytest.mark.parametrize("name", MASKS)
def test_masks_however_they_are_written(name: str) -> None:
    torch.manual_seed(3)
    module = Scores(MASKS[name]).eval()
    graph = from_torch(module, example(7))
    assert kinds(graph).count("MaskedSoftmax") == 1
    for seed in range(3):
        assert_computes(graph, module, 7, seed)


@pytest.mark.parametrize("name", NO_MASKS)
def test_what_is_no_mask_is_refused(name: str) -> None:
    shares, words = NO_MASKS[name]
    torch.manual_seed(3)
    with pytest.raises(UnsupportedOperation, match=words) as caught:
        from_torch(Scores(shares).eval(), example(7))
    assert "\n" not in str(caught.value)


# ------------------------------------------------------------------------------------------- refusals


class Layer(nn.Module):
    """``call`` of the module and its words (N, T, D)."""

    def __init__(self, call: Callable[..., Any], **parts: nn.Module) -> None:
        super().__init__()
        self.words, self.call = nn.Embedding(30, 6), call
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, ids: torch.Tensor) -> Any:
        return self.call(self, self.words(ids))


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "nn.MultiheadAttention with the batch second": (
        lambda: Layer(lambda s, x: s.attention(x, x, x)[0], attention=nn.MultiheadAttention(6, 2)),
        r"^attention: only nn\.MultiheadAttention\(\.\.\., batch_first=True\)",
    ),
    "the shares of nn.MultiheadAttention": (
        lambda: Layer(lambda s, x: s.attention(x, x, x)[1], attention=nn.MultiheadAttention(6, 2, batch_first=True)),
        r"^getitem: the shares of nn\.MultiheadAttention cannot be taken",
    ),
    "a causal nn.MultiheadAttention": (
        lambda: Layer(
            lambda s, x: s.attention(x, x, x, attn_mask=torch.ones(7, 7).triu(1).bool())[0],
            attention=nn.MultiheadAttention(6, 2, batch_first=True),
        ),
        r"^attention: a mask must be an input",
    ),
    "a padding found in the words": (
        lambda: Layer(
            lambda s, x: s.attention(x, x, x, key_padding_mask=x.sum(-1) > 0)[0],
            attention=nn.MultiheadAttention(6, 2, batch_first=True),
        ),
        r"has no integer form|a mask must be an input",
    ),
    "nn.TransformerEncoderLayer": (
        lambda: Layer(lambda s, x: s.layer(x), layer=nn.TransformerEncoderLayer(6, 2, 8, batch_first=True)),
        r"^layer: nn\.TransformerEncoderLayer hides its layers.*Write it out",
    ),
    "GELU by a tanh": (
        lambda: Layer(lambda s, x: s.act(x), act=nn.GELU(approximate="tanh")),
        r"^act: a GELU with approximate='tanh' is not supported.*nn\.GELU\(\)",
    ),
    "GELU by a tanh, a function": (
        lambda: Layer(lambda s, x: F.gelu(x, approximate="tanh")),
        r"^gelu: a GELU with approximate='tanh'",
    ),
    "a norm of two axes": (
        lambda: Layer(lambda s, x: s.norm(x), norm=nn.LayerNorm((7, 6))),
        r"^norm: a layer norm over the last axis is supported, got one over 2",
    ),
    "tanh": (lambda: Layer(lambda s, x: torch.tanh(x)), r"^tanh: tanh has no integer form"),
    "RMSNorm": (lambda: Layer(lambda s, x: s.norm(x), norm=nn.RMSNorm(6)), r"^norm: nn\.RMSNorm has no integer form"),
    "an LSTM": (
        lambda: Layer(lambda s, x: s.lstm(x)[0], lstm=nn.LSTM(6, 6, batch_first=True)),
        r"^lstm: nn\.LSTM has no integer form",
    ),
    "tokens first": (lambda: Layer(lambda s, x: x.transpose(0, 1)), r"moves the batch axis"),
    "tokens first, then a layer": (
        lambda: Layer(lambda s, x: s.fc(x.permute(1, 0, 2)).permute(1, 0, 2), fc=nn.Linear(6, 6)),
        r"^permute: the order \(1, 0, 2\) moves the batch axis",
    ),
    "heads in the batch": (
        lambda: Layer(lambda s, x: x.reshape(x.shape[0], 7, 2, 3).transpose(1, 2).reshape(-1, 7, 3)),
        r"changes the batch axis.*heads on an axis of their own",
    ),
    "a token in the middle": (lambda: Layer(lambda s, x: s.fc(x[:, 3]), fc=nn.Linear(6, 2)), r"^getitem: .*first of its tokens"),
    "division by a tensor": (
        lambda: Layer(lambda s, x: x / x.abs().sum(-1, keepdim=True)),
        r"has no integer form|only be divided by a number",
    ),
    "a constant that makes it larger": (
        lambda: Layer(lambda s, x: x[:, :, None] + torch.ones(1, 1, 4, 1)),
        r"^add: a constant makes a tensor of shape",
    ),
    "a gain for each place": (
        lambda: Layer(lambda s, x: x * torch.arange(7.0)[:, None]),
        r"^mul: only a number, or one for each feature",
    ),
    "an embedding with max_norm": (
        lambda: nn.Sequential(nn.Embedding(30, 6, max_norm=1.0)),
        r"^0: an embedding with max_norm",
    ),
    "its own constant returned": (lambda: Layer(lambda s, x: (x, s.words.weight[None].expand(len(x), -1, -1))), r"own constants"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refusals_name_the_call_and_say_what_to_do(name: str) -> None:
    make, words = REFUSED[name]
    torch.manual_seed(0)
    module = make().eval()
    argument = "input" if isinstance(module, nn.Sequential) else "ids"
    with pytest.raises(LabkitError, match=words) as caught:
        from_torch(module, {argument: torch.arange(14).reshape(2, 7)})
    assert "\n" not in str(caught.value)


def test_inputs_must_fit() -> None:
    module = Bert(VIEWS).eval()
    with pytest.raises(InputError, match=r"Bert does not accept .*at most 24 tokens, got 25"):
        from_torch(module, example(25))
    with pytest.raises(InputError, match="words|unexpected keyword"):
        from_torch(module, {"words": example(5)["ids"]})
    with pytest.raises(InputError, match=r"ids: an example is an array \[N, ...\]"):
        from_torch(module, {"ids": torch.arange(4)})
    with pytest.raises(InputError, match="no example input"):
        from_torch(module, {})
    with pytest.raises(ModelError, match="must not branch or loop on the values"):
        from_torch(Layer(lambda s, x: x if x.sum() > 0 else -x), {"ids": example(4)["ids"]})


def test_the_module_is_left_as_it_was() -> None:
    module = Bert(ATTENTIONS["scaled queries and where"]).train()
    before, names = {name: tensor.clone() for name, tensor in module.state_dict().items()}, set(vars(module))
    from_torch(module, example(5))
    assert all(part.training for part in module.modules())
    assert set(vars(module)) == names, "torch.fx parks constants on the module"
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())


def test_a_hook_is_noticed() -> None:
    torch.manual_seed(0)
    module = randomised(Bert(VIEWS), 0)
    module.blocks[1].inner[0].register_forward_hook(lambda part, inputs, output: output * 1.5)  # type: ignore
    with pytest.raises(UnsupportedOperation, match="computes something else|hook"):
        from_torch(module, example(5))


@pytest.mark.parametrize(("heads", "length"), itertools.product([1, 2, 6], [1, 3]))
def test_gains_and_residuals_of_one_shape(heads: int, length: int) -> None:
    """Scaled branches (a number for each feature) and layers on single heads."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.gain = nn.Embedding(30, 6), nn.Parameter(torch.randn(6))
            self.head, self.norm = nn.Linear(6 // heads, 4), nn.LayerNorm(4)

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            x = self.words(ids)
            x = x + self.gain * x - x * 0.5
            y = x.view(*x.shape[:2], heads, -1).transpose(1, 2)
            out: torch.Tensor = self.norm(self.head(y)).transpose(1, 2).flatten(2)
            return out

    torch.manual_seed(heads)
    module = Net().eval()
    graph = from_torch(module, example(length, None))
    ids, _ = sentences(4, length, 0)
    with torch.inference_mode():
        expected = module(ids).numpy()
    for made in (graph, simplify(graph)):
        (got,) = run_float(made, {"ids": ids.numpy()}, only_outputs=True).values()
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("head", ["mean", "first"])
def test_a_pool_over_all_tokens_is_of_one_length(head: str) -> None:
    """Its window says how many tokens there are: at another length it would give another number of them."""

    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.fc = nn.Embedding(30, 6), nn.Linear(6, 3)

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            x = self.words(ids)
            y: torch.Tensor = self.fc(x.mean(1, keepdim=True) if head == "mean" else x[:, :1])
            return y

    torch.manual_seed(0)
    module = Pooled().eval()
    graph = from_torch(module, example(4, None))
    ids, _ = sentences(3, 4, 0)
    (got,) = run_float(graph, {"ids": ids.numpy()}, only_outputs=True).values()
    with torch.inference_mode():
        np.testing.assert_allclose(got, module(ids).numpy(), rtol=0, atol=1e-5)
    for length in (2, 8):
        with pytest.raises(ModelError, match="is made for sequences of length 4"):
            at_length(graph, length)


def test_rounding_block_by_block_needs_blocks() -> None:
    """Sums of tensors that have no tensor in common (words and constants) end no residual block."""
    graph = simplify(encoder_graph(SentenceEncoder(EncoderSizes(50, 32, 8, 2, 1, 12)).eval(), 5))
    with pytest.raises(UnsupportedOperation, match="ends no residual block.*layer by layer"):
        find_blocks(graph)


def test_two_masks_at_once_are_refused() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words = nn.Embedding(30, 6)

        def forward(self, ids: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            x = self.words(ids)
            scores = (x @ x.mT).masked_fill(~a[:, None], -1e9).masked_fill(~b[:, None], -1e9)
            y: torch.Tensor = scores.softmax(-1) @ x
            return y

    mask = torch.ones(2, 5, dtype=torch.bool)
    with pytest.raises(UnsupportedOperation, match="hidden by one mask only, got a and b"):
        from_torch(Net().eval(), {**example(5, None), "a": mask, "b": mask})
