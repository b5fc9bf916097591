"""`verify`: compare every parameter and every tensor of an integer net with PyTorch's own computation of them."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from labkit import __version__
from labkit.arithmetic.fixedpoint import FixedPointMultiplier
from labkit.arithmetic.requantize import RoundingRule
from labkit.errors import InputError, ModelError
from labkit.frontends.torch_fx import parameters_digest
from labkit.graph import float_ops, int_ops, passes
from labkit.graph.ir import FloatGraph, IntGraph, IntNode
from labkit.graph.lengths import at_length, length_of
from labkit.net import IntegerNet
from labkit.parity.chosen_ends import check_ends, saved_ends
from labkit.parity.emulate_sequences import SequenceEmulation
from labkit.parity.emulate_torch import Emulation
from labkit.parity.memory import image_bytes
from labkit.parity.report import ParityReport
from labkit.parity.restate_torch import run_graph
from labkit.parity.tally import Tally
from labkit.parity.torch_steps import DecidedWeights
from labkit.parity.translated import Translated, is_of_sequences, translated
from labkit.quantization.batches import WORKERS, checked_batches, images_for, in_threads, sized_batches
from labkit.quantization.calibration import Calibration
from labkit.quantization.plan import BitPlan
from labkit.quantization.rounded import rounded_digest

__all__ = ["decided_weights", "parameters_of", "verify"]

_Batch = dict[str, NDArray[Any]]  # by input name, in the layout of the source

BATCH = 64  # images at a time, if they are small
BUDGET = 1 << 29  # bytes of all batches that are worked on at the same time


def verify(
    net: IntegerNet,
    module: nn.Module | FloatGraph | None,
    x: Any,
    kernels: Any = "numba",
    progress: Callable[[int], None] | None = None,
) -> ParityReport:
    """Compare ``net`` with an integer emulation in PyTorch, with tolerance 0.

    Parameters
    ----------
    net : IntegerNet
    module : torch.nn.Module, FloatGraph or None
        The float module that the net was made from, or its float graph: weights, scales, biases and multipliers are
        derived from it and from the saved calibration and bit plan alone. None: the net's own integers are run in PyTorch
        (proves execution only).
    x : array or tensor [N, ...], a dict of them by input name, or any iterable of these
        In the module's float32 input layout; with a graph or without a module what the net takes, in its own types and layout.
    kernels : as in `IntegerNet.run`
        The tier that is judged.
    progress : called with the number of images compared so far

    Returns
    -------
    ParityReport
        With the first differing element, or the number of elements among which none differs.

    Raises
    ------
    ModelError
        The net has no saved calibration, or was not made from this module.
    InputError
        An image does not fit the net, or there is none.
    """
    if not isinstance(net, IntegerNet):
        raise InputError(f"verify takes the integer net first, then the module: got {type(net).__name__} as the net.")
    tally = Tally()
    graph = net.graph
    decided = {} if module is None else decided_weights(graph)
    remarks: tuple[str, ...] = ()
    other_parameters, source, emulation = "", None, None
    if isinstance(module, nn.Module) and is_of_sequences(module, graph):
        source = translated(module, graph)
    if module is not None:
        other_parameters = _other_parameters(tally, graph, module, source, bool(decided))
        emulation = _emulation(graph, module, source, decided)
        remarks = _compare_derived(tally, graph, emulation, decided)

    def judge(item: tuple[int, _Batch]) -> tuple[int, Tally]:
        first_image, batch = item
        part = Tally()
        got = net.trace(batch, kernels=kernels)
        for name, expected in _expected(graph, emulation, batch):
            part.tensor(name, expected.numpy(), got.get(name), first_image)
        return first_image + len(next(iter(batch.values()))), part

    images = 0
    workers, size = _share(graph, WORKERS if isinstance(kernels, str) else 1)  # your own may not be made for threads
    takes_images = isinstance(emulation, Emulation)
    batches = _images(graph, x, size) if takes_images else checked_batches(x, net.checked, size)
    for images, part in in_threads(judge, _numbered(batches), workers):
        tally.add(part)
        if progress is not None:
            progress(images)
    if images == 0:
        raise InputError("There are no images to verify with. Hand in at least one, of the shape that the net takes.")
    against = "an integer emulation in PyTorch, " + (
        "from the net's own integers"
        if module is None
        else "derived from the float graph"
        if isinstance(module, FloatGraph)
        else f"derived from the float module {type(module).__name__}"
    )
    if decided:
        count = sum(layer.integers.numel() for layer in decided.values())
        remarks += (
            f"Not derived, and not counted: {count:,} integer weights of {len(decided)} layers, their scales and real biases, "
            f"which a rounding method decided ({graph.notes['rounding']}); they are those that were saved when it did.",
        )
    if other_parameters and (
        source is None or tally.first is not None
    ):  # a net may be made of a simplified graph, whose digest is another
        remarks = (other_parameters, *remarks)
    subject = f"labkit integer net ({kernels if isinstance(kernels, str) else kernels.name} kernels)"
    return ParityReport(subject, against, images, tally.comparisons(), tally.first, _versions(), remarks)


def _other_parameters(
    tally: Tally, graph: IntGraph, module: nn.Module | FloatGraph, source: Translated | None, some_decided: bool
) -> str:
    """A sentence where the parameters are not those of which ``graph`` was made; a difference where nothing else would tell."""
    made_of, given = graph.notes.get("parameters_sha256"), _digests(module, source)
    what = "graph" if isinstance(module, FloatGraph) else "module"
    if some_decided and made_of not in given:  # integers that are not derived from the parameters
        tally.missing(f"parameters of the {what}, sha256", str(made_of), given[0])
    if made_of in (None, *given):
        return ""
    return f"The {what}'s parameters are not those that were quantized: made anew without a seed, or other weights?"


def _compare_derived(
    tally: Tally,
    graph: IntGraph,
    emulation: Emulation | SequenceEmulation,
    decided: Mapping[str, DecidedWeights],
) -> tuple[str, ...]:
    """Compare all parameters of ``graph`` with those that ``emulation`` derived; a sentence on what was not derived."""
    plan, derived = BitPlan.from_json(graph.notes["plan"]), emulation.parameters
    remarks: tuple[str, ...] = ()
    names = {node.name for node in graph}
    if ends := saved_ends(graph, plan):
        check_ends(tally, plan, {name: pair for name, pair in ends.items() if name in derived}, emulation.folded)
        remarks = (
            f"Scales and integers of weights are derived from the ends of their ranges that were saved; the same method "
            f"({plan.weight_ranges}), run again on the module's weights, was to choose these ends again.",
        )
    for node in graph:
        if not isinstance(node.op, int_ops.Dequantize):
            _compare_parameters(tally, node, derived.get(node.name), node.name in decided)
    for name in derived:
        if name not in names:
            tally.missing(f"node {name}", "present", "absent")
    return remarks


def parameters_of(node: IntNode) -> dict[str, NDArray[np.generic]]:
    """Every number of ``node`` that decides its result: arrays of any shape by name, in the dtypes in which they are stored."""
    if node.output.is_index:
        return {}
    spec, params = node.output.quantized
    found: dict[str, Any] = {
        "scale": params.scale,
        "zero_point": params.zero_point,
        "grid": (spec.qmin, spec.qmax),
    }
    op = node.op
    if isinstance(op, int_ops.Conv2d | int_ops.Linear | int_ops.Embedding):
        found |= {
            "weight": op.weight.values,
            "weight_grid": (op.weight.spec.qmin, op.weight.spec.qmax),
            "weight_scale": op.weight.params.scale,
            "weight_zero_point": op.weight.params.zero_point,
        }
    if isinstance(op, int_ops.Conv2d | int_ops.Linear):
        found["bias"] = op.bias
    if isinstance(op, int_ops.GeluPolynomial):
        found |= {"b": op.b, "c": op.c, "one": op.one}
    if isinstance(op, _WITH_ONE_REQUANTIZER):
        found |= _numbers_of(op.requantizer)
    elif isinstance(op, int_ops.Concat):
        parts = [_numbers_of(requantizer) for requantizer in op.requantizers]
        names = dict.fromkeys(name for part in parts for name in part)
        found |= {name: np.array([part[name] for part in parts if name in part]) for name in names}
    elif not isinstance(op, int_ops.UpsampleNearest2d):
        found |= _numbers_of(op)
    return {name: np.asarray(value) for name, value in found.items()}


_WITH_ONE_REQUANTIZER = (
    *(int_ops.Conv2d, int_ops.Linear, int_ops.AveragePool2d, int_ops.AdaptiveAveragePool2d, int_ops.Multiply),
    *(int_ops.Requantize, int_ops.Embedding, int_ops.MatMul, int_ops.GeluPolynomial),
)
# fields that say what is computed, not with which numbers; a zero point is that of the output
_SETTINGS = ("axes", "axis", "kernel", "padding", "shape", "stride", "dilation", "output_size", "zero_point")


def _numbers_of(holder: Any) -> dict[str, Any]:
    """The numbers in the fields of a requantizer or of an operation; a fixed-point multiplier gives two."""
    found: dict[str, Any] = {}
    for field in fields(holder):
        value = getattr(holder, field.name)
        if isinstance(value, FixedPointMultiplier):
            prefix = "" if field.name == "multiplier" else f"{field.name}_"
            found |= {f"{prefix}mantissa": value.mantissa, f"{prefix}exponent": value.exponent}
        elif value is not None and field.name not in _SETTINGS and not isinstance(value, RoundingRule | str | bool):
            found[field.name] = value
    return found


def decided_weights(graph: IntGraph) -> dict[str, DecidedWeights]:
    """By layer, what a rounding method decided: the integer weights of ``graph`` and the biases that it saved with them.

    Raises
    ------
    ModelError
        The saved biases do not fit the network, no rounding method is named, or weights or biases are not those saved.
    """
    found = {}
    biases = graph.notes.get("rounded_biases", {})
    if biases and graph.notes.get("rounding", "nearest") == "nearest":
        raise ModelError(
            "The net has weights that a rounding method decided, but names none, or rounding to nearest, which is derived. "
            "Make it again with labkit.quantize."
        )
    for name, bias in biases.items():
        op = graph[name].op if name in {node.name for node in graph} else None
        if not isinstance(op, int_ops.Conv2d | int_ops.Linear) or len(bias) != len(op.weight.values):
            raise ModelError(
                f"The net names biases of rounded weights for {name!r}, which do not fit it. Make it again with labkit.quantize."
            )
        found[name] = DecidedWeights(
            torch.tensor(op.weight.values).long(),
            torch.tensor(op.weight.params.scale),
            torch.tensor(op.weight.params.zero_point).long(),
            (op.weight.spec.qmin, op.weight.spec.qmax),
            torch.tensor(bias, dtype=torch.float32),
        )
    if biases and graph.notes.get("rounded_sha256") != rounded_digest(graph.nodes, biases):
        raise ModelError(
            "The weights that a rounding method decided are not those that were saved with the net: it was changed or damaged. "
            "Make it again with labkit.quantize."
        )
    return found


def _digests(module: nn.Module | FloatGraph, source: Translated | None) -> tuple[str, ...]:
    """The SHA-256 under which a net may have noted the parameters that it was made from."""
    if isinstance(module, FloatGraph):
        from labkit.frontends.onnx.float_graph_module import graph_digest

        return (graph_digest(module),)
    return (parameters_digest(module),) if source is None else source.digests


def _emulation(
    graph: IntGraph,
    module: nn.Module | FloatGraph,
    source: Translated | None,
    decided: Mapping[str, DecidedWeights],
) -> Emulation | SequenceEmulation:
    missing = [key for key in ("calibration", "plan") if key not in graph.notes]
    if missing:
        raise ModelError(
            f"This net carries no {' and no '.join(missing)}, so its parameters cannot be derived from a module. "
            f"Verify it without one, or make it with labkit.quantize."
        )
    calibration, plan = Calibration.from_json(graph.notes["calibration"]), BitPlan.from_json(graph.notes["plan"])
    kind = type(module).__name__
    if isinstance(module, nn.Module):
        for name, tensor in module.state_dict().items():
            if not torch.isfinite(tensor).all():
                raise ModelError(
                    f"{name} of the {kind} holds NaN or infinite values. Give the module that was quantized."
                )
    ends = saved_ends(graph, plan)
    emulation: Emulation | SequenceEmulation
    try:
        if isinstance(module, FloatGraph):
            emulation = SequenceEmulation(_as_long(passes.simplify(module), graph), calibration, plan, decided, ends)
        elif source is not None:
            emulation = SequenceEmulation(source.graph, calibration, plan, decided, ends)
            emulation.anchor(source.inputs, source.expected, kind)
        else:
            shape = graph[graph.inputs[0]].output.shape
            emulation = Emulation(module, calibration, plan, shape, decided, ends)
    except (KeyError, InputError) as error:
        what = f"its calibration and bit plan do not name {error}." if isinstance(error, KeyError) else str(error)
        raise ModelError(
            f"The net was not made from this {kind}: {what} Give the module that was quantized."
        ) from error
    if len(emulation.outputs) != len(graph.outputs):
        raise ModelError(
            f"The {kind} has {len(emulation.outputs)} outputs, the net {len(graph.outputs)}: it was not made "
            f"from this module. Give the module that was quantized."
        )
    if isinstance(module, FloatGraph) and set(module.inputs) != set(graph.inputs):
        raise ModelError(
            f"The float graph takes {', '.join(module.inputs)}, the net {', '.join(graph.inputs)}: it was not made from this "
            f"graph. Give the graph that was quantized."
        )
    return emulation


def _as_long(float_graph: FloatGraph, graph: IntGraph) -> FloatGraph:
    """``float_graph`` for sequences as long as those of ``graph``, which may have been made shorter (`IntegerNet.at_length`)."""
    made_for = {node.name: tuple(node.op.shape) for node in float_graph if isinstance(node.op, float_ops.Input)}
    same = all(made_for.get(name) in (None, graph[name].output.shape) for name in graph.inputs)
    return float_graph if same else at_length(float_graph, length_of(graph))


def _expected(
    graph: IntGraph, emulation: Emulation | SequenceEmulation | None, batch: _Batch
) -> Iterator[tuple[str, torch.Tensor]]:
    """What each node must put out for ``batch``, by name, in the order of the graph; only outputs are held on to."""
    given = {name: torch.from_numpy(array) for name, array in batch.items()}
    if emulation is None:
        last = {node.name for node in graph if node.output.channels_last}
        for name, result in run_graph(graph, {n: x.movedim(-1, 1) if n in last else x for n, x in given.items()}):
            yield name, result.movedim(1, -1) if name in last else result
        return
    outputs = {}
    steps = emulation.run(given[graph.inputs[0]]) if isinstance(emulation, Emulation) else emulation.run(given)
    try:
        for name, result in steps:
            if name in emulation.outputs:
                outputs[name] = result
            yield name, result
    except (RuntimeError, ValueError, IndexError) as error:
        raise ModelError(
            f"The module cannot be run on the net's integers ({' '.join(str(error).split())[:150]}): the net was not made "
            f"from it. Give the module that was quantized."
        ) from error
    borders = {
        border: emulation.dequantized(name, outputs[name])
        for border, name in zip(graph.outputs, emulation.outputs, strict=True)
        if not graph[border].output.is_index  # an index leaves as it is
    }
    yield from borders.items()


_DECIDED = ("weight", "weight_grid", "weight_scale", "weight_zero_point")


def _compare_parameters(
    tally: Tally, node: IntNode, expected: Mapping[str, torch.Tensor] | None, is_decided: bool
) -> None:
    if expected is None:
        tally.missing(f"node {node.name}", "absent", "present")
        return
    got = parameters_of(node)
    for rule in _rules(node):
        if rule is not RoundingRule.SINGLE:  # what labkit's conversion promises, and what the emulation computes
            tally.missing(f"{node.name}.rule", RoundingRule.SINGLE.name, rule.name)
    for name in sorted((set(expected) | set(got)) - set(_DECIDED if is_decided else ())):
        where = f"{node.name}.{name}"
        if name not in expected or name not in got:
            tally.missing(where, "present" if name in expected else "absent", "present" if name in got else "absent")
        else:
            tally.parameter(where, expected[name].numpy(), got[name])


def _rules(node: IntNode) -> list[RoundingRule]:
    requantizers = getattr(node.op, "requantizers", (getattr(node.op, "requantizer", None),))
    return [requantizer.rule for requantizer in requantizers if requantizer is not None]


def _images(graph: IntGraph, x: Any, size: int) -> Iterator[_Batch]:
    """The float32 images ``x`` in batches of at most ``size``, for a net with one input."""
    for batch in sized_batches(x, size):
        yield {graph.inputs[0]: batch}


def _numbered(batches: Iterator[_Batch]) -> Iterator[tuple[int, _Batch]]:
    """Each batch with the number of its first image."""
    first_image = 0
    for batch in batches:
        yield first_image, batch
        first_image += len(next(iter(batch.values())))


def _share(graph: IntGraph, workers: int) -> tuple[int, int]:
    """How many workers, of at most ``workers``, verify ``graph`` side by side, and how many images each takes at a time."""
    each = image_bytes(graph)
    workers = images_for(BUDGET, each, workers)
    return workers, images_for(BUDGET // workers, each, BATCH)


def _versions() -> dict[str, str]:
    import numba

    return {
        "labkit": __version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "numba": numba.__version__,
        "torch": str(torch.__version__),
        "machine": f"{platform.system()} {platform.machine()}",
    }
