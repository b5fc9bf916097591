"""``labkit quantize minilm``: the pretrained sentence encoder in integers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from labkit.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.console import Console

    from labkit.cli.analyse import Wanted
    from labkit.cli.pictures import PictureOptions
    from labkit.cli.planning import PlanWishes
    from labkit.models.sentence_encoder import SentenceEncoder
    from labkit.net import IntegerNet

__all__ = ["SentenceRequest", "quantize_minilm", "refuse_what_is_for_images"]

_SENTENCES = 256  # to calibrate on, as in the study
_PROVED = 8  # sentences of the certificate


@dataclass(frozen=True)
class SentenceRequest:
    """What the user said of a sentence encoder.

    output, write_plan : the files to write; the second one may be None.
    data, data_dir, count : where sentences to calibrate on come from, and how many; None for the usual number.
    ranges, rounding, method, seed : as the options of ``labkit quantize``; None or "nearest" where nothing was said.
    grids : bits and grids as `labkit.quantize` takes them, or a plan.
    verify : whether to compare with PyTorch.
    """

    output: Path
    write_plan: Path | None
    data: str
    data_dir: Path | None
    count: int | None
    ranges: str | None
    rounding: str
    method: str | None
    seed: int
    grids: Mapping[str, Any]
    verify: bool

    def methods(self) -> dict[str, Any]:
        """Ranges, rounding and method as `quantize_encoder` takes them; "best" may be a rounding or a method.

        Raises
        ------
        InputError, QuantizationError
            There is no such name, or two of them contradict each other.
        """
        from labkit.quantization.pipeline import chosen_methods

        best = "best" in (self.rounding, self.method)
        if best and (self.rounding not in ("best", "nearest") or self.method not in ("best", None)):
            raise InputError(
                f"One of --rounding {self.rounding} and --method {self.method} says that weights are rounded by best, the other "
                f"something else: drop one."
            )
        ranges, rounding, _ = chosen_methods(
            None if best else self.method, self.ranges or "minmax", "nearest" if best else self.rounding
        )
        chosen = {"ranges": "percentile" if (self.ranges, ranges) == (None, "minmax") else ranges}
        if self.method == "minmax":
            chosen = {"ranges": "minmax"}
        return {**chosen, "rounding": "best" if best else rounding}


def refuse_what_is_for_images(
    wishes: PlanWishes, wanted: Wanted, pictures: PictureOptions, weights: Path | None
) -> None:
    """Refuse options of ``labkit quantize`` that a sentence encoder has no use for.

    Parameters
    ----------
    wishes : of a plan under a budget
    wanted : of an analysis
    pictures : of preprocessing
    weights : a file to fill the network with, or None

    Raises
    ------
    InputError
        One of them was given.
    """
    if wishes.wanted:
        raise InputError(
            "A budget needs sensitivities measured on images, which minilm does not take: give -w, or a plan layer by layer, "
            "--plan; --write-plan writes one to begin with."
        )
    if wanted.tables or wanted.images or wanted.json_file or wanted.plot_file:
        raise InputError("Analyse minilm when it is written: labkit analyse minilm.lab.")
    if pictures.given:
        raise InputError("minilm reads sentences: leave out what is for pictures (--preprocessing, --image-size, ...).")
    if weights is not None:
        raise InputError("minilm comes with its own weights, in the extra labkit[text]: leave out --weights.")


def quantize_minilm(console: Console, request: SentenceRequest) -> bool:
    """Quantize the encoder as ``request`` says, write it, and tell on ``console``; False where a certificate failed.

    Raises
    ------
    ModelError
        The extra labkit[text] is not installed.
    DataError, InputError, QuantizationError
        Sentences cannot be had, or options make no sense.
    """
    from contextlib import ExitStack
    from functools import partial

    from labkit.cli.progress import progress_bars
    from labkit.cli.sentences import find_sentences
    from labkit.files import folder_of
    from labkit.graph.costs import costs
    from labkit.graph.lengths import length_of
    from labkit.models.sentence_encoder import load_minilm
    from labkit.models.zoo import MINILM
    from labkit.quantization.plan import BitPlan
    from labkit.quantization.sentences import quantize_encoder

    say = partial(console.print, highlight=False, soft_wrap=True, markup=False)
    methods = request.methods()
    files = (request.output, *(() if request.write_plan is None else (request.write_plan,)))
    with ExitStack() as folders:
        for path in files:  # found out before the work, not after it
            folders.enter_context(folder_of(path))
        encoder = load_minilm()
        sentences, source = find_sentences(request.data, request.data_dir, request.count or _SENTENCES)
        say(f"{len(sentences):,} {source}.")
        with progress_bars(console) as tell:
            net = quantize_encoder(
                encoder, sentences, **methods, **request.grids, seed=request.seed, progress=tell
            ).with_notes(model=MINILM, data=source)
            net.save(request.output)
            if request.write_plan is not None:
                BitPlan.from_json(net.graph.notes["plan"]).save(request.write_plan)
        found = costs(net.graph)
        say(
            f"{request.output}: {len(net.graph.nodes)} nodes, {found.size_bytes:,} bytes of weights and biases. "
            f"A sentence of {length_of(net.graph)} tokens takes {found.total_macs:,} MACs and "
            f"{found.total_bops:,} bit operations, a shorter one less."
        )
        return not request.verify or _proved(console, net, encoder, sentences, request.output.name)


def _proved(console: Console, net: IntegerNet, encoder: SentenceEncoder, sentences: tuple[str, ...], name: str) -> bool:
    """Compare ``net`` with PyTorch on the first sentences, at the length that they need."""
    from labkit.cli.progress import progress_bars
    from labkit.models.sentence_encoder import tokenize
    from labkit.parity.compare import verify
    from labkit.quantization.sentences import filled_up
    from labkit.reporting.tables import certificate_panel

    shown = sentences[:_PROVED]
    (part,) = tokenize(shown, len(shown))
    given = filled_up(net, part)
    here = net.at_length(given["ids"].shape[1])
    with progress_bars(console) as tell:
        report = verify(here, encoder, given, progress=lambda done: tell("Compare", done, len(shown)))
    console.print(certificate_panel({name: report}))
    return report.passed
