"""The EE219 lab's table on all of CIFAR-10: run the demo on the shipped nets and write what it found.

    python tools/make_lenet_study.py           # run (needs CIFAR-10, about a minute) and write docs/studies/lenet-cifar10
    python tools/make_lenet_study.py --pages   # only write the pages again, from the committed reports

The pages are the study's README.md and the table in the project's README.md.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
STUDY = ROOT / "docs" / "studies" / "lenet-cifar10"
NETS = ("lenet", "lenet-short")
COMMAND = "labkit demo --data cifar10 --net {net}"
MARKS = ("<!-- table: tools/make_lenet_study.py -->", "<!-- end of table -->")

# The EE219 report (ShanghaiTech, 2022), by this study's rows: its float net, and each step of quantization.
REPORTED = {
    "Float network": 60.88,
    "Weights in 8 bits": 60.9,
    "Weights and activations in 8 bits": 60.92,
    "Float network with a bias in fc3": 60.88,
    "8 bits, bias left unscaled": 57.07,
    "8 bits, bias at S_w S_x": 60.9,
}


def run() -> None:
    """Run the demo for each net and keep its report, without histograms and sample images."""
    from rich.console import Console

    from labkit.cli.progress import progress_bars
    from labkit.reporting.demo import run_demo
    from labkit.reporting.json_file import to_json

    STUDY.mkdir(parents=True, exist_ok=True)
    for net in NETS:
        with progress_bars(Console()) as tell:
            result, _ = run_demo("cifar10", net, command=COMMAND.format(net=net), progress=tell)
        report = to_json(result)
        report.pop("samples")
        for layer in report["layers"]:
            layer.pop("histogram")
        (STUDY / f"{net}.json").write_text(json.dumps(report, indent=1) + "\n")


def reports() -> dict[str, dict[str, Any]]:
    """The committed reports by net."""
    return {net: json.loads((STUDY / f"{net}.json").read_text()) for net in NETS}


def engine_table(report: dict[str, Any]) -> str:
    """The rows of the integer engine beside the float network, in Markdown."""
    lines = [
        "| network | weights / activations | accuracy | change | size | bit operations |",
        "|---|---|---|---|---|---|",
    ]
    for row in report["rows"]:
        if row["section"] in ("float", "integer engine"):
            change = "" if row["change"] is None else f"{row['change']:+.2f}"
            lines.append(
                f"| {row['label']} | {row['weight_bits']} / {row['activation_bits']} bits | {row['accuracy']:.2f} % "
                f"| {change} | {row['size_bytes'] / 1000:,.0f} kB | {row['bops'] / 1e6:,.0f} M |"
            )
    return "\n".join(lines)


def lab_table(found: dict[str, dict[str, Any]]) -> str:
    """The lab's six steps beside the figures of the EE219 report, in Markdown."""
    lines = ["| step | EE219 report | short training | full training |", "|---|---|---|---|"]
    rows = {net: {row["label"]: row["accuracy"] for row in report["rows"]} for net, report in found.items()}
    for label, reported in REPORTED.items():
        ours = " | ".join(f"{rows[net][label]:.2f} %" for net in ("lenet-short", "lenet"))
        lines.append(f"| {label} | {reported} % | {ours} |")
    return "\n".join(lines)


def study_page(found: dict[str, dict[str, Any]]) -> str:
    """The study's README.md."""
    full = found["lenet"]
    certificates = "\n".join(
        f"| {net} | {name} | {c['images']:,} | {len(c['comparisons'])} | {c['elements']:,} | {c['differing']} |"
        for net, report in found.items()
        for name, c in report["certificates"].items()
    )
    versions = ", ".join(f"{name} {value}" for name, value in full["versions"].items())
    return f"""# LeNet on CIFAR-10: the EE219 lab's table, and the integer engine

Made by `python tools/make_lenet_study.py`, which runs `{COMMAND.format(net="lenet")}` and the same for `lenet-short`
(their reports are the JSON files beside this page). {full["rows"][0]["images"]:,} test images, {full["calibration_images"]}
calibration images (seed 0), min-max ranges. How the networks were trained stands in
[labkit/models/checkpoints](../../../labkit/models/checkpoints/README.md), with commands and seeds.

Versions: {versions}.

## The lab's steps

Simulated as in the lab: 8 bits, one symmetric scale a tensor. The report's own network had no shipped weights; ours were trained
briefly on purpose, to stand near its 60.88 %.

{lab_table(found)}

What reproduces: quantizing weights and activations to 8 bits changes next to nothing, a bias that is left unscaled
costs accuracy, and the bias at `S_w S_x` (eq. 8 of [docs/arithmetic.md](../../arithmetic.md)) brings it back. The size
of the drop depends on how much the trained network leans on that one bias, and so differs from network to network.

## The integer engine

{engine_table(full)}

After the short training:

{engine_table(found["lenet-short"])}

Per-channel weights, affine activations; the network's input and output keep 8 bits.

## Certificates

Every parameter and every node's tensor, compared with an integer emulation in PyTorch that is derived from the float module:

| network | net | images | comparisons | elements | differing |
|---|---|---|---|---|---|
{certificates}
"""


def write_pages() -> None:
    """Write the study's page, and the table in the project's README."""
    found = reports()
    (STUDY / "README.md").write_text(study_page(found))
    readme = ROOT / "README.md"
    readme.write_text(with_table(readme.read_text(), found["lenet"]))


def with_table(readme: str, report: dict[str, Any]) -> str:
    """``readme`` with a fresh table between its marks."""
    before, rest = readme.split(MARKS[0])
    _, after = rest.split(MARKS[1])
    elements = sum(c["elements"] for c in report["certificates"].values())
    differing = sum(c["differing"] for c in report["certificates"].values())
    table = (
        f"{engine_table(report)}\n\n"
        "Every parameter and every layer's output of all three networks, over all 10,000 images (and of W8A8 in the readable\n"
        "kernels, over 100), is the integer that an independent computation in PyTorch derives from the float network:\n"
        f"{differing} of {elements:,} elements differ.\n"
    )
    return f"{before}{MARKS[0]}\n{table}{MARKS[1]}{after}"


if __name__ == "__main__":
    if "--pages" not in sys.argv[1:]:
        run()
    write_pages()
