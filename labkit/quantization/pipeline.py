"""`quantize`: a trained module and some images in, an `IntegerNet` out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from labkit.errors import InputError, ModelError, QuantizationError
from labkit.frontends.torch_fx import from_torch, parameters_digest
from labkit.graph.ir import FloatGraph
from labkit.graph.passes import simplify
from labkit.net import IntegerNet
from labkit.quantization.batches import image_batches
from labkit.quantization.calibration import calibrate, choose_ranges
from labkit.quantization.convert import check_plan, convert
from labkit.quantization.inputs import Given, named_batches
from labkit.quantization.plan import BitPlan
from labkit.quantization.quantized_loss import quantized_loss
from labkit.quantization.ranges import ALL_RANGES, RANGES
from labkit.quantization.weight_rounding.best import BEST, BEST_METHOD
from labkit.quantization.weight_rounding.driver import METHODS as METHODS_OF_ROUNDING
from labkit.quantization.weight_rounding.driver import round_weights
from labkit.quantization.weight_rounding.options import RoundingOptions

if TYPE_CHECKING:
    from torch import nn

__all__ = ["METHODS", "ROUNDINGS", "chosen_methods", "quantize"]

ROUNDINGS = METHODS_OF_ROUNDING
METHODS: dict[str, dict[str, Any]] = {
    **{name: {"ranges": name} for name in ALL_RANGES},
    **{name: {"rounding": name} for name in ROUNDINGS},
    "best": {"rounding": BEST_METHOD, "rounding_options": BEST},
}
_LOSS_IMAGES = 256  # LAPQ runs the network on them some hundred times


def quantize(
    module: nn.Module | FloatGraph | str | Path,
    batches: Any,
    weights: int = 8,
    activations: int = 8,
    ranges: str = "minmax",
    rounding: str = "nearest",
    method: str | None = None,
    plan: BitPlan | None = None,
    per_channel: bool = True,
    activation_scheme: str = "affine",
    weight_ranges: str = "minmax",
    rounding_options: RoundingOptions | None = None,
    seed: int = 0,
    progress: Callable[[str, int, int], None] | None = None,
) -> IntegerNet:
    """Quantize a trained network after training: fold, calibrate, round, convert.

    Parameters
    ----------
    module : torch.nn.Module, FloatGraph, or the path of a float ``.onnx`` file
        Any network of the supported operations (docs/support.md); it is not changed.
    batches : array or tensor [N, ...], or any iterable of them
        A few hundred images like those of training, in the module's own float32 input layout. No labels are needed. For
        several inputs a dict of arrays by name, or a list of dicts, as `labkit.quantization.inputs.named_batches` takes them; a
        module is then translated for the longest of them.
    weights, activations : int
        Bits: 1..8 and 2..8. The network's input and output keep 8 bits; a ``plan`` can say otherwise.
    ranges : str
        How activation ranges are chosen: minmax, 3sigma, ema, percentile, mse, l2.4, kl, aciq or lapq.
    rounding : str
        How weights are rounded: nearest, or a method that looks at the images, one of `ROUNDINGS`.
    method : str, optional
        A preset that fills the rest: the name of one of the ranges or roundings, or "best", the strongest combination
        found (`labkit.quantization.weight_rounding.best`).
    plan : BitPlan, optional
        Bits layer by layer; replaces ``weights``, ``activations``, ``per_channel``, ``activation_scheme`` and
        ``weight_ranges``.
    per_channel : bool
        One weight scale for each output channel (True) or each layer.
    activation_scheme : "affine" or "symmetric"
        Unsigned with a zero point, or signed without.
    weight_ranges : str
        How far weights that are rounded to nearest may reach before they are clipped: minmax, 3sigma, percentile, mse,
        l2.4, kl or aciq. Other roundings choose their grid by ``rounding_options.grid``.
    rounding_options : RoundingOptions, optional
        Everything that a rounding but "nearest" can be told.
    seed : int
        Of what a rounding draws at random.
    progress : function, optional
        Called with (step, done, total) while weights are rounded by anything but "nearest".

    Returns
    -------
    IntegerNet
        Takes the module's float32 input and returns its float32 output; all between is integer.

    Raises
    ------
    QuantizationError
        Bits, ranges or calibration data make no sense.
    ModelError
        The module holds something that cannot be quantized.
    InputError
        The images do not fit the module.
    """
    ranges, rounding, rounding_options = chosen_methods(method, ranges, rounding, rounding_options)
    if plan is not None and not isinstance(plan, BitPlan):
        raise QuantizationError(f"plan must be a BitPlan (BitPlan.load reads one), got {type(plan).__name__}.")
    given = (weights, activations, per_channel, activation_scheme, weight_ranges)
    if plan is not None and given != (8, 8, True, "affine", "minmax"):
        raise QuantizationError(
            "A plan says all about bits and grids: give either plan, or weights, activations, per_channel, "
            "activation_scheme and weight_ranges."
        )
    chosen = weight_ranges if plan is None else plan.weight_ranges
    if rounding != "nearest" and chosen != "minmax":
        raise QuantizationError(
            f"weight_ranges={chosen!r} are for rounding='nearest'; {rounding!r} chooses its own grid: leave them out and "
            f"give rounding_options=RoundingOptions(grid=...)."
        )
    images: Any = (batches := _listed(batches))
    example: tuple[int, ...] | dict[str, Any] | None = _example(batches)
    if example is None and not (isinstance(module, FloatGraph) and len(module.inputs) > 1):
        images, example = _peek(batches)
    given_graph, source, digest = _float_network(module, example or ())
    shortest = _example(batches, longest=False)
    if isinstance(example, dict) and shortest is not None and not isinstance(module, FloatGraph | str | Path):
        _check_lengths(module, given_graph, example, shortest)
    graph = simplify(given_graph)
    if plan is None:
        options: dict[str, Any] = {"per_channel": per_channel, "activation_scheme": activation_scheme}
        plan = BitPlan.uniform(graph, weights, activations, **options, weight_ranges=weight_ranges)
    check_plan(graph, plan)  # before the images are looked at, which may take long
    seen: list[Given] = []
    wanted = rounding_options.images if rounding != "nearest" else _LOSS_IMAGES if ranges == "lapq" else 0
    if ranges == "lapq" and len(graph.inputs) > 1:
        raise QuantizationError(f"Ranges by 'lapq' need a network of one input, got {', '.join(graph.inputs)}.")
    images = _keeping(_told(named_batches(graph, images), batches, progress), seen, wanted)
    if ranges in RANGES:
        calibration = calibrate(graph, images, ranges)
    else:
        calibration = calibrate(graph, images, histograms=ranges != "ema")
        told = {}
        if ranges == "lapq":
            first = np.concatenate([given[graph.inputs[0]] for given in seen])[:_LOSS_IMAGES]
            told["loss"] = quantized_loss(graph, calibration, plan, first)
        calibration = choose_ranges(calibration, graph, plan, ranges, **told)
    notes: dict[str, Any] = {
        "rounding": rounding,
        "source": source,
        "parameters_sha256": digest,
    }
    if rounding == "nearest":
        return IntegerNet(convert(graph, calibration, plan, notes))
    tell = None if progress is None else partial(progress, "Round weights")
    result = round_weights(graph, calibration, plan, seen, rounding, rounding_options, seed, progress=tell)
    notes |= {"seed": seed, "rounding_options": asdict(rounding_options)}
    return IntegerNet(convert(graph, result.calibration, plan, notes, result.layers))


def chosen_methods(
    method: str | None = None,
    ranges: str = "minmax",
    rounding: str = "nearest",
    options: RoundingOptions | None = None,
) -> tuple[str, str, RoundingOptions]:
    """Ranges, rounding and its options, with what a preset says in place of what was left out.

    Parameters
    ----------
    method, ranges, rounding : names, as in `quantize`
    options : of the rounding

    Raises
    ------
    QuantizationError
        There is no such name, or two of them contradict each other.
    """
    if method is not None:
        if method not in METHODS:
            raise QuantizationError(f"method must be one of {', '.join(METHODS)}, got {method!r}.")
        given = {"ranges": ranges, "rounding": rounding, "rounding_options": options}
        left_out = {"ranges": "minmax", "rounding": "nearest", "rounding_options": None}
        for name, value in METHODS[method].items():
            if given[name] not in (left_out[name], value):
                raise QuantizationError(
                    f"method={method!r} means {name}={value!r}, but {name}={given[name]!r} is given: drop one."
                )
            given[name] = value
        ranges, rounding = str(given["ranges"]), str(given["rounding"])
        options = cast(RoundingOptions | None, given["rounding_options"])
    for what, got, allowed in (("ranges", ranges, ALL_RANGES), ("rounding", rounding, ROUNDINGS)):
        if got not in allowed:
            raise QuantizationError(f"{what} must be one of {', '.join(allowed)}, got {got!r}.")
    if options is not None and rounding == "nearest":
        raise QuantizationError(
            "rounding_options are for roundings that look at images, and rounding='nearest' does not: drop one."
        )
    return ranges, rounding, options or RoundingOptions()


def _float_network(
    module: nn.Module | FloatGraph | str | Path, example: tuple[int, ...] | Mapping[str, Any]
) -> tuple[FloatGraph, str, str]:
    """The float network that is meant, for a shape or an example by input name; its source, and its parameters' SHA-256."""
    if isinstance(module, FloatGraph | str | Path):
        from labkit.frontends.onnx.float_graph import read_float_onnx
        from labkit.frontends.onnx.float_graph_module import graph_digest

        if not isinstance(module, FloatGraph) and Path(module).suffix.lower() != ".onnx":
            raise ModelError(
                f"A network is a torch.nn.Module, a FloatGraph or the path of a float .onnx file, got {str(module)!r}. A shipped "
                f"network comes from labkit.models.load."
            )
        graph = module if isinstance(module, FloatGraph) else read_float_onnx(module)
        return graph, "FloatGraph" if graph is module else Path(str(module)).name, graph_digest(graph)
    return from_torch(module, example), type(module).__name__, parameters_digest(module)


