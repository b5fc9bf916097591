"""HAWQ-V3's integer program on ResNet-20: 4 or 8 bits a layer under budgets of size, bit operations and latency."""

from __future__ import annotations

from dataclasses import dataclass, replace
from statistics import fmean

from labkit.allocation.allocate import make_problem
from labkit.allocation.answer import Allocation
from labkit.allocation.budgets import between
from labkit.allocation.constraints import first_and_last, residual_partners
from labkit.allocation.cost_table import CostTable
from labkit.allocation.costs import bit_operations, weight_bytes
from labkit.allocation.ilp import solve_ilp
from labkit.allocation.latency import latency, measured_latency
from labkit.data import load as load_data
from labkit.errors import QuantizationError
from labkit.quantization.plan import BitPlan
from labkit.sensitivity.measure import measure_sensitivity
from labkit.sensitivity.table import SensitivityTable
from labkit.studies.evidence import redrawn
from labkit.studies.lab import Lab, open_lab
from labkit.studies.study import Figure, Finding, Series, Settings, StudyResult, Table, Tell, mean_and_spread

__all__ = ["run"]

_SHARES = (0.25, 0.5, 0.75)
_PAIRS = ((4, 8), (2, 4))  # uniform bits between which the budgets lie
_KINDS = ("size", "bit operations", "latency")
_IMAGES = 128  # of the sensitivities
_BATCH = 8
_ROUNDS = 15
_FLAT = 0.05  # a share of a whole run; the latency tables are right to about that


@dataclass(frozen=True, eq=False)
class _Case:
    """A plan for a pair of bits under some kinds of budget at a share: None where the budgets cannot be met."""

    pair: tuple[int, int]
    kinds: tuple[str, ...]
    share: float
    answer: Allocation | None
    accuracy: float | None


@dataclass(frozen=True, eq=False)
class _Seed:
    """All plans of one seed, and by bits the predicted loss and the accuracy of the network with all layers at these bits."""

    cases: tuple[_Case, ...]
    uniform: dict[int, tuple[float, float]]
    costs: dict[str, CostTable]


def run(settings: Settings, tell: Tell) -> StudyResult:
    """Solve the integer program for each kind of budget and all at once, and run the plans in the integer engine.

    ``settings`` say how much of it; ``tell`` is called with (step, done, total).
    """
    net = "lenet" if settings.smoke else "resnet20"
    data = load_data(settings.data, data_dir=settings.data_dir)
    lab = open_lab(net, settings, 0, data)
    pairs = _PAIRS[:1] if settings.smoke else _PAIRS
    widths = tuple(sorted({b for pair in pairs for b in pair}))
    fast = latency(lab.graph, lab.calibration, lab.x[:_BATCH], widths, rounds=1 if settings.smoke else _ROUNDS)
    seeds = []
    for seed in range(settings.seeds):
        lab = redrawn(lab, settings, seed, histograms=False) if seed else lab
        seeds.append(_seed(lab, fast, pairs, 32 if settings.smoke else _IMAGES))
        tell(net, seed + 1, settings.seeds)
    timed = _timed(lab, seeds[-1], 1 if settings.smoke else _ROUNDS)
    groups = residual_partners(lab.graph)
    return StudyResult(
        (*(_table(net, lab, pair, seeds, timed) for pair in pairs), _latencies(fast), _bits(seeds[0], pairs[0])),
        _findings(seeds, fast, pairs, timed),
        (_figure(net, seeds, pairs),),
        (
            "Each layer has one of the two bit-widths of its table, the first and the last layer the larger one; activations "
            "have 8 bits. Layers whose outputs meet in an addition share theirs "
            f"({len(groups)} groups: {'; '.join(' = '.join(group) for group in groups) or 'none here'}). HAWQ-V3 gives "
            "activations a layer's bits too, and retrains; here weights are rounded to nearest, one scale a channel.",
            f"A budget at share f lies at f of the way from all layers at the lower bits to all at the higher. Predicted loss: "
            f"Gauss-Newton on {_IMAGES} training images. HAWQ-V3 takes HAWQ-V2's traces.",
            f"Latency is measured on this processor's kernels, one thread, batches of {_BATCH}, once for all seeds; the table "
            "is a sum of layers and a fixed part. Measured ones are of the last seed's plans, timed in turns.",
            "The gap is how far a plan's predicted loss can at most be above the best one; 0 is proven best.",
        ),
    )


