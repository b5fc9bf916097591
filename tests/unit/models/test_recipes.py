from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from labkit import models
from labkit.cli.app import app
from labkit.errors import InputError, ModelError
from labkit.models import TrainingRecipe

ROOT = Path(__file__).parents[3]


def test_importing_models_does_not_import_torch() -> None:
    code = "import sys, labkit.models as m; m.recipe(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_names_and_their_data() -> None:
    assert models.names() == (
        *("lenet", "lenet-bias", "lenet-short", "lenet-bias-short"),
        *("resnet20", "mobilenetv2-small"),
    )
    assert models.data_for("lenet-bias") == ("cifar10", "mnist5k")
    assert models.data_for("lenet-short") == ("cifar10",)


def test_command_spells_out_every_number() -> None:
    odd = TrainingRecipe(epochs=7, schedule="one-cycle", final_learning_rate=0.0, weight_decay=0.25, augment=True)
    for recipe in (odd, TrainingRecipe(precision="bfloat16", channels_last=True, label_smoothing=0.1)):
        options = dict(re.findall(r"--([a-z-]+)(?: ([\w.-]+))?(?= --|$)", recipe.command))
        assert set(recipe.command.split()) >= {"labkit", "train", "lenet"}
        for field in fields(recipe):
            value, name = getattr(recipe, field.name), field.name.replace("_", "-")
            if isinstance(value, bool):
                assert options[name if value else f"no-{name}"] == ""
            elif name != "network":
                assert options[name] == str(value)


@pytest.mark.parametrize("name", models.names())
def test_command_gives_its_recipe_back(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made = []

    def instead(recipe: TrainingRecipe, *_: object, **__: object) -> None:
        made.append(recipe)

    monkeypatch.setattr("labkit.models.training.train", instead)
    monkeypatch.setattr("labkit.data.load", lambda *_, **__: None)
    for data in models.data_for(name):
        shipped = models.default_recipe(name, data)
        for recipe in (shipped, replace(shipped, augment=not shipped.augment, channels_last=False, epochs=3, seed=4)):
            words = [*recipe.command.split()[1:], "--out", str(tmp_path)]
            assert CliRunner().invoke(app, words).exit_code == 0
            assert made.pop() == recipe


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"threads": 0}, "threads must be at least 1"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"schedule": "staircase"}, "no schedule 'staircase'. Choose one of: step, cosine, one-cycle, constant"),
        ({"learning_rate": 0.0}, "Learning rates must be positive"),
        ({"learning_rate": float("nan")}, "Learning rates must be positive"),
        ({"final_learning_rate": -0.1}, "Learning rates must be positive"),
        ({"momentum": 1.0}, "momentum, weight_decay and label_smoothing must be in"),
        ({"weight_decay": -1.0}, "momentum, weight_decay and label_smoothing must be in"),
        ({"label_smoothing": 1.0}, "momentum, weight_decay and label_smoothing must be in"),
        ({"precision": "int8"}, "no precision 'int8'. Choose one of: float32, bfloat16"),
        ({"device": "tpu"}, "no device 'tpu'. Choose one of: cpu, cuda"),
    ],
)
def test_impossible_numbers_are_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        replace(TrainingRecipe(), **change)


def test_unknown_net_and_data() -> None:
    with pytest.raises(ModelError, match=r"no reference net named 'alexnet'. Choose one of: lenet, lenet-bias"):
        models.default_recipe("alexnet")
    with pytest.raises(ModelError, match=r"'lenet-short' is not trained on 'mnist5k', only on cifar10"):
        models.load("lenet-short", "mnist5k")
