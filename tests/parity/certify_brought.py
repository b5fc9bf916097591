"""Quantize, prepare and verify one network in a process of its own, to see what memory it takes.

    python tests/parity/certify_brought.py resnet50 W4A8 16

The numbers are the images to verify and (left out: as many) those to calibrate with. Prints one line of JSON.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

if __package__ in (None, ""):
    sys.path[:0] = [str(Path(__file__).resolve().parents[1])]

from parity.brought import NETS, PLANS, images, make

import labkit

BATCH = 8


def peak_bytes() -> int:
    """The most memory that this process has taken; on Linux without what its parent had when it was started."""
    status = Path("/proc/self/status")
    if status.exists():
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    import resource  # which Windows does not have

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def batches(number: int, side: int, seed: int) -> Iterator[NDArray[np.float32]]:
    """``number`` images in batches that are made when they are asked for."""
    for start in range(0, number, BATCH):
        yield images(min(BATCH, number - start), side, seed + start)


def certify(name: str, plan: str, number: int, calibration: int) -> dict[str, Any]:
    """The sizes of the certificate, with seconds and peak memory after each step."""
    found: dict[str, Any] = {"net": name, "plan": plan, "side": NETS[name].side, "calibration images": calibration}
    start = time.perf_counter()

    def note(step: str) -> None:
        nonlocal start
        found[f"{step} seconds"] = round(time.perf_counter() - start, 1)
        found[f"{step} peak"] = peak_bytes()
        start = time.perf_counter()

    side = NETS[name].side
    module = make(name, side)
    note("build")
    net = labkit.quantize(module, batches(calibration, side, seed=1000), **PLANS[plan](module, side))
    note("quantize")
    net.prepared()
    note("prepare")
    report = labkit.verify(net, module, batches(number, side, seed=9000))
    note("verify")
    found |= {"images": report.images, "elements": report.elements, "differing": report.differing}
    return found | {"first": report.first and str(report.first)}


if __name__ == "__main__":
    name, plan, number, *rest = sys.argv[1:]
    print(json.dumps(certify(name, plan, int(number), int((rest or [number])[0]))))
