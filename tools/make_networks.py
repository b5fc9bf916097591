"""Make docs/networks.md: a card for each network, from the results in docs/networks.

    python tools/make_networks.py                     measure the networks that have no results yet, then write the page
    python tools/make_networks.py --only resnet18     measure this one (again); may be given several times
    python tools/make_networks.py --pages             write the page and the figures again, from the results alone

Each network's results are one JSON file, written as soon as it is measured, so that a run that was stopped goes on where it
was. CIFAR-10 is looked for under --data-dir, in LABKIT_DATA and in labkit's cache; it is not downloaded. A network of your
own gets the same card from `labkit card`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from rich.console import Console
from torch import nn

from labkit import data as data_sets
from labkit import models
from labkit.cli.progress import progress_bars
from labkit.cli.sources import test_batches
from labkit.data.dataset import DataSet
from labkit.data.torchvision_shim import import_torchvision
from labkit.errors import LabkitError
from labkit.files import write_atomically
from labkit.models.settled import settled
from labkit.reporting.cards.measure import CardData, measure
from labkit.reporting.cards.plot import sqnr_figure
from labkit.reporting.cards.results import NetworkCard
from labkit.reporting.cards.text import HOW_TO_READ, card_text, summary_table, table

__all__ = ["BROUGHT", "NETWORKS", "TRAINED", "main", "page", "results"]

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "networks.md"
FOLDER = ROOT / "docs" / "networks"
SEED = 0

# Two of the shipped nets exist only to stand where the EE219 lab's float net stood; the others get a card for each data set.
TRAINED = {
    f"{net}-{data}": (net, data)
    for net in models.names()
    if not net.endswith("-short")
    for data in models.data_for(net)
}
BROUGHT = {"resnet18": 224, "resnet50": 224, "mobilenet_v2": 224, "inception_v3": 299, "squeezenet1_1": 224}  # pixels
NETWORKS = (*TRAINED, *BROUGHT)

_CALIBRATION, _IMAGES, _CERTIFIED = 1024, 1000, 1000  # images for the nets that were trained here
_BROUGHT_CALIBRATION, _BROUGHT_SETTLED, _BROUGHT_IMAGES = 32, 16, 16

_NO_ACCURACY = "the weights are random, because the trained ones (ImageNet) cannot be had here"

_INTRODUCTION = """\
What labkit makes of each network: its shapes, what bit plans cost, and what they keep. The plans follow rules and were not
searched. Ranges are min-max; weights have a scale for each output channel, activations a scale and a zero point."""

_RANDOM = """\
Random weights change nothing in shapes, MACs, BOPS and sizes, and a certificate says the same of the arithmetic. The SQNR is
that of random layers, which amplify the errors that reach them: it says nothing of how well the trained networks quantize."""

_AGAIN = f"""\
`python tools/make_networks.py` measures the networks that have no results in `docs/networks` yet, one after the other, and writes
this page; `--only NET` measures one again, `--pages` only writes. Seed {SEED} draws the calibration images ({_CALIBRATION} for a
network that was trained here, {_BROUGHT_CALIBRATION} for the others) and random weights.

A network of your own gets the same card, and with labelled pictures an accuracy too:

```bash
labkit card torchvision.models:resnet18 --weights resnet18.pth --data pictures --labelled --out my-cards
```

`pictures` has one folder for each class."""

_SLIDES_INTRODUCTION = """\
The slides on HAWQ-V3 (Yao et al. 2020) give sizes in units of 2^20 bytes and BOPS in units of 10^9. Their BOPS are the product
that labkit counts too: MACs x weight bits x activation bits."""

_SLIDES_NOTES = """\
- **ResNet-50, BOPS.** In the paper's network (He et al. 2015) the first 1x1 convolution of a stage has the stride. In
  torchvision's the 3x3 convolution after it has, so that the 1x1 works at four times as many positions: 4.09 GMACs,
  not 3.86. The last column counts the paper's network.
- **ResNet-50, size.** 97.8 is the file of a float checkpoint, which also holds running means and variances and all
  names; 24.5 is a quarter of it. labkit counts the weights and biases that are left after folding.
