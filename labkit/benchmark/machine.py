"""What the times depend on besides the code: the processor, its vector instructions, how busy it is, and versions."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path

__all__ = ["features", "load_average", "machine", "versions"]

_PACKAGES = ("labkit", "numpy", "numba", "llvmlite", "torch", "torchvision", "onnx", "onnxruntime")
_INTERESTING = ("avx2", "avxvnni", "avx512f", "avx512vl", "avx512bw", "avx512vnni", "dotprod", "i8mm")


def machine() -> dict[str, str]:
    """The processor and the system in words; no name of this computer."""
    from llvmlite import binding

    return {
        "processor": _processor(),
        "architecture": f"{platform.machine()} ({binding.get_host_cpu_name()})",
        "instructions": ", ".join(sorted(features())) or "unknown",
        "cores": str(os.cpu_count()),
        "system": platform.system(),
    }


def features() -> frozenset[str]:
    """The vector instructions of this processor that matter to integer kernels, by LLVM's names."""
    from llvmlite import binding

    found = binding.get_host_cpu_features()
    return frozenset(name for name in _INTERESTING if found.get(name))


def load_average() -> float | None:
    """How many processes wanted a core in the last minute, or None where the system does not say."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that take part, as far as they are installed."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    facts: dict[str, str] = {}
    for name, _, value in (line.partition(":") for line in lines):
        facts.setdefault(name.strip(), value.strip())
    numbers = ", ".join(f"{key} {facts[key]}" for key in ("cpu family", "model") if key in facts)
    return f"{facts.get('model name', platform.machine())} ({numbers})" if numbers else platform.machine()
