"""The report as one HTML page that needs nothing beside itself: no network, no script, no other file."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterable, Mapping
from typing import Any

import matplotlib.image
import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from numpy.typing import NDArray

from labkit.reporting import plots
from labkit.reporting.results import AccuracyRow, DemoResult, LayerRow, Range, Sample
from labkit.reporting.summary import (
    change,
    headline_row,
    image_counts,
    is_clear,
    reference_row,
    sections,
    short_count,
    short_milliseconds,
    short_size,
    signed_points,
    verdict,
)

__all__ = ["render_html"]

_TIMED = "one thread, batches of up to 32 images"

_SECTION_TITLES = {
    "float": "Float",
    "simulated": "Simulated quantization",
    "bias": "A bias in the last layer",
    "integer engine": "Integer engine",
}


def render_html(result: DemoResult) -> str:
    """The whole report as text of one HTML file.

    Parameters
    ----------
    result
        What the demo found. Strings are escaped, whatever they hold; parts without data are left out.

    Returns
    -------
    str
        HTML 5 with its style, figures (inline SVG) and images (data URIs) inside. A content security policy in the page
        forbids every request, so that opening it can never contact anybody.
    """
    environment = Environment(
        loader=PackageLoader("labkit.reporting", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(count=short_count, size=short_size, milliseconds=short_milliseconds, listed=_listed)
    weights = [layer for layer in result.layers if layer.kind == "weight"]
    activations = [layer for layer in result.layers if layer.kind == "activation"]
    status, sentence = verdict(result.certificates)
    return environment.get_template("report.html.j2").render(
        result=result,
        status=status,
        sentence=sentence,
        cards=_cards(result),
        sections=_table(result),
        images=image_counts(result.rows),
        uniform=len({row.images for row in result.rows}) == 1,
        error_points=_standard_error(result.rows),
        has_change_errors=any(row.change_error is not None for row in result.rows),
        timed=_TIMED if any(row.ms_per_image is not None for row in result.rows) else "",
        histograms={
            "weights": [_figure(layer, f"w{n}") for n, layer in enumerate(weights)],
            "activations": [_figure(layer, f"a{n}") for n, layer in enumerate(activations)],
        },
        noise=_noise_figures(weights, activations),
        samples=[_sample(sample) for sample in result.samples],
        total_seconds=sum(result.seconds.values()),
        longest=max(result.seconds.values(), default=1.0) or 1.0,
    )


def _cards(result: DemoResult) -> list[dict[str, str]]:
    """The key numbers: what a reader should know after five seconds."""
    cards: list[dict[str, str]] = []
    row = headline_row(result.rows)
    reference = reference_row(result.rows, row) if row else next(iter(result.rows), None)
    if reference is not None:
        cards.append(_card("Float accuracy", f"{reference.accuracy:.2f} %", reference.label))
    if row is not None:
        points = change(result.rows, row)
        versus = f"{_minus(signed_points(points))} points against float" if points is not None else ""
        cards.append(_card(f"{row.label} accuracy", f"{row.accuracy:.2f} %", versus))
        if row.size_bytes:
            before = reference.size_bytes if reference is not None else None
            smaller = f"{before / row.size_bytes:.1f} times smaller than float" if before else ""
            cards.append(_card(f"{row.label} size", short_size(row.size_bytes), smaller))
    if result.certificates:
        elements = sum(report.elements for report in result.certificates.values())
        differing = sum(report.differing for report in result.certificates.values())
        cards.append(_card("Elements compared", short_count(elements), f"{differing:,} of them differ"))
    if row is not None and row.ms_per_image:
        each = f"{1000 / row.ms_per_image:,.0f} images a second"
        cards.append(
            _card("Time an image", f"{short_milliseconds(row.ms_per_image)} ms", f"{row.label}, {each}: {_TIMED}")
        )
    return cards


def _card(label: str, value: str, detail: str) -> dict[str, str]:
    return {"label": label, "value": value, "detail": detail}


def _table(result: DemoResult) -> list[dict[str, Any]]:
    table = []
    for section, rows in sections(result.rows).items():
        lines = []
        for row in rows:
            points, reference = change(result.rows, row), reference_row(result.rows, row)
            lines.append(
                {
                    "row": row,
                    "change": _minus(signed_points(points)),
                    "error": "" if row.change_error is None else f"{row.change_error:.2f}",
                    "is_reference": reference is row,
                    "drop": points is not None and points < 0 and is_clear(result.rows, row),
                    "reference": reference.accuracy if reference is not None else None,
                }
            )
        table.append({"title": _SECTION_TITLES.get(section, section), "lines": lines})
    return table


def _standard_error(rows: tuple[AccuracyRow, ...]) -> float | None:
    """One standard error of the first row's accuracy in points: sqrt(p (1 - p) / n) of a binomial share."""
    if not rows or rows[0].images <= 0 or not 0 <= rows[0].accuracy <= 100:
        return None
    share = rows[0].accuracy / 100
    return 100 * math.sqrt(share * (1 - share) / rows[0].images)


