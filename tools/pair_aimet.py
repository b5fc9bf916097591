r"""AdaRound of aimet-torch and of labkit side by side: the same networks, grids, images; accuracy and processor time.

    python -m venv pair && pair/bin/pip install -e . && pair/bin/pip install --no-deps aimet-torch==2.42.0
    pair/bin/pip install psutil tqdm PyYAML jsonschema Jinja2 onnx scipy onnxscript onnx_ir pandas "bokeh<=3.6.3" \\
        holoviews hvplot osqp cvxpy scikit-learn pybind11 tensorboard
    pair/bin/python tools/pair_aimet.py --net lenet --iterations 1000 15000 --data-dir DIR
    pair/bin/python tools/pair_aimet.py --net resnet20 --iterations 250 1000 --data-dir DIR
    pair/bin/python tools/pair_aimet.py --pages   # only write the page again

aimet-torch (Qualcomm, BSD-3-Clause) is no dependency of labkit: an environment of its own takes it. Each call adds or
replaces one network in docs/studies/aimet-pairing/result.json and writes the page beside it.

Both are given the network with its batch norms folded, and labkit's grid: weights of 4 bits, signed, symmetric, -8 to 7, one
scale a layer, that of the least squared error of the weights. Both see the same training images without labels. One thread
each. Accuracy is that of the rounded weights with float activations, computed by the same function for both.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "docs" / "studies" / "aimet-pairing"
BITS, LOW, HIGH = 4, -8, 7
DEFAULT_ITERATIONS = 15_000  # aimet-torch 2.42.0 for weights of fewer than 8 bits
CONFIG = {
    "defaults": {
        "ops": {"is_output_quantized": "True"},
        "params": {"is_quantized": "True", "is_symmetric": "True"},
        "strict_symmetric": "False",
        "unsigned_symmetric": "False",
        "per_channel_quantization": "False",
    },
    "params": {"bias": {"is_quantized": "False"}},
    "op_type": {},
    "supergroups": [],
    "model_input": {},
    "model_output": {},
}
TARGET = 1 / 5  # of aimet's time
Row = dict[str, Any]


def main() -> None:
    """Read the arguments, run one network, write the result and the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--net", default="lenet", help="lenet or resnet20")
    parser.add_argument("--iterations", type=int, nargs="+", default=[1000], help="of aimet's AdaRound, ascending")
    parser.add_argument("--images", type=int, default=1024, help="calibration images")
    parser.add_argument("--test-images", type=int, default=None, help="all where it is left out")
    parser.add_argument("--batch", type=int, default=64, help="images a batch of aimet's data loader")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data-dir", type=Path, default=None, help="where CIFAR-10 lies")
    parser.add_argument("--out", type=Path, default=FOLDER)
    parser.add_argument("--pages", action="store_true", help="only write the page again, from result.json")
    options = parser.parse_args()
    place = options.out / "result.json"
    result: dict[str, Any] = json.loads(place.read_text("utf-8")) if place.exists() else {}
    if not options.pages:
        result[options.net] = _pair(options)
        options.out.mkdir(parents=True, exist_ok=True)
        place.write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    (options.out / "README.md").write_text(page(result), "utf-8")


