"""Make docs/support.md: what labkit runs and what it refuses, asked of the code itself.

    python tools/make_support.py            write the page
    python tools/make_support.py --check    write nothing; exit 1 and show the difference where the code says otherwise

Nothing on the page is written by hand twice. Names come from the tables that the code works with; whether something
runs is found out by running it: one node in both tiers, one layer through the front end, one mistake for its error.
"""

from __future__ import annotations

import argparse
import difflib
import itertools
import operator
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from probe_encoders import SPELLINGS, became, mistakes_of_tokens
from probe_operations import BITS, REQUANTIZES, WEIGHTED, Case, cases, tiers
from probe_torch import CALLS, FORMS, MODULES, TRACED_AS, images, mistakes, named, with_call
from torch import nn

import labkit
from labkit.arithmetic.affine import WIDE_BITS
from labkit.arithmetic.requantize import RoundingRule
from labkit.errors import LabkitError
from labkit.frontends import torch_calls, torch_fx
from labkit.graph import float_ops, int_ops
from labkit.quantization import pipeline, plan, ranges

__all__ = ["main", "page"]

_PAGE = Path(__file__).resolve().parents[1] / "docs" / "support.md"

Rows = list[tuple[str, ...]]


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the page, or compare it; 0 when all is well."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--check", action="store_true", help="only say whether the page is up to date")
    parser.add_argument("--page", type=Path, default=_PAGE, help="where the page is")
    options = parser.parse_args(arguments)
    text = page()
    if not options.check:
        options.page.write_text(text, "utf-8", newline="\n")
        return 0
    there = options.page.read_text("utf-8") if options.page.exists() else ""
    if there != text:
        print("docs/support.md is not what the code says; run python tools/make_support.py:")
        print(*difflib.unified_diff(there.splitlines(), text.splitlines(), "page", "code", n=0, lineterm=""), sep="\n")
    return int(there != text)


def page() -> str:
    """The whole of docs/support.md."""
    weights, activations, combinations = _quantized_bits()
    parts = [
        "# What labkit supports",
        "<!-- Made by tools/make_support.py from the code. Do not edit: change the code, then run the tool. -->",
        "Everything on this page was found out by running it. A test makes the page again and compares.",
        "## Integer operations",
        "One row for each operation of an integer network (`labkit.graph.int_ops`). Each was run with every combination "
        "of bits, and under every rule with equal bits, for unsigned activations with a zero point and for signed "
        "symmetric ones. *Reference* is the readable tier. The *Numba* tier counts only where it gives the same integers.",
        _table(("operation", "weight bits", "activation bits", "rounding rules", "reference", "Numba"), _operations()),
        "Max-pool, flatten, pad, reshape, transpose and up-sampling move integers and keep their scale. Add and softmax "
        "round once, ties up, by themselves. ArgMax puts out int32 positions. Quantize and Dequantize are the borders to "
        "real numbers, Input is the border in of a network that takes integers. Operations named after their arithmetic "
        "(AddFixedPoint, SoftmaxFloat32, ...) compute as another runtime does: section 10 of [arithmetic.md](arithmetic.md). "
        "Sixteen bits, signed and symmetric, are for what lies between the layers of a transformer: section 11.",
        "## Rounding rules",
        "Each requantizer names its rule (`labkit.arithmetic.requantize.RoundingRule`). `labkit.quantize` makes nets "
        f"with {_rule_of_quantize()}.",
        _table(("rule", "in a file", "integers only", "what it does"), _rules()),
        "## What `labkit.quantize` offers",
        f"Weights of {_span(weights)} bits and activations of {_span(activations)}, layer by layer in a `BitPlan` or the "
        f"same everywhere. All {combinations} combinations were quantized, `labkit.verify` found no differing element, "
        "and both tiers gave the same result. The network's inputs and outputs keep 8 bits unless a plan says otherwise.",
        _table(("argument", "values"), _options()),
        "## What the PyTorch front end takes",
        "Each was translated, quantized and verified bit for bit. *Part of* another operation means that it costs "
        "nothing of its own: batch norm is folded into the weights, a ReLU is the clamp of the requantizer.",
        _table(("PyTorch", "read as", "becomes"), _front_end()),
        "So were these forms of them:",
        _table(("form", "becomes"), [(name, _verified(named(*make()))) for name, make in FORMS.items()]),
        "## Networks of tokens",
        "Sequences (N, T, D), with token numbers and a mask as inputs by name. Each spelling was translated, quantized and "
        "verified bit for bit in a small network, with masks that leave tokens out. *Becomes* counts what it adds, "
        "besides what only moves integers. *Lengths*: a network made for its longest sequence is had at any shorter one "
        "(`IntegerNet.at_length`), unless a part of it knows the length. [transformers.md](transformers.md) has the rest.",
        _table(("part", "spelled", "becomes", "lengths"), _tokens()),
        "## What is refused, and how",
        "A restriction is enforced where it is met first, by an error that names the place and says what to do. Each "
        "line was provoked; the words are the code's own.",
        _table(("what was tried", "error", "message"), _refusals()),
    ]
    return "\n\n".join(parts) + "\n"


