"""Attacks on what stands around the sandbox: names, folders, archives, tables and pages."""

from __future__ import annotations

import bz2
import io
import os
import zipfile
from pathlib import Path

from labkit.grading.redteam.attacks import FULL, OTHERS, Attack, Bait, answers, cells_of, made, notebook, script

__all__ = ["ATTACKS"]

_RIGHT = answers()
_SCRIPT = "<script>alert('planted')</script><img src=x onerror=alert(1)>"


def _named(name: str, tries: str, file: str, points: int = FULL) -> Attack:
    def build(folder: Path, bait: Bait) -> None:
        (folder / file).write_text(_RIGHT, "utf-8")

    return made(f"host-{name}", "host", tries, build, points, file)


def _zip(
    name: str, tries: str, members: dict[str, bytes], points: int = 0, packing: int = zipfile.ZIP_DEFLATED
) -> Attack:
    def build(folder: Path, bait: Bait) -> None:
        with zipfile.ZipFile(folder / f"host-{name}.zip", "w", packing) as archive:
            for member, data in members.items():
                archive.writestr(member, data)

    return made(f"host-{name}", "host", tries, build, points, f"host-{name}.zip")


def _climbing(folder: Path, bait: Bait) -> None:
    with zipfile.ZipFile(folder / "host-climbing.zip", "w") as archive:
        for place in ("../", "../../../../../../", "/", "..\\..\\", "a/../../"):
            archive.writestr(f"{place}{bait.words['planted']}.ipynb", cells_of([_RIGHT]))


def _linked_zip(folder: Path, bait: Bait) -> None:
    link = zipfile.ZipInfo("m99_target.py")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(folder / "host-linked-zip.zip", "w") as archive:
        archive.writestr(link, str(bait.words["neighbour"]))


def _bomb(packing: int) -> bytes:
    out = io.BytesIO()
    with (
        zipfile.ZipFile(out, "w", packing) as archive,
        archive.open("m99_target.ipynb", "w", force_zip64=True) as member,
    ):
        for _ in range(15):
            member.write(bytes(4 << 20))
    return out.getvalue()


def _bomb_of(name: str, packing: int) -> Attack:
    def build(folder: Path, bait: Bait) -> None:
        (folder / f"host-{name}.zip").write_bytes(_bomb(packing))

    return made(f"host-{name}", "host", "a zip that unpacks to 60 MB", build, 0, f"host-{name}.zip")


def _nested(folder: Path, bait: Bait) -> None:
    data = b""
    for depth in range(6):
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
            for number in range(3):
                archive.writestr(f"{number}.zip" if depth else f"{number}.ipynb", data or cells_of([_RIGHT]).encode())
        data = out.getvalue()
    (folder / "host-nested.zip").write_bytes(data)


def _torn(folder: Path, bait: Bait) -> None:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("m99_target.ipynb", os.urandom(3000))
    data = bytearray(out.getvalue())
    data[60:1200] = b"\xff" * 1140
    (folder / "host-torn.zip").write_bytes(bytes(data))


def _many(folder: Path, bait: Bait) -> None:
    with zipfile.ZipFile(folder / "host-many.zip", "w") as archive:
        for number in range(5000):
            archive.writestr(f"{number}.ipynb", b"")


def _bz2_header(folder: Path, bait: Bait) -> None:
    with zipfile.ZipFile(folder / "host-odd-packing.zip", "w", zipfile.ZIP_BZIP2) as archive:
        archive.writestr("m99_target.ipynb", bz2.compress(bytes(1 << 20)))


def _link(folder: Path, bait: Bait) -> None:
    os.symlink(str(bait.words["neighbour"]), folder / "host-link.py")


def _link_inside(folder: Path, bait: Bait) -> None:
    place = folder / "host-link-inside"
    place.mkdir()
    os.symlink(str(bait.words["neighbour"]), place / "m99_target.py")
    os.symlink(os.path.dirname(str(bait.words["solutions"])), place / "work")
    os.symlink(place, place / "circle")