def _keeping(batches: Iterable[Given], seen: list[Given], wanted: int) -> Iterable[Given]:
    """The same batches; the first ``wanted`` images or sentences are also put into ``seen``."""
    for given in batches:
        if wanted > 0:
            seen.append({name: array[:wanted] for name, array in given.items()})
            wanted -= len(next(iter(seen[-1].values())))
        yield given


def _told(given: Iterable[Given], batches: Any, tell: Callable[[str, int, int], None] | None) -> Iterable[Given]:
    """``given`` again, which ``tell`` how many sentences of the list ``batches`` were taken; nothing of what is no list."""
    if tell is None or not isinstance(batches, list) or not all(isinstance(one, Mapping) and one for one in batches):
        yield from given
        return
    done, total = 0, sum(len(next(iter(one.values()))) for one in batches)
    tell("Calibrate", done, total)
    for part in given:
        yield part
        done += len(next(iter(part.values())))  # the next one is asked for when this one has been worked on
        tell("Calibrate", done, total)


def _listed(batches: Any) -> Any:
    """``batches`` as a list where they are a stream of dicts, such as a DataLoader's, which is looked at more than once."""
    is_array = hasattr(batches, "__array__") or hasattr(batches, "detach")
    if is_array or isinstance(batches, Mapping | list | tuple | str) or not isinstance(batches, Iterable):
        return batches
    stream = iter(batches)
    first = next(stream, None)
    if first is None:
        return []
    return [first, *stream] if isinstance(first, Mapping) else chain([first], stream)


