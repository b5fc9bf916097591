"""On a few hundred digits: what is promised of training, not how good it gets."""

from __future__ import annotations

import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from labkit import models
from labkit.data import DataSet, load
from labkit.data.augment import shift_and_mirror
from labkit.errors import InputError, ModelError, OutputError
from labkit.models import TrainingRecipe, training
from labkit.models.training import learning_rate_at, train

RECIPE = TrainingRecipe(
    data="mnist5k", epochs=4, batch_size=32, schedule="cosine", learning_rate=0.02, augment=True, seed=5
)
FILES = ["lenet-mnist5k.json", "lenet-mnist5k.safetensors"]


@pytest.fixture(scope="module")
def digits() -> DataSet:
    """300 digits to train with, so that the last step of an epoch is a short one."""
    whole = load("mnist5k")
    return replace(
        whole,
        train_images=whole.train_images[:300],
        train_labels=whole.train_labels[:300],
        test_images=whole.test_images[:100],
        test_labels=whole.test_labels[:100],
    )


@pytest.fixture(scope="module")
def uninterrupted(digits: DataSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted")
    assert train(RECIPE, digits, folder) is not None
    return folder


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_run_killed_after_each_epoch_ends_in_the_same_bytes(
    digits: DataSet, uninterrupted: Path, tmp_path: Path
) -> None:
    for epoch in range(1, 4):
        torch.manual_seed(epoch)  # whatever the process did before must not matter
        assert train(RECIPE, digits, tmp_path, stop_after=epoch) is None
        assert names(tmp_path) == ["lenet-mnist5k.progress.safetensors"]
    torch.manual_seed(99)
    assert train(RECIPE, digits, tmp_path) is not None
    assert names(tmp_path) == FILES
    weights = "lenet-mnist5k.safetensors"
    assert (tmp_path / weights).read_bytes() == (uninterrupted / weights).read_bytes()
    records = [json.loads((folder / "lenet-mnist5k.json").read_text()) for folder in (tmp_path, uninterrupted)]
    for record in records:
        assert record.pop("seconds") > 0
    assert records[0] == records[1]


def test_killed_in_mid_epoch_loses_that_epoch_only(
    digits: DataSet, uninterrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(RECIPE, digits, tmp_path, stop_after=2)
    real, calls = training.learning_rate_at, []

    def killed(*arguments: object) -> float:
        calls.append(arguments)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(training, "learning_rate_at", killed)
    with pytest.raises(KeyboardInterrupt):
        train(RECIPE, digits, tmp_path)
    monkeypatch.undo()
    assert names(tmp_path) == ["lenet-mnist5k.progress.safetensors"]
    train(RECIPE, digits, tmp_path)
    weights = "lenet-mnist5k.safetensors"
    assert (tmp_path / weights).read_bytes() == (uninterrupted / weights).read_bytes()


def test_result_learns_is_written_and_loads(digits: DataSet, tmp_path: Path) -> None:
    recipe = replace(RECIPE, augment=False, epochs=8, batch_size=10, learning_rate=0.03)
    result = train(recipe, digits, tmp_path)
    assert result is not None
    losses = result.record["mean_training_loss"]
    assert losses[-1] < losses[0] / 2
    assert result.test_accuracy > 50
    assert result.record["command"] == recipe.command
    loaded = models.load("lenet", "mnist5k", weights=result.weights_file)
    assert training.accuracy(loaded, digits.test_images, digits.test_labels) == result.test_accuracy
    assert json.loads(result.recipe_file.read_text()) == result.record


def test_seed_decides(digits: DataSet, tmp_path: Path) -> None:
    sums = []
    for i, seed in enumerate((1, 1, 2)):
        result = train(replace(RECIPE, epochs=1, seed=seed), digits, tmp_path / str(i))
        assert result is not None
        sums.append(result.record["sha256"])
    assert sums[0] == sums[1] != sums[2]


def test_callers_torch_is_left_as_it_was(digits: DataSet, tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    train(replace(RECIPE, epochs=1, threads=threads + 1), digits, tmp_path)
    assert torch.equal(torch.rand(3), expected)
    assert torch.get_num_threads() == threads


def test_progress_of_another_recipe_or_other_data_is_refused(digits: DataSet, tmp_path: Path) -> None:
    train(RECIPE, digits, tmp_path, stop_after=1)
    with pytest.raises(ModelError, match=r"another recipe: learning_rate was 0.02, is 0.5.*Start anew"):
        train(replace(RECIPE, learning_rate=0.5), digits, tmp_path)
    fewer = replace(digits, train_images=digits.train_images[1:], train_labels=digits.train_labels[1:])
    with pytest.raises(ModelError, match=r"the training images differ"):
        train(RECIPE, fewer, tmp_path)
    assert train(replace(RECIPE, epochs=1), fewer, tmp_path, resume=False) is not None


def test_finished_training_is_handed_back(digits: DataSet, uninterrupted: Path) -> None:
    before = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in uninterrupted.iterdir()}
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    result = train(RECIPE, digits, uninterrupted)
    assert torch.equal(torch.rand(3), expected)
    assert result is not None
    assert result.already_there
    assert not result.module.training
    assert result.test_accuracy == result.record["test_accuracy"]
    assert training.accuracy(result.module, digits.test_images, digits.test_labels) == result.test_accuracy
    assert {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in uninterrupted.iterdir()} == before


@pytest.fixture
def finished(uninterrupted: Path, tmp_path: Path) -> Path:
    """A folder of one's own with a finished training by `RECIPE`."""
    return Path(shutil.copytree(uninterrupted, tmp_path / "finished"))


def test_finished_training_of_another_recipe_or_other_data_is_kept(digits: DataSet, finished: Path) -> None:
    before = {path: path.read_bytes() for path in finished.iterdir()}
    other = replace(RECIPE, epochs=1, seed=6)
    fewer = replace(digits, train_images=digits.train_images[1:], train_labels=digits.train_labels[1:])
    for resume in (True, False):
        with pytest.raises(OutputError, match=r"epochs was 4, is 1; seed was 5, is 6\. .*--out.*--force"):
            train(other, digits, finished, resume=resume)
        with pytest.raises(OutputError, match=r"the training images differ"):
            train(RECIPE, fewer, finished, resume=resume)
    assert {path: path.read_bytes() for path in finished.iterdir()} == before

    result = train(other, digits, finished, force=True)
    assert result is not None
    assert not result.already_there
    assert names(finished) == FILES
    assert json.loads((finished / FILES[0]).read_text())["recipe"]["seed"] == 6


def test_files_that_training_did_not_leave_so_are_kept(digits: DataSet, finished: Path) -> None:
    recipe_file, weights_file = (finished / name for name in FILES)
    recipe_text, weights = recipe_file.read_text(), weights_file.read_bytes()
    weights_file.write_bytes(weights[:-1])
    with pytest.raises(OutputError, match=r"safetensors is not the file that lenet-mnist5k.json describes"):
        train(RECIPE, digits, finished)
    assert weights_file.read_bytes() == weights[:-1]
    for text in ("{", "[]", "{}", '{"recipe": 1}'):
        recipe_file.write_text(text)
        with pytest.raises(OutputError, match=r"lenet-mnist5k.json cannot be read.*--force"):
            train(RECIPE, digits, finished)
    recipe_file.unlink()
    with pytest.raises(OutputError, match=r"there is no lenet-mnist5k.json"):
        train(RECIPE, digits, finished)
    weights_file.unlink()
    recipe_file.write_text(recipe_text)
    with pytest.raises(OutputError, match=r"safetensors cannot be read"):
        train(RECIPE, digits, finished)


def test_killed_between_weights_and_recipe_goes_on(
    digits: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = training.write_atomically

    def killed(path: Path, content: bytes | str) -> None:
        if path.suffix == ".json":
            raise KeyboardInterrupt
        real(path, content)

    monkeypatch.setattr(training, "write_atomically", killed)
    with pytest.raises(KeyboardInterrupt):
        train(replace(RECIPE, epochs=1), digits, tmp_path)
    monkeypatch.undo()
    assert names(tmp_path) == ["lenet-mnist5k.progress.safetensors", "lenet-mnist5k.safetensors"]
    assert train(replace(RECIPE, epochs=1), digits, tmp_path) is not None
    assert names(tmp_path) == FILES


def test_damaged_progress_is_refused(digits: DataSet, tmp_path: Path) -> None:
    train(RECIPE, digits, tmp_path, stop_after=1)
    file = tmp_path / "lenet-mnist5k.progress.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ModelError, match=r"cannot be read.*Start anew"):
        train(RECIPE, digits, tmp_path)


def test_divergence_is_reported_and_nothing_written(digits: DataSet, tmp_path: Path) -> None:
    folder = tmp_path / "new"
    with pytest.raises(InputError, match=r"diverged in epoch 1: the loss is nan. Lower the learning rate"):
        train(replace(RECIPE, learning_rate=99.0, momentum=0.99), digits, folder)
    assert names(tmp_path) == []


def test_wrong_data_set(digits: DataSet, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"recipe is for the data set cifar10, got mnist5k"):
        train(replace(RECIPE, data="cifar10"), digits, tmp_path)


def test_unwritable_folder(digits: DataSet, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"Cannot write to the folder"):
        train(RECIPE, digits, tmp_path / "file" / "below")


def test_console_shows_command_with_seed_and_every_epoch(digits: DataSet, tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=200)
    train(replace(RECIPE, epochs=2), digits, tmp_path, console=console, stop_after=1)
    train(replace(RECIPE, epochs=2), digits, tmp_path, console=console)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "--seed 5" in shown
    assert "going on after epoch 1" in shown
    assert [shown.count(f"epoch {i}/2: mean training loss") for i in (1, 2)] == [1, 1]


def test_schedules() -> None:
    step = TrainingRecipe(epochs=10, learning_rate=0.03, final_learning_rate=0.005)
    assert [learning_rate_at(step, 5 * epoch + 4, 5) for epoch in range(10)] == [0.03] * 7 + [0.005] * 3
    cosine = replace(step, schedule="cosine")
    assert learning_rate_at(cosine, 0, 5) == pytest.approx(0.03)
    assert learning_rate_at(cosine, 25, 5) == pytest.approx((0.03 + 0.005) / 2)
    assert 0.005 < learning_rate_at(cosine, 49, 5) < 0.0051
    assert learning_rate_at(replace(step, schedule="constant"), 49, 5) == 0.03


def test_one_cycle_rises_for_a_fifth_and_falls_to_the_end() -> None:
    recipe = replace(RECIPE, schedule="one-cycle", epochs=10, learning_rate=0.2, final_learning_rate=0.0)
    rates = [learning_rate_at(recipe, step, 5) for step in range(50)]
    assert rates[0] == pytest.approx(0.02)
    assert rates[10] == pytest.approx(0.2) == max(rates)
    assert np.allclose(np.diff(rates[:11]), 0.018)
    assert np.all(np.diff(rates[10:]) < 0)
    assert rates[30] == pytest.approx(0.1)
    assert 0 < rates[-1] < 0.0005


RESNET = replace(
    RECIPE,
    network="resnet20",
    epochs=2,
    precision="bfloat16",
    channels_last=True,
    label_smoothing=0.1,
    schedule="one-cycle",
)


@pytest.mark.parametrize("network", ["resnet20", "mobilenetv2-small"])
def test_nets_with_batch_norm_resume_to_the_same_bytes(network: str, digits: DataSet, tmp_path: Path) -> None:
    recipe = replace(RESNET, network=network)
    few = replace(digits, train_images=digits.train_images[:80], train_labels=digits.train_labels[:80])
    weights = f"{network}-mnist5k.safetensors"
    assert train(recipe, few, tmp_path / "at once") is not None
    assert train(recipe, few, tmp_path / "killed", stop_after=1) is None
    result = train(recipe, few, tmp_path / "killed")
    assert result is not None
    assert (tmp_path / "killed" / weights).read_bytes() == (tmp_path / "at once" / weights).read_bytes()
    loaded = models.load(network, "mnist5k", weights=tmp_path / "killed" / weights)
    assert training.accuracy(loaded, digits.test_images, digits.test_labels) == result.test_accuracy
    assert all(parameter.dtype == torch.float32 for parameter in loaded.parameters())


def test_precision_and_smoothing_and_layout_matter_as_much_as_they_should(digits: DataSet, tmp_path: Path) -> None:
    few = replace(digits, train_images=digits.train_images[:80], train_labels=digits.train_labels[:80])
    plain = replace(RESNET, epochs=1, precision="float32", channels_last=False, label_smoothing=0.0)
    losses = {}
    for name, change in {
        "plain": {},
        "bfloat16": {"precision": "bfloat16"},
        "channels last": {"channels_last": True},
        "smoothed": {"label_smoothing": 0.5},
    }.items():
        result = train(replace(plain, **change), few, tmp_path / name)  # type: ignore[arg-type]
        assert result is not None
        losses[name] = result.record["mean_training_loss"][0]
    assert losses["channels last"] == pytest.approx(losses["plain"], rel=1e-3)
    assert 0 < abs(losses["bfloat16"] - losses["plain"]) < 0.1 * losses["plain"]
    assert abs(losses["smoothed"] - losses["plain"]) > 1e-3


def test_recipe_written_before_a_field_was_there_still_counts(digits: DataSet, finished: Path) -> None:
    recipe_file = finished / FILES[0]
    record = json.loads(recipe_file.read_text())
    for field in ("label_smoothing", "precision", "channels_last", "device"):
        del record["recipe"][field]
    recipe_file.write_text(json.dumps(record))
    result = train(RECIPE, digits, finished)
    assert result is not None
    assert result.already_there


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a graphics processor")
def test_missing_graphics_processor_is_said(digits: DataSet, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"device cuda, and torch finds none"):
        train(replace(RECIPE, device="cuda"), digits, tmp_path)


@pytest.mark.parametrize("mirror", [False, True])
def test_augmentation_shifts_and_mirrors_within_bounds(mirror: bool) -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(1, 256, (400, 3, 32, 32), dtype=np.uint8)
    moved = shift_and_mirror(images, rng, mirror)
    seen = set()
    for image, got in zip(images, moved, strict=True):
        padded = np.pad(image, ((0, 0), (4, 4), (4, 4)))
        (found,) = [
            (top, left, mirrored)
            for top in range(9)
            for left in range(9)
            for mirrored in (False, True)
            if np.array_equal(padded[:, top : top + 32, left : left + 32][:, :, :: -1 if mirrored else 1], got)
        ]
        seen.add(found)
    assert {top for top, _, _ in seen} == {left for _, left, _ in seen} == set(range(9))
    assert {mirrored for _, _, mirrored in seen} == {False, mirror}