def _table(heads: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [heads, tuple("---" for _ in heads), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _span(values: Iterable[int]) -> str:
    """Integers as short text: ``1 to 8``, ``2, 4, 8``, ``1 to 8, 16``."""
    found = sorted(set(values))
    if len(found) > 2 and found == list(range(found[0], found[-1] + 1)):
        return f"{found[0]} to {found[-1]}"
    if len(found) > 3 and found[-1] == WIDE_BITS:
        return f"{_span(found[:-1])}, {WIDE_BITS}"
    return ", ".join(map(str, found)) or "none"


def _operations() -> Rows:
    rows: Rows = []
    for name in (n for n in int_ops.__all__ if n != "IntOp"):
        runs = {case: tiers(name, case) for case in cases(name)}
        works = [case for case, (runs_at_all, _) in runs.items() if runs_at_all]
        rows.append(
            (
                f"`{name}`",
                _span(case.weight_bits for case in works) if name in WEIGHTED else "-",
                _span(case.activation_bits for case in works),
                _rule_names({case.rule for case in works}) if name in REQUANTIZES else "-",
                *(_verdict(list(runs), [case for case in runs if runs[case][tier]]) for tier in (0, 1)),
            )
        )
    return rows


def _verdict(tried: list[Case], works: list[Case]) -> str:
    """``yes``, or what does not work: values that never do where there are some, else how many combinations do."""
    if len(works) == len(tried):
        return "yes"
    never = []
    for field in Case._fields:
        lost = {getattr(case, field) for case in tried} - {getattr(case, field) for case in works}
        never += [f"{field.replace('_', ' ')} {value}" for value in sorted(map(str, lost))]
    return f"not for {', '.join(never)}" if never and works else f"{len(works)} of {len(tried)} combinations"


def _rule_names(rules: set[RoundingRule]) -> str:
    return (
        "all seven" if len(rules) == len(RoundingRule) == 7 else ", ".join(r.name for r in RoundingRule if r in rules)
    )


def _rules() -> Rows:
    lines = [line.strip() for line in str(RoundingRule.__doc__).splitlines()]
    told = dict(line.split(" : ", 1) for line in lines if " : " in line)
    return [
        (f"`{rule.name}`", f"`{rule.value}`", "yes" if rule.is_integer_only else "no", told[rule.name])
        for rule in RoundingRule
    ]


def _small_net() -> nn.Module:
    return named(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 5))


def _quantized_bits() -> tuple[list[int], list[int], int]:
    """The weight and activation bits that work, and how many combinations of them were verified."""
    module, x = _small_net(), images()
    works = []
    for weights, activations in itertools.product(BITS, BITS):
        try:
            net = labkit.quantize(module, x, weights=weights, activations=activations)
        except LabkitError:
            continue
        if labkit.verify(net, module, x).passed and np.array_equal(net.run(x, kernels="reference"), net.run(x)):
            works.append((weights, activations))
    sides = [w for w, _ in works], [a for _, a in works]
    if len(works) != len(set(sides[0])) * len(set(sides[1])):
        raise SystemExit(f"not every combination of these bits works, and the page has no words for that: {works}")
    return *sides, len(works)


def _rule_of_quantize() -> str:
    net = labkit.quantize(_small_net(), images())
    return _rule_names({node.op.requantizer.rule for node in net.graph if hasattr(node.op, "requantizer")})


def _options() -> Rows:
    def names(values: Iterable[str]) -> str:
        return ", ".join(f"`{value}`" for value in values)

    presets = {name: ", ".join(f"{k}={v}" for k, v in fills.items()) for name, fills in pipeline.METHODS.items()}
    return [
        ("`ranges` (activations)", names(ranges.ALL_RANGES)),
        ("`weight_ranges` (weights rounded to nearest)", names(plan.WEIGHT_RANGES)),
        ("`activation_scheme`", names(plan.ACTIVATION_SCHEMES)),
        ("`per_channel`", "`True` (one weight scale for each output channel), `False` (one for each layer)"),
        ("`rounding` (weights)", names(pipeline.ROUNDINGS)),
        ("`method`", ", ".join(f"`{name}` ({fills})" for name, fills in presets.items())),
    ]


def _front_end() -> Rows:
    found: list[tuple[str, nn.Module]] = []
    for kind in torch_calls.MODULES:
        name = "`nn.ReLU6`, `nn.Hardtanh(0, 6)`" if kind is nn.Hardtanh else f"`nn.{kind.__name__}`"
        found.append((name, named(*MODULES[kind]())))
    for target in [*torch_calls.FUNCTIONS, *torch_calls.METHODS]:
        module = with_call(CALLS[target])
        traced = [node.target for node in torch_fx.trace_module(module, images().shape[1:]).graph.nodes]
        if target not in traced and TRACED_AS.get(target) not in traced:
            raise SystemExit(f"The example for {target} does not call it.")
        found.append((f"`x.{target}()`" if isinstance(target, str) else f"`{_called(target)}`", module))
    groups: dict[tuple[str, str], list[str]] = {}
    for name, module in found:
        graph = torch_fx.from_torch(module, images().shape[1:])
        read = type(graph[graph.outputs[0]].op).__name__
        groups.setdefault((read, _verified(module)), []).append(name)
    return [(", ".join(names), *group) for group, names in groups.items()]


def _tokens() -> Rows:
    rows: Rows = []
    for part, spellings in SPELLINGS.items():
        groups: dict[tuple[str, str], list[str]] = {}
        for spelling in spellings:
            groups.setdefault(became(part, spelling), []).append(spelling)
        rows += [(part, ", ".join(names), *group) for group, names in groups.items()]
    return rows


def _called(function: Any) -> str:
    """A function's name as one writes it."""
    for prefix, place in (("operator", operator), ("torch", torch), ("F", F)):
        for name in dir(place):
            if not name.startswith("_") and getattr(place, name) is function:
                return f"{prefix}.{name}"
    raise SystemExit(f"{function} has no public name.")


def _verified(module: nn.Module) -> str:
    """What the last layer of ``module`` becomes in the integer network, which is verified in both tiers."""
    x = images()
    graph = torch_fx.from_torch(module, x.shape[1:])
    net = labkit.quantize(module, x)
    for tier in ("numba", "reference"):
        report = labkit.verify(net, module, x, kernels=tier)
        if not report.passed:
            raise SystemExit(f"{module}: {report}")
    last = graph[graph.outputs[0]]
    if isinstance(last.op, float_ops.Identity):
        return "nothing"
    carrier = net.graph.carriers()[last.name]
    became = type(net.graph[carrier].op).__name__
    return f"`{became}`" if carrier == last.name else f"part of `{became}`"


def _refusals() -> Rows:
    rows: Rows = []
    for what, act in {**mistakes(), **mistakes_of_tokens()}.items():
        try:
            act()
        except LabkitError as error:
            # What torch says of itself depends on its version; what labkit says does not.
            message = re.sub(r"torch\.fx: .*?\. Its", "torch.fx: (its reason). Its", str(error))
            rows.append((what, f"`{type(error).__name__}`", message))
        else:
            raise SystemExit(f"{what}: nothing was refused.")
    return rows


if __name__ == "__main__":
    sys.exit(main())
