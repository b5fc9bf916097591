"""The accuracy of `method="best"` by bits, in the integer engine, beside rounding to nearest."""

from __future__ import annotations

from dataclasses import dataclass, replace
from statistics import fmean, stdev

from labkit.data import load as load_data
from labkit.graph import float_ops
from labkit.graph.ir import FloatGraph
from labkit.quantization.plan import BitPlan
from labkit.quantization.weight_rounding.best import BEST, BEST_METHOD
from labkit.studies.lab import Lab, open_lab
from labkit.studies.study import Figure, Finding, Series, Settings, StudyResult, Table, Tell, mean_and_spread

__all__ = ["before_additions", "run"]


@dataclass(frozen=True)
class _Case:
    """Bits, and how many points below float the network may come out (``limit``); ``wide`` tensors keep 8 bits."""

    name: str
    weights: int
    activations: int
    limit: float | None
    wide_input: bool = True
    wide_sums: bool = False

    @property
    def short(self) -> str:
        """The name as it stands under a bar."""
        if self.activations == 8:
            return self.name
        return self.name.split(",")[0] + "\ninput 8" * self.wide_input + "\nbranches 8" * self.wide_sums

    def plan(self, graph: FloatGraph, per_channel: bool = True) -> BitPlan:
        plan = BitPlan.uniform(graph, self.weights, self.activations, per_channel=per_channel)
        bits = dict(plan.activations)
        if not self.wide_input:
            bits[graph.inputs[0]] = self.activations
        if self.wide_sums:
            bits |= dict.fromkeys(before_additions(graph), 8)
        return replace(plan, activations=bits)


_FEW = (("W8A8", 8, 8), ("W4A8", 4, 8), ("W3A8", 3, 8), ("W2A8", 2, 8))
_CASES = {
    "lenet": (
        *(_Case(*case, limit) for case, limit in zip(_FEW, (0.2, 0.5, 1.1, 2.7), strict=True)),
        _Case("W4A4, input at 8 bits", 4, 4, 1.3),
    ),
    "resnet20": (
        *(_Case(*case, limit) for case, limit in zip(_FEW, (0.1, 0.2, 0.6, 1.6), strict=True)),
        _Case("W4A4, branches before an addition at 8 bits", 4, 4, 2.0, wide_input=False, wide_sums=True),
        _Case("W4A4, input and those branches at 8 bits", 4, 4, 0.9, wide_sums=True),
        _Case("W4A4, input at 8 bits", 4, 4, 0.9),
        _Case("W4A4", 4, 4, 2.0, wide_input=False),
    ),
}


def run(settings: Settings, tell: Tell) -> StudyResult:
    """Quantize LeNet and ResNet-20 in each case and seed, and run them in the integer engine.

    ``settings`` say how much of it; ``tell`` is called with (net, networks done, networks).
    """
    data = load_data(settings.data, data_dir=settings.data_dir)
    tables, findings, figures = [], [], []
    for net in list(_CASES)[:1] if settings.smoke else _CASES:
        cases = _CASES[net][:2] if settings.smoke else _CASES[net]
        best: dict[str, list[float]] = {case.name: [] for case in cases}
        nearest: dict[str, list[float]] = {case.name: [] for case in cases}
        reference = 0.0
        for seed in range(settings.seeds):
            lab = open_lab(net, settings, seed, data)
            reference = lab.accuracy
            for done, case in enumerate(cases):
                nearest[case.name].append(lab.integer_accuracy(case.plan(lab.graph, per_channel=False)))
                best[case.name].append(_best(lab, case))
                tell(f"{net}, seed {seed}", done + 1, len(cases))
        tables.append(
            Table(
                f"{net}, float {reference:.2f} %: test accuracy, {settings.seeds} seeds",
                ("bits", "nearest, min-max, one scale a layer, %", "best, %", "best below float, points", "to reach"),
                tuple(
                    (
                        case.name,
                        mean_and_spread(nearest[case.name]),
                        mean_and_spread(best[case.name]),
                        f"{reference - fmean(best[case.name]):.2f}",
                        None if case.limit is None else f"{case.limit:g}",
                    )
                    for case in cases
                ),
            )
        )
        findings += [_finding(net, case, reference, best[case.name]) for case in cases if case.limit is not None]
        figures.append(_figure(net, reference, cases, best))
    return StudyResult(tuple(tables), tuple(findings), tuple(figures), _NOTES)


_NOTES = (
    "A seed draws the calibration images and the samples of the search; the float network is one. Only where every seed is "
    "inside the limit does the finding say that it agrees.",
    '"Best" has one scale a channel, 8-bit network outputs, GPTQ followed by coordinate descent on each layer\'s quadratic form, '
    "and up to 3 bits all 2**b levels, mirrored about zero. Its constants were chosen on training images.",
    "What a convolution puts out before an addition is no operand of a multiplication. Publications on W4A4 mostly leave it in "
    "float; here it has 8 bits in the rows that say so and 4 bits in the others.",
)


def before_additions(graph: FloatGraph) -> tuple[str, ...]:
    """The nodes of ``graph`` whose results nothing but an addition reads: the branches of residual blocks before their sum."""
    readers: dict[str, list[bool]] = {}
    for node in graph:
        for name in node.inputs:
            readers.setdefault(name, []).append(isinstance(node.op, float_ops.Add))
    own = [node.name for node in graph if isinstance(node.op, float_ops.Conv2d | float_ops.Linear)]
    return tuple(name for name in own if readers.get(name) and all(readers[name]) and name not in graph.outputs)


def _best(lab: Lab, case: _Case) -> float:
    plan = case.plan(lab.graph)
    return lab.integer_accuracy(plan, lab.round(plan, BEST_METHOD, BEST))


def _finding(net: str, case: _Case, reference: float, accuracies: list[float]) -> Finding:
    assert case.limit is not None
    drops = [reference - accuracy for accuracy in accuracies]
    inside = sum(one <= case.limit for one in drops)
    return Finding(
        f"{net}, {case.name}: at most {case.limit:g} points below float",
        f"{mean_and_spread(drops)} points",
        "yes" if inside == len(drops) else "partly" if fmean(drops) <= case.limit else "no",
    )


def _figure(net: str, reference: float, cases: tuple[_Case, ...], best: dict[str, list[float]]) -> Figure:
    drops = [[reference - accuracy for accuracy in best[case.name]] for case in cases]
    names = tuple(case.short for case in cases)
    error = tuple(stdev(seeds) for seeds in drops) if len(drops[0]) > 1 else ()
    return Figure(
        f"{net}-drop",
        f"{net}: how far the best rounding stays below the float network",
        "bar",
        "bits of weights and activations",
        "points of test accuracy lost",
        (
            Series("best", names, tuple(fmean(seeds) for seeds in drops), error),
            Series("to reach", names, tuple(case.limit or 0.0 for case in cases)),
        ),
    )
