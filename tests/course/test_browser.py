"""The course as a new student meets it: a folder, JupyterLab, a wrong answer, a right one, a plot, in a real browser.

Nothing is replaced by a stand-in: `labkit init` makes the folder, `labkit lab` serves it, and the keys are pressed in Chromium,
the system's own (Playwright brings no browser and fetches none). To keep pictures of every step, in both themes:

    LABKIT_SCREENSHOTS=pictures pytest tests/course/test_browser.py

Without the variable they go to the test's temporary folder, where they can be looked at when something fails.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import util
from pathlib import Path
from typing import Any

import pytest

from labkit.course import check
from labkit.course.feedback import ModuleFeedback
from labkit.course.loading import find_course, load_modules
from labkit.course.source import solution_ranges

COURSE = find_course(Path(__file__).parents[2])
NOTEBOOK = "m02_activations.ipynb"
CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
LABKIT = (sys.executable, "-c", "from labkit.cli import main; main()")
TOKEN = "student"
BLANK = "raise NotImplementedError"
SIGNS = "✓✗○●"
WAIT = 120.0
"""Seconds for any one step, a hundred times what it takes on a quiet machine. Every wait ends as soon as its condition holds."""

CONTRASTS = """
box => {
  // Each text in the box, and its contrast (WCAG 2, 1 to 21) with what is behind it.
  const parts = colour => (colour.match(/[\\d.]+/g) || []).map(Number);
  const over = (top, alpha, below) => below.map((b, i) => alpha * top[i] + (1 - alpha) * b);
  const linear = c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
  const light = rgb => [0.2126, 0.7152, 0.0722].reduce((sum, w, i) => sum + w * linear(rgb[i] / 255), 0);
  const chain = element => element ? [...chain(element.parentElement), element] : [];
  const behind = element => chain(element).map(e => parts(getComputedStyle(e).backgroundColor))
    .reduce((below, c) => over(c, c.length > 3 ? c[3] : 1, below), [255, 255, 255]);
  const opacity = element => chain(element).reduce((product, e) => product * getComputedStyle(e).opacity, 1);
  const walker = document.createTreeWalker(box, NodeFilter.SHOW_TEXT), found = [];
  while (walker.nextNode()) {
    const text = walker.currentNode.textContent.trim(), element = walker.currentNode.parentElement;
    if (!text) continue;
    const below = behind(element), own = parts(getComputedStyle(element).color);
    const [a, b] = [light(over(own, opacity(element) * (own.length > 3 ? own[3] : 1), below)), light(below)];
    found.push([text, (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05)]);
  }
  return found;
}
"""
COLOURS = """
async image => {
  await image.decode();
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
  const paper = canvas.getContext("2d");
  paper.drawImage(image, 0, 0);
  return new Set(new Uint32Array(paper.getImageData(0, 0, canvas.width, canvas.height).data.buffer)).size;
}
"""


def _chromium() -> str:
    for package, extra in (("playwright", "dev"), ("jupyterlab", "lab")):
        if util.find_spec(package) is None:
            pytest.skip(f'{package} is not installed; pip install ".[{extra}]" in a clone brings it')
    found = next(filter(None, map(shutil.which, CHROMIUM)), None)
    if found is None:
        pytest.skip(
            f"no Chromium on PATH (looked for {', '.join(CHROMIUM)}); install one to try the course in a browser"
        )
    return found


def _once(condition: Callable[[], Any], otherwise: Callable[[], str]) -> Any:
    """What ``condition`` gives, as soon as that is true; a failed test with the words of ``otherwise`` if it never is."""
    until = time.monotonic() + WAIT
    while time.monotonic() < until:
        if found := condition():
            return found
        time.sleep(0.05)
    pytest.fail(otherwise())


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass(frozen=True)
class Lab:
    """A student's folder, and the address of the JupyterLab that shows it."""

    folder: Path
    address: str


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    """What `labkit init` and `labkit lab` give a new student, away from the settings of whoever runs the test."""
    _chromium()  # before anything is started
    folder, own = tmp_path / "my labs", tmp_path / "jupyter"
    settings = own / "settings" / "@jupyterlab" / "apputils-extension"
    settings.mkdir(parents=True)
    # light or dark as the browser says; no question about news, and no network
    (settings / "themes.jupyterlab-settings").write_text('{"adaptive-theme": true}')
    (settings / "notification.jupyterlab-settings").write_text('{"fetchNews": "false"}')
    places = {
        "JUPYTER_CONFIG_DIR": "config",
        "JUPYTER_DATA_DIR": "data",
        "JUPYTER_RUNTIME_DIR": "runtime",
        "JUPYTERLAB_SETTINGS_DIR": "settings",
        "JUPYTERLAB_WORKSPACES_DIR": "workspaces",
        "IPYTHONDIR": "ipython",
        "LABKIT_DATA": "no data",  # so that the digits are taken that come with labkit
    }
    settled = ("JUPYTER", "LABKIT", "MPLBACKEND")  # what a student has not set
    environment = {name: value for name, value in os.environ.items() if not name.startswith(settled)}
    environment |= {name: str(own / place) for name, place in places.items()}
    subprocess.run([*LABKIT, "init", str(folder)], env=environment, check=True, timeout=WAIT, capture_output=True)
    assert (folder / NOTEBOOK).is_file()
    options = ("--no-browser", "--ip=127.0.0.1", f"--port={_free_port()}", f"--IdentityProvider.token={TOKEN}")
    log = tmp_path / "jupyterlab.log"
    with log.open("wb") as said:
        server = subprocess.Popen(
            [*LABKIT, "lab", str(folder), "--", *options], env=environment, stdout=said, stderr=said
        )

    def address() -> str | None:
        """As the server's own file says: where another program has taken the port meanwhile, it takes the next one."""
        assert server.poll() is None, f"`labkit lab` ended: {log.read_text()[-2000:]}"
        for file in (own / "runtime").glob("jpserver-*.json"):
            try:
                return str(json.loads(file.read_text())["url"])
            except (ValueError, KeyError):
                return None  # half written
        return None

    try:
        yield Lab(folder, _once(address, lambda: f"`labkit lab` serves nothing: {log.read_text()[-2000:]}"))
    finally:
        server.terminate()
        try:
            server.wait(30)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


