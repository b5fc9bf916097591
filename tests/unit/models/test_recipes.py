from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from labkit import models
from labkit.errors import InputError, ModelError
from labkit.models import TrainingRecipe

ROOT = Path(__file__).parents[3]


def test_importing_models_does_not_import_torch() -> None:
    code = "import sys, labkit.models as m; m.recipe(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_names_and_their_data() -> None:
    assert models.names() == ("lenet", "lenet-bias", "lenet-short", "lenet-bias-short")
    assert models.data_for("lenet-bias") == ("cifar10", "mnist5k")
    assert models.data_for("lenet-short") == ("cifar10",)


def test_command_spells_out_every_number() -> None:
    recipe = TrainingRecipe(epochs=7, schedule="cosine", final_learning_rate=0.0, weight_decay=0.25, augment=True)
    options = dict(re.findall(r"--([a-z-]+)(?: ([\w.]+))?", recipe.command))
    for field in fields(recipe):
        value = getattr(recipe, field.name)
        if field.name == "network":
            assert recipe.command.startswith(f"labkit train {value} ")
        else:
            assert options[field.name.replace("_", "-")] == ("" if value is True else str(value))
    assert "--augment" not in TrainingRecipe().command


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"threads": 0}, "threads must be at least 1"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"schedule": "staircase"}, "no schedule 'staircase'. Choose one of: step, cosine, constant"),
        ({"learning_rate": 0.0}, "Learning rates must be positive"),
        ({"learning_rate": float("nan")}, "Learning rates must be positive"),
        ({"final_learning_rate": -0.1}, "Learning rates must be positive"),
        ({"momentum": 1.0}, "momentum and weight_decay must be in"),
        ({"weight_decay": -1.0}, "momentum and weight_decay must be in"),
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
