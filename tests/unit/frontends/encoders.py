"""Small transformers as people write them: attention in many spellings, positions in three, norms before or after."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

__all__ = ["ATTENTIONS", "POSITIONS", "UNMASKED", "Bert", "VisionTransformer", "randomised"]

Tensor = torch.Tensor


def views(s: Attention, x: Tensor, mask: Tensor) -> Tensor:
    n, t, width = x.shape
    d = width // s.heads
    q, k, v = (part(x).view(n, t, s.heads, d).permute(0, 2, 1, 3) for part in (s.q, s.k, s.v))
    scores = torch.matmul(q, k.transpose(-1, -2)) / math.sqrt(d)
    scores = scores.masked_fill(mask[:, None, None, :] == 0, float("-inf"))
    shares = s.drop(torch.softmax(scores, dim=-1))
    return torch.matmul(shares, v).permute(0, 2, 1, 3).contiguous().view(n, t, width)


def scaled_queries(s: Attention, x: Tensor, mask: Tensor) -> Tensor:
    n, _, width = x.shape
    d = width // s.heads
    q = (s.q(x) * d**-0.5).reshape(n, -1, s.heads, d).transpose(1, 2)
    k, v = (part(x).reshape(n, -1, s.heads, d).transpose(1, 2) for part in (s.k, s.v))
    scores = torch.where(mask.unsqueeze(1).unsqueeze(2), q @ k.mT, torch.tensor(-1e9))
    return (F.softmax(scores, -1) @ v).transpose(1, 2).flatten(2)


def added_lowest(s: Attention, x: Tensor, mask: Tensor) -> Tensor:
    n, t, width = x.size()
    q, k, v = (part(x).view(n, t, s.heads, width // s.heads).transpose(1, 2) for part in (s.q, s.k, s.v))
    scores = q @ k.transpose(-1, -2) / math.sqrt(width // s.heads)
    hidden = (1.0 - mask[:, None, None, :].to(torch.float32)) * torch.finfo(torch.float32).min
    y = (s.drop(nn.functional.softmax(scores + hidden, dim=-1)) @ v).permute(0, 2, 1, 3).contiguous()
    return y.view(*y.size()[:-2], width)


def one_call(s: Attention, x: Tensor, mask: Tensor) -> Tensor:
    n, t, width = x.shape
    q, k, v = (part(x).view(n, t, s.heads, width // s.heads).transpose(1, 2) for part in (s.q, s.k, s.v))
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None, :].bool())
    return y.transpose(1, 2).reshape(n, t, width)


def one_head(s: Attention, x: Tensor, mask: Tensor) -> Tensor:
    scores = torch.bmm(s.q(x), s.k(x).transpose(1, 2)) * x.shape[2] ** -0.5
    scores = scores.masked_fill(~mask[:, None, :].bool(), -1e9)
    return torch.bmm(scores.softmax(dim=2), s.v(x))


def keys_first(s: Attention, x: Tensor, mask: Tensor) -> Tensor:
    n, t, width = x.shape
    q, k, v = (part(x).view(n, t, s.heads, width // s.heads).transpose(1, 2) for part in (s.q, s.k, s.v))
    scores = (k @ q.transpose(-1, -2) * (width // s.heads) ** -0.5).transpose(-1, -2)
    scores = scores + (~mask.bool())[:, None, None] * -1e9
    return (scores.softmax(-1) @ v).transpose(1, 2).reshape(n, t, width)


def without_mask(s: Attention, x: Tensor, mask: Tensor) -> Tensor:
    n, t, width = x.shape
    q, k, v = (part(x).view(n, t, s.heads, width // s.heads).transpose(1, 2) for part in (s.q, s.k, s.v))
    scores = q @ k.transpose(-1, -2) / math.sqrt(width // s.heads)
    return (scores.softmax(-1) @ v).transpose(1, 2).reshape(n, t, width)


def one_layer(s: Attention, x: Tensor, mask: Tensor) -> Tensor:
    y: Tensor = s.whole(x, x, x, key_padding_mask=~mask.bool(), need_weights=False)[0]
    return y


def _fused(apart: Callable[[Attention, Tensor], tuple[Tensor, Tensor, Tensor]]) -> Callable[..., Tensor]:
    """Attention whose queries, keys and values (N, H, T, d) ``apart`` takes from one linear layer."""

    def attention(s: Attention, x: Tensor, mask: Tensor) -> Tensor:
        n, t, width = x.shape
        q, k, v = apart(s, x)
        scores = (q @ k.transpose(-2, -1) * (width // s.heads) ** -0.5).masked_fill(
            ~mask[:, None, None, :].bool(), -1e9
        )
        return (scores.softmax(-1) @ v).transpose(1, 2).reshape(n, t, width)

    return attention


def _heads(s: Attention, y: Tensor) -> Tensor:
    return y.view(*y.shape[:2], s.heads, -1).transpose(1, 2)


def chunked(s: Attention, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = s.qkv(x).chunk(3, dim=-1)
    return _heads(s, q), _heads(s, k), _heads(s, v)


def sliced(s: Attention, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    y, width = s.qkv(x), x.shape[-1]
    return _heads(s, y[..., :width]), _heads(s, y[:, :, width : 2 * width]), _heads(s, y[..., 2 * width :])


def permuted(s: Attention, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    n, t, width = x.shape
    q, k, v = s.qkv(x).reshape(n, t, 3, s.heads, width // s.heads).permute(2, 0, 3, 1, 4).unbind(0)
    return q, k, v


def indexed(s: Attention, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    n, t, width = x.shape
    y = s.qkv(x).reshape(n, t, 3, s.heads, width // s.heads).permute(2, 0, 3, 1, 4)
    return y[0], y[1], y[2]


def inner(s: Attention, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    n, t, width = x.shape
    y = s.qkv(x).reshape(n, t, 3, s.heads, width // s.heads)
    return y[:, :, 0].transpose(1, 2), y[:, :, 1].transpose(1, 2), y[:, :, 2].transpose(1, 2)


ATTENTIONS: dict[str, Callable[..., Tensor]] = {
    "views and masked_fill": views,
    "scaled queries and where": scaled_queries,
    "the lowest number added": added_lowest,
    "scaled_dot_product_attention": one_call,
    "one head and bmm": one_head,
    "keys before queries": keys_first,
    "nn.MultiheadAttention": one_layer,
    **{f"one layer, {apart.__name__}": _fused(apart) for apart in (chunked, sliced, permuted, indexed, inner)},
}
UNMASKED = without_mask
POSITIONS = ("table", "parameter", "sinusoids")


class Attention(nn.Module):
    def __init__(self, width: int, heads: int, attend: Callable[..., Tensor]) -> None:
        super().__init__()
        self.heads, self.attend = heads, attend
        self.q, self.k, self.v = nn.Linear(width, width), nn.Linear(width, width), nn.Linear(width, width, bias=False)
        self.whole = nn.MultiheadAttention(width, heads, batch_first=True)
        self.qkv, self.o, self.drop = nn.Linear(width, 3 * width), nn.Linear(width, width), nn.Dropout(0.1)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        y: Tensor = self.o(self.attend(self, x, mask))
        return y


class Block(nn.Module):
    def __init__(self, width: int, heads: int, attend: Callable[..., Tensor], first: bool) -> None:
        super().__init__()
        self.attention = Attention(width, heads, attend)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width, eps=1e-6, elementwise_affine=not first)
        self.inner = nn.Sequential(nn.Linear(width, 20), nn.GELU(), nn.Dropout(0.1), nn.Linear(20, width))
        self.first = first

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        if self.first:  # the norms come first, as in GPT and in vision transformers
            x = x + self.attention(self.norm1(x), mask)
            return x + self.inner(self.norm2(x))
        x = self.norm1(x + self.attention(x, mask))
        y: Tensor = self.norm2(self.inner(x) + x)
        return y


class Bert(nn.Module):
    """Token numbers int64 (N, T) and a mask (N, T) to (N, T, width), (N, T, 3) or (N, 3)."""

    def __init__(
        self,
        attend: Callable[..., Tensor],
        positions: str = "table",
        first: bool = False,
        head: str = "",
        width: int = 12,
        heads: int = 3,
        layers: int = 2,
    ) -> None:
        super().__init__()
        self.words, self.positions, self.head, self.longest = nn.Embedding(30, width), positions, head, 24
        if positions == "table":
            self.place = nn.Embedding(self.longest, width)
        elif positions == "parameter":
            self.place = nn.Parameter(torch.randn(1, self.longest, width))
        else:
            self.register_buffer("waves", sinusoids(self.longest, width))
        self.blocks = nn.ModuleList(Block(width, heads, attend, first) for _ in range(layers))
        self.norm, self.classes = nn.LayerNorm(width), nn.Linear(width, 3)

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        length = ids.shape[1]
        if length > self.longest:
            raise ValueError(f"at most {self.longest} tokens, got {length}")
        x = self.words(ids) * math.sqrt(self.words.embedding_dim)
        if self.positions == "table":
            x = x + self.place(torch.arange(length, device=ids.device).unsqueeze(0))
        elif self.positions == "parameter":
            x = self.place[:, :length] + x
        else:
            x = x + self.waves[:length].unsqueeze(0) - 0.5
        for block in self.blocks:
            x = block(x, mask)
        x = self.norm(x)
        if not self.head:
            return x
        return self.classes({"mean": lambda: x.mean(1), "first": lambda: x[:, 0], "tokens": lambda: x}[self.head]())


def sinusoids(length: int, width: int) -> Tensor:
    angles = torch.arange(length)[:, None] / 10000 ** (torch.arange(0, width, 2) / width)
    waves = torch.zeros(length, width)
    waves[:, 0::2], waves[:, 1::2] = angles.sin(), angles.cos()
    return waves


class VisionTransformer(nn.Module):
    """Images (N, 3, 8, 8) to ten classes, by patches and a token put in front of them."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 12, 4, 4)
        self.token, self.place = nn.Parameter(torch.randn(1, 1, 12)), nn.Parameter(torch.randn(1, 5, 12))
        self.blocks = nn.ModuleList(Block(12, 3, UNMASKED, first=True) for _ in range(2))
        self.norm, self.head = nn.LayerNorm(12), nn.Linear(12, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], dim=1) + self.place
        for block in self.blocks:
            x = block(x, None)
        y: Tensor = self.head(self.norm(x)[:, 0])
        return y


def randomised(module: nn.Module, seed: int) -> nn.Module:
    """``module`` in inference mode with gains and offsets of its norms as after training, seeded."""
    generator = torch.Generator().manual_seed(seed)
    for part in module.modules():
        if isinstance(part, nn.LayerNorm) and part.elementwise_affine:
            part.weight.data = torch.randn(part.weight.shape, generator=generator)
            part.bias.data = torch.randn(part.bias.shape, generator=generator)
    return module.eval()
