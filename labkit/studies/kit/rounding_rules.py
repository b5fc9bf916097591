"""The same integer networks under every runtime's rounding rules: where they differ, how much, and how many ties there are."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labkit.data import load as load_data
from labkit.errors import UnsupportedOperation
from labkit.graph import int_ops
from labkit.graph.ir import IntGraph
from labkit.net import IntegerNet
from labkit.parity.against_runtime import part_of
from labkit.quantization.convert import convert
from labkit.runtimes.pools import with_pools_that_keep_scale
from labkit.runtimes.rules import RUNTIMES, as_run_by
from labkit.studies.kit.rounding_ties import ties_of
from labkit.studies.lab import Lab, open_lab
from labkit.studies.study import Figure, Finding, Series, Settings, StudyResult, Table, Tell

__all__ = ["run"]

_NETS = ("lenet", "resnet20")
_OWN = "labkit"
_NODES = 500  # images that are looked at node by node
_STEP = 50
_WORDS: Mapping[type[Any], str] = {
    int_ops.Quantize: "border in",
    int_ops.Conv2d: "convolution",
    int_ops.Linear: "linear",
    int_ops.Add: "sum",
    int_ops.AveragePool2d: "mean",
    int_ops.Requantize: "change of scale",
}
Arrays = dict[str, NDArray[Any]]


@dataclass(eq=False)
class _Found:
    """Counts of one network, over all seeds; pairs are (elements, differing) from labkit's rules.

    own : by operator and rule, each node on the same inputs
    largest : the largest difference of one node on the same inputs, in steps, by rule
    through : by rule, all nodes from end to end
    logits : by rule, the integers of the last layer, and so in ``logits_inside``
    inside : by rule, the same, from the integers of labkit's border
    images, classes, right : by rule, test images, those classed otherwise, those classed rightly
    moved : by rule, images that it classes rightly and labkit's rules do not, and the reverse
    ties : by operator, elements, exact ties, ties in float32 alone
    refused : rules that the network cannot be given, and why
    """

    net: str
    reference: float = 0.0
    own: dict[tuple[str, str], list[int]] = field(default_factory=dict)
    largest: dict[str, int] = field(default_factory=dict)
    through: dict[str, list[int]] = field(default_factory=dict)
    logits: dict[str, list[int]] = field(default_factory=dict)
    inside: dict[str, list[int]] = field(default_factory=dict)
    logits_inside: dict[str, list[int]] = field(default_factory=dict)
    moved: dict[str, list[int]] = field(default_factory=dict)
    images: int = 0
    classes: dict[str, int] = field(default_factory=dict)
    right: dict[str, int] = field(default_factory=dict)
    ties: dict[str, list[int]] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)

    @property
    def rules(self) -> tuple[str, ...]:
        """The rules that were followed, labkit's own first."""
        return tuple(self.right)


def run(settings: Settings, tell: Tell) -> StudyResult:
    """Quantize LeNet and ResNet-20 to W8A8 and compute them under every runtime's rules.

    ``settings`` say how much of it; ``tell`` is called with (what, images done, images).
    """
    data = load_data(settings.data, data_dir=settings.data_dir)
    found = []
    for net in _NETS[:1] if settings.smoke else _NETS:
        one = _Found(net)
        for seed in range(settings.seeds):
            lab = open_lab(net, settings, seed, data)
            one.reference = lab.accuracy
            _look(one, lab, lambda done, total, net=net, seed=seed: tell(f"{net}, seed {seed}", done, total))
        found.append(one)
    return StudyResult(
        (
            *(table for one in found for table in (_by_operator(one), _end_to_end(one), _ties(one))),
            *(_refusals(found) for _ in range(1) if any(one.refused for one in found)),
        ),
        tuple(finding for one in found for finding in _findings(one)),
        tuple(_figure(one) for one in found),
        _NOTES,
    )


_NOTES = (
    "One network each of W8A8, one scale a channel, made with labkit's own rules; a rule set changes how sums become integers, "
    "never scales, weights or biases. Average pools keep the scale of their input under every rule, and a change of scale "
    "follows, because PyTorch's and most of LiteRT's can do nothing else.",
    f"Node by node: up to {_NODES:,} test images, each node given the integers that labkit's rules gave the nodes before it. "
    "Tests hold each rule against its runtime, with tolerance 0 but for oneDNN, which differs from its rule in about one "
    "element of a million.",
    "Same border: every rule set is given the integers of labkit's border, so that what is left began inside the network. "
    "Pixels brought to -1..1 lie half-way between two integers, or a float32 rounding beside it, where the input's scale is "
    "2/255: nearly half of them come out otherwise under PyTorch's rule, which multiplies by the reciprocal and adds the zero "
    "point before it rounds.",
    "A tie is a number exactly half-way between two integers, before rounding: the sum times the scales, as rational numbers. "
    "In float32 alone: the float32 product is half-way, the exact number is not.",
)


