"""The archive that students get: notebooks and public cases, no oracle and no answer."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

from labkit import __version__
from labkit.course.build import built
from labkit.course.verify.leaks import leaks_in_archive
from labkit.errors import OutputError
from labkit.files import written_atomically

__all__ = ["write_release"]

_README = """\
This folder holds the notebooks of a course on quantization, made with labkit {version}.

1. Install labkit (see its README), and JupyterLab beside it.
2. Run "labkit lab" followed by the name of this folder, or open the folder in the notebook editor that you have.
3. Begin with m00. check("m00.q1") in a notebook tells how far you are; labkit-cases holds the examples that it uses.
4. Hand in the notebook (.ipynb) as it is. Outputs are not read, and deleted or reordered cells do no harm.
"""


def write_release(course: Path, archive: str | Path) -> list[str]:
    """Write the zip ``archive`` of ``course``, after making sure that no answer is in it; the names of its files.

    The same course gives the same bytes.

    Raises
    ------
    OutputError
        An answer would be in the archive, or it cannot be written.
    """
    files = {"README.txt": _README.format(version=__version__)}
    for made in built(course):
        files[made.path.name if made.path.suffix == ".ipynb" else f"labkit-cases/{made.path.name}"] = made.text
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as out:
        for name in sorted(files):
            out.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), files[name].encode(), zipfile.ZIP_DEFLATED)
    with written_atomically(archive) as part:
        part.write_bytes(buffer.getvalue())
        if leaks := leaks_in_archive(course, part):
            raise OutputError(
                f"The archive would give answers away, so it was not written: {leaks[0]} (and {len(leaks) - 1} more lines). "
                "Mend the source of that notebook."
            )
    return sorted(files)
