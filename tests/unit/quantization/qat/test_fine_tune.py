"""Fine-tuning as a whole: it helps, resumes exactly, and ends in integers that answer as the trained network does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import labkit
from labkit import data, models
from labkit.errors import InputError, ModelError, QuantizationError
from labkit.frontends.torch_fx import from_torch, parameters_digest
from labkit.graph.passes import simplify
from labkit.quantization.plan import BitPlan
from labkit.quantization.qat.options import RECIPES, FineTuning, recipe
from labkit.quantization.qat.result import FineTuned
from labkit.quantization.qat.schedule import learning_rate_at, phase_at
from labkit.quantization.qat.train import fine_tune

DIGITS = data.load("mnist5k")
TEST, TRUTH = DIGITS.test()


def images(count: int) -> tuple[np.ndarray, np.ndarray]:  # type: ignore[type-arg]
    x, labels = DIGITS.train()
    return x[:count], labels[:count]


def uniform(module: nn.Module, weights: int, activations: int) -> BitPlan:
    return BitPlan.uniform(simplify(from_torch(module, (3, 32, 32))), weights, activations)


def tuned(name: str, weights: int, activations: int, options: FineTuning, count: int = 1000) -> FineTuned:
    module = models.load(name, data="mnist5k")
    found = fine_tune(module, *images(count), uniform(module, weights, activations), options, calibration_images=128)
    assert found is not None
    return found


def right(logits: np.ndarray) -> float:  # type: ignore[type-arg]
    return 100 * float((logits.argmax(1) == TRUTH).mean())


SHORT = {"epochs": 1, "batch_size": 50, "mirror": False, "augment": False}


@pytest.mark.parametrize("name", list(RECIPES))
@pytest.mark.parametrize("net", ["lenet", "resnet20"])
def test_every_recipe_ends_in_certified_integers_that_answer_as_it_does(name: str, net: str) -> None:
    options = replace(recipe(name), **SHORT)
    found = tuned(net, 4, 4, options, 100 if net == "resnet20" else 1000)
    integers = found.to_net()
    x = TEST[:200]
    with torch.no_grad():
        simulated = found.trained(torch.from_numpy(x)).numpy()
    assert (integers.run(x).argmax(1) == simulated.argmax(1)).mean() >= 0.99
    report = labkit.verify(integers, found.module, x[:20])
    assert report.passed, report


@pytest.mark.parametrize("name", ["labkit", "jacob", "lsq", "pact"])
def test_it_mends_what_two_bits_break(name: str) -> None:
    module = models.load("lenet", data="mnist5k")
    before = labkit.quantize(module, images(128)[0], weights=2, activations=4)
    found = tuned("lenet", 2, 4, replace(recipe(name), **SHORT))
    assert right(found.to_net().run(TEST)) >= 90 > right(before.run(TEST))


def test_integers_are_as_accurate_as_the_simulation() -> None:
    found = tuned("lenet", 3, 4, replace(FineTuning(), **SHORT))
    with torch.no_grad():
        simulated = right(found.trained(torch.from_numpy(TEST)).numpy())
    assert abs(right(found.to_net().run(TEST)) - simulated) <= 0.1


def test_one_bit_weights_are_trained() -> None:
    options = replace(FineTuning(start="nearest"), **{**SHORT, "epochs": 2})
    found = tuned("lenet", 1, 8, options)
    assert set(np.unique(found.to_net().graph["fc1"].op.weight.values)) == {-1, 1}  # type: ignore[union-attr]
    assert right(found.to_net().run(TEST)) >= 85


def test_the_given_module_is_not_changed() -> None:
    module = models.load("resnet20", data="mnist5k")
    before = parameters_digest(module)
    found = fine_tune(module, *images(60), uniform(module, 4, 4), replace(FineTuning(), **SHORT), calibration_images=32)
    assert found is not None
    assert parameters_digest(module) == before != parameters_digest(found.module)


@pytest.mark.parametrize("name", ["labkit", "jacob"])
def test_a_killed_run_ends_in_the_same_weights(name: str, tmp_path: Path) -> None:
    module = models.load("resnet20", data="mnist5k")
    options = replace(recipe(name), **{**SHORT, "epochs": 2, "augment": True})
    plan, file = uniform(module, 3, 4), tmp_path / "progress.safetensors"
    common = {"calibration_images": 32}
    whole = fine_tune(module, *images(100), plan, options, **common)  # type: ignore[arg-type]
    assert fine_tune(module, *images(100), plan, options, progress_file=file, stop_after=1, **common) is None  # type: ignore[arg-type]
    assert file.exists()
    resumed = fine_tune(module, *images(100), plan, options, progress_file=file, **common)  # type: ignore[arg-type]
    assert whole is not None and resumed is not None
    assert parameters_digest(whole.module) == parameters_digest(resumed.module)
    assert whole.calibration.ranges == resumed.calibration.ranges
    assert [epoch.loss for epoch in whole.history] == [epoch.loss for epoch in resumed.history]
    assert np.array_equal(whole.to_net().run(TEST[:50]), resumed.to_net().run(TEST[:50]))
    assert not file.exists()


def test_another_training_is_not_gone_on_with(tmp_path: Path) -> None:
    module = models.load("lenet", data="mnist5k")
    options = replace(FineTuning(), **{**SHORT, "epochs": 2})
    file, plan = tmp_path / "progress.safetensors", uniform(module, 4, 4)
    fine_tune(module, *images(100), plan, options, progress_file=file, stop_after=1, calibration_images=32)
    other = replace(options, learning_rate=0.1)
    for changed, what in (
        ((images(100), plan, other), "options"),
        ((images(101), plan, options), "data"),
        ((images(100), uniform(module, 4, 8), options), "plan"),
    ):
        with pytest.raises(ModelError, match=f"belongs to a fine-tuning with other {what}"):
            fine_tune(module, *changed[0], *changed[1:], progress_file=file, calibration_images=32)
    file.write_bytes(b"not a file of tensors")
    with pytest.raises(ModelError, match=r"cannot be read: .*Remove"):
        fine_tune(module, *images(100), plan, options, progress_file=file, calibration_images=32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"weight_scales": "guessed"}, "weight_scales must be one of minmax, learned, got 'guessed'"),
        ({"activation_scales": "none"}, "activation_scales must be one of"),
        ({"start": "far"}, "start must be one of nearest, best"),
        ({"optimizer": "lbfgs"}, "optimizer must be one of adam, sgd"),
        ({"precision": "float16"}, "precision must be one of"),
        ({"momentum": 1.0}, r"momentum must be in \[0, 1\), got 1.0"),
        ({"freeze_at": 1.5}, r"freeze_at must be in 0..1, got 1.5"),
        ({"learning_rate": 0.0}, "learning_rate must be above 0"),
        ({"weight_decay": -1.0}, "weight_decay must not be negative"),
        ({"wide_up_to": 5}, "wide_up_to must be in 0..3"),
        ({"weight_scales": "minmax"}, 'start="best" brings scales of its own'),
        ({"seed": 1.5}, "seed must be a whole number, got 1.5"),
        ({"epochs": True}, "epochs must be a whole number, got True"),
    ],
)
def test_options_that_make_no_sense_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(QuantizationError, match=message):
        FineTuning(**change)  # type: ignore[arg-type]


def test_unknown_recipes_are_refused() -> None:
    with pytest.raises(QuantizationError, match="recipe must be one of labkit, mpqco, jacob, pact, lsq, got 'hawq'"):
        recipe("hawq")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.zeros(3, np.int64), "one label for each image"),
        (np.zeros((10, 1), np.int64), "one label for each image"),
        (np.zeros(10, np.float32), "Labels must be integers"),
        (np.full(10, 10), r"Labels must be in 0..9, the network's classes; image 0 has the label 10"),
        (np.array([0] * 7 + [-100] * 3), "image 7 has the label -100"),
    ],
)
def test_labels_that_do_not_fit_are_refused(labels: np.ndarray, message: str) -> None:  # type: ignore[type-arg]
    module = models.load("lenet", data="mnist5k")
    with pytest.raises(InputError, match=message):
        fine_tune(module, images(10)[0], labels, uniform(module, 4, 4))


@pytest.mark.parametrize("name", ["jacob", "lsq", "pact"])
def test_divergence_is_an_error_and_nothing_is_kept(name: str, tmp_path: Path) -> None:
    module = models.load("lenet", data="mnist5k")
    wild = replace(recipe(name), **SHORT, learning_rate=1e30)
    file = tmp_path / "progress.safetensors"
    with pytest.raises(InputError, match=r"diverged in epoch 1: .*Lower the learning rate, which is 1e\+30"):
        fine_tune(module, *images(200), uniform(module, 8, 8), wild, progress_file=file, calibration_images=32)
    assert not file.exists()


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.fc = nn.Linear(3072, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(torch.relu(self.conv(torch.relu(self.conv(x)))).flatten(1))


def test_layers_that_are_called_twice_are_refused() -> None:
    module = Twice().eval()
    with pytest.raises(ModelError, match="called more than once cannot be fine-tuned"):
        fine_tune(module, *images(10), uniform(module, 4, 4))


def test_batch_norms_without_gain_are_refused() -> None:
    module = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, affine=False), nn.Flatten(), nn.Linear(3600, 10)
    ).eval()
    with pytest.raises(ModelError, match="1: a batch norm without gain and shift"):
        fine_tune(module, *images(10), uniform(module, 4, 4))


def test_schedule() -> None:
    options = replace(FineTuning(), learning_rate=1.0, warm_up=0.1)
    rates = [learning_rate_at(options, step, 100) for step in range(100)]
    assert rates[:10] == sorted(rates[:10])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert max(rates) == rates[10] == pytest.approx(1.0)
    assert rates[-1] < 0.001
    jacob = replace(recipe("jacob"), ema_delay=0.2, freeze_at=0.5)
    phases = [phase_at(jacob, step, 10) for step in range(10)]
    assert [one.quantize_activations for one in phases] == [False] * 2 + [True] * 8
    assert [one.live_norms for one in phases] == [one.move_ranges for one in phases] == [True] * 5 + [False] * 5


def test_ranges_are_learned_and_kept_in_the_net() -> None:
    found = tuned("lenet", 4, 4, replace(FineTuning(), **SHORT), 500)
    integers = found.to_net()
    for name, (low, high) in found.trained.ranges().items():
        spec, params = integers.graph[name].output.quantized
        assert float(params.scale) == pytest.approx((high - low) / (spec.qmax - spec.qmin), rel=1e-7)
    assert integers.graph.notes["calibration"]["method"] == "fine-tuning"
    assert integers.graph.notes["fine_tuning"]["epochs"] == 1


class Head(nn.Module):
    """A network that ends as ``ending`` says."""

    def __init__(self, ending: str) -> None:
        super().__init__()
        self.ending, self.fc = ending, nn.Linear(3072, 10)

    def forward(self, x: torch.Tensor):  # type: ignore[no-untyped-def]
        y = self.fc(x.flatten(1))
        if self.ending == "softmax":
            return torch.softmax(y, 1)
        return y.argmax(1) if self.ending == "argmax" else (y, torch.relu(y))


@pytest.mark.parametrize(("ending", "named"), [("softmax", "Softmax"), ("argmax", "ArgMax"), ("two", "Relu")])
def test_networks_without_logits_at_the_end_are_refused(ending: str, named: str) -> None:
    module = Head(ending).eval()
    with pytest.raises(ModelError, match=rf"one output, its logits; Head ends in .*{named}"):
        fine_tune(module, *images(10), uniform(module, 8, 8))


def test_shared_weights_are_refused() -> None:
    module = nn.Sequential(
        nn.Flatten(), nn.Linear(3072, 10), nn.ReLU(), nn.Linear(10, 10), nn.ReLU(), nn.Linear(10, 10)
    )
    module[5].weight = module[3].weight
    with pytest.raises(ModelError, match="5: it shares its weight with 3"):
        fine_tune(module.eval(), *images(10), uniform(module, 8, 8))


def test_plans_with_other_weight_ranges_are_refused() -> None:
    module = models.load("lenet", data="mnist5k")
    plan = replace(uniform(module, 4, 4), weight_ranges="mse")
    with pytest.raises(QuantizationError, match="asks for weight_ranges='mse'"):
        fine_tune(module, *images(10), plan)


class Sequence(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.pool = nn.Conv1d(3, 6, 5, padding=2), nn.BatchNorm1d(6), nn.MaxPool1d(4)
        self.fc = nn.Linear(6 * 16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.pool(torch.relu(self.norm(self.conv(x)))).flatten(1))


@pytest.mark.parametrize("name", ["labkit", "jacob"])
def test_sequences_are_trained(name: str) -> None:
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 200)
    x = rng.normal(size=(200, 3, 64)).astype(np.float32) + 0.5 * np.eye(3, dtype=np.float32)[labels][:, :, None]
    module = Sequence().eval()
    plan = BitPlan.uniform(simplify(from_torch(module, (3, 64))), 4, 4)
    options = replace(recipe(name), **{**SHORT, "epochs": 6, "batch_size": 20}, distillation=0.0, learning_rate=0.01)
    found = fine_tune(module, x, labels, plan, options, calibration_images=100)
    assert found is not None
    assert (found.to_net().run(x).argmax(1) == labels).mean() > 0.8
    assert labkit.verify(found.to_net(), found.module, x[:20]).passed


def test_one_image_that_is_left_over_joins_the_last_batch() -> None:
    module = models.load("resnet20", data="mnist5k")
    told: list[tuple[int, int]] = []
    options = replace(recipe("jacob"), **{**SHORT, "batch_size": 20})
    fine_tune(module, *images(41), uniform(module, 8, 8), options, calibration_images=16,
              progress=lambda _, done, total: told.append((done, total)))  # fmt: skip
    assert told[-1] == (2, 2)


def test_float64_images_lists_of_labels_and_no_grad_do_no_harm() -> None:
    module, options = models.load("lenet", data="mnist5k"), replace(recipe("lsq"), **SHORT)
    x, labels = images(100)
    plan = uniform(module, 4, 4)
    first = fine_tune(module, x, labels, plan, options, calibration_images=32)
    with torch.no_grad():
        second = fine_tune(module, x.astype(np.float64), labels.tolist(), plan, options, calibration_images=32)  # type: ignore[arg-type]
    assert first is not None and second is not None
    assert parameters_digest(first.module) == parameters_digest(second.module)


def test_distillation_is_a_mean_of_two_losses() -> None:
    """Hinton et al. 2015: the share (1 - a) of the cross-entropy, and a T^2 of the divergence at temperature T."""
    from labkit.quantization.calibration import calibrate
    from labkit.quantization.qat.start import trainable
    from labkit.quantization.qat.train import _Run

    module = models.load("lenet", data="mnist5k")
    x, labels = images(30)
    raw = from_torch(module, (3, 32, 32))
    graph = simplify(raw)
    options = replace(recipe("lsq"), distillation=0.3, temperature=4.0)
    net = trainable(raw, graph, BitPlan.uniform(graph, 4, 4), calibrate(graph, x), x, options)
    run = _Run(net, graph, x, labels, options, None)
    logits = torch.randn(30, 10, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        teacher = module(torch.from_numpy(x)).double().numpy()
        found = float(run._loss(logits, torch.from_numpy(x), torch.from_numpy(labels)))
    student = logits.double().numpy()

    def log_softmax(values: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
        return values - np.log(np.exp(values).sum(1, keepdims=True))

    hard = -log_softmax(student)[np.arange(30), labels].mean()
    p, q = log_softmax(teacher / 4), log_softmax(student / 4)
    soft = (np.exp(p) * (p - q)).sum(1).mean()
    assert found == pytest.approx(0.7 * hard + 0.3 * 16 * soft, rel=1e-5)


def test_only_weights_and_ends_of_pact_decay() -> None:
    from labkit.quantization.calibration import calibrate
    from labkit.quantization.qat.start import trainable
    from labkit.quantization.qat.train import _optimiser

    module = models.load("resnet20", data="mnist5k")
    x = images(16)[0]
    raw = from_torch(module, (3, 32, 32))
    graph = simplify(raw)
    options = replace(recipe("pact"), weight_scales="learned", weight_decay=0.5, pact_decay=0.25)
    net = trainable(raw, graph, BitPlan.uniform(graph, 4, 4), calibrate(graph, x), x, options)
    decays = {
        id(one): group["weight_decay"] for group in _optimiser(net, options).param_groups for one in group["params"]
    }
    assert len(decays) == sum(1 for _ in net.parameters())
    for name, one in net.named_parameters():
        wanted = 0.5 if name.endswith(".weight") else 0.25 if name.startswith("activation_scales") else 0.0
        assert decays[id(one)] == wanted, name