def _pipe(folder: Path, bait: Bait) -> None:
    os.mkfifo(folder / "host-pipe.ipynb")


def _pipe_zip(folder: Path, bait: Bait) -> None:
    os.mkfifo(folder / "host-pipe-zip.zip")


def _pipe_inside(folder: Path, bait: Bait) -> None:
    (folder / "host-pipe-inside").mkdir()
    os.mkfifo(folder / "host-pipe-inside" / "m99_target.ipynb")


def _device(folder: Path, bait: Bait) -> None:
    try:
        os.mknod(folder / "host-device.ipynb", 0o020666, os.makedev(1, 5))  # what /dev/zero is
    except OSError:
        os.mkfifo(folder / "host-device.ipynb")


def _unreadable(folder: Path, bait: Bait) -> None:
    (folder / "host-unreadable.ipynb").write_text("{}", "utf-8")
    (folder / "host-unreadable.ipynb").chmod(0)


def _sparse(folder: Path, bait: Bait) -> None:
    with (folder / "host-sparse.ipynb").open("wb") as file:
        file.truncate(1 << 40)


def _deep(folder: Path, bait: Bait) -> None:
    place = folder / "host-deep"
    place.mkdir()
    here = os.getcwd()
    try:  # step by step, as the whole path would be too long
        os.chdir(place)
        for _ in range(1500):
            os.mkdir("d")
            os.chdir("d")
    finally:
        os.chdir(here)


def _crowd(folder: Path, bait: Bait) -> None:
    (folder / "host-crowd").mkdir()
    for number in range(3000):
        (folder / "host-crowd" / f"{number}.py").touch()


def _not_text(folder: Path, bait: Bait) -> None:
    (folder / os.fsdecode(b"host-\xff-name.py")).write_text(_RIGHT, "utf-8")


def _no_zip(folder: Path, bait: Bait) -> None:
    (folder / "host-no-zip.zip").write_bytes(b"PK\3\4" + bytes(100))


def _several(folder: Path, bait: Bait) -> None:
    (folder / "host-several").mkdir()
    for name in ("one.ipynb", "two.ipynb"):
        (folder / "host-several" / name).write_text(cells_of([_RIGHT]), "utf-8")


