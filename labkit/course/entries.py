"""An entry for the leaderboard: a ``.lab`` file, and what it takes and reaches, so that anybody can measure it again.

An entry is a folder with two files, ``net.lab`` and ``entry.json``. Both are data: nothing in them is executed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labkit import __version__
from labkit.data.dataset import DataSet
from labkit.errors import InputError
from labkit.files import folder_for, write_atomically
from labkit.graph import int_ops, storage
from labkit.graph.costs import costs
from labkit.graph.ir import IntGraph
from labkit.net import IntegerNet

__all__ = [
    "CLAIM",
    "COURSE_BUDGET",
    "NET",
    "Budget",
    "Entry",
    "answers",
    "entry_of",
    "make_entry",
    "parameter_bytes",
    "read_claim",
]

NET, CLAIM = "net.lab", "entry.json"
SCHEMA = "labkit.entry/1"
_LARGEST_NAME, _LARGEST_CLAIM = 60, 1 << 16
_BATCH = 250


@dataclass(frozen=True)
class Budget:
    """What a network may take.

    size : bytes of its parameters, as `parameter_bytes` counts them.
    bit_operations : of one image, multiply-accumulates x weight bits x input bits: a machine-independent stand-in for time.
    """

    size: int
    bit_operations: int

    def holds(self, entry: Entry) -> bool:
        """Whether ``entry`` keeps to both."""
        return entry.size <= self.size and entry.bit_operations <= self.bit_operations


COURSE_BUDGET = Budget(100_000, 32_000_000)
"""The capstone's, for LeNet: 2.5 bits a weight on average, and a third of the bit operations at 8 bits."""


@dataclass(frozen=True)
class Entry:
    """What ``entry.json`` says about ``net.lab``.

    name : of whoever enters.
    data : name of the data set.
    images : how many test images were classified, all that the data set has.
    right : how many of them rightly.
    accuracy : 100 right / images.
    size, bit_operations : as in `Budget`.
    sha256 : of the bytes of ``net.lab``, in hexadecimal digits.
    labkit : the version that measured.

    Raises
    ------
    InputError
        A field is of another type, or the name is none.
    """

    name: str
    data: str
    images: int
    right: int
    accuracy: float
    size: int
    bit_operations: int
    sha256: str
    labkit: str

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            wanted = {"str": str, "int": int, "float": float}[str(field.type)]
            if type(value) is not wanted:
                raise InputError(f"An entry's {field.name} must be of type {wanted.__name__}, got {value!r:.60}.")
        if not 0 < len(self.name) <= _LARGEST_NAME or not self.name.isprintable() or not self.name.strip():
            raise InputError(
                f"An entry needs a name of 1 to {_LARGEST_NAME} printable characters, got {self.name!r:.80}."
            )

    def to_json(self) -> dict[str, Any]:
        """The entry as plain JSON values."""
        return {"schema": SCHEMA, **asdict(self)}

    @classmethod
    def from_json(cls, values: Any) -> Entry:
        """The entry that `to_json` made ``values`` of.

        Raises
        ------
        InputError
            ``values`` is no entry.
        """
        names = [field.name for field in fields(cls)]
        if not isinstance(values, Mapping) or values.get("schema") != SCHEMA or set(values) != {"schema", *names}:
            raise InputError(
                f"This is no entry of the form {SCHEMA}: it needs the keys schema, {', '.join(names)}. "
                "Make it again with labkit.course.entries.make_entry."
            )
        return cls(**{name: values[name] for name in names})


def parameter_bytes(graph: IntGraph) -> int:
    """Bytes of all parameters of ``graph``: weights, biases and weight scales.

    A layer of n weights at b bits takes n b / 8 bytes, rounded up (its bits lie end to end), 4 bytes a scale (one an output
    channel, or one a layer) and 4 a bias; a layer whose biases are all 0 has none. This agrees with the size of
    `labkit.allocation.costs.weight_bytes` but for the rounding, less than one byte a layer.
    """
    total = 0
    for node in graph:
        op = node.op
        if isinstance(op, int_ops.Conv2d | int_ops.Linear):
            total += (op.weight.values.size * op.weight.spec.bits + 7) // 8
            total += 4 * int(op.weight.params.scale.size)
            total += 4 * op.bias.size if np.any(op.bias) else 0
    return total


def answers(net: IntegerNet, data: DataSet) -> NDArray[np.bool_]:
    """Whether ``net`` is right about each of all test images of ``data``, bool [images], in their order.

    Raises
    ------
    InputError
        The net does not take such images, or does not give one logit for each class.
    """
    images, labels = data.test()
    wanted = (len(data.class_names),)
    graph = net.graph
    if len(graph.inputs) != 1 or len(graph.outputs) != 1 or graph[graph.outputs[0]].output.shape != wanted:
        shapes = ", ".join(str(graph[name].output.shape) for name in graph.outputs)
        raise InputError(
            f"An entry takes one image and gives {wanted[0]} logits, one a class of {data.name}; this net takes "
            f"{len(graph.inputs)} inputs and gives {shapes}."
        )
    parts = [np.asarray(net.run(images[i : i + _BATCH])).argmax(1) for i in range(0, len(images), _BATCH)]
    return np.asarray(np.concatenate(parts) == labels)


def entry_of(content: bytes, name: str, data: DataSet) -> tuple[Entry, NDArray[np.bool_]]:
    """The entry of a network as it is measured here, and whether it is right about each test image, bool [images].

    Parameters
    ----------
    content : the bytes of a ``.lab`` file
    name : of whoever enters
    data : its test images are classified, all of them

    Raises
    ------
    ModelError
        The bytes are no ``.lab`` file.
    InputError
        The network does not fit the data set, or the name is none.
    """
    net = IntegerNet(storage.loads(content, NET))
    right = answers(net, data)
    correct = int(np.count_nonzero(right))
    entry = Entry(
        name=name,
        data=data.name,
        images=len(right),
        right=correct,
        accuracy=100.0 * correct / len(right),
        size=parameter_bytes(net.graph),
        bit_operations=costs(net.graph).total_bops,
        sha256=hashlib.sha256(content).hexdigest(),
        labkit=__version__,
    )
    return entry, right


def make_entry(net: IntegerNet, name: str, data: DataSet, folder: str | Path) -> Entry:
    """Write ``net.lab`` and ``entry.json`` into ``folder``, which is made where it is missing.

    Parameters
    ----------
    net : the network that enters
    name : of whoever enters, 1 to 60 characters
    data : whose test images count
    folder : for the two files; files of an earlier entry are replaced

    Raises
    ------
    InputError
        The network does not fit the data set, or the name is none.
    OutputError
        The folder cannot be written to.
    """
    content = storage.dumps(net.graph)
    entry, _ = entry_of(content, name, data)
    with folder_for(folder) as place:
        write_atomically(place / NET, content)
        write_atomically(place / CLAIM, json.dumps(entry.to_json(), indent=2, ensure_ascii=False) + "\n")
    return entry


def read_claim(folder: Path) -> Entry:
    """What ``entry.json`` in ``folder`` says, unproved.

    Raises
    ------
    InputError
        There is no such file, or it holds no entry.
    """
    path = folder / CLAIM
    if path.is_symlink() or not path.is_file() or path.stat().st_size > _LARGEST_CLAIM:
        raise InputError(f"{CLAIM} is missing, is no ordinary file or is too large for an entry.")
    try:
        values = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise InputError(f"{CLAIM} is no JSON file: {error}.") from error
    return Entry.from_json(values)
