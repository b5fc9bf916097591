"""The page in a real browser, where there is one: nothing may stick out of a wide or a narrow window."""

from __future__ import annotations

import dataclasses
import html
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from labkit.reporting.html import render_html
from labkit.reporting.results import DemoResult

WIDTHS = (1280, 390)
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")

# A headless window is never narrower than about 500 pixels, a frame is: the page is shown in one frame for each width.
# The result is written as one "width:scrollWidth:innerWidth:widest figure:pixel size of a figure's letters:..." for each.
MEASURE = """
<script>
addEventListener("load", () => {
  const found = [...document.querySelectorAll("iframe")].map(frame => {
    const page = frame.contentDocument, inner = frame.contentWindow.innerWidth;
    const figures = [...page.querySelectorAll("figure svg")].map(f => Math.ceil(f.getBoundingClientRect().right));
    const letters = [...page.querySelectorAll("figure svg text")].map(t =>
      parseFloat(getComputedStyle(t).fontSize) * t.ownerSVGElement.getScreenCTM().a);
    const cut = [...page.querySelectorAll("figure svg text")].filter(t => {
      const box = t.getBoundingClientRect(), figure = t.ownerSVGElement.getBoundingClientRect();
      return box.left < figure.left - 1 || box.right > figure.right + 1 || box.top < figure.top - 1
        || box.bottom > figure.bottom + 1;
    });
    const scrolls = [...page.querySelectorAll("nav ul, .table-card, .main td, .main th")].filter(e =>
      e.scrollWidth > e.clientWidth + 1);
    return [frame.width, page.documentElement.scrollWidth, inner, Math.max(...figures),
            Math.min(...letters).toFixed(1), cut.length, scrolls.length].join(":");
  });
  document.title = "measured " + found.join(" ");
});
</script>
"""


def browser() -> str:
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.skip(f"no Chromium on PATH (looked for {', '.join(NAMES)}); install one to check the page's layout")
    return found


def measure(page: str, folder: Path) -> dict[int, list[float]]:
    program = browser()
    frames = "".join(f'<iframe width="{w}" height="900" srcdoc="{html.escape(page)}"></iframe>' for w in WIDTHS)
    file = folder / "frames.html"
    file.write_text(f"<!doctype html><title>waiting</title><meta charset=utf-8>{MEASURE}{frames}", encoding="utf-8")
    flags = (
        "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
        "--disable-component-update --disable-sync --disable-dev-shm-usage --window-size=1800,1000 --dump-dom"
    )
    done = subprocess.run(
        [program, *flags.split(), f"--user-data-dir={folder / 'profile'}", file.as_uri()],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    title = re.search(r"<title>measured ([^<]*)</title>", done.stdout)
    assert title, f"the browser measured nothing (exit {done.returncode}): {done.stderr[-500:]}"
    rows = [[float(number) for number in part.split(":")] for part in title.group(1).split()]
    return {int(row[0]): row[1:] for row in rows}


def test_nothing_sticks_out_and_letters_can_be_read(text: str, tmp_path: Path) -> None:
    found = measure(text, tmp_path)
    assert tuple(found) == WIDTHS
    for width, (scroll, inner, figures, letters, cut, scrolls) in found.items():
        assert inner > width - 20 and scroll <= inner, f"{width}: the page is {scroll} wide in a window of {inner}"
        assert figures <= inner and cut == 0, f"{width}: {cut} labels stick out of their figures"
        assert scrolls == 0, f"{width}: {scrolls} chips or cells are wider than their places"
        assert letters >= 8, f"{width}: letters of {letters} pixels"


def test_long_unbroken_names_do_not_widen_the_page(result: DemoResult, tmp_path: Path) -> None:
    long = "x" * 120
    wide = dataclasses.replace(
        result,
        network=long,
        command=long,
        dataset_reason=long,
        rows=tuple(dataclasses.replace(row, label=long, note=long) for row in result.rows),
        layers=tuple(dataclasses.replace(layer, name=long) for layer in result.layers[:2]),
        samples=tuple(dataclasses.replace(s, label=long, float_prediction=long) for s in result.samples[:2]),
        certificates={long: dataclasses.replace(result.certificates["W4A4"], subject=long)},
        versions={long: long},
        seconds={long: 1.0},
    )
    for width, (scroll, inner, *_) in measure(render_html(wide), tmp_path).items():
        assert scroll <= inner, f"{width}: the page is {scroll} wide in a window of {inner}"
