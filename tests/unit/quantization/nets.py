"""Small torch modules, images and sentences for the tests of quantization."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from labkit.models.sentence_encoder import EncoderSizes, SentenceEncoder


class Branches(nn.Module):
    """Every supported kind of operation in a few channels: 3x8x8 in, 5 out."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.pool = nn.MaxPool2d(2)
        self.drop = nn.Dropout(0.5)
        self.mean = nn.AdaptiveAvgPool2d(2)
        self.fc = nn.Linear(64, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        y = nn.functional.relu6(self.depthwise(x) + x)
        z = self.pool(torch.cat([x, y], 1))
        return self.fc(self.drop(self.mean(z)).flatten(1))


def branches(seed: int = 0) -> Branches:
    torch.manual_seed(seed)
    module = Branches()
    with torch.no_grad():
        module.norm.running_mean.uniform_(-1, 1)
        module.norm.running_var.uniform_(0.5, 2)
    return module.eval()


def small(seed: int = 0) -> nn.Sequential:
    """conv, relu, flatten, fc: 3x8x8 in, 3 out."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)).eval()


def images(count: int = 32, seed: int = 0, size: int = 8) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def small_encoder(seed: int = 0) -> SentenceEncoder:
    """Two layers of three heads, 24 features, 50 tokens; uneven gains, so that columns differ as in a trained one."""
    torch.manual_seed(seed)
    encoder = SentenceEncoder(EncoderSizes(vocabulary=50, positions=16, width=24, heads=3, layers=2, inner=40))
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            if "LayerNorm" in name:
                parameter += 0.3 * torch.randn_like(parameter)
            elif "embeddings" not in name:
                parameter *= 3
    return encoder.eval()


def token_rows(*lengths: int, count: int = 6, seed: int = 0) -> list[dict[str, np.ndarray]]:
    """``count`` sentences of each length as calibration takes them."""
    rng = np.random.default_rng(seed)
    return [{"ids": rng.integers(0, 50, (count, n)), "mask": np.ones((count, n), np.uint8)} for n in lengths]
