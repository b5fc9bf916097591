"""ONNX files: read with bounds, imported as integer networks, evaluated node by node.

Only what is used is imported: reading a file needs the package ``onnx``, and nothing here needs torch.
"""

from __future__ import annotations

from labkit.frontends.onnx.importing import read_onnx

__all__ = ["read_onnx"]
