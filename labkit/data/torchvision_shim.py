"""Import torchvision where its wheel and torch's do not fit together.

torchvision's usual wheel is compiled against a torch with CUDA. Beside a CPU-only torch its compiled library does
not load, so the operators it would declare are unknown, and ``import torchvision`` stops at
"operator torchvision::nms does not exist": the module registers shape functions for them while it is imported. labkit
uses only what is pure Python in torchvision (data sets, models). Declaring the schemas of those operators, without any
implementation, is enough for that; calling one still fails, as it should.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType

__all__ = ["import_torchvision"]

# The operators that torchvision registers shape functions for even where its library did not load. The others (RoI
# pooling, deformable convolution) it leaves alone then.
_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)

# torch forgets the schemas when the Library object that declared them is collected, so it must outlive the import.
_declared: list[object] = []


def import_torchvision() -> ModuleType:
    """Import and return ``torchvision``, with its operators declared first where it cannot be imported without.

    Raises
    ------
    ImportError
        torchvision is not installed, or cannot be imported for another reason.
    """
    try:
        return importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
    _forget_torchvision()
    _declare_operators()
    return importlib.import_module("torchvision")


def _forget_torchvision() -> None:
    """Drop the half-imported modules, which Python would hand out again."""
    for name in [name for name in sys.modules if name == "torchvision" or name.startswith("torchvision.")]:
        del sys.modules[name]


def _declare_operators() -> None:
    if _declared:
        return
    import torch

    # DEF where nothing opened the namespace yet would do as well; FRAGMENT also works where another did.
    library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
    _declared.append(library)
    for schema in _SCHEMAS:
        library.define(schema)  # type: ignore[no-untyped-call]