def _check_lengths(module: nn.Module, graph: FloatGraph, longest: dict[str, Any], shortest: dict[str, Any]) -> None:
    """Refuse a ``module`` that computes something else at the length of ``shortest`` than ``graph``, made for ``longest``."""
    if all(np.shape(shortest[name]) == np.shape(array) for name, array in longest.items() if name in shortest):
        return
    from labkit.frontends.torch_lengths import check_length

    check_length(module, graph, shortest)


def _example(batches: Any, longest: bool = True) -> dict[str, Any] | None:
    """Two rows of the ``longest`` or shortest of some dicts of arrays by input name; None where ``batches`` are anything else."""
    dicts = [batches] if isinstance(batches, Mapping) else batches
    if not isinstance(dicts, list | tuple) or not dicts or not all(isinstance(one, Mapping) and one for one in dicts):
        return None
    try:
        chosen = (max if longest else min)(dicts, key=lambda one: max(np.shape(array)[-1:] for array in one.values()))
        return {str(name): np.resize(np.asarray(array), (2, *np.shape(array)[1:])) for name, array in chosen.items()}
    except ValueError as error:  # lists of lists that differ in length
        raise InputError(
            f"Inputs must be arrays [N, ...] by the names of the forward method's arguments: {str(error).partition('. ')[0]}. "
            f"Put sequences of one length into a batch: batches may differ in length."
        ) from error


def _peek(batches: Any) -> tuple[Iterable[Any], tuple[int, ...]]:
    """All of the images again, and the shape of one of them."""
    stream = image_batches(batches)
    first = next(stream, None)
    if first is None:
        raise QuantizationError(
            "The calibration set is empty, so no ranges can be found. Hand in a few hundred images like those of training, "
            "for example labkit.data.load('auto').calibration(512)."
        )
    return chain([first], stream), first.shape[1:]
