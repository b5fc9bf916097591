"""The nets with batch norm have the shapes that their papers and docstrings give."""

from __future__ import annotations

import torch

from labkit.models.mobilenet import InvertedResidual, MobileNetV2Small
from labkit.models.resnet import BasicBlock, ResNet20


def test_resnet20_is_the_one_of_the_paper() -> None:
    """Table 6 of He et al. 2015 gives 0.27 million parameters; the 1x1 shortcuts add 2,752."""
    net = ResNet20()
    layers = [part for part in net.modules() if isinstance(part, torch.nn.Conv2d | torch.nn.Linear)]
    assert len([part for part in layers if getattr(part, "kernel_size", (0, 0)) != (1, 1)]) == 20
    assert sum(parameter.numel() for parameter in net.parameters()) == 272_474
    assert sum(isinstance(part, BasicBlock) for part in net.modules()) == 9


def test_resnet20_is_a_function_of_each_image() -> None:
    net = ResNet20().eval()
    x = torch.rand(3, 3, 32, 32)
    with torch.inference_mode():
        assert net(x).shape == (3, 10)
        assert torch.allclose(net(x)[1:2], net(x[1:2]), atol=1e-5)


def test_mobilenet_is_as_its_docstring_says() -> None:
    net = MobileNetV2Small().eval()
    assert sum(parameter.numel() for parameter in net.parameters()) == 405_946
    blocks = [part for part in net.modules() if isinstance(part, InvertedResidual)]
    assert len(blocks) == 11
    assert sum(block.has_shortcut for block in blocks) == 7
    depthwise = [part for part in net.modules() if isinstance(part, torch.nn.Conv2d) and part.groups > 1]
    assert len(depthwise) == 11
    assert all(part.groups == part.in_channels == part.out_channels for part in depthwise)
    with torch.inference_mode():
        assert net(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
        assert net.features(torch.zeros(1, 3, 32, 32)).shape == (1, 384, 4, 4)


def test_linear_bottleneck_has_no_activation_after_its_last_convolution() -> None:
    block = InvertedResidual(8, 8, 1, 4).eval()
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.fill_(1.0)
        block.layers[3].weight.fill_(-1.0)
        block.layers[3].bias.fill_(0.0)
        result = block.layers(torch.ones(1, 8, 4, 4))
    assert float(result.max()) < 0