def _look(one: _Found, lab: Lab, tell: Any) -> None:
    base = with_pools_that_keep_scale(convert(lab.graph, lab.calibration, lab.plan(), {}))
    graphs = _graphs(one, base)
    nets = {rule: IntegerNet(graph) for rule, graph in graphs.items()}
    inner = {rule: IntegerNet(_behind_border(graph, base)) for rule, graph in graphs.items()}
    parts = {
        (node.name, rule): IntegerNet(part_of(graph, node.name, [other.name for other in graph]))
        for rule, graph in graphs.items()
        if rule != _OWN
        for node in base
        if type(node.op) in _WORDS
    }
    last = base[base.outputs[0]].inputs[0]
    total = len(lab.x)
    for start in range(0, total, _STEP):
        x, labels = lab.x[start : start + _STEP], lab.labels[start : start + _STEP]
        if start < _NODES:
            _nodes(one, base, nets, inner, parts, x, last)
        answers = {rule: net.run(x).argmax(1) for rule, net in nets.items()}
        for rule, classes in answers.items():
            right, before = classes == labels, answers[_OWN] == labels
            one.right[rule] = one.right.get(rule, 0) + int(right.sum())
            _add(one.moved, rule, (int((right & ~before).sum()), int((before & ~right).sum())))
            one.classes[rule] = one.classes.get(rule, 0) + int((classes != answers[_OWN]).sum())
        one.images += len(x)
        tell(start + len(x), total)


def _graphs(one: _Found, base: IntGraph) -> dict[str, IntGraph]:
    found = {_OWN: base}
    for rule in RUNTIMES[1:]:
        try:
            found[rule] = as_run_by(base, rule)
        except UnsupportedOperation as error:
            one.refused[rule] = str(error)
    return found


def _behind_border(graph: IntGraph, base: IntGraph) -> IntGraph:
    """``graph`` with the border of ``base``."""
    (entry,) = base.inputs
    return IntGraph(tuple(base[entry] if node.name == entry else node for node in graph), graph.outputs)


def _nodes(
    one: _Found,
    base: IntGraph,
    nets: Mapping[str, IntegerNet],
    inner: Mapping[str, IntegerNet],
    parts: Mapping[tuple[str, str], IntegerNet],
    x: NDArray[np.float32],
    last: str,
) -> None:
    own = nets[_OWN].trace(x)
    (entry,) = base.inputs
    for rule in nets:
        for followed, all_nodes, logits in (
            (nets[rule], one.through, one.logits),
            (inner[rule], one.inside, one.logits_inside),
        ):
            theirs = followed.trace(x)
            for node in base:
                if type(node.op) in _WORDS:
                    _add(all_nodes, rule, _differing(theirs[node.name], own[node.name]))
            _add(logits, rule, _differing(theirs[last], own[last]))
    known: Arrays = {**own, f"real {entry}": x}
    for node in base:
        word = _WORDS.get(type(node.op))
        if word is None:
            continue
        _add(one.ties, word, ties_of(base, node, known))
        for rule in nets:
            if rule == _OWN:
                continue
            part = parts[node.name, rule]
            got = part.run({name: x if name == entry == node.name else own[name] for name in part.graph.inputs})
            _add(one.own, (word, rule), _differing(got, own[node.name]))
            steps = np.abs(got.astype(np.int64) - own[node.name]).max(initial=0)
            one.largest[rule] = max(one.largest.get(rule, 0), int(steps))


def _differing(a: NDArray[Any], b: NDArray[Any]) -> tuple[int, int]:
    return a.size, int(np.count_nonzero(a != b))


def _add(counts: dict[Any, list[int]], key: Any, more: Iterable[int]) -> None:
    before = counts.get(key)
    counts[key] = list(more) if before is None else [a + b for a, b in zip(before, more, strict=True)]


def _share(counts: list[int]) -> str:
    """Differing elements in a million; 0 only where there is none."""
    elements, differing = counts
    per_million = 1e6 * differing / elements
    return "0" if not differing else f"{per_million:,.0f}" if per_million >= 10 else f"{per_million:.2g}"