@dataclass
class Student:
    """Somebody in front of a notebook, with a keyboard."""

    page: Any
    pictures: Path
    taken: int = 0

    @property
    def active(self) -> Any:
        """The cell that the keyboard goes to."""
        return self.page.locator(".jp-Notebook .jp-Cell.jp-mod-active")

    def place(self) -> int:
        """Where the active cell stands, from 0."""
        return int(self.active.get_attribute("data-windowed-list-index"))

    def cell(self, place: int) -> Any:
        """The cell at ``place``."""
        return self.page.locator(f'.jp-Notebook .jp-Cell[data-windowed-list-index="{place}"]')

    def is_at(self, text: str) -> bool:
        """Whether the active cell is one of code, with ``text`` in it."""
        code = "jp-CodeCell" in self.active.get_attribute("class")
        return code and text in "\n".join(self.active.locator(".cm-line").all_inner_texts())

    def run(self) -> Any:
        """Shift+Enter in the active cell; returns the cell once it has run and the next one is active."""
        place = self.place()
        cell = self.cell(place)
        prompt = cell.locator(".jp-InputPrompt")
        before = prompt.inner_text() if "jp-CodeCell" in cell.get_attribute("class") else None
        self.page.keyboard.press("Shift+Enter")
        if before is not None:
            self.page.wait_for_function(
                "([e, before]) => /^\\[\\d+\\]:$/.test(e.textContent) && e.textContent !== before",
                arg=[prompt.element_handle(), before],
            )
        self.page.wait_for_function(
            "place => document.querySelector('.jp-Notebook .jp-Cell.jp-mod-active')?.dataset.windowedListIndex > place",
            arg=place,
        )
        return cell

    def check(self) -> Any:
        """Run the active cell, which is a check; its feedback, once all of it can be seen."""
        feedback = self.run().locator(".jp-OutputArea-output", has_text="Worth ")
        feedback.wait_for()
        return feedback

    def run_up_to(self, text: str) -> int:
        """Run cell after cell until the active one has ``text`` in it; its place."""
        for _ in range(100):  # more than any notebook of the course has
            if self.is_at(text):
                return self.place()
            self.run()
        pytest.fail(f"no cell of code holds {text!r}")

    def type(self, place: int, at: str, lines: list[str]) -> None:
        """Type ``lines``, with their indentation, over the one line of the cell at ``place`` that holds ``at``."""
        keyboard = self.page.keyboard
        self.cell(place).locator(".cm-line", has_text=at).click()
        for key in ("End", "Home", "Shift+End"):  # from the first letter of the line to its last
            keyboard.press(key)
        keyboard.type(lines[0].lstrip())
        for line in lines[1:]:
            keyboard.press("Enter")
            keyboard.press("Shift+Home")  # the indentation that the editor has put there is typed over
            keyboard.type(line)
        typed = self.cell(place).locator(".cm-line").all_inner_texts()
        assert "\n".join(lines) in "\n".join(typed).replace("\N{NO-BREAK SPACE}", " "), f"the editor made this: {typed}"

    def themes(self) -> Iterator[str]:
        """Dark, then light: the browser says so, and JupyterLab follows."""
        for name in ("dark", "light"):
            self.page.emulate_media(color_scheme=name)
            is_light = str(name == "light").lower()
            self.page.wait_for_function("is_light => document.body.dataset.jpThemeLight === is_light", arg=is_light)
            self.page.locator("#jupyterlab-splash").wait_for(state="detached")
            yield name

    def look(self, name: str, at: Any, text: bool = True) -> str:
        """Take a picture in each theme, and read what stands in ``at``.

        Every word of it can be read: its contrast is at least 4.5, that of a sign 3; with ``text=False`` it is a picture itself.
        """
        self.taken += 1
        for theme in self.themes():
            at.scroll_into_view_if_needed()
            self.page.screenshot(path=self.pictures / f"{self.taken}-{name}-{theme}.png")
            contrasts = at.evaluate(CONTRASTS) if text else []
            assert bool(contrasts) == text, "there must be words to read, or it must be said that there are none"
            faint = [(word, ratio) for word, ratio in contrasts if ratio < (3 if word in SIGNS else 4.5)]
            assert not faint, f"hard to read in the {theme} theme: {faint}"
        return str(at.inner_text())


