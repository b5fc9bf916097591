"""TFLite files: the flatbuffer read with every offset checked, and imported as an integer network.

Only NumPy is needed.
"""

from __future__ import annotations

from labkit.frontends.tflite.importing import SUPPORTED, read_tflite, read_tflite_bytes

__all__ = ["SUPPORTED", "read_tflite", "read_tflite_bytes"]