def _seed(lab: Lab, fast: CostTable, pairs: tuple[tuple[int, int], ...], images: int) -> _Seed:
    graph = lab.graph
    table = measure_sensitivity(graph, lab.images[:images], None, fast.bits, "gauss-newton")
    costs = {
        "size": weight_bytes(graph, fast.bits),
        "bit operations": bit_operations(graph, 8, fast.bits),
        "latency": fast,
    }
    known: dict[tuple[int, ...], float] = {}

    def accuracy(weights: dict[str, int]) -> float:
        key = tuple(weights.values())
        if key not in known:
            known[key] = lab.integer_accuracy(BitPlan(weights, lab.plan().activations))
        return known[key]

    cases = []
    for pair in pairs:
        columns = [table.bits.index(b) for b in pair]
        offered = replace(table, bits=pair, values=table.values[:, columns], errors=table.errors[:, columns])
        for kinds in (*((kind,) for kind in _KINDS), _KINDS):
            for share in _SHARES:
                answer = _solved(lab, offered, [costs[kind] for kind in kinds], share)
                found = None if answer is None else accuracy(answer.weights)
                cases.append(_Case(pair, kinds, share, answer, found))
    uniform = {}
    for bits in fast.bits:
        weights = dict.fromkeys(table.layers, bits)
        uniform[bits] = (table.predicted(weights), accuracy(weights))
    return _Seed(tuple(cases), uniform, costs)


def _solved(lab: Lab, table: SensitivityTable, costs: list[CostTable], share: float) -> Allocation | None:
    budgets = [between(share, *table.bits) for _ in costs]
    fixed, tied = first_and_last(lab.graph, table.bits[1]), residual_partners(lab.graph)
    try:
        return solve_ilp(make_problem(table, costs, budgets, fixed=fixed, tied=tied))
    except QuantizationError:  # the budgets cannot be met together
        return None


def _timed(lab: Lab, seed: _Seed, rounds: int) -> dict[tuple[int, ...], float]:
    """Microseconds of a batch by the bits of the layers, for all plans of ``seed`` and the uniform ones."""
    activations = lab.plan().activations
    layers = seed.costs["size"].layers
    chosen = {tuple(case.answer.bits) for case in seed.cases if case.answer is not None}
    chosen |= {(bits,) * len(layers) for bits in seed.uniform}
    order = sorted(chosen)
    plans = [BitPlan(dict(zip(layers, bits, strict=True)), activations) for bits in order]
    spent = measured_latency(lab.graph, lab.calibration, lab.x[:_BATCH], plans, rounds=rounds)
    return dict(zip(order, spent, strict=True))


def _table(net: str, lab: Lab, pair: tuple[int, int], seeds: list[_Seed], timed: dict[tuple[int, ...], float]) -> Table:
    last = seeds[-1]
    layers = last.costs["size"].layers
    rows: list[tuple[str | float | None, ...]] = []

    def row(
        words: str, share: str, bits: tuple[int, ...], values: list[float], accuracies: list[float], gap: str
    ) -> None:
        weights = dict(zip(layers, bits, strict=True))
        totals = {kind: table.total(weights) for kind, table in last.costs.items()}
        rows.append(
            (
                *(words, share, f"{totals['size'] / 1000:.1f}", f"{totals['bit operations'] / 1e6:,.0f}"),
                *(
                    f"{totals['latency']:,.0f}",
                    f"{timed[bits]:,.0f}",
                    f"{sum(b == pair[1] for b in bits)} of {len(bits)}",
                ),
                *(mean_and_spread(values, 4), mean_and_spread(accuracies), gap),
            )
        )

    def uniform(bits: int) -> None:
        values, accuracies = zip(*(seed.uniform[bits] for seed in seeds), strict=True)
        row(f"all layers at {bits} bits", "", (bits,) * len(layers), list(values), list(accuracies), "")

    uniform(pair[0])
    for case in last.cases:
        if case.pair != pair:
            continue
        same = _same(seeds, case)
        words = " + ".join(case.kinds) if len(case.kinds) < len(_KINDS) else "all three"
        if case.answer is None or len(same) < len(seeds):
            rows.append((words, f"{case.share:g}", *[None] * 7, "cannot be met"))
            continue
        answers = [one.answer for one in same if one.answer is not None]
        gap = max(answer.gap for answer in answers)
        accuracies = [one.accuracy for one in same if one.accuracy is not None]
        row(words, f"{case.share:g}", case.answer.bits, [a.value for a in answers], accuracies, f"{gap:.2g}")
    uniform(pair[1])
    return Table(
        f"{net}, layers of {pair[0]} or {pair[1]} bits, float {lab.accuracy:.2f} %, {len(seeds)} seeds (costs: of the last)",
        (
            *("budget", "f", "size, kB", "bit operations, M", "latency, table, µs", "latency, measured, µs"),
            *(f"layers at {pair[1]}", "predicted loss, nats", "test accuracy, %", "gap"),
        ),
        tuple(rows),
    )