def _pair(options: argparse.Namespace) -> dict[str, Any]:
    """All rows of one network."""
    from labkit.data.torchvision_shim import import_torchvision

    import_torchvision()  # which aimet imports
    import torch

    torch.set_num_threads(1)
    from labkit.quantization.calibration import calibrate
    from labkit.quantization.weight_rounding.driver import round_weights
    from labkit.quantization.weight_rounding.options import RoundingOptions
    from labkit.studies.adaround.comparison import Outcome, corrected, outcome
    from labkit.studies.lab import Lab

    lab, module = _folded(options)
    plan = lab.plan(BITS, 8, per_channel=False)
    grid = RoundingOptions(levels="full", images=len(lab.images))
    scales = _scales(lab, plan, grid)
    rows: list[Row] = [{"who": "", "method": "float network", "accuracy": lab.accuracy}]

    def add(who: str, method: str, made: Outcome, seconds: Mapping[str, float], **more: Any) -> None:
        rows.append({"who": who, "method": method, "accuracy": made.float_activations_accuracy(lab), **seconds, **more})
        print(rows[-1], flush=True)

    def measured(make: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
        wall, processor = time.perf_counter(), time.process_time()
        found = make()
        return found, {
            "processor_seconds": round(time.process_time() - processor, 2),
            "wall_seconds": round(time.perf_counter() - wall, 2),
        }

    def ours(method: str, correct: bool) -> Outcome:
        ranges = calibrate(lab.graph, lab.images)  # labkit's methods round activations to 8 bits on the way
        told = replace(grid, correct_bias=correct)
        return outcome(lab, plan, round_weights(lab.graph, ranges, plan, lab.images, method, told, options.seed))

    few = Lab(**{**lab.__dict__, "images": lab.images[:16]})
    for method in ("nearest", "adaround", "gptq+descent"):  # compiles what is not compiled yet; not timed
        few.round(plan, method, replace(grid, iterations=2))
    add("labkit", "nearest", *measured(lambda: ours("nearest", False)))
    for method, words in (("adaround", "AdaRound on the quadratic form, 1,000"), ("gptq+descent", "GPTQ and descent")):
        for correct in (False, True):
            made, seconds = measured(partial(ours, method, correct))
            add("labkit", words + (", bias corrected" if correct else ""), made, seconds)
    for iterations in options.iterations:
        torch.manual_seed(options.seed)
        levels, seconds = measured(partial(_aimet, module, lab, scales, iterations, options.batch))
        made, undecided = _outcome(lab, plan, levels, scales)
        add("aimet-torch", f"AdaRound, {iterations:,}", made, seconds, iterations=iterations, undecided=undecided)
        fixed, more = measured(partial(corrected, made, lab))
        add(
            "aimet-torch",
            f"AdaRound, {iterations:,}, bias corrected by labkit",
            fixed,
            {name: round(seconds[name] + more[name], 2) for name in seconds},
        )
    if len(options.iterations) > 1 and options.iterations[-1] < DEFAULT_ITERATIONS:
        rows.append(_extrapolated([row for row in rows if "iterations" in row]))
    command = f"python tools/pair_aimet.py --net {options.net} --iterations {' '.join(map(str, options.iterations))}"
    return {
        "rows": rows,
        "command": command,
        "seed": options.seed,
        "images": len(lab.images),
        "test_images": len(lab.x),
        "batch": options.batch,
        "versions": {name: version(name) for name in ("labkit", "aimet-torch", "torch", "numpy")}
        | {"python": platform.python_version()},
    }


def _folded(options: argparse.Namespace) -> tuple[Any, Any]:
    """The bench, and the module with its batch norms folded that its graph was made of."""
    from aimet_torch.batch_norm_fold import fold_all_batch_norms
    from torch import nn

    from labkit.data import load as load_data
    from labkit.frontends.torch_fx import from_torch
    from labkit.graph.passes import simplify
    from labkit.models import load as load_model
    from labkit.quantization.calibration import calibrate
    from labkit.studies.lab import Lab, logits

    data = load_data("cifar10", data_dir=options.data_dir)
    module = load_model(options.net, data.name).eval()
    if any(isinstance(part, nn.BatchNorm2d) for part in module.modules()):
        fold_all_batch_norms(module, (1, 3, 32, 32))
    graph = simplify(from_torch(module, (3, 32, 32)))
    images = data.calibration(options.images, options.seed)
    x, labels = data.test(options.test_images)
    right = 100 * float((logits(graph, x).argmax(1) == labels).mean())
    lab = Lab(options.net, data, graph, images, calibrate(graph, images[:16]), x, labels, right, options.seed)
    return lab, module


def _scales(lab: Any, plan: Any, grid: Any) -> dict[str, float]:
    """The scale of labkit for each layer, by the name of the node, which is that of the module."""
    from labkit.graph import float_ops
    from labkit.quantization.weight_rounding.problem import choose_grid

    layers = [node for node in lab.graph if isinstance(node.op, float_ops.Conv2d | float_ops.Linear)]
    return {node.name: float(choose_grid(node, plan, grid).params.scale) for node in layers}


def _aimet(module: Any, lab: Any, scales: Mapping[str, float], iterations: int, batch: int) -> dict[str, Any]:
    """AdaRound of aimet-torch through its public entry, on the grids ``scales``; the weights that it gives, by layer."""
    import torch
    from aimet_torch.adaround.adaround_weight import Adaround, AdaroundParameters
    from aimet_torch.common.defs import QuantScheme

    class OnGrids(Adaround):  # type: ignore[misc]
        """Takes the given scales in place of those that it would choose."""

        @staticmethod
        def _compute_param_encodings(quant_sim: Any) -> None:
            Adaround._compute_param_encodings(quant_sim)
            for name, scale in scales.items():
                quantizer = quant_sim.model.get_submodule(name).param_quantizers["weight"]
                quantizer.set_range(LOW * scale, HIGH * scale)

    images = torch.utils.data.TensorDataset(torch.from_numpy(np.array(lab.images)))
    loader = torch.utils.data.DataLoader(images, batch_size=batch)
    told = AdaroundParameters(
        loader, len(loader), default_num_iterations=iterations, forward_fn=lambda model, x: model(x[0])
    )
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "config.json"
        config.write_text(json.dumps(CONFIG))
        made = OnGrids.apply_adaround(
            module,
            torch.from_numpy(np.array(lab.images[:1])),
            told,
            folder,
            "pair",
            default_param_bw=BITS,
            default_quant_scheme=QuantScheme.post_training_tf,
            default_config_file=str(config),
        )
        encodings = json.loads((Path(folder) / "pair.encodings").read_text())["param_encodings"]
    for name, scale in scales.items():
        (found,) = encodings[f"{name}.weight"]
        if found["offset"] != LOW or not np.isclose(found["scale"], scale, rtol=1e-6, atol=0):
            raise SystemExit(f"{name}: aimet's grid is {found}, labkit's scale {scale}: they are not the same.")
    return {name: made.get_submodule(name).weight.detach().numpy() for name in scales}


def _outcome(lab: Any, plan: Any, weights: Mapping[str, Any], scales: Mapping[str, float]) -> tuple[Any, float]:
    """Weights of aimet-torch as integers on labkit's grid, and the share of them that it left between two levels.

    aimet hands out its soft weights; a weight that has not decided is rounded to nearest, as its quantizer would do.
    """
    from labkit.arithmetic.affine import QParams, QTensor
    from labkit.quantization.rounded import RoundedLayer
    from labkit.quantization.weight_rounding.grids import grid_spec
    from labkit.studies.adaround.comparison import Outcome

    layers, between, count = {}, 0, 0
    for name, weight in weights.items():
        exact = weight.astype(np.float64) / scales[name]
        levels = np.clip(np.rint(exact), LOW, HIGH)
        between, count = between + int(np.sum(np.abs(exact - levels) > 1e-3)), count + levels.size
        params = QParams(np.asarray(scales[name], np.float32), np.asarray(0, np.int32))
        bias = lab.graph[name].op.bias
        layers[name] = RoundedLayer(
            QTensor(levels.astype(np.int8), params, grid_spec(plan.weight_spec(name), "full")),
            np.zeros(len(levels), np.float32) if bias is None else bias,
        )
    return Outcome(lab.graph, lab.calibration, plan, layers), between / count


def _extrapolated(rows: list[Row]) -> Row:
    """The time of aimet-torch at its default, by the straight line through the first and the last of ``rows``."""
    first, last = rows[0], rows[-1]
    found: Row = {"who": "aimet-torch", "method": f"AdaRound, {DEFAULT_ITERATIONS:,} (time extrapolated, not run)"}
    for name in ("processor_seconds", "wall_seconds"):
        slope = (last[name] - first[name]) / (last["iterations"] - first["iterations"])
        found[name] = round(first[name] + slope * (DEFAULT_ITERATIONS - first["iterations"]), 1)
    return found


def page(result: Mapping[str, Any]) -> str:
    """The page in Markdown for all networks of ``result``."""
    parts = [
        "# AdaRound of aimet-torch and of labkit",
        "The same network with its batch norms folded, the same grid (weights of 4 bits, -8 to 7, one scale a layer, least "
        "squared error of the weights), the same training images without labels, one thread each. Accuracy is that of the "
        "rounded weights with float activations on the CIFAR-10 test images, by one function for both.",
    ]
    for net, made in result.items():
        parts += [f"## {net}", _verdict(made["rows"]), _table(made["rows"])]
        versions = ", ".join(f"{name} {number}" for name, number in made["versions"].items())
        parts.append(
            f"`{made['command']}`, seed {made['seed']}, {made['images']} calibration images in batches of {made['batch']}, "
            f"{made['test_images']} test images. {versions}."
        )
    parts += [
        "## Notes",
        "- Numbers after AdaRound are its iterations for each layer; aimet's default for weights of fewer than 8 bits is "
        f"{DEFAULT_ITERATIONS:,} at Adam's learning rate of 0.001, on 32 images each, with the activation function in the loss.\n"
        "- aimet hands out its soft weights. `between` is the share of weights that had not come to either level; they are "
        "rounded to nearest, as its quantizer would do.\n"
        "- labkit's methods see activations rounded to 8 bits on the way, aimet's float ones, and the accuracy is that of float "
        "ones: a small advantage of aimet's here. labkit's seconds include the ranges of activations.\n"
        "- Seconds of the processor are compared, since they depend less on what else the machine does; seconds on the clock "
        "stand beside them.\n"
        "- 0.3 points are what chance gives on 10,000 test images where two networks answer 2 % of them differently. One seed.\n"
        "- The rows are in [result.json](result.json). aimet-torch is no dependency of labkit; the head of "
        "`tools/pair_aimet.py` says how to get it.",
    ]
    return "\n\n".join(parts) + "\n"


def _verdict(rows: list[Row]) -> str:
    """Each way of labkit against each number of iterations of aimet that was run, and whether that is the target."""
    theirs = [row for row in rows if "iterations" in row]
    default = next((row for row in rows if "extrapolated" in row["method"]), theirs[-1])
    lines = []
    for row in rows:
        if row["who"] != "labkit" or row["method"] == "nearest":
            continue
        against = [
            f"{row['accuracy'] - other['accuracy']:+.2f} points in {_share(row, other)} of {other['iterations']:,}'s time"
            for other in theirs
        ]
        if default not in theirs:
            against.append(f"{_share(row, default)} of {DEFAULT_ITERATIONS:,}'s time, extrapolated")
        met = row["accuracy"] >= theirs[-1]["accuracy"] and _ratio(row, theirs[-1]) <= TARGET
        last = f"{theirs[-1]['iterations']:,}"
        target = f"At least the accuracy of {last} in at most a fifth of its time: {'yes' if met else 'no'}"
        lines.append(f"- {row['method']}: {'; '.join(against)}. {target}.")
    if default not in theirs:
        lines.append(f"\nWhat aimet reaches with its default of {DEFAULT_ITERATIONS:,} was not measured here.")
    return "Against aimet's AdaRound by its iterations:\n\n" + "\n".join(lines)


def _ratio(row: Row, other: Row) -> float:
    return float(row["processor_seconds"] / other["processor_seconds"])


def _share(row: Row, other: Row) -> str:
    return f"{100 * _ratio(row, other):.2g} %"


def _table(rows: list[Row]) -> str:
    lines = [
        "| | method | accuracy, % | seconds of the processor | seconds on the clock | between |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        accuracy = f"{row['accuracy']:.2f}" if "accuracy" in row else ""
        between = f"{100 * row['undecided']:.1f} %" if "undecided" in row else ""
        times = [f"{row[name]:.1f}" if name in row else "" for name in ("processor_seconds", "wall_seconds")]
        lines.append(f"| {row['who']} | {row['method']} | {accuracy} | {' | '.join(times)} | {between} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
