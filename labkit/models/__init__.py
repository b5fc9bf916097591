"""Reference nets: built, trained, and shipped with their weights and recipes. Importing this does not import torch."""

from __future__ import annotations

from labkit.models.brought import bring
from labkit.models.recipes import TrainingRecipe, data_for, default_recipe, names
from labkit.models.zoo import build, load, recipe

__all__ = ["TrainingRecipe", "bring", "build", "data_for", "default_recipe", "load", "names", "recipe"]
