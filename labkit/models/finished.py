"""What a finished training left in a folder: recognised where it is the wanted one, guarded where it is not."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from labkit.errors import OutputError
from labkit.models.recipes import TrainingRecipe

__all__ = ["finished_record"]


def finished_record(
    weights_file: Path, recipe_file: Path, recipe: TrainingRecipe, data_sha256: str
) -> dict[str, Any] | None:
    """The content of ``recipe_file`` where both files are there and are what training by ``recipe`` gives.

    Parameters
    ----------
    weights_file, recipe_file
        Where training would write.
    recipe
        What is to be trained.
    data_sha256
        Hash of the training images and labels, 64 hex digits.

    Returns
    -------
    None where neither file is there, so that nothing can be lost

    Raises
    ------
    OutputError
        A file is there that is not what ``recipe`` gives: training would replace it.
    """
    there = [path for path in (weights_file, recipe_file) if path.exists()]
    if not there:
        return None
    reason, record = _difference(weights_file, recipe_file, recipe, data_sha256)
    if reason:
        raise OutputError(
            f"{' and '.join(map(str, there))} would be replaced by a training that is not theirs: {reason}. "
            f"Choose another folder (--out), or replace what is there (--force)."
        )
    return record


def _difference(
    weights_file: Path, recipe_file: Path, recipe: TrainingRecipe, data_sha256: str
) -> tuple[str, dict[str, Any]]:
    """Why the files are not what ``recipe`` gives, nothing where they are; and what is in the recipe file."""
    try:
        record: dict[str, Any] = json.loads(recipe_file.read_text("utf-8"))
        known = TrainingRecipe().as_dict() | dict(record["recipe"])  # written before a field was there: as it was then
        images, sha256 = record["training_images"]["sha256"], record["sha256"]
        float(record["test_accuracy"])
    except FileNotFoundError:
        return f"there is no {recipe_file.name} that says how the weights were made", {}
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{recipe_file.name} cannot be read ({type(error).__name__}: {error})", {}
    differing = [
        f"{name} was {known.get(name)}, is {value}"
        for name, value in recipe.as_dict().items()
        if known.get(name) != value
    ]
    if images != data_sha256:
        differing.append("the training images differ")
    if not differing:
        try:
            whole = hashlib.sha256(weights_file.read_bytes()).hexdigest() == sha256
        except OSError as error:
            return f"{weights_file.name} cannot be read ({error.strerror or error})", record
        if not whole:
            differing.append(f"{weights_file.name} is not the file that {recipe_file.name} describes")
    return "; ".join(differing), record