- **ResNet-50, mixed bits.** The slides also have 18.7 and 154, for bits that the authors' search chose. With the bits
  that their repository calls `resnet50_bops_0.5` (github.com/Zhen-Dong/HAWQ, bit_config.py), 8 bits in the first and
  the last layer, and activations of as many bits as the weights they meet, the same formulas give 18.4 and 157; with
  `resnet50_modelsize_0.5` 18.7 and 201. The plan called mixed on this page is another one.
- **MobileNetV2.** 322 are 314 million MACs; the convolutions and the linear layer have 301 million. What else was
  counted is not said. 13.2 are the weights alone, without batch norms."""

# Size and BOPS that the slides on HAWQ-V3 give (Yao et al. 2020, tables 1 and 2), by precision.
_SLIDES: dict[str, dict[str, tuple[float, int]]] = {
    "resnet50": {"float32": (97.8, 3951), "W8A8": (24.5, 247)},
    "inception_v3": {"float32": (90.9, 5850), "W8A8": (22.7, 366)},
    "mobilenet_v2": {"float32": (13.2, 322), "W8A8": (3.3, 20)},
}


@dataclass(frozen=True, eq=False)
class _Subject:
    """A network to measure: the module, its images, and where its weights come from, in words."""

    module: nn.Module
    data: CardData
    weights: str


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what is asked for, then write the page; 0 when every network that was asked for has its results."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--only", action="append", choices=NETWORKS, metavar="NET", help=", ".join(NETWORKS))
    parser.add_argument("--pages", action="store_true", help="measure nothing")
    parser.add_argument("--data-dir", type=Path, default=None, help="where CIFAR-10 is")
    options = parser.parse_args(arguments)
    console = Console()
    FOLDER.mkdir(parents=True, exist_ok=True)
    wanted = options.only or [name for name in NETWORKS if not _file(name).exists()]
    failed = False
    for name in [] if options.pages else wanted:
        try:
            with progress_bars(console) as tell:
                found = _measured(name, options.data_dir, tell)
        except LabkitError as error:  # weights that are not there yet, for one: the others can be measured all the same
            console.print(f"{name}: {error}", style="red", highlight=False, soft_wrap=True, markup=False)
            failed = True
            continue
        write_atomically(_file(name), json.dumps(found.to_json(), indent=1, allow_nan=False) + "\n")
    found_cards = results()
    for card in found_cards:
        write_atomically(FOLDER / f"{card.name}.svg", sqnr_figure(card))
    write_atomically(PAGE, page(found_cards))
    return int(failed)


def results() -> list[NetworkCard]:
    """The cards of the networks that have results, in the order of `NETWORKS`."""
    return [
        NetworkCard.from_json(json.loads(_file(name).read_text("utf-8"))) for name in NETWORKS if _file(name).exists()
    ]


def page(cards: Sequence[NetworkCard]) -> str:
    """The whole of docs/networks.md for ``cards``."""
    parts = [
        "# Networks",
        "<!-- Made by tools/make_networks.py from the results in docs/networks. Do not edit: run the tool. -->",
        _INTRODUCTION,
        summary_table(cards),
        _notes(cards),
        "## How to read this",
        HOW_TO_READ,
        *_slides({card.name: card for card in cards}),
        "## Make it again",
        _AGAIN,
        "## The cards",
        *(card_text(card, f"networks/{card.name}.svg", rules=False).rstrip() for card in cards),
    ]
    return "\n\n".join(filter(None, parts)) + "\n"


def _file(name: str) -> Path:
    return FOLDER / f"{name}.json"


def _measured(name: str, data_dir: Path | None, tell: Callable[[str, int, int], None]) -> NetworkCard:
    subject = _trained(*TRAINED[name], data_dir) if name in TRAINED else _brought(name, BROUGHT[name], data_dir)
    return measure(
        name,
        subject.module,
        subject.data,
        weights=subject.weights,
        command=f"python tools/make_networks.py --only {name}",
        progress=lambda step, done, total: tell(f"{name}: {step}", done, total),
    )


def _trained(net: str, data: str, data_dir: Path | None) -> _Subject:
    module = models.load(net, data)
    recipe = models.recipe(net, data)["recipe"]
    loaded = _data(data, data_dir)
    count = len(loaded.test_images)
    images = CardData(
        source=f"the {count:,} test images of {data}",
        calibration=loaded.calibration(_CALIBRATION, SEED),
        calibration_images=_CALIBRATION,
        images=loaded.test(_IMAGES)[0],
        certified_images=_CERTIFIED,
        labelled=test_batches(loaded, count),
        labelled_images=count,
    )
    words = (
        f"trained by labkit on {data} in {recipe['epochs']} epochs (seed {recipe['seed']}; labkit/models/checkpoints)"
    )
    return _Subject(module, images, words)


def _brought(name: str, pixels: int, data_dir: Path | None) -> _Subject:
    loaded = _data("cifar10", data_dir)
    calibration = _enlarged(loaded.calibration(_BROUGHT_CALIBRATION, SEED), pixels)
    module = settled(partial(models.bring, f"torchvision.models:{name}"), calibration[:_BROUGHT_SETTLED], SEED)
    images = CardData(
        source=f"{_BROUGHT_IMAGES} test images of cifar10, enlarged to {pixels} pixels",
        calibration=calibration,
        calibration_images=_BROUGHT_CALIBRATION,
        images=_enlarged(loaded.test(_BROUGHT_IMAGES)[0], pixels),
        certified_images=_BROUGHT_IMAGES,
        no_accuracy=_NO_ACCURACY,
    )
    words = f"random (seed {SEED}), torchvision.models.{name} of torchvision {import_torchvision().__version__}"
    if any(isinstance(part, nn.BatchNorm2d) for part in module.modules()):
        words += f", batch norms settled on {_BROUGHT_SETTLED} images"
    return _Subject(module, images, words)


def _data(name: str, data_dir: Path | None) -> DataSet:
    return data_sets.load(name, data_dir=data_dir, download=False)


def _enlarged(images: NDArray[np.float32], pixels: int) -> NDArray[np.float32]:
    larger = F.interpolate(torch.from_numpy(images), size=(pixels, pixels), mode="bilinear", align_corners=False)
    return larger.numpy()


def _notes(cards: Sequence[NetworkCard]) -> str:
    """What the table leaves open: which networks have no accuracy, and which plans there are."""
    without = [card.name for card in cards if card.accuracy is None]
    rules = {plan.name: plan.rule for card in cards for plan in card.plans}
    lines = [f"- **{name}**: {rule}." for name, rule in rules.items()]
    if without:
        lines.append(f"- No accuracy for {', '.join(without)}: {_NO_ACCURACY}. {_RANDOM}")
    return "\n".join(lines)


def _slides(cards: dict[str, NetworkCard]) -> list[str]:
    """Sizes and BOPS beside those of the slides on HAWQ-V3, and why they differ."""
    rows = []
    for name, printed in _SLIDES.items():
        if name not in cards:
            continue
        card = cards[name]
        plans = {plan.name: plan for plan in card.plans}
        for precision, (size, bops) in printed.items():
            plan = plans.get(precision)
            our_size, our_bops = (card.float_bytes, card.float_bops) if plan is None else (plan.size_bytes, plan.bops)
            row = [name, precision, f"{size}", f"{our_size / 2**20:.1f}", f"{bops:,}", f"{our_bops / 1e9:,.0f}"]
            moved = our_bops * _early_stride_macs(card) / card.macs / 1e9
            rows.append([*row, f"{moved:,.0f}" if name == "resnet50" else "-"])
    if not rows:
        return []
    heads = ("network", "bits", "size: slides", "here", "BOPS: slides", "here", "here, stride in the 1x1")
    return ["## Beside the slides", _SLIDES_INTRODUCTION, table(heads, rows, left=2), _SLIDES_NOTES]


def _early_stride_macs(card: NetworkCard) -> int:
    """MACs of the ResNet-50 of ``card`` if its stages had their stride in the first 1x1 convolution, as in the paper."""
    saved = {f"layer{stage}.0.conv1" for stage in (2, 3, 4)}  # a quarter of the positions would be left
    return sum(layer.macs // 4 if layer.name in saved else layer.macs for layer in card.layers)


if __name__ == "__main__":
    sys.exit(main())