def _by_operator(one: _Found) -> Table:
    rules = [rule for rule in one.rules if rule != _OWN]
    words = dict.fromkeys(word for word, _ in one.own)
    rows: list[tuple[str | None, ...]] = []
    for word in words:
        elements = one.own[word, rules[0]][0]
        rows.append((word, f"{elements:,}", *(_share(one.own[word, rule]) for rule in rules)))
    rows.append(("largest difference, steps", None, *(str(one.largest[rule]) for rule in rules)))
    return Table(
        f"{one.net}: elements in a million that differ from labkit's rules, node by node on the same inputs",
        ("operator", "elements", *rules),
        tuple(rows),
    )


def _end_to_end(one: _Found) -> Table:
    rows = [
        (
            rule,
            _share(one.through[rule]),
            f"{100 * one.logits[rule][1] / one.logits[rule][0]:.2f}",
            _share(one.inside[rule]),
            f"{100 * one.logits_inside[rule][1] / one.logits_inside[rule][0]:.2f}",
            f"{one.classes[rule]:,} of {one.images:,}",
            f"{100 * one.right[rule] / one.images:.2f}",
        )
        for rule in one.rules
    ]
    return Table(
        f"{one.net}, float {one.reference:.2f} %: from end to end, against labkit's rules",
        (
            "rules",
            "integers that differ, in a million",
            "logits that differ, %",
            "integers, same border",
            "logits, same border, %",
            "images classed otherwise",
            "accuracy, %",
        ),
        tuple(rows),
    )


def _ties(one: _Found) -> Table:
    rows = [(word, f"{n:,}", f"{ties:,}", f"{alone:,}") for word, (n, ties, alone) in one.ties.items()]
    return Table(
        f"{one.net}: ties met before rounding, under labkit's rules",
        ("operator", "elements", "exact ties", "ties in float32 alone"),
        tuple(rows),
    )


def _refusals(found: list[_Found]) -> Table:
    rows = [(one.net, rule, reason) for one in found for rule, reason in one.refused.items()]
    return Table("Rules that a network cannot be given", ("network", "rules", "reason"), tuple(rows))


def _findings(one: _Found) -> list[Finding]:
    rules = [rule for rule in one.rules if rule != _OWN]
    same = [rule for rule in rules if not one.through[rule][1]]
    worst = max(rules, key=lambda rule: _clear(one.moved[rule]))
    gained, lost = one.moved[worst]
    exact = {word: ties for word, (_, ties, _) in one.ties.items() if ties}
    products = sum(one.ties[word][1] for word in ("convolution", "linear") if word in one.ties)
    return [
        Finding(
            f"{one.net}: no runtime's rules give the integers of labkit's",
            f"{len(rules) - len(same)} of {len(rules)} differ somewhere",
            "yes" if not same else "partly" if len(same) < len(rules) else "no",
        ),
        Finding(
            f"{one.net}: on the same inputs, one step is the largest difference of a node",
            f"at most {max(one.largest.values())}",
            "yes" if max(one.largest.values()) <= 1 else "no",
        ),
        Finding(
            f"{one.net}: no rule set changes accuracy by more than chance (two standard errors)",
            f"clearest: {worst}, {gained} images gained and {lost} lost of {one.images:,}",
            "yes" if _clear(one.moved[worst]) <= 2 else "no",
        ),
        Finding(
            f"{one.net}: convolutions and linear layers with calibrated scales meet no exact tie",
            f"{products:,} ties there; {sum(exact.values()):,} elsewhere ({', '.join(exact) or 'none'})",
            "yes" if products == 0 else "no",
        ),
    ]


def _clear(moved: list[int]) -> float:
    """How many standard errors the change of accuracy is: images gained less those lost, of as many fair coins."""
    gained, lost = moved
    return abs(gained - lost) / math.sqrt(gained + lost) if gained + lost else 0.0


def _figure(one: _Found) -> Figure:
    rules = tuple(rule for rule in one.rules if rule != _OWN)
    words = tuple(dict.fromkeys(word for word, _ in one.own))
    shares = {word: [1e6 * one.own[word, rule][1] / one.own[word, rule][0] for rule in rules] for word in words}
    names = tuple("onnx\nruntime" if rule == "onnxruntime" else rule for rule in rules)
    return Figure(
        f"{one.net}-differing",
        f"{one.net}: differing elements, same inputs",
        "bar",
        "rules",
        "elements in a million",
        tuple(Series(word, names, tuple(values)) for word, values in shares.items() if any(values)),
        log_y=any(map(any, shares.values())),
    )
