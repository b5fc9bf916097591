"""Hand damaged and hostile network files to `labkit.load`, and say what became of each.

    python tools/fuzz_files.py --files 20000 --seed 0 [--sample net.tflite ...] [--keep FOLDER]

Sound files of each kind (.lab, .tflite, .onnx) are changed at random: bits and bytes, lengths and offsets, slices, and
what only a reader of the format would think of (dimensions, references, cycles, paths of external data; a .lab file gets
the checksum of its damaged content). Each file is loaded in a process of its own. It must load, or be refused with a
ModelError, within 2 seconds of processor time and 500 MB, and nothing outside its folder may be opened or written. Some
of those that load are run on an image of zeros, too. Exit 1 where any file does something else.
"""

from __future__ import annotations

import argparse
import faulthandler
import hashlib
import json
import os
import resource
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["Outcome", "damaged", "judge", "main", "sound_samples"]

SECONDS, MEGABYTES = 2.0, 500
CPU_SECONDS = 20  # after which the process is ended
_PATIENCE = 60  # seconds of wall time after which a process that shows no processor time is ended
_RUN_EVERY = 10  # of the files that load, one in so many is run
_RUNNABLE = 2_000_000  # elements of all tensors of a net that is run
_EXTREMES = (0, 1, -1, 127, -128, 2**15, 2**16 - 1, 2**31 - 1, -(2**31), 2**30, 2**24, 2**32 - 1, 2**63 - 1)
_LAB_HEAD = struct.Struct("<8sIQ32s")

Mutation = Callable[[bytes, np.random.Generator], bytes]


@dataclass(frozen=True)
class Outcome:
    """What became of one file: ``kind`` is "loaded", "refused" or what went wrong; ``text`` says it."""

    kind: str
    text: str
    seconds: float
    megabytes: float

    @property
    def is_sound(self) -> bool:
        """True where the file did what it may."""
        return self.kind in ("loaded", "refused")


# --- changes that know nothing of the format -------------------------------------------------------------------------


def _bits(data: bytes, rng: np.random.Generator) -> bytes:
    changed = bytearray(data)
    for _ in range(int(rng.integers(1, 9))):
        changed[int(rng.integers(len(changed)))] ^= 1 << int(rng.integers(8))
    return bytes(changed)


