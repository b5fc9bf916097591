"""From AdaRound's variables to the logits of the integer engine, bit for bit, at 4 and 2 bits and with mirrored levels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from labkit.models import load as load_model
from labkit.quantization.plan import BitPlan
from labkit.quantization.weight_rounding.options import RoundedWeights, RoundingOptions
from labkit.studies.adaround.chain import Link, chain, flipped, net_of
from labkit.studies.adaround.design import IMAGES_NOTE, draws
from labkit.studies.lab import Lab
from labkit.studies.study import Finding, Settings, StudyResult, Table, Tell

__all__ = ["run"]

_NETS = {"lenet": "LeNet", "resnet20": "ResNet-20"}
_LOGIT_IMAGES = {"lenet": 10_000, "resnet20": 2_000}  # the second computation takes 15 ms an image of the latter
_VERIFIED = 200
_RATE = 0.1


@dataclass(frozen=True)
class _Case:
    """A form of the weights; ``method`` "adaround" on the quadratic form, or by images."""

    bits: int
    levels: str
    method: str = "adaround"

    def __str__(self) -> str:
        words = "one scale a layer" if self.levels == "narrow" else "mirrored levels by channel"
        return f"{self.bits} bits, {words}" + (", by images" if self.method == "adaround-images" else "")


@dataclass(frozen=True)
class _Result:
    """What one case gave; ``planted`` are the links with one decision the other way."""

    case: _Case
    links: tuple[Link, ...]
    planted: tuple[Link, ...]
    accuracy: float
    bytes: int


_CASES = (_Case(4, "narrow"), _Case(2, "narrow"), _Case(4, "mirrored"), _Case(2, "mirrored"))


def run(settings: Settings, tell: Tell) -> StudyResult:
    """Go the whole chain in LeNet and ResNet-20, as ``settings`` say; ``tell`` is told (net, cases done, all)."""
    tables, findings = [], []
    for net in ("lenet",) if settings.smoke else _NETS:
        cases = (
            _CASES[1:2]
            if settings.smoke
            else (*_CASES, *((_Case(4, "narrow", "adaround-images"),) if net == "lenet" else ()))
        )
        lab = next(draws(net, settings, 1))
        results = []
        for done, case in enumerate(cases):
            results.append(_one(lab, case, settings.smoke))
            tell(_NETS[net], done + 1, len(cases))
        tables += [_links_table(net, results), _planted_table(net, results), _size_table(net, lab, results)]
        findings += _findings(net, results)
    return StudyResult(tuple(tables), tuple(findings), (), (*_notes(), IMAGES_NOTE))


def _rounded(lab: Lab, case: _Case, plan: BitPlan, smoke: bool) -> RoundedWeights:
    iterations = 5 if smoke else 100 if case.method == "adaround-images" else 300
    options = RoundingOptions(
        iterations=iterations, learning_rate=_RATE, levels=case.levels, history=(iterations,), images=512
    )
    return lab.round(plan, case.method, options)


def _one(lab: Lab, case: _Case, smoke: bool) -> _Result:
    module = load_model(lab.net, lab.data.name)
    plan = lab.plan(case.bits, 8, per_channel=case.levels != "narrow")
    rounded = _rounded(lab, case, plan, smoke)
    images = 20 if smoke else _LOGIT_IMAGES[lab.net]
    few = min(_VERIFIED, images)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "net.lab"
        links = chain(module, lab.graph, plan, rounded, lab.x[:images], path, few)
        size = path.stat().st_size
        other = flipped(rounded, lab.graph, next(iter(rounded.weights)))
        planted = chain(module, lab.graph, plan, rounded, lab.x[:few], path, 1, other)
    accuracy = lab.score(net_of(lab.graph, plan, rounded, module).run(lab.x))
    return _Result(case, links, planted, accuracy, size)


def _links_table(net: str, results: Sequence[_Result]) -> Table:
    rows = [
        (str(result.case), link.name, f"{link.elements:,}", link.differing)
        for result in results
        for link in result.links
    ]
    return Table(f"{_NETS[net]}: what was compared", ("weights", "link", "elements", "differing"), tuple(rows))


def _planted_table(net: str, results: Sequence[_Result]) -> Table:
    rows = [
        (str(result.case), link.name, f"{link.elements:,}", link.differing)
        for result in results
        for link in (*result.planted[:2], *result.planted[4:])
    ]
    title = f"{_NETS[net]}: the same with one decision of the first layer the other way, which must be noticed"
    return Table(title, ("weights", "link", "elements", "differing"), tuple(rows))


def _size_table(net: str, lab: Lab, results: Sequence[_Result]) -> Table:
    rows = [(str(result.case), f"{result.bytes:,}", f"{result.accuracy:.2f}") for result in results]
    title = f"{_NETS[net]}: the files (float network: {lab.accuracy:.2f} %)"
    return Table(title, ("weights", "bytes of the file", "test accuracy, %"), tuple(rows))


def _findings(net: str, results: Sequence[_Result]) -> list[Finding]:
    elements = sum(link.elements for result in results for link in result.links)
    differing = sum(link.differing for result in results for link in result.links)
    seen = [result.planted[0].differing == 1 and result.planted[-1].differing > 0 for result in results]
    return [
        Finding(
            f"{_NETS[net]}: the engine computes what V says, to the last bit",
            f"{differing} of {elements:,} elements differ in {len(results)} networks",
            "yes" if differing == 0 else "no",
        ),
        Finding(
            f"{_NETS[net]}: one decision the other way would be seen in the integers and in the logits",
            f"seen in {sum(seen)} of {len(seen)} networks",
            "yes" if all(seen) else "partly" if any(seen) else "no",
        ),
    ]


def _notes() -> tuple[str, ...]:
    return (
        "The paper's networks are simulated in floating point; it has no such chain. Here each link is computed twice. "
        "V, the original weights and the scales give the integers in whole numbers alone (the quotient of mantissas, "
        "rounded down); the file's bytes are read without labkit's reader and unpacked; PyTorch computes the logits in "
        "int64 from the integers that V gave.",
        "Everything that is no decision (scales of activations, biases, multipliers) and every layer's output is compared "
        "with what `labkit verify` derives from the float module, with tolerance 0.",
        "V is that of one draw of calibration images (seed 0): whether bits are equal does not depend on it. Weights of 2 "
        "bits are kept in the file as those of 4, two to a byte. Mirrored levels: -1 to 2 or -2 to 1 at 2 bits, as suits a "
        "channel better.",
    )