@pytest.fixture
def student(lab: Lab, tmp_path: Path) -> Iterator[Student]:
    """Somebody who has just opened m02."""
    from playwright.sync_api import sync_playwright

    pictures = Path(os.environ.get("LABKIT_SCREENSHOTS") or tmp_path / "pictures").resolve()
    pictures.mkdir(parents=True, exist_ok=True)
    flags = ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=_chromium(), args=flags, timeout=1000 * WAIT)
        page = browser.new_page(viewport={"width": 1280, "height": 900}, color_scheme="light")
        page.set_default_timeout(1000 * WAIT)
        page.goto(f"{lab.address}lab/tree/{NOTEBOOK}?token={TOKEN}")
        page.locator('.jp-Notebook-ExecutionIndicator[data-status="idle"]').wait_for()
        page.locator(".jp-Notebook .jp-Cell").first.click()
        yield Student(page, pictures)
        browser.close()


def _answer(function: str) -> list[str]:
    """The lines of the right answer to ``function``, with their indentation."""
    text = (COURSE / "solutions" / NOTEBOOK).with_suffix(".py").read_text("utf-8")
    ((first, last),) = solution_ranges(text)[function]
    return text.split("\n")[first - 1 : last]


def test_first_hour_of_a_student(student: Student, lab: Lab) -> None:
    first, second = load_modules(COURSE)["m02"].tasks[:2]
    wrong = next(mistake for mistake in first.mistakes if mistake.name == "the zero point outside")
    student.look("opened", student.active, text=False)

    # a wrong answer: the feedback says where it is wrong, and what probably went wrong
    place = student.run_up_to(f"def {first.function}(")
    student.type(place, BLANK, ["    return scale * q.astype(int) - zero_point"])
    student.run()
    said = student.look("wrong", student.check())
    assert said.startswith(f"✗ {first.name} {first.title}: ")
    assert "expected at [" in said and "got at [" in said and f"Hint: {wrong.hint}" in said

    # the right one: all pass, and the hint is gone
    student.type(place, "return scale", _answer(first.function))
    student.run()
    said = student.look("right", student.check())
    assert re.match(rf"✓ {first.name} {first.title}: all \d+ public cases pass\n", said)
    assert "Hint" not in said

    # the next task, as it is and then answered
    place = student.run_up_to(f"def {second.function}(")
    student.run()
    said = student.look("not-attempted", student.check())
    assert said.startswith(f"○ {second.name} {second.title}: not attempted yet")
    student.type(place, BLANK, _answer(second.function))
    student.run()
    assert student.check().inner_text().startswith(f"✓ {second.name} ")

    # on to the first plot, which these two functions have a part in
    student.run_up_to("plt.show()")
    plot = student.run().locator(".jp-OutputArea-output img")
    student.look("plot", plot, text=False)
    box = plot.bounding_box()
    assert box["width"] > 300 and box["height"] > 150
    assert plot.evaluate(COLOURS) > 20, "the plot is empty"
    for kind in ("error", "stderr"):
        assert student.page.locator(f'[data-mime-type="application/vnd.jupyter.{kind}"]').count() == 0

    # saved, the notebook holds the student's answers, and the check outside the browser agrees
    saved = lab.folder / NOTEBOOK
    student.page.keyboard.press("Control+s")
    _once(
        lambda: _answer(second.function)[-1].strip() in saved.read_text("utf-8"), lambda: "the notebook was not saved"
    )
    found = check("m02", saved)
    assert isinstance(found, ModuleFeedback)
    assert [item.task for item in found.items if item.passed] == [first.name, second.name]