def _numbers(data: bytes, rng: np.random.Generator) -> bytes:
    """One to three aligned numbers replaced by an extreme one, or moved a little."""
    changed = bytearray(data)
    for _ in range(int(rng.integers(1, 4))):
        size = int(rng.choice([1, 2, 4, 8]))
        if len(changed) < size:
            break
        at = int(rng.integers(len(changed) // size)) * size
        value = int.from_bytes(changed[at : at + size], "little")
        value = value + int(rng.choice([-8, -4, -1, 1, 4, 8])) if rng.random() < 0.4 else int(rng.choice(_EXTREMES))
        changed[at : at + size] = (value % (1 << (8 * size))).to_bytes(size, "little")
    return bytes(changed)


def _cut(data: bytes, rng: np.random.Generator) -> bytes:
    return data[: int(rng.integers(len(data)))]


def _slices(data: bytes, rng: np.random.Generator) -> bytes:
    """A slice taken out, doubled, or laid over another place."""
    start, stop = sorted(int(i) for i in rng.integers(len(data) + 1, size=2))
    stop = min(stop, start + 4096)
    match int(rng.integers(3)):
        case 0:
            return data[:start] + data[stop:]
        case 1:
            return data[:stop] + data[start:]
        case _:
            at = int(rng.integers(len(data)))
            return data[:at] + data[start:stop] + data[at + stop - start :]


_BLIND: tuple[Mutation, ...] = (_bits, _numbers, _numbers, _cut, _slices)


# --- changes that know the format ------------------------------------------------------------------------------------


def _leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    if isinstance(value, dict):
        for key in value:
            yield from _leaves(value[key], (*path, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _leaves(item, (*path, index))


def _lab(data: bytes, rng: np.random.Generator) -> bytes:
    """The header's JSON or the arrays changed, under a checksum that fits."""
    magic, version, length, _ = _LAB_HEAD.unpack_from(data)
    text, body = data[_LAB_HEAD.size : _LAB_HEAD.size + length], data[_LAB_HEAD.size + length :]
    if rng.random() < 0.3:
        body = _BLIND[int(rng.integers(len(_BLIND)))](body, rng)
    else:
        header = json.loads(text)
        header.pop("notes", None) if rng.random() < 0.2 else None
        paths = [path for path in _leaves({k: v for k, v in header.items() if k != "notes"}) if path]
        for _ in range(int(rng.integers(1, 3))):
            _change(header, paths[int(rng.integers(len(paths)))], rng)
        text = json.dumps(header).encode()
    version = int(rng.integers(1, 6)) if rng.random() < 0.1 else version
    return _LAB_HEAD.pack(magic, version, len(text), hashlib.sha256(text + body).digest()) + text + body


def _change(header: Any, path: tuple[Any, ...], rng: np.random.Generator) -> None:
    at = header
    try:
        for step in path[:-1]:
            at = at[step]
        old = at[path[-1]]
    except (KeyError, IndexError, TypeError):
        return  # an earlier change has taken it away
    if not isinstance(at, dict | list):
        return  # a text, from which an index takes a letter
    others: list[Any] = [*_EXTREMES, None, [], {}, "", "../x", "conv1", [[]] * 3, 1.5, True, {"class": "IntNode"}]
    if isinstance(old, int) and rng.random() < 0.5:
        at[path[-1]] = old + int(rng.choice([-2, -1, 1, 2, 1000]))
    elif isinstance(old, list) and old and rng.random() < 0.5:
        at[path[-1]] = old[::-1] if rng.random() < 0.5 else old * int(rng.integers(2, 4))
    else:
        at[path[-1]] = others[int(rng.integers(len(others)))]


_PATHS = ("/etc/passwd", "../outside.bin", "a/../../outside.bin", "missing.bin", "", "\0", "x" * 5000, "link.bin")


def _onnx(data: bytes, rng: np.random.Generator) -> bytes:
    """Dimensions, edges, operators, attributes, opsets and external data of the parsed model changed."""
    import onnx

    model = onnx.load_model_from_string(data)
    graph = model.graph
    for _ in range(int(rng.integers(1, 3))):
        node = graph.node[int(rng.integers(len(graph.node)))]
        tensor = graph.initializer[int(rng.integers(len(graph.initializer)))] if graph.initializer else None
        match int(rng.integers(9)):
            case 0 if tensor is not None and tensor.dims:
                tensor.dims[int(rng.integers(len(tensor.dims)))] = _signed(rng)
            case 1 if tensor is not None:
                tensor.data_type = int(rng.integers(0, 30))
            case 2 if tensor is not None:
                tensor.data_location = onnx.TensorProto.EXTERNAL
                tensor.ClearField("raw_data")
                for key, value in (
                    ("location", str(rng.choice(_PATHS))),
                    ("offset", str(_signed(rng))),
                    ("length", "16"),
                ):
                    tensor.external_data.add(key=key, value=value)
            case 3 if node.input:
                source = graph.node[int(rng.integers(len(graph.node)))]
                if source.output:
                    node.input[int(rng.integers(len(node.input)))] = source.output[0]
            case 4 if node.output:
                node.output[0] = graph.node[int(rng.integers(len(graph.node)))].output[0]
            case 5:
                node.op_type = str(
                    rng.choice(["Conv", "Loop", "If", "Reshape", "QLinearConv", "Transpose", "", "Split"])
                )
            case 6 if node.attribute:
                attribute = node.attribute[int(rng.integers(len(node.attribute)))]
                attribute.i = _signed(rng)
                for index in range(len(attribute.ints)):
                    attribute.ints[index] = _signed(rng)
            case 7:
                model.opset_import[0].version = _signed(rng)
            case _:
                dims = graph.input[0].type.tensor_type.shape.dim
                if dims:
                    dims[int(rng.integers(len(dims)))].dim_value = _signed(rng)
    return bytes(model.SerializeToString())


def _signed(rng: np.random.Generator) -> int:
    return int(rng.choice(np.array([e for e in _EXTREMES if e < 2**63], np.int64)))


def _tflite(data: bytes, rng: np.random.Generator) -> bytes:
    """Offsets, lengths and indices are 32-bit numbers in front of the buffers' contents: small ones among them are changed."""
    changed = bytearray(data)
    words = np.frombuffer(data[: len(data) // 4 * 4], "<i4")
    small = np.flatnonzero((words > -1000) & (words < len(data)) & (words != 0))
    for at in rng.choice(small, min(len(small), int(rng.integers(1, 4)))):
        value = int(words[at]) + int(rng.choice([-4, -1, 1, 4])) if rng.random() < 0.5 else int(rng.choice(_EXTREMES))
        changed[4 * at : 4 * at + 4] = (value % 2**32).to_bytes(4, "little")
    return bytes(changed)


_KNOWING: dict[str, Mutation] = {".lab": _lab, ".onnx": _onnx, ".tflite": _tflite}


def damaged(data: bytes, suffix: str, rng: np.random.Generator) -> bytes:
    """The bytes of a sound file, of the kind that ``suffix`` names, changed in a way that ``rng`` draws."""
    knows = rng.random() < 0.6
    change = _KNOWING[suffix] if knows else _BLIND[int(rng.integers(len(_BLIND)))]
    return change(data, rng)


# --- judging ---------------------------------------------------------------------------------------------------------


def judge(path: Path, is_run: bool = False) -> Outcome:
    """Load ``path`` in a process of its own, run it if ``is_run`` and it is small, and say what happened."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        _in_child(path, writer, is_run)
    os.close(writer)
    status, usage = _wait(child)
    with os.fdopen(reader, "rb") as pipe:
        before, _, said = pipe.read().decode("utf-8", "replace").partition("\n")
    kind, _, text = said.partition("\n")
    seconds, megabytes = usage.ru_utime + usage.ru_stime, max(0, usage.ru_maxrss - int(before or 0)) / 1024
    if os.WIFSIGNALED(status):
        name = signal.Signals(os.WTERMSIG(status)).name
        kind, text = (
            ("hung" if name in ("SIGKILL", "SIGXCPU") else "crashed"),
            f"{name} while it was {text or kind or 'loaded'}",
        )
    elif os.WEXITSTATUS(status) or not kind:
        kind, text = "crashed", f"exit {os.WEXITSTATUS(status)}"
    elif kind == "loaded" and text not in ("", "run"):
        kind, text = "wrong when run", text.removeprefix("run\n")
    elif kind in ("loaded", "refused") and not is_run and seconds > SECONDS:
        kind, text = "slow", f"{seconds:.1f} s: {text}"
    elif kind in ("loaded", "refused") and (megabytes > MEGABYTES or "MemoryError" in text):
        kind, text = "large", f"{megabytes:.0f} MB: {text}"
    return Outcome(kind, text, seconds, megabytes)


def _resident_kilobytes() -> int:
    """What this process holds now, from where the peak of a forked one counts."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 1024
    except OSError:  # not Linux: the peak so far, which hides what stays below it
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _wait(child: int) -> tuple[int, resource.struct_rusage]:
    deadline = time.monotonic() + _PATIENCE
    while True:
        pid, status, usage = os.wait4(child, os.WNOHANG)
        if pid:
            return status, usage
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            _, status, usage = os.wait4(child, 0)
            return status, usage
        time.sleep(0.002)


def _in_child(path: Path, writer: int, is_run: bool) -> None:
    """Load ``path``, write what happened, and leave. Never returns."""
    from labkit.errors import LabkitError, ModelError
    from labkit.net import load

    faulthandler.disable()  # a crash is counted, not printed
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.write(writer, f"{_resident_kilobytes()}\n".encode())
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    seen: list[str] = []
    watching = [True]

    def watch(event: str, args: tuple[Any, ...]) -> None:
        if watching[0] and (event in _FORBIDDEN or event.startswith(("socket.", "subprocess.", "ctypes.dlopen"))):
            seen.append(f"{event} {args}")
        if watching[0] and event == "open" and isinstance(args[0], str | bytes | os.PathLike):
            place = os.path.realpath(os.fsdecode(args[0]))
            writes = isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            inside = place.startswith(str(path.parent.resolve()) + os.sep)
            if writes or not (inside or place.startswith(_PYTHON)):
                seen.append(f"opened {place}")

    sys.addaudithook(watch)
    try:
        net = load(path)
        said = "loaded\n"
    except ModelError as error:
        said = f"refused\n{type(error).__name__}: {error}"
    except LabkitError as error:
        said = f"another error\n{type(error).__name__}: {error}"
    except BaseException as error:  # a fault: it is reported
        said = f"another error\n{type(error).__name__}: {error}"
    watching[0] = False
    if seen:
        said = f"touched\n{seen[0]}"
    if said == "loaded\n" and is_run:
        os.write(writer, b"loaded\nrun")
        said = _ran(net)
    os.write(writer, said.encode("utf-8", "replace")[:4000])
    os._exit(0)


_FORBIDDEN = frozenset(
    {"os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.symlink", "os.link", "os.truncate", "os.system", "os.exec"}
    | {"os.chmod", "os.chown", "shutil.rmtree", "pickle.find_class"}
)
_PYTHON = tuple(
    {os.path.realpath(place) + os.sep for place in (sys.prefix, sys.base_prefix, str(Path(__file__).parents[1]))}
)


def _ran(net: Any) -> str:
    """Run ``net`` on the lowest numbers by both tiers; "" where all is well."""
    from labkit.errors import LabkitError

    graph = net.graph
    if sum(int(np.prod(node.output.shape)) for node in graph) > _RUNNABLE:
        return ""
    x = {}
    for name in graph.inputs:
        tensor, op = graph[name].output, type(graph[name].op).__name__
        lowest = 0 if op != "Input" or tensor.is_index else tensor.spec.qmin
        x[name] = np.full((1, *tensor.source_shape), lowest, np.int32 if tensor.is_index else np.float32)
        if op == "Input" and not tensor.is_index:  # a mask: all but the first take part
            x[name] = x[name].astype(tensor.dtype)
            x[name].flat[1:] = 1
    try:
        both = [net.run(x, kernels=kernels) for kernels in ("numba", "reference")]
    except LabkitError:
        return ""
    except Exception as error:
        return f"\nfailed when run: {type(error).__name__}: {error}"
    same = all(np.array_equal(a, b) for a, b in zip(*([*_arrays(result)] for result in both), strict=True))
    return "" if same else "\nthe two tiers differ"


def _arrays(result: Any) -> Iterator[Any]:
    yield from result.values() if isinstance(result, dict) else [result]


# --- the run ---------------------------------------------------------------------------------------------------------

_MAKE_SAMPLES = """
import sys
from pathlib import Path
import torch, labkit
from torch import nn
class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.pool, self.fc = nn.MaxPool2d(2), nn.Linear(8 * 4 * 4, 5)
    def forward(self, x):
        x = self.a(x).relu()
        x = self.pool((x + self.b(x)).relu())
        return self.fc(x.flatten(1))
torch.manual_seed(0)
net = labkit.quantize(Small().eval(), torch.randn(16, 3, 8, 8), weights=int(sys.argv[2]))
folder, bits = Path(sys.argv[1]), sys.argv[2]
net.save(folder / f"small{bits}.lab")
net.to_onnx(folder / f"small{bits}-qdq.onnx", style="qdq")
net.to_onnx(folder / f"small{bits}-qoperator.onnx", style="qoperator")
net.to_tflite(folder / f"small{bits}.tflite")
from labkit.models.sentence_encoder import EncoderSizes, SentenceEncoder
encoder = SentenceEncoder(EncoderSizes(vocabulary=12, positions=6, width=8, heads=2, layers=1, inner=12)).eval()
sentences = {"ids": torch.randint(0, 12, (16, 6)), "mask": torch.ones(16, 6, dtype=torch.bool)}
labkit.quantize(encoder, [sentences], weights=int(sys.argv[2])).save(folder / f"encoder{bits}.lab")
"""


def sound_samples(folder: Path) -> list[Path]:
    """Write small sound networks of every kind into ``folder``, made in other processes, so that this one stays small."""
    for bits in ("8", "4"):
        subprocess.run([sys.executable, "-c", _MAKE_SAMPLES, str(folder), bits], check=True)
    return sorted(path for path in folder.iterdir() if path.suffix in _KNOWING)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line in ``arguments``; 0 where every file was sound or refused."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--files", type=int, default=20_000, help="how many damaged files")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--sample", type=Path, action="append", default=[], help="a sound file to damage, besides small ones"
    )
    parser.add_argument("--only", choices=sorted(_KNOWING), help="only files of this kind")
    parser.add_argument("--without-own", action="store_true", help="damage only the files given by --sample")
    parser.add_argument("--keep", type=Path, help="a folder for the files that did something else")
    options = parser.parse_args(arguments)
    from rich.console import Console
    from rich.progress import track

    console = Console()
    with tempfile.TemporaryDirectory() as place:
        own = Path(place, "samples")
        own.mkdir()
        samples = [*([] if options.without_own else sound_samples(own)), *options.sample]
        samples = [path for path in samples if options.only in (None, path.suffix)]
        for path in samples:  # what they import is imported once, in this process
            if not (whole := judge(path, is_run=True)).is_sound or whole.kind != "loaded":
                console.print(f"{path} is no sound sample: {whole.kind}, {whole.text}", highlight=False)
                return 1
            _import_what_it_takes(path)
        folder = Path(place, "files")
        folder.mkdir()
        (folder / "link.bin").symlink_to("/etc/hostname")
        counts: Counter[tuple[str, str]] = Counter()
        slowest, largest, loaded = 0.0, 0.0, 0
        for number in track(range(options.files), description="Files", console=console):
            rng = np.random.default_rng([options.seed, number])
            sample = samples[number % len(samples)]
            path = folder / f"{number}{sample.suffix}"
            path.write_bytes(damaged(sample.read_bytes(), sample.suffix, rng))
            outcome = judge(path)
            if outcome.kind == "loaded":
                loaded += 1
                if loaded % _RUN_EVERY == 0:
                    outcome = judge(path, is_run=True)
            counts[sample.suffix, outcome.kind] += 1
            slowest, largest = max(slowest, outcome.seconds), max(largest, outcome.megabytes)
            if not outcome.is_sound:
                console.print(
                    f"{number}{sample.suffix}: {outcome.kind}, {outcome.text[:300]}", highlight=False, markup=False
                )
                if options.keep is not None:
                    options.keep.mkdir(parents=True, exist_ok=True)
                    (options.keep / path.name).write_bytes(path.read_bytes())
            path.unlink()
    for (suffix, kind), count in sorted(counts.items()):
        console.print(f"{suffix:>8}  {kind:<14} {count:>7,}", highlight=False)
    console.print(f"at most {slowest:.2f} s of processor time and {largest:.0f} MB", highlight=False)
    wrong = sum(count for (_, kind), count in counts.items() if kind not in ("loaded", "refused"))
    console.print(f"{wrong} of {options.files:,} files did something else.", highlight=False)
    return 1 if wrong else 0


def _import_what_it_takes(path: Path) -> None:
    from labkit.net import load

    net = load(path)
    _ran(net)


if __name__ == "__main__":
    raise SystemExit(main())