ATTACKS = (
    _named("dots", "a student named ..", " ...py"),
    _named("long", "a name of 240 letters", "host-long-" + "n" * 230 + ".py"),
    _named("long-other", "a name with the same 100 first letters", "host-long-" + "n" * 229 + "x.py"),
    _named("formula", "a name that is a formula", "=cmd|' !A0'!host-formula.py"),
    _named("plus", "a name that begins with +", "+1+cmd@host-plus.py"),
    _named("minus", "a name that looks like an option", "--host-minus.py"),
    _named("markup", "a name that is markup", "<img src=x onerror=alert(1)>host-markup.py"),
    _named("console", "a name that colours the terminal", "\x1b[31m[red]host-console[\u202e].py"),
    _named("new-line", "a name of two lines", "host\nnew-line,12,12.py"),
    _named("grades", "a student named like the table of grades", "grades.csv.py"),
    _named("seed", "a student named like the seed", "seed.txt.py"),
    _named("summary", "a student named like the summary", "SUMMARY.html.py"),
    _named("colon", "a name that becomes another one's", "host;twin.py"),
    _named("comma", "another name that becomes the same", "host,twin.py"),
    _named("backslash", "a name with backslashes", "host\\..\\..\\backslash.py"),
    made("host-not-utf8", "host", "a name that is no text", _not_text, FULL, os.fsdecode(b"host-\xff-name.py")),
    made("host-climbing", "host", "paths in a zip that climb out", _climbing, 0, "host-climbing.zip"),
    made("host-linked-zip", "host", "a link in a zip", _linked_zip, 0, "host-linked-zip.zip"),
    _bomb_of("bomb", zipfile.ZIP_DEFLATED),
    _bomb_of("bomb-bz2", zipfile.ZIP_BZIP2),
    made("host-nested", "host", "zips in zips in zips", _nested, 0, "host-nested.zip"),
    made("host-torn", "host", "a zip with torn data", _torn, 0, "host-torn.zip"),
    made("host-many", "host", "a zip of 5,000 notebooks", _many, 0, "host-many.zip"),
    made("host-odd-packing", "host", "a zip packed in another way", _bz2_header, 0, "host-odd-packing.zip"),
    _zip("no-notebook", "a zip without a notebook", {"essay.docx": b"hello", "x.exe": b"MZ"}),
    _zip("same-names", "a zip that holds several notebooks", {"a.ipynb": b"{}", "b.ipynb": b"{}"}),
    made("host-no-zip", "host", "a zip that is none", _no_zip, 0, "host-no-zip.zip"),
    made("host-link", "host", "a link to another submission", _link, -1, "host-link.py"),
    made("host-link-inside", "host", "links in a folder, one of them in a circle", _link_inside),
    made("host-pipe", "host", "a pipe that is never written to", _pipe, 0, "host-pipe.ipynb"),
    made("host-pipe-zip", "host", "a pipe that is called a zip", _pipe_zip, 0, "host-pipe-zip.zip"),
    made("host-pipe-inside", "host", "a pipe in a folder", _pipe_inside),
    made("host-device", "host", "a device that never ends", _device, 0, "host-device.ipynb"),
    made("host-unreadable", "host", "a file that nobody may read", _unreadable, 0, "host-unreadable.ipynb"),
    made("host-sparse", "host", "a file of a terabyte of nothing", _sparse, 0, "host-sparse.ipynb"),
    made("host-deep", "host", "folders 1,500 deep", _deep),
    made("host-crowd", "host", "3,000 files", _crowd),
    made("host-several", "host", "two notebooks, and none is named as it should be", _several),
    made("host-empty-folder", "host", "an empty folder", lambda folder, bait: (folder / "host-empty-folder").mkdir()),
    script(
        "host-script-error",
        "host",
        "markup in an exception",
        answers("away") + f"def away(x):\n    raise ValueError({_SCRIPT!r})\n",
        OTHERS,
    ),
    script(
        "host-script-line",
        "host",
        "markup in the line that failed",
        answers("away") + f"def away(x):\n    return x[{_SCRIPT!r}]\n",
        OTHERS,
    ),
    script(
        "host-script-value",
        "host",
        "markup in a value",
        answers("away") + f"def away(x):\n    return {_SCRIPT!r}\n",
        OTHERS,
    ),
    script(
        "host-script-answer",
        "host",
        "markup in an open answer",
        _RIGHT
        + f"m99_e1 = '''</blockquote>{_SCRIPT}{{{{ 7 * 7 }}}}'''.strip()\n"
        + f'm99_e1 = """</blockquote>{_SCRIPT}{{{{ 7 * 7 }}}}{{% raw %}}"""\n',
        FULL,
    ),
    script(
        "host-half-answer",
        "host",
        "half a character in an open answer",
        _RIGHT + "m99_e1 = '\\ud800 \\x00 \\x1b[31m'\n",
        FULL,
    ),
    script(
        "host-formula-error",
        "host",
        "a formula in an exception and in an answer",
        answers("away")
        + """\
m99_e1 = '=HYPERLINK("http://192.0.2.1")'
def away(x):
    raise ValueError('=1+1')
""",
        OTHERS,
    ),
    notebook("host-many-notes", "host", "ten thousand notes on the page", ["(" for _ in range(10_000)], 0),
    script(
        "host-long-answer", "host", "an open answer of 900,000 letters", _RIGHT + f"m99_e1 = {'x' * 900_000!r}\n", FULL
    ),
)
