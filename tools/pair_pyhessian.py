"""Traces of every layer's Hessian block, by labkit and by PyHessian, on the same network, images and threads.

    pip install pyhessian
    python tools/pair_pyhessian.py [--net resnet20] [--data cifar10] [--images 64] [--out FOLDER]

PyHessian is no dependency of labkit; this tool needs it in the environment. It gets the float network with batch norms folded,
as labkit has it, and the network's own answers as labels. Its `trace` gives the whole network's only and stops by a rule
of its own, so the loop over probes is written here, with its own gradients and its own product with the Hessian.

Three comparisons. Each layer alone: PyHessian is started with only that layer's weights as parameters, labkit's Hutchinson
has probes of its own for it; both go on until the standard error is 5 % of the mean, by the same rule, layer by layer in turns.
All layers at once: labkit's way without chance, in turns with some probes of PyHessian for all weights, from whose spread
follows how many it would take. And PyHessian's own `trace`, as it comes.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import time
from collections.abc import Callable
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from labkit.benchmark.machine import load_average, machine, versions
from labkit.data import load as load_data
from labkit.files import write_atomically
from labkit.frontends.torch_fx import from_torch
from labkit.graph.ir import FloatGraph
from labkit.graph.passes import simplify
from labkit.models import load as load_model
from labkit.quantization.differentiable import layer_names, layer_op, run_nodes
from labkit.sensitivity.objective import Objective, make_objective
from labkit.sensitivity.traces import layer_traces

TARGET = 0.05
WHO = ("labkit", "pyhessian")
ROUND = 8  # probes between two looks at the error, and at least two rounds: the rule of `layer_traces`


class Folded(torch.nn.Module):
    """The float network ``graph`` with the weights of all of its layers, or of one of the name ``only``, as parameters."""

    def __init__(self, graph: FloatGraph, only: str | None = None) -> None:
        super().__init__()
        self.graph, self.names = graph, layer_names(graph) if only is None else (only,)
        weights = [torch.from_numpy(layer_op(graph, name).weight).clone() for name in self.names]
        self.weights = torch.nn.ParameterList(weights)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits [N, M] of ``x`` float32 [N, ...]."""
        weights = dict(zip(self.names, self.weights, strict=True))
        return run_nodes(self.graph, {self.graph.inputs[0]: x}, weights)[self.graph.outputs[0]]


def started(objective: Objective, only: str | None = None) -> Any:
    """PyHessian's object for ``objective``: by the weights of all layers, or of the one called ``only``."""
    module, data = Folded(objective.graph, only), (objective.images, objective.targets)
    return importlib.import_module("pyhessian").hessian(module, F.cross_entropy, data=data, cuda=False)


def drawn(found: Any, probes: int) -> np.ndarray:
    """Values of ``v . H v`` by parameter of PyHessian's object ``found``: float64 [probes, parameters]."""
    product = importlib.import_module("pyhessian.utils").hessian_vector_product
    values = np.zeros((probes, len(found.params)))
    for row in values:
        signs = [torch.randint_like(p, high=2) * 2 - 1 for p in found.params]
        products = product(found.gradsH, found.params, signs)
        row[:] = [float((v * hv).sum()) for v, hv in zip(signs, products, strict=True)]
    return values


def own_layer(objective: Objective, layer: str, most: int, seed: int) -> dict[str, Any]:
    """Hutchinson's estimate by labkit for ``layer`` to the target, with at most ``most`` probes drawn with ``seed``."""
    alone = replace(objective, layers=(layer,))
    clock = _clock()
    found = layer_traces(alone, "hutchinson", target=TARGET, most=most, seed=seed)
    return _row(clock, float(found.traces[0]), float(found.probe_errors[0]), int(found.probes[0]))


def other_layer(objective: Objective, layer: str, most: int, seed: int) -> dict[str, Any]:
    """The same by PyHessian, started with the weights of ``layer`` only."""
    torch.manual_seed(seed)
    clock = _clock()
    found, values = started(objective, layer), np.zeros(0)
    while len(values) < most:
        values = np.concatenate([values, drawn(found, ROUND)[:, 0]])
        error = float(values.std(ddof=1) / math.sqrt(len(values)))
        if len(values) >= 2 * ROUND and error <= TARGET * abs(values.mean()):
            break
    return _row(clock, float(values.mean()), error, len(values))