def _figure(layer: LayerRow, key: str) -> dict[str, Any]:
    counts, edges = np.asarray(layer.histogram.counts), np.asarray(layer.histogram.edges)
    beyond = (edges[1:] <= layer.chosen.low) | (edges[:-1] >= layer.chosen.high)
    total = int(counts.sum())
    return {
        "svg": _inline(plots.histogram(layer, key)),
        "shape": " × ".join(str(n) for n in layer.shape),
        "ranges": [
            ("observed", _interval(layer.actual)),
            ("3σ", _interval(layer.three_sigma)),
            ("chosen", _interval(layer.chosen) + (" (widest channel)" if layer.kind == "weight" else "")),
        ],
        "cut": 100 * int(counts[beyond].sum()) / total if total else 0.0,
    }


def _noise_figures(weights: list[LayerRow], activations: list[LayerRow]) -> list[Markup]:
    figures = []
    height = max(plots.noise_height(activations), plots.noise_height(weights), 320.0)
    if plots.configurations(activations):
        figures.append(plots.error_curve(activations, "error", height))
        figures.append(plots.sqnr_bars(activations, "sqnr-activations", "SQNR of the activations", height))
    if plots.configurations(weights):
        figures.append(plots.sqnr_bars(weights, "sqnr-weights", "SQNR of the weights", height))
    return [_inline(figure) for figure in figures]


def _inline(svg: str) -> Markup:
    # Inside HTML the namespace is implied; without it the page holds no address at all.
    return Markup(svg.replace(' xmlns="http://www.w3.org/2000/svg"', "", 1))


def _interval(span: Range) -> str:
    return _minus(f"{span.low:.3g} … {span.high:.3g}")


def _minus(number: str) -> str:
    return number.replace("-", "\N{MINUS SIGN}")


def _listed(names: Iterable[str]) -> str:
    """``A, B and C``; a name that holds a comma itself, "C, more", is written "C (more)"."""
    plain = [f"{head} ({tail})" if tail else head for head, _, tail in (name.partition(", ") for name in names)]
    return " and ".join(filter(None, (", ".join(plain[:-1]), plain[-1]))) if plain else ""


def _sample(sample: Sample) -> dict[str, Any]:
    guesses: Mapping[str, tuple[str, float]] = {
        "float": (sample.float_prediction, sample.float_probability),
        **sample.integer_predictions,
    }
    return {
        "label": sample.label,
        "image": _data_uri(sample.pixels),
        "guesses": [
            {"name": name, "class": guess, "probability": f"{100 * probability:.0f} %", "right": guess == sample.label}
            for name, (guess, probability) in guesses.items()
        ],
        "changed": [
            name for name, (guess, _) in sample.integer_predictions.items() if guess != sample.float_prediction
        ],
    }


def _data_uri(pixels: NDArray[np.uint8]) -> str:
    buffer = io.BytesIO()
    unnamed: dict[str, Any] = {"Software": None}  # else the image would name the version of matplotlib
    matplotlib.image.imsave(buffer, pixels, format="png", metadata=unnamed)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
