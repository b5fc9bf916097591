"""labkit: a Numba-accelerated lab kit for learning neural-network quantization.

    import labkit

    module = labkit.models.load("lenet", data="cifar10")  # a trained torch.nn.Module
    data = labkit.data.load("auto")  # CIFAR-10 where it is found, else mnist5k
    net = labkit.quantize(module, data.calibration(512))  # -> IntegerNet
    logits = net.run(data.test(100)[0])  # integers between its borders
    print(labkit.verify(net, module, data.test(100)[0]))  # bit for bit against PyTorch

Names are imported on first use, so that ``import labkit`` costs next to nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from labkit import data, models
    from labkit.errors import LabkitError
    from labkit.graph.ir import FloatGraph, IntGraph
    from labkit.kernels.kernel_set import KernelSet
    from labkit.net import IntegerNet, load
    from labkit.parity.compare import verify
    from labkit.parity.report import ParityReport
    from labkit.quantization.calibration import Calibration
    from labkit.quantization.pipeline import quantize
    from labkit.quantization.plan import BitPlan

__version__ = "0.1.0"

__all__ = [
    "BitPlan",
    "Calibration",
    "FloatGraph",
    "IntGraph",
    "IntegerNet",
    "KernelSet",
    "LabkitError",
    "ParityReport",
    "data",
    "load",
    "models",
    "quantize",
    "verify",
]

_HOMES = {
    "BitPlan": "labkit.quantization.plan",
    "Calibration": "labkit.quantization.calibration",
    "FloatGraph": "labkit.graph.ir",
    "IntGraph": "labkit.graph.ir",
    "IntegerNet": "labkit.net",
    "KernelSet": "labkit.kernels.kernel_set",
    "LabkitError": "labkit.errors",
    "ParityReport": "labkit.parity.report",
    "load": "labkit.net",
    "quantize": "labkit.quantization.pipeline",
    "verify": "labkit.parity.compare",
}


def __getattr__(name: str) -> Any:
    if name in ("data", "models"):
        return importlib.import_module(f"labkit.{name}")
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'labkit' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