def layer_by_layer(objective: Objective, most: int, seed: int) -> list[dict[str, Any]]:
    """Both to the target for each layer alone, in turns; who begins alternates."""
    rows = []
    for index, layer in enumerate(objective.layers):
        ways = dict(zip(WHO, (own_layer, other_layer), strict=True))
        order = list(ways) if index % 2 else list(reversed(ways))
        found = {who: ways[who](objective, layer, most, seed + index) for who in order}
        rows.append({"layer": layer, **found})
        print(f"  {layer}: labkit {found['labkit']}, PyHessian {found['pyhessian']}", flush=True)
    return rows


def at_once(objective: Objective, probes: int, rounds: int, seed: int) -> dict[str, Any]:
    """Exact traces by labkit and ``probes`` of PyHessian for all weights, in turns, ``rounds`` times; seconds are medians."""
    own, starts, spent, values = [], [], [], []
    torch.manual_seed(seed)
    for _ in range(rounds):
        clock = _clock()
        traces = layer_traces(objective)
        own.append(clock())
        clock = _clock()
        found = started(objective)
        starts.append(clock())
        clock = _clock()
        values.append(drawn(found, probes))
        spent.append(clock())
    samples = np.concatenate(values)
    exact, spreads = traces.traces, samples.std(0, ddof=1)
    needed = np.ceil(np.square(spreads / (TARGET * exact))).astype(int)
    sums = samples.sum(1)
    cpu, wall = (np.median([pair[k] for pair in own]) for k in range(2))
    return {
        "labkit_cpu_seconds": float(cpu),
        "labkit_seconds": float(wall),
        "pyhessian_start_cpu_seconds": float(np.median([cpu for cpu, _ in starts])),
        "pyhessian_probe_cpu_seconds": float(np.median([cpu for cpu, _ in spent])) / probes,
        "pyhessian_probes": len(samples),
        "probes_for_the_sum": math.ceil((sums.std(ddof=1) / (TARGET * exact.sum())) ** 2),
        "probes_for_half_of_the_layers": int(np.median(needed)),
        "probes_for_all_layers": int(needed.max()),
        "traces": exact.tolist(),
        "image_errors": traces.image_errors.tolist(),
        "pyhessian_means": samples.mean(0).tolist(),
        "pyhessian_errors": (spreads / math.sqrt(len(samples))).tolist(),
        "needed": needed.tolist(),
    }


def own_rule(objective: Objective, seed: int) -> dict[str, Any]:
    """PyHessian's `trace` of all weights by its defaults: 100 probes at most, or until the mean moves by less than 0.1 %."""
    torch.manual_seed(seed)
    clock = _clock()
    values = np.asarray(started(objective).trace(), np.float64)
    error = float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan
    return _row(clock, float(values.mean()), error, len(values))


def many_images(graph: FloatGraph, images: np.ndarray) -> dict[str, Any]:
    """Exact traces by labkit on ``images`` float32 [N, ...], and how uncertain their choice still leaves them."""
    clock = _clock()
    found = layer_traces(make_objective(graph, images))
    cpu, wall = clock()
    shares = found.image_errors / found.traces
    return {
        "images": len(images),
        "cpu_seconds": cpu,
        "seconds": wall,
        "median_error": float(np.median(shares)),
        "largest_error": float(shares.max()),
    }


