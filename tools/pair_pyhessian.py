"""Traces of every layer's Hessian block, by labkit and by PyHessian, on the same network, images and threads.

    pip install pyhessian
    python tools/pair_pyhessian.py [--net resnet20] [--data cifar10] [--images 64] [--probes 32] [--out FOLDER]

PyHessian is no dependency of labkit; this tool needs it in the environment. It gets the float network with batch norms folded,
as labkit has it, and the network's own answers as labels. Its `trace` gives the whole network's only and stops by a rule
of its own, so the loop over probes is written here, with its own gradients and its own product with the Hessian, in two ways:
one probe for all weights, of which each layer takes its part of v and of H v; and PyHessian started anew for each layer with
only that layer's weights as parameters. From the spread of the probes follows how many of them each layer needs for a
standard error of 5 %, and from the seconds a probe takes, how long that would last. labkit's traces of the same images
are exact.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import time
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


def by_pyhessian(objective: Objective, probes: int, seed: int, only: str | None = None) -> dict[str, Any]:
    """Values of ``v . H v`` of each layer (or of one, ``only``), and the seconds that PyHessian took to start and for the probes.

    ``probes`` and ``seed`` are those of the random signs. The values are float64 [probes, L].
    """
    pyhessian, utils = importlib.import_module("pyhessian"), importlib.import_module("pyhessian.utils")
    torch.manual_seed(seed)
    started = time.process_time()
    module = Folded(objective.graph, only)
    found = pyhessian.hessian(module, F.cross_entropy, data=(objective.images, objective.targets), cuda=False)
    start_seconds, values = time.process_time() - started, np.zeros((probes, len(module.names)))
    started = time.process_time()
    for row in values:
        signs = [torch.randint_like(p, high=2) * 2 - 1 for p in found.params]
        products = utils.hessian_vector_product(found.gradsH, found.params, signs)
        row[:] = [float((v * hv).sum()) for v, hv in zip(signs, products, strict=True)]
    return {"start_seconds": start_seconds, "seconds": time.process_time() - started, "values": values}


def layer_by_layer(objective: Objective, exact: np.ndarray, probes: int, seed: int) -> dict[str, Any]:
    """The probes and seconds for 5 % where PyHessian is started for each layer; ``exact`` are the traces, float64 [L]."""
    needed, seconds, gaps = [], 0.0, []
    for name, trace in zip(objective.layers, exact, strict=True):
        run = by_pyhessian(objective, probes, seed, name)
        values = run["values"][:, 0]
        spread = float(values.std(ddof=1))
        needed.append(math.ceil((spread / (TARGET * trace)) ** 2))
        seconds += run["start_seconds"] + run["seconds"] / probes * needed[-1]
        gaps.append(float((values.mean() - trace) / (spread / np.sqrt(probes))))
    return {"probes": needed, "seconds": seconds, "gaps": gaps, "probes_measured_a_layer": probes}


def paired(objective: Objective, probes: int, layer_probes: int, rounds: int, seed: int) -> dict[str, Any]:
    """Both, in turn, ``rounds`` times; the seconds are medians."""
    own, other = [], []
    for index in range(rounds):
        started = time.process_time()
        traces = layer_traces(objective)
        own.append((time.process_time() - started, traces))
        other.append(by_pyhessian(objective, probes, seed + index))
    seconds = float(np.median([spent for spent, _ in own]))
    start = float(np.median([run["start_seconds"] for run in other]))
    probe = float(np.median([run["seconds"] for run in other])) / probes
    values = np.concatenate([run["values"] for run in other])
    exact, means, spreads = traces.traces, values.mean(0), values.std(0, ddof=1)
    needed = [math.ceil((spread / (TARGET * trace)) ** 2) for spread, trace in zip(spreads, exact, strict=True)]
    total_needed = math.ceil((values.sum(1).std(ddof=1) / (TARGET * exact.sum())) ** 2)
    gaps = (means - exact) / (spreads / np.sqrt(len(values)))
    alone = layer_by_layer(objective, exact, layer_probes, seed)
    return {
        "labkit_seconds": seconds,
        "pyhessian_start_seconds": start,
        "pyhessian_probe_seconds": probe,
        "pyhessian_probes_measured": len(values),
        "pyhessian_probes_for_the_sum_of_layers": total_needed,
        "pyhessian_seconds_for_the_sum_of_layers": start + probe * total_needed,
        "pyhessian_probes_for_half_of_the_layers": int(np.median(needed)),
        "pyhessian_seconds_for_half_of_the_layers": start + probe * float(np.median(needed)),
        "pyhessian_probes_for_all_layers": max(needed),
        "pyhessian_seconds_for_all_layers": start + probe * max(needed),
        "pyhessian_layer_by_layer_seconds": alone["seconds"],
        "pyhessian_layer_by_layer_probes": sum(alone["probes"]),
        "pyhessian_layer_by_layer_probes_measured": layer_probes,
        "largest_gap_in_standard_errors": float(np.abs(gaps).max()),
        "layers": [
            {
                "layer": name,
                "labkit_trace": float(exact[at]),
                "error_from_choice_of_images": float(traces.image_errors[at]),
                "pyhessian_mean": float(means[at]),
                "pyhessian_error": float(spreads[at] / np.sqrt(len(values))),
                "probes_for_5_percent": needed[at],
                "probes_for_5_percent_alone": alone["probes"][at],
            }
            for at, name in enumerate(objective.layers)
        ],
    }


def page(result: dict[str, Any]) -> str:
    """The result as a page."""
    found, given = result["paired"], result["arguments"]
    ratio = found["pyhessian_layer_by_layer_seconds"] / found["labkit_seconds"]
    lines = [
        "# Traces of the Hessian: labkit and PyHessian",
        "",
        f"`{result['command']}`",
        "",
        f"{given['net']} on {given['data']}, {given['images']} training images, batch norms folded, weights only, float32, "
        f"{given['threads']} thread{'s' if given['threads'] > 1 else ''}, medians of {given['rounds']} rounds in turn, CPU time. "
        f"PyHessian {result['versions']['pyhessian']}, torch {result['versions']['torch']}, "
        f"{result['machine']['processor']}. Load average when it began: {result['load_average']:.1f}.",
        "",
        "| | CPU seconds |",
        "|---|---|",
        f"| labkit, all layers, exact for these images | {found['labkit_seconds']:.1f} |",
        f"| PyHessian, gradient with its graph | {found['pyhessian_start_seconds']:.1f} |",
        f"| PyHessian, one probe | {found['pyhessian_probe_seconds']:.2f} |",
        f"| PyHessian, 5 % standard error of the sum over layers: {found['pyhessian_probes_for_the_sum_of_layers']:,} probes | "
        f"{found['pyhessian_seconds_for_the_sum_of_layers']:,.0f} |",
        f"| PyHessian, 5 % for half of the layers: {found['pyhessian_probes_for_half_of_the_layers']:,} probes | "
        f"{found['pyhessian_seconds_for_half_of_the_layers']:,.0f} |",
        f"| PyHessian, 5 % for all layers: {found['pyhessian_probes_for_all_layers']:,} probes | "
        f"{found['pyhessian_seconds_for_all_layers']:,.0f} |",
        f"| PyHessian, started for each layer alone, 5 % for all: {found['pyhessian_layer_by_layer_probes']:,} probes in all | "
        f"{found['pyhessian_layer_by_layer_seconds']:,.0f} |",
        "",
        f"PyHessian's seconds for 5 % are computed from the spread of {found['pyhessian_probes_measured']} probes "
        f"({found['pyhessian_layer_by_layer_probes_measured']} of each layer alone) and the time they took. Its better way, "
        f"layer by layer, would take {ratio:,.0f} times as long as labkit.",
        "",
        f"The two agree: over {len(found['layers'])} layers the largest gap between PyHessian's mean and labkit's trace is "
        f"{found['largest_gap_in_standard_errors']:.1f} of its standard errors.",
        "",
        "Why a layer needs so many probes where one serves all weights: its part of H v holds the blocks that couple it with "
        "every other layer, and an insensitive layer drowns in them (`hutchinson-global` in "
        "[docs/sensitivity.md](../../sensitivity.md)). The choice of images, in the third column, matters more than any "
        "probe does; it is the same for both.",
        "",
        "| layer | trace, labkit | error from images | mean, PyHessian | its error | probes for 5 % | layer alone |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in found["layers"]:
        lines.append(
            f"| {row['layer']} | {row['labkit_trace']:.4g} | {row['error_from_choice_of_images']:.2g} | "
            f"{row['pyhessian_mean']:.4g} | {row['pyhessian_error']:.2g} | {row['probes_for_5_percent']:,} | "
            f"{row['probes_for_5_percent_alone']:,} |"
        )
    return "\n".join([*lines, "", "Everything, with versions and seed: [result.json](result.json).", ""])


def main() -> None:
    """Read the arguments, measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--net", default="resnet20")
    parser.add_argument("--data", default="cifar10")
    parser.add_argument("--data-dir", default=None)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--probes", type=int, default=32, help="of PyHessian in each round")
    parser.add_argument("--layer-probes", type=int, default=16, help="of PyHessian for each layer alone")
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
    arguments = {key: value for key, value in vars(given).items() if key not in ("out", "data_dir")}
    shown = " ".join(f"--{key.replace('_', '-')} {value}" for key, value in arguments.items())
    result = {
        "command": f"python tools/pair_pyhessian.py {shown}",
        "arguments": arguments,
        "versions": {**versions(), "pyhessian": metadata.version("pyhessian")},
        "machine": machine(),
        "load_average": load,
        "target": TARGET,
        "paired": paired(make_objective(graph, images), given.probes, given.layer_probes, given.rounds, given.seed),
    }
    given.out.mkdir(parents=True, exist_ok=True)
    write_atomically(given.out / "result.json", json.dumps(result, indent=2) + "\n")
    write_atomically(given.out / "README.md", page(result))
    print(page(result))


if __name__ == "__main__":
    main()
