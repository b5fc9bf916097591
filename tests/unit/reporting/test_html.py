from __future__ import annotations

import dataclasses
import html
import re
from collections import Counter
from html.parser import HTMLParser

import pytest

from labkit.parity.report import Difference
from labkit.reporting.html import render_html
from labkit.reporting.results import DemoResult

VOID = {"meta", "link", "img", "br", "hr"}


class Page(HTMLParser):
    """Every tag with its attributes, every text, and whether the tags nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes another tag"

    def handle_data(self, data: str) -> None:
        self.texts.append(" ".join(data.split()))

    def values(self, *names: str) -> list[str]:
        return [value or "" for _, attributes in self.tags for name, value in attributes.items() if name in names]


@pytest.fixture(scope="module")
def page(text: str) -> Page:
    return Page(text)


def test_needs_nothing_beside_itself(text: str, page: Page) -> None:
    for address in page.values("src", "href", "srcset", "data", "action", "poster", "xlink:href"):
        assert address.startswith(("#", "data:")), address
    assert not re.search(r"https?://|@import|url\((?!#)", text)
    assert not any(tag in ("script", "iframe", "object", "embed", "base") for tag, _ in page.tags)
    assert "default-src 'none'" in " ".join(page.values("content"))


def test_is_small_and_well_nested(text: str, page: Page) -> None:
    assert len(text.encode()) < 2_000_000
    assert page.open == []


def test_same_result_same_page(result: DemoResult) -> None:
    short = dataclasses.replace(result, layers=result.layers[:1] + result.layers[-1:])
    assert render_html(short) == render_html(short)


def test_ids_are_unique_and_every_link_and_reference_meets_one(text: str, page: Page) -> None:
    ids = page.values("id")
    assert [name for name, count in Counter(ids).items() if count > 1] == []
    targets = [a[1:] for a in page.values("href") if a.startswith("#")] + re.findall(r"url\(#([^)]+)\)", text)
    targets += page.values("aria-labelledby")
    assert len(targets) > 20 and set(targets) <= set(ids)


def test_holds_every_row_layer_and_sample(result: DemoResult, page: Page) -> None:
    for row in result.rows:
        assert {row.label, f"{row.accuracy:.2f}", f"{row.weight_bits}/{row.activation_bits}"} <= set(page.texts)
    for layer in result.layers:
        assert f"{layer.name}: {'weights' if layer.kind == 'weight' else 'activations'}" in page.texts
    alts = page.values("alt")
    assert [f"Test image of class {sample.label}" for sample in result.samples] == alts


def test_figures_and_images_describe_themselves(result: DemoResult, page: Page) -> None:
    figures = [attributes for tag, attributes in page.tags if tag == "svg" and attributes.get("role") == "img"]
    assert len(figures) == len(result.layers) + 3
    assert all(figure.get("aria-label") for figure in figures)


def test_right_and_wrong_are_words_too(result: DemoResult, page: Page) -> None:
    guesses = [s.float_prediction == s.label for s in result.samples]
    guesses += [guess == s.label for s in result.samples for guess, _ in s.integer_predictions.values()]
    assert "unlike float: W4A4" in page.texts
    assert page.texts.count("right") == sum(guesses) and page.texts.count("wrong") == len(guesses) - sum(guesses)


def test_verdict_and_certificates(text: str, page: Page, passing: DemoResult) -> None:
    assert "Not equal: 2,408 of 523,491,120 elements differ (W4A4)." in page.texts
    assert page.texts.count("✓ passes") == 2 and page.texts.count("✗ fails") == 1
    assert text.count("<details") == 3 and len(re.findall(r"<details[^>]* open", text)) == 1
    assert {"conv1.multiplier", "fc2", "94,080,000", "1,204"} <= set(page.texts)
    good = Page(render_html(dataclasses.replace(passing, layers=())))
    assert "Bit for bit equal: 0 of 523,491,120 elements differ." in good.texts
    assert "✗ fails" not in good.texts


def test_cards_hold_the_key_numbers(page: Page) -> None:
    assert {"70.14 %", "70.15 %", "316 kB", "523 M", "0.0832 ms", "+0.01 points against float"} <= set(page.texts)


def test_cards_and_table_write_one_minus_sign(result: DemoResult) -> None:
    rows = tuple(dataclasses.replace(row, accuracy=70.0) if row.label == "W8A8" else row for row in result.rows)
    texts = Page(render_html(dataclasses.replace(result, rows=rows))).texts
    assert "−0.14 points against float" in texts and "−0.14" in texts
    numbers = [text for text in texts if re.match(r"[-−]\d", text)]
    assert {text for text in numbers if text.startswith("-")} == {"-3", "-4"}, "a certificate's integers, set as code"


def test_each_change_has_its_error_and_only_clear_drops_are_red(text: str, page: Page) -> None:
    assert {"± 0.09", "± 0.31", "± 0.41"} <= set(page.texts)
    assert re.findall(r'class="drop">([^<]*)<', text) == ["−3.81", "−8.11"]
    assert "one standard error of an accuracy is about 0.46 points here" in " ".join(page.texts)


def test_without_errors_nothing_is_red_and_no_error_is_explained(result: DemoResult) -> None:
    rows = tuple(dataclasses.replace(row, change_error=None, ms_per_image=None) for row in result.rows)
    text = render_html(dataclasses.replace(result, rows=rows, layers=()))
    assert 'class="drop"' not in text and "±" not in text and "one thread" not in text


def test_time_says_how_it_was_taken(page: Page) -> None:
    assert sum("one thread, batches of up to 32 images" in text for text in page.texts) == 2  # card and table


def test_cut_off_stands_in_the_legend_only_where_something_is_cut(result: DemoResult, text: str) -> None:
    assert text.count("cut off by the chosen range") == 1, "activations only: the chosen range of weights cuts nothing"
    weights = tuple(layer for layer in result.layers if layer.kind == "weight")
    only = render_html(dataclasses.replace(result, layers=weights))
    assert "cut off by" not in only and "chosen, widest channel" in only and "(widest channel)" in only


@pytest.mark.parametrize(
    ("names", "listed"),
    [
        (["W8A8"], "W8A8"),
        (["W8A8", "W4A4"], "W8A8 and W4A4"),
        (["W8A8", "W4A8", "W8A8, readable kernels"], "W8A8, W4A8 and W8A8 (readable kernels)"),
    ],
)
def test_the_verdict_lists_the_nets(passing: DemoResult, names: list[str], listed: str) -> None:
    certificates = dict.fromkeys(names, passing.certificates["W8A8"])
    texts = " ".join(Page(render_html(dataclasses.replace(passing, layers=(), certificates=certificates))).texts)
    assert f"In {listed}, every parameter and every layer's output are the same integers" in texts


def test_command_versions_and_times(result: DemoResult, page: Page) -> None:
    assert result.command in page.texts and set(result.versions.values()) <= set(page.texts)
    assert {"14.9 s", "25.8 s"} <= set(page.texts)


def test_hostile_strings_stay_text(result: DemoResult) -> None:
    evil = """<script>alert(1)</script>"'><img src=x onerror=alert(2)>{{ 7 * 7 }}</style>]]>"""
    report = dataclasses.replace(
        result.certificates["W4A4"],
        subject=evil,
        against=evil,
        first=Difference(evil, (0,), evil, evil),
        versions={evil: evil},
    )
    hostile = DemoResult(
        network=evil,
        dataset=evil,
        dataset_reason=evil,
        calibration_images=1,
        rows=tuple(dataclasses.replace(row, section=evil, label=evil, note=evil) for row in result.rows),
        layers=tuple(dataclasses.replace(layer, name=evil, sqnr_db={evil: 20.0}) for layer in result.layers[4:6]),
        samples=(
            dataclasses.replace(
                result.samples[0], label=evil, float_prediction=evil, integer_predictions={evil: (evil, 0.5)}
            ),
        ),
        certificates={evil: report},
        versions={evil: evil},
        command=evil,
        seconds={evil: 1.0},
        notes=(evil,),
    )
    text = render_html(hostile)
    page = Page(text)
    assert page.open == [] and not any(tag == "script" for tag, _ in page.tags)
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert "<script" not in text and html.escape("<script>alert(1)") in text and "{{ 7 * 7 }}" in text
    assert [source[:22] for source in page.values("src")] == ["data:image/png;base64,"]


def test_a_result_with_nothing_in_it_still_makes_a_page(result: DemoResult) -> None:
    empty = dataclasses.replace(
        result, rows=(), layers=(), samples=(), certificates={}, versions={}, seconds={}, notes=()
    )
    page = Page(render_html(empty))
    assert "Nothing was compared." in page.texts
    ids = set(page.values("id"))
    assert "weights" not in ids and {a[1:] for a in page.values("href") if a.startswith("#")} <= ids


def test_images_of_differing_counts_are_stated_row_by_row(result: DemoResult) -> None:
    rows = (result.rows[0], dataclasses.replace(result.rows[1], images=1_000))
    texts = Page(render_html(dataclasses.replace(result, rows=rows, layers=()))).texts
    assert "1,000 images" in texts and "10,000 images" in texts