def page(result: dict[str, Any]) -> str:
    """The result as a page."""
    alone, whole, given = result["layer_by_layer"], result["at_once"], result["arguments"]
    rule, many = result["own_rule"], result["many_images"]
    own, other = ({key: sum(row[who][key] for row in alone) for key in ("cpu_seconds", "probes")} for who in WHO)
    reached = [sum(row[who]["error"] <= TARGET * abs(row[who]["mean"]) for row in alone) for who in WHO]
    each = [float(np.median([row[who]["cpu_seconds"] / row[who]["probes"] for row in alone])) for who in WHO]
    exact, layers = np.array(whole["traces"]), len(alone)
    fast = whole["labkit_cpu_seconds"]
    off = [
        np.abs(np.array([row[who]["mean"] for row in alone]) - exact) / np.array([row[who]["error"] for row in alone])
        for who in WHO
    ]
    image_errors = np.array(whole["image_errors"]) / exact

    enough = (many["largest_error"] / TARGET) ** 2

    def extrapolated(probes: int) -> str:
        seconds = whole["pyhessian_start_cpu_seconds"] + probes * whole["pyhessian_probe_cpu_seconds"]
        return f"{seconds:,.0f}"

    threads = f"{given['threads']} thread{'s' if given['threads'] > 1 else ''}"
    lines = [
        "# Traces of the Hessian: labkit and PyHessian",
        "",
        f"The trace of the Hessian's block of each of the {layers} layers of {given['net']}, on the same {given['images']} "
        f"training images of {given['data']}, with the same network (batch norms folded, float32), its own answers as labels, "
        f"{threads}, seconds of the processor. To reach: all layers to a standard error of 5 % in less than 60 s, and faster "
        "than PyHessian.",
        "",
        f"- **labkit's default: {fast:.1f} s for all layers, and exact** for these images: one backward pass for each class, no "
        f"probes, so no error from them. That is {other['cpu_seconds'] / fast:,.0f} times as fast as PyHessian to 5 %, each "
        f"layer alone. {_verdict(fast < 60)}.",
        "- **Hutchinson against Hutchinson**, each layer alone and the same rule for the error: labkit "
        f"{own['cpu_seconds']:.0f} s and {own['probes']:,} probes, PyHessian {other['cpu_seconds']:.0f} s and "
        f"{other['probes']:,} probes; {1000 * each[0]:.0f} and {1000 * each[1]:.0f} ms a probe (medians over the layers). It is "
        f"the same estimate at {_beside(own['cpu_seconds'] / other['cpu_seconds'])}. Less than 60 s: "
        f"{_verdict(own['cpu_seconds'] < 60).lower()}.",
        f"- **The choice of images matters more than either.** {given['images']} images leave a standard error of "
        f"{_percent(float(np.median(image_errors)))} (median over the layers), {many['images']:,} leave "
        f"{_percent(many['median_error'])}, at most {_percent(many['largest_error'])}; the exact way takes "
        f"{many['cpu_seconds']:.0f} s for those. For 5 % of that error in every layer it would take about "
        f"{enough * many['images']:,.0f} images and {enough * many['cpu_seconds']:.0f} s (extrapolated).",
        "",
        "| all layers to 5 % standard error | probes | seconds |",
        "|---|---|---|",
        f"| labkit, one backward pass for each class: exact | | {fast:.1f} |",
        f"| labkit, Hutchinson, each layer alone: {reached[0]} of {layers} reached it | {own['probes']:,} | "
        f"{own['cpu_seconds']:.0f} |",
        f"| PyHessian, started for each layer alone: {reached[1]} of {layers} reached it | {other['probes']:,} | "
        f"{other['cpu_seconds']:.0f} |",
        f"| PyHessian, one probe for all weights, all layers (extrapolated) | {whole['probes_for_all_layers']:,} | "
        f"{extrapolated(whole['probes_for_all_layers'])} |",
        f"| the same, half of the layers (extrapolated) | {whole['probes_for_half_of_the_layers']:,} | "
        f"{extrapolated(whole['probes_for_half_of_the_layers'])} |",
        f"| the same, only the sum over the layers (extrapolated) | {whole['probes_for_the_sum']:,} | "
        f"{extrapolated(whole['probes_for_the_sum'])} |",
        "",
        f"PyHessian's `trace` as it comes, for the sum over all layers: {rule['mean']:,.0f} ± {rule['error']:,.0f} after "
        f"{rule['probes']} probes and {rule['cpu_seconds']:.0f} s; exact: {exact.sum():,.0f}. It is "
        f"{abs(rule['mean'] - exact.sum()) / rule['error']:.1f} standard errors off. Its rule, to stop when the mean moves by "
        f"less than 0.1 %, says nothing about the error, which is {_percent(rule['error'] / exact.sum())} here.",
        "",
        "## Do they agree?",
        "",
        f"Of {layers} layers, labkit's Hutchinson is within two of its standard errors of the exact trace in "
        f"{int((off[0] <= 2).sum())}, PyHessian in {int((off[1] <= 2).sum())}; the largest distances are {off[0].max():.1f} and "
        f"{off[1].max():.1f}. One layer in twenty beyond two is to be expected, and a few more, since stopping when the error "
        "looks small favours estimates that are too small.",
        "",
        "| layer | exact | error from images | labkit, Hutchinson | probes | PyHessian, alone | probes | "
        "probes for 5 % where one serves all weights |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for at, row in enumerate(alone):
        lines.append(
            f"| {row['layer']} | {exact[at]:.4g} | {whole['image_errors'][at]:.2g} | "
            f"{row['labkit']['mean']:.4g} ± {row['labkit']['error']:.2g} | {row['labkit']['probes']} | "
            f"{row['pyhessian']['mean']:.4g} ± {row['pyhessian']['error']:.2g} | {row['pyhessian']['probes']} | "
            f"{whole['needed'][at]:,} |"
        )
    return "\n".join(
        [
            *lines,
            "",
            "## Notes",
            "",
            "- The exact way is exact because this network is piecewise linear in the weights of any one layer. Where it is "
            "not, labkit too has to draw probes.",
            "- Why a layer needs so many probes where one serves all weights: its part of H v holds the blocks that couple it "
            "with every other layer, and an insensitive layer drowns in them (`hutchinson-global` in "
            "[docs/sensitivity.md](../../sensitivity.md)). Extrapolated from the spread of "
            f"{whole['pyhessian_probes']} probes at {whole['pyhessian_probe_cpu_seconds']:.2f} s each.",
            f"- `{result['command']}`. PyHessian {result['versions']['pyhessian']}, torch {result['versions']['torch']}, "
            f"{result['machine']['processor']}. Load average when it began: {result['load_average']:.1f}, which is why seconds "
            "are the processor's and not the clock's. Everything, with versions and seed: [result.json](result.json).",
            "",
        ]
    )


def _beside(ratio: float) -> str:
    """In words, what ``ratio`` of two costs is."""
    if abs(ratio - 1) < 0.1:
        return "the same cost"
    return f"{ratio:.1f} times the cost" if ratio > 1 else f"{100 * ratio:.0f} % of the cost"


def _verdict(reached: bool) -> str:
    return "Reached" if reached else "Not reached"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _clock() -> Callable[[], tuple[float, float]]:
    """A function that says the seconds since now: of the processor and by the clock."""
    cpu, wall = time.process_time(), time.perf_counter()
    return lambda: (time.process_time() - cpu, time.perf_counter() - wall)


def _row(clock: Callable[[], tuple[float, float]], mean: float, error: float, probes: int) -> dict[str, Any]:
    cpu, wall = clock()
    return {"mean": mean, "error": error, "probes": probes, "cpu_seconds": cpu, "seconds": wall}


def main() -> None:
    """Read the arguments, measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--net", default="resnet20")
    parser.add_argument("--data", default="cifar10")
    parser.add_argument("--data-dir", default=None)
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--many", type=int, default=1024, help="images of the exact way's second run")
    parser.add_argument("--most", type=int, default=2000, help="probes of a layer at most")
    parser.add_argument("--probes", type=int, default=32, help="of PyHessian for all weights, in each round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("docs/studies/pyhessian-pairing"))
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    load = load_average()
    data = load_data(given.data, data_dir=given.data_dir)
    images = data.calibration(given.images, given.seed)
    graph = simplify(from_torch(load_model(given.net, data.name), images.shape[1:]))
    objective = make_objective(graph, images)
    layer_traces(
        replace(objective, images=objective.images[:8], targets=objective.targets[:8], outputs=objective.outputs[:8])
    )
    arguments = {key: value for key, value in vars(given).items() if key not in ("out", "data_dir")}
    shown = " ".join(f"--{key.replace('_', '-')} {value}" for key, value in arguments.items())
    result = {
        "command": f"python tools/pair_pyhessian.py {shown}",
        "arguments": arguments,
        "versions": {**versions(), "pyhessian": metadata.version("pyhessian")},
        "machine": machine(),
        "load_average": load,
        "target": TARGET,
        "layer_by_layer": layer_by_layer(objective, given.most, given.seed),
        "at_once": at_once(objective, given.probes, given.rounds, given.seed),
        "own_rule": own_rule(objective, given.seed),
        "many_images": many_images(graph, data.calibration(given.many, given.seed)),
    }
    given.out.mkdir(parents=True, exist_ok=True)
    write_atomically(given.out / "result.json", json.dumps(result, indent=2) + "\n")
    write_atomically(given.out / "README.md", page(result))
    print(page(result))


if __name__ == "__main__":
    main()
