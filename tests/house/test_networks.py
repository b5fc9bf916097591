"""docs/networks.md is made from the committed results, which hold what the networks' modules and their paper say."""

from __future__ import annotations

import importlib.util
import io
import sys
from functools import cache

import pytest
import torch
from house.source import ROOT
from torch import nn
from unit.reporting.cards.counting import macs_by_hooks, parameters_after_folding

from labkit.data.torchvision_shim import import_torchvision
from labkit.models import build
from labkit.reporting.cards.plans import PLANS
from labkit.reporting.cards.results import NetworkCard

_SPEC = importlib.util.spec_from_file_location("make_networks", ROOT / "tools" / "make_networks.py")
assert _SPEC is not None
assert _SPEC.loader is not None
TOOL = importlib.util.module_from_spec(_SPEC)
sys.modules["make_networks"] = TOOL  # dataclasses look their module up
_SPEC.loader.exec_module(TOOL)

CARDS: dict[str, NetworkCard] = {card.name: card for card in TOOL.results()}
WITHOUT_DATA = torch.device("meta")  # shapes only: no weights, no sums


@cache
def module_of(name: str) -> nn.Module:
    """The network of the card ``name``, on a device without numbers."""
    with WITHOUT_DATA:
        if name in TOOL.TRAINED:
            return build(TOOL.TRAINED[name][0]).eval()
        import_torchvision()
        from torchvision import models

        options = {"init_weights": False, "aux_logits": False} if name == "inception_v3" else {}
        made: nn.Module = getattr(models, name)(weights=None, **options)
        return made.eval()


def test_page_is_made_from_the_results() -> None:
    assert TOOL.PAGE.read_text("utf-8") == TOOL.page(list(CARDS.values()))
    assert TOOL.page(TOOL.results()) == TOOL.page(list(CARDS.values()))


def test_page_begins_with_the_table_and_has_every_card() -> None:
    text = TOOL.PAGE.read_text("utf-8")
    for name in CARDS:
        assert text.index(f"| [{name}](#{name}) |") < text.index("\n## ") < text.index(f"\n### {name}\n")


@pytest.mark.parametrize("name", CARDS)
def test_results_are_whole(name: str) -> None:
    card = CARDS[name]
    assert card.command == f"python tools/make_networks.py --only {name}"
    assert [(plan.name, plan.rule) for plan in card.plans] == [(plan.name, plan.words) for plan in PLANS]
    assert {plan.certificate.differing for plan in card.plans} == {0}
    assert min(plan.certificate.images for plan in card.plans) >= 16
    figure = (TOOL.FOLDER / f"{name}.svg").read_text("utf-8")
    assert all(f"{plan.name}, median " in figure for plan in PLANS)
    if name in TOOL.TRAINED:
        assert card.accuracy_images == {"cifar10": 10_000, "mnist5k": 1_000}[TOOL.TRAINED[name][1]]
        assert abs(card.plans[0].change or 0) < 1.0  # eight bits keep the accuracy
    else:
        assert "random" in card.weights
        assert "random" in card.no_accuracy


@pytest.mark.parametrize("name", CARDS)
def test_counts_are_those_of_the_module(name: str) -> None:
    card, module = CARDS[name], module_of(name)
    shape = card.layers[0].output
    assert {layer.name: layer.macs for layer in card.layers if layer.macs} == macs_by_hooks(module, shape)
    assert card.parameters == parameters_after_folding(module, shape)
    assert card.module_parameters == sum(parameter.numel() for parameter in module.parameters())
    assert card.plans[0].weight_bytes == sum(
        layer.weight.numel() for layer in module.modules() if isinstance(layer, nn.Conv2d | nn.Linear)
    )
    assert card.plans[0].bops == 64 * card.macs


def test_every_shipped_network_that_is_trained_has_a_card() -> None:
    assert {"lenet-cifar10", "lenet-mnist5k", "lenet-bias-cifar10", "lenet-bias-mnist5k"} <= set(CARDS)


resnet50 = pytest.mark.skipif("resnet50" not in CARDS, reason="resnet50 has not been measured yet")


@resnet50
def test_resnet50_is_the_known_one() -> None:
    card = CARDS["resnet50"]
    assert card.macs == 4_089_184_256
    assert card.module_parameters == 25_557_032


@resnet50
def test_figures_of_the_slides() -> None:
    """97.8 MB and 3951 of the slides are a checkpoint's file and the paper's strides; W8A8 is 247."""
    import_torchvision()
    from torchvision import models

    file = io.BytesIO()
    torch.save(models.resnet50(weights=None).state_dict(), file)
    assert f"{file.tell() / 2**20:.1f}" == "97.8"
    with WITHOUT_DATA:
        paper = models.resnet50(weights=None)
    for stage in (paper.layer2, paper.layer3, paper.layer4):
        stage[0].conv1.stride, stage[0].conv2.stride = (2, 2), (1, 1)
    macs = sum(macs_by_hooks(paper, (3, 224, 224)).values())
    assert TOOL._early_stride_macs(CARDS["resnet50"]) == macs
    assert (round(macs * 32 * 32 / 1e9), round(macs * 8 * 8 / 1e9)) == (3951, 247)
    assert "| resnet50 | float32 | 97.8 | 97.4 | 3,951 | 4,187 | 3,951 |" in TOOL.PAGE.read_text("utf-8")
    assert "| resnet50 | W8A8 | 24.5 | 24.4 | 247 | 262 | 247 |" in TOOL.PAGE.read_text("utf-8")


@pytest.mark.parametrize(("name", "points"), [("resnet20-cifar10", 0.2), ("mobilenetv2-small-cifar10", 0.5)])
def test_eight_bits_cost_no_more_than_promised(name: str, points: float) -> None:
    card = CARDS[name]
    assert card.accuracy_images == 10_000
    plan = next(plan for plan in card.plans if plan.name == "W8A8")
    assert plan.change is not None
    assert plan.change >= -points


def test_every_certificate_is_whole() -> None:
    for name, card in CARDS.items():
        for plan in card.plans:
            assert plan.certificate.images >= (1000 if name in TOOL.TRAINED else 16), (name, plan.name)
            assert plan.certificate.differing == 0, (name, plan.name)
