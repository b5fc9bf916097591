"""`verify_against`: compare a net with a runtime, each node on the runtime's own tensors and all of them from end to end."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labkit.errors import InputError, LabkitError
from labkit.graph import int_ops
from labkit.graph.ir import IntGraph, IntNode
from labkit.net import IntegerNet
from labkit.parity.certificate import Certificate, Element, NodeVerdict, rule_of
from labkit.parity.exact import exact_value
from labkit.parity.reach import as_far_as
from labkit.parity.runtimes.opened import LITERT, TORCH, Opened, open_runtime
from labkit.parity.stated import compare_parameters
from labkit.parity.tally import Tally
from labkit.runtimes.rules import RUNTIMES, as_run_by, prepared_for

__all__ = ["Batches", "part_of", "verify_against"]

Arrays = dict[str, NDArray[Any]]
Batches = Callable[[], Iterable[Mapping[str, NDArray[Any]]]]
BATCH = 16  # images at a time
_LABKIT = "labkit"


def verify_against(
    net: IntegerNet,
    runtime: str,
    x: Any,
    path: str | Path | None = None,
    kernels: Any = "numba",
    like: str | None = None,
    processor: Mapping[str, str] | None = None,
    inputs: str = "the images given",
    progress: Callable[[int], None] | None = None,
) -> Certificate:
    """Compare ``net`` with what ``runtime`` itself computes, with tolerance 0.

    Parameters
    ----------
    net : IntegerNet
        It is compared as `IntegerNet.like` that runtime. If it was saved so, it is taken as it is, and its parameters are
        compared with those that the rules make of its scales.
    runtime : one of `labkit.runtimes.rules.RUNTIMES`
        "labkit" compares the tier ``kernels`` with the readable one.
    x : array [N, ...], a dict of them by input name, or a function that gives such dicts, batch by batch, as often as asked
        In the net's own types and layout.
    path : of the .tflite or .onnx file from which the net was read; else the net is exported where the runtime needs a file
    kernels : as in `IntegerNet.run`, the tier that is judged
    like : the rules to follow, if not those of ``runtime``: shows where the two part
    processor : what the certificate shall say of the processor
    inputs : what the certificate shall say of ``x``
    progress : called with the number of images compared so far

    Returns
    -------
    Certificate

    Raises
    ------
    InputError
        There is no such runtime, or an input does not fit the net, or there is none, or both sides would be the readable tier.
    UnsupportedOperation
        The runtime's arithmetic for one of the operations is not known, or the runtime cannot run the net.
    ModelError
        The runtime is not installed.
    """
    own = str(net.graph.notes.get("like", _LABKIT))
    follows = like or (own if runtime == _LABKIT else runtime)
    tier = kernels if isinstance(kernels, str) else kernels.name
    if runtime == _LABKIT and tier == "reference":
        raise InputError(
            "The readable kernels cannot be verified against themselves. Choose other kernels, or a runtime."
        )
    left_out: tuple[str, ...] = ()
    if runtime in TORCH:
        graph, left_out = as_far_as(net.graph, follows)
        net = IntegerNet(graph)
    is_exported = runtime in LITERT and (path is None or Path(path).suffix.lower() != ".tflite")
    if is_exported:
        from labkit.exporters.tflite_form import held_by_tflite

        net = IntegerNet(held_by_tflite(net.graph))
    is_plain = follows == _LABKIT and "like" not in net.graph.notes  # nothing was remade
    judged = remade = net if is_plain else net.like(follows)
    if own == follows and [node.name for node in remade.graph] == [node.name for node in net.graph]:
        judged = net
    plain = prepared_for(net.graph, follows)
    opened = open_runtime(runtime, judged, plain, None if path is None else Path(path))
    work = _Comparison(judged, plain, opened, kernels, follows)
    if judged is net and not is_plain:
        compare_parameters(work.tally, remade.graph, net.graph)
    batches = _batches(net, x)
    images = 0
    for batch in batches():
        images = work.compare(batch, images)
        if progress is not None:
            progress(images)
    if images == 0:
        raise InputError("There are no images to verify with. Hand in at least one, of the shape that the net takes.")
    rivals = work.rivals(runtime)
    if any(rivals.values()):
        for batch in batches():
            work.try_rivals(batch, rivals)
    verdicts = tuple(work.verdict(node, rivals.get(node.name, {})) for node in judged.graph)
    unseen = [v.name for v in verdicts if not v.own[0] and not v.through[0] and v.operation != "Input"]
    remarks = (*opened.remarks, *(f"Left out, with all that rests on it: {reason}" for reason in left_out))
    if unseen:
        remarks += (
            f"{opened.title} does not show {len(unseen)} of {len(verdicts)} nodes ({', '.join(unseen[:6])}"
            f"{', ...' if len(unseen) > 6 else ''}): each is judged with the next one that it shows.",
        )
    return Certificate(
        subject=f"labkit integer net ({tier} kernels, like {follows})",
        against=opened.title,
        images=images,
        comparisons=work.tally.comparisons(),
        first=work.tally.first,
        versions={"labkit": metadata.version("labkit"), **opened.versions},
        remarks=remarks,
        runtime=runtime,
        like=follows,
        processor=dict(processor or {}),
        inputs=inputs,
        nodes=verdicts,
    )


def part_of(graph: IntGraph, name: str, known: Iterable[str]) -> IntGraph:
    """The smallest graph that computes node ``name`` from the ``known`` nodes, which become its inputs.

    A border that is not known is kept where it is met, so that real inputs enter as they do in ``graph``.
    """
    shown = {other for other in known if other != name and graph[other].output.spec is not None}
    needed: dict[str, IntNode] = {}
    waiting = [name]
    while waiting:
        node = graph[waiting.pop()]
        if node.name in needed:
            continue
        if node.name in shown and not isinstance(node.op, int_ops.Constant):
            needed[node.name] = IntNode(node.name, int_ops.Input(node.output.shape), (), node.output)
        else:
            needed[node.name] = replace(node, carries=())
            waiting += node.inputs
    return IntGraph(tuple(needed[node.name] for node in graph if node.name in needed), (name,))


@dataclass
class _Found:
    """What was found of one node so far."""

    own: list[int] = field(default_factory=lambda: [0, 0])
    through: list[int] = field(default_factory=lambda: [0, 0])
    inputs: tuple[str, ...] = ()
    first: Element | None = None


class _Comparison:
    """One net against one opened runtime: counts, parts of the graph, first differences."""

    def __init__(self, net: IntegerNet, plain: IntGraph, opened: Opened, kernels: Any, follows: str) -> None:
        self.net, self.plain, self.opened, self.kernels, self.follows = net, plain, opened, kernels, follows
        self.tally = Tally()
        self.found = {node.name: _Found() for node in net.graph}
        self._parts: dict[str, IntegerNet] = {}

    def compare(self, batch: Mapping[str, NDArray[Any]], first_image: int) -> int:
        """Compare all nodes over ``batch`` of images, the first of which is number ``first_image``; the number after it."""
        theirs = self._shown(batch)
        ours = self.net.trace(dict(batch), kernels=self.kernels)
        for name in self.net.graph.outputs:
            if name not in theirs and not isinstance(self.net.graph[name].op, int_ops.Input | int_ops.Constant):
                self.tally.missing(f"tensor {name}", "nothing to show of this output", f"shape {ours[name].shape}")
        for node in self.net.graph:
            shown = theirs.get(node.name)
            if shown is None or isinstance(node.op, int_ops.Input | int_ops.Constant):
                continue
            found = self.found[node.name]
            own = self._own(node, batch, theirs)
            if own is not None:
                self.tally.node(node.name, shown, own, first_image)
                _count(found.own, shown, own)
                if found.own[1] and found.first is None:
                    found.first = self._element(node, batch, theirs, own, first_image)
            self.tally.tensor(node.name, shown, ours[node.name], first_image)
            _count(found.through, shown, ours[node.name])
        return first_image + len(next(iter(batch.values())))

    def _shown(self, batch: Mapping[str, NDArray[Any]]) -> Arrays:
        """The runtime's tensors of those nodes that the graph has."""
        names = self.found
        return {name: array for name, array in self.opened.run(batch).items() if name in names}

    def rivals(self, runtime: str) -> dict[str, dict[str, IntegerNet]]:
        """By node that differs by itself, the part that computes it under each runtime's rules, made anew from its scales."""
        rivals: dict[str, dict[str, IntegerNet]] = {}
        for name, found in self.found.items():
            if not found.own[1]:
                continue
            rivals[name] = {}
            for other in RUNTIMES:
                if other == self.follows and runtime == _LABKIT:
                    continue  # what differs is what these rules give
                try:
                    rivals[name][other] = IntegerNet(as_run_by(part_of(self.plain, name, found.inputs), other))
                except LabkitError:
                    continue  # it has no such operation
        return rivals

    def try_rivals(self, batch: Mapping[str, NDArray[Any]], rivals: dict[str, dict[str, IntegerNet]]) -> None:
        """Strike out of ``rivals`` those that differ from the runtime over ``batch``."""
        theirs = self._shown(batch)
        for name, parts in rivals.items():
            for other, part in list(parts.items()):
                try:
                    got = part.run(self._entered(part.graph, theirs, batch), kernels="reference")
                except LabkitError:
                    got = None
                if got is None or got.shape != theirs[name].shape or np.any(got != theirs[name]):
                    del parts[other]

    def verdict(self, node: IntNode, rivals: Mapping[str, IntegerNet]) -> NodeVerdict:
        """What was found of ``node``; ``rivals`` that are left give all elements of the runtime."""
        found = self.found[node.name]
        return NodeVerdict(
            node.name,
            type(node.op).__name__,
            rule_of(node.op),
            (found.own[0], found.own[1]),
            (found.through[0], found.through[1]),
            found.inputs,
            found.first,
            tuple(name for name in rivals if name != self.follows),
            self.follows if self.follows in rivals else "",
        )

    def _own(self, node: IntNode, batch: Mapping[str, NDArray[Any]], theirs: Arrays) -> NDArray[Any] | None:
        """The result of ``node`` from the runtime's own tensors."""
        if node.name not in self._parts:
            self._parts[node.name] = IntegerNet(part_of(self.net.graph, node.name, theirs))
            part = self._parts[node.name].graph
            self.found[node.name].inputs = tuple(
                entry for entry in part.inputs if entry in theirs and entry != node.name
            )
        part = self._parts[node.name].graph
        result: NDArray[Any] = self._parts[node.name].run(self._entered(part, theirs, batch), kernels=self.kernels)
        return result

    def _entered(self, part: IntGraph, theirs: Mapping[str, NDArray[Any]], batch: Mapping[str, NDArray[Any]]) -> Arrays:
        """What goes into ``part``: real inputs and the net's own from ``batch``, tensors between from ``theirs``."""
        entered = {}
        for name in part.inputs:
            is_shown = name in theirs and isinstance(part[name].op, int_ops.Input)
            entered[name] = theirs[name] if is_shown else batch[name]
        return entered

    def _element(
        self, node: IntNode, batch: Mapping[str, NDArray[Any]], theirs: Arrays, own: NDArray[Any], first_image: int
    ) -> Element:
        shown = theirs[node.name]
        if shown.shape != own.shape:
            return Element((), f"shape {shown.shape}", f"shape {own.shape}", None, None)
        index = tuple(int(i) for i in np.unravel_index(int(np.argmax(shown != own)), shown.shape))
        exact = None
        plain = self.plain[node.name]
        known = {**{name: batch[name] for name in self.net.graph.inputs}, **theirs}
        if node.inputs and all(name in known for name in node.inputs):
            sources = self.net.graph.inputs_of(node)
            arrays = [
                _inside(known[name], tensor.channels_last) for name, tensor in zip(node.inputs, sources, strict=True)
            ]
            inside = (index[0], index[-1], *index[1:-1]) if node.output.channels_last else index
            exact = exact_value(plain, sources, arrays, inside)
        return Element(
            (index[0] + first_image, *index[1:]),
            str(shown[index]),
            str(own[index]),
            None if exact is None else exact.accumulator,
            None if exact is None else str(exact),
            0 if exact is None else exact.pair,
        )


def _inside(array: NDArray[Any], channels_last: bool) -> NDArray[Any]:
    return np.moveaxis(array, -1, 1) if channels_last else array


def _count(counts: list[int], theirs: NDArray[Any], ours: NDArray[Any]) -> None:
    counts[0] += theirs.size
    counts[1] += int(np.count_nonzero(theirs != ours)) if theirs.shape == ours.shape else theirs.size


def _batches(net: IntegerNet, x: Any) -> Batches:
    if callable(x):
        given: Batches = x
        return given
    whole = net._inputs(x)  # checked, in the layout of the graph
    arrays = {
        name: np.moveaxis(array, 1, -1) if net.graph[name].output.channels_last else array
        for name, array in whole.items()
    }
    count = len(next(iter(arrays.values())))

    def batches() -> Iterator[Arrays]:
        for start in range(0, count, BATCH):
            yield {name: np.ascontiguousarray(array[start : start + BATCH]) for name, array in arrays.items()}

    return batches