def _same(seeds: list[_Seed], case: _Case) -> list[_Case]:
    """The cases of all seeds with the budgets of ``case`` whose budgets could be met."""
    key = (case.pair, case.kinds, case.share)
    return [
        one
        for seed in seeds
        for one in seed.cases
        if (one.pair, one.kinds, one.share) == key and one.answer is not None
    ]


def _latencies(fast: CostTable) -> Table:
    widest = fast.bits[-1]
    rows = []
    for bits in fast.bits:
        ratios = [fast.value(layer, bits) / fast.value(layer, widest) for layer in fast.layers]
        rows.append(
            (
                str(bits),
                f"{fast.uniform(bits):,.0f}",
                f"{100 * (fast.uniform(bits) / fast.uniform(widest) - 1):+.1f}",
                f"{min(ratios):.2f} to {max(ratios):.2f}",
                f"{sum(ratio < 1 - _FLAT for ratio in ratios)} of {len(ratios)}",
            )
        )
    return Table(
        f"Latency by weight bits, {_BATCH} images on one thread",
        (
            *("bits of all weights", "µs", f"beside {widest} bits, %", f"a layer's time over that at {widest} bits"),
            f"layers more than {100 * _FLAT:.0f} % faster",
        ),
        tuple(rows),
    )


def _bits(seed: _Seed, pair: tuple[int, int]) -> Table:
    rows = []
    for case in seed.cases:
        if case.pair == pair and case.answer is not None:
            words = " + ".join(case.kinds) if len(case.kinds) < len(_KINDS) else "all three"
            rows.append((words, f"{case.share:g}", " ".join(map(str, case.answer.bits))))
    return Table(
        f"Bits of the layers in running order, seed 0, {pair[0]} or {pair[1]}", ("budget", "f", "bits"), tuple(rows)
    )


def _findings(
    seeds: list[_Seed], fast: CostTable, pairs: tuple[tuple[int, int], ...], timed: dict[tuple[int, ...], float]
) -> tuple[Finding, ...]:
    answers = [case.answer for seed in seeds for case in seed.cases if case.answer is not None]
    proven = sum(answer.gap == 0 for answer in answers)
    slowest = max(answer.seconds for answer in answers)
    findings = [
        Finding(
            "The integer program finds the best bits under size, bit operations and latency, singly and together",
            f"{proven} of {len(answers)} answers proven best (gap 0), all within their budgets; at most {slowest:.2f} s each",
            "yes" if proven == len(answers) else "partly" if proven else "no",
        )
    ]
    for low, high in pairs:
        shares, totals = [], []
        for seed in seeds:
            case = next(c for c in seed.cases if c.pair == (low, high) and c.kinds == ("size",) and c.share == 0.5)
            if case.accuracy is None:
                continue
            ends = seed.uniform[low][1], seed.uniform[high][1]
            totals.append(ends[1] - ends[0])
            shares.append(case.accuracy - (ends[0] + ends[1]) / 2)
        findings.append(
            Finding(
                f"Half-way in size between {low} and {high} bits keeps more than half of the accuracy between them",
                f"{mean_and_spread(shares)} points above the middle of uniform {low} and {high} bits, which are "
                f"{mean_and_spread(totals)} points apart",
                "yes" if shares and min(shares) > 0 else "partly" if shares and fmean(shares) > 0 else "no",
            )
        )
        count = len(fast.layers)
        gain = 1 - timed[(low,) * count] / timed[(high,) * count]
        findings.append(
            Finding(
                f"A budget of latency matters: {low} bits are faster than {high} (up to 1.5 times for INT4 in the slides)",
                f"all layers at {low} bits take {100 * gain:.1f} % less than at {high}, measured in turns",
                "yes" if gain > 0.2 else "partly" if gain > _FLAT else "no",
            )
        )
    return tuple(findings)


def _figure(net: str, seeds: list[_Seed], pairs: tuple[tuple[int, int], ...]) -> Figure:
    panels = []
    for low, high in pairs:
        series = []
        for kinds in (*((kind,) for kind in _KINDS), _KINDS):
            points = []
            for share in _SHARES:
                met = _same(seeds, _Case((low, high), kinds, share, None, None))
                if len(met) == len(seeds):
                    points.append((share, fmean(one.accuracy for one in met if one.accuracy is not None)))
            ends = [(at, fmean(seed.uniform[bits][1] for seed in seeds)) for at, bits in ((0.0, low), (1.0, high))]
            line = sorted([*points, *ends])
            words = kinds[0] if len(kinds) == 1 else "all three"
            series.append(Series(words, tuple(x for x, _ in line), tuple(y for _, y in line)))
        panels.append(
            Figure(f"{low}-{high}", f"{low} or {high} bits", "line", "budget f", "test accuracy, %", tuple(series))
        )
    return Figure("budgets", f"{net}: accuracy by kind of budget", "line", "", "", (), panels=tuple(panels))
