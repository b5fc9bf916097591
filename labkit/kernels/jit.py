"""`jit`: Numba's compiler with a disk cache that cannot return stale code.

Numba's own ``cache=True`` looks at the file of the function that is called and not at the functions that it calls:
after an edit of a callee the caller goes on returning the old result, and a bit-exact test passes on code that no
longer exists. Here the cache folder is named by a hash of every kernel source of labkit, of the versions of Python,
Numba and llvmlite and of the processor, so that any edit starts from an empty folder. A folder that cannot be used
costs one warning; the kernels are then compiled in memory.

Numba's settings, and the functions that you compile yourself, are left alone.
"""

from __future__ import annotations

import hashlib
import pickle
import platform
import shutil
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import llvmlite
import llvmlite.binding
import numba
from numba.core.caching import NullCache
from numba.core.compiler import CompileResult
from numba.core.runtime import rtsys
from numba.core.serialize import dumps

from labkit.errors import InputError
from labkit.files import make_folder, user_cache, write_atomically

__all__ = ["cache_folder", "entry_point", "jit"]

F = TypeVar("F", bound=Callable[..., Any])

_PACKAGE = Path(__file__).resolve().parent.parent
# folders of labkit whose code is compiled or chooses what is
_SOURCES = ("kernels", "engine", "quantization/weight_rounding", "quantization/qat")
_KEPT_FOLDERS = 8  # older ones belong to sources or versions that are gone
_OPTIONS = {"nogil": True, "boundscheck": False, "error_model": "numpy"}


def jit(function: F) -> F:
    """Compile ``function`` on its first call for each combination of argument types, or load it from the disk cache.

    The global interpreter lock is released while it runs, indices are not checked, and a division by zero gives what
    NumPy gives. ``function`` must be a function of a module of labkit with a name of its own.
    """
    compiled = numba.njit(**_OPTIONS)(function)
    try:
        compiled._cache = _DiskCache(function)
    except Exception as error:  # an internal of Numba that has changed: slower starts, same results
        _warn_once(f"Numba {numba.__version__} does not take labkit's cache ({error!r})")
    return compiled  # type: ignore[no-any-return]


def entry_point(kernel: Callable[..., Any], arguments: tuple[Any, ...]) -> Callable[..., Any]:
    """The compiled code of ``kernel`` for exactly the types of ``arguments``, which saves about a microsecond a call.

    The result must only be called with arguments of those types (for an array: that dtype, number of axes and layout),
    because it does not look at them.

    Raises
    ------
    InputError
        Numba is told not to compile.
    """
    if numba.config.DISABLE_JIT:
        raise InputError(
            "The fast kernels need Numba's compiler, but NUMBA_DISABLE_JIT is set. Unset it, "
            "or use the reference kernels."
        )
    signature = tuple(numba.typeof(argument) for argument in arguments)
    kernel.compile(signature)  # type: ignore[attr-defined]
    return kernel.get_overload(signature)  # type: ignore[attr-defined, no-any-return]


def cache_folder() -> Path:
    """Where the compiled kernels of these sources, versions and processor belong; the folder need not exist."""
    return user_cache() / "kernels" / _KEY


def _key() -> str:
    digest = hashlib.sha256()
    for fact in (
        sys.version,
        numba.__version__,
        llvmlite.__version__,
        platform.machine(),
        llvmlite.binding.get_host_cpu_name(),
        llvmlite.binding.get_host_cpu_features().flatten(),
        repr(_OPTIONS),
    ):
        digest.update(fact.encode() + b"\0")
    for path in sorted(file for folder in _SOURCES for file in (_PACKAGE / folder).rglob("*.py")):
        digest.update(path.relative_to(_PACKAGE).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:20]


_KEY = _key()  # now, while the sources on disk are those that are being imported


class _DiskCache(NullCache):  # type: ignore[misc]
    """One file for each function and combination of argument types, in `cache_folder`."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._name = f"{function.__module__}.{function.__qualname__}"

    @property
    def cache_path(self) -> str:
        return str(cache_folder())

    def load_overload(self, sig: Any, target_context: Any) -> CompileResult | None:
        """What an earlier process compiled for the argument types ``sig``, or None."""
        try:
            # the rest of Numba's library is needed to compile, not to run what is compiled, and takes half a second
            rtsys.initialize(target_context)
            content = self._file(sig, target_context.codegen()).read_bytes()
            checksum, payload = content[:32], content[32:]
            if hashlib.sha256(payload).digest() != checksum:  # damaged: it is compiled and written again
                return None
            return CompileResult._rebuild(target_context, *pickle.loads(payload))
        except FileNotFoundError:
            return None
        except Exception as error:
            _warn_once(f"a compiled kernel cannot be read ({error})")
            return None

    def save_overload(self, sig: Any, data: CompileResult) -> None:
        """Keep what was compiled for the argument types ``sig``."""
        holds_addresses = data.library.has_dynamic_globals or data.lifted
        if holds_addresses or _key() != _KEY:  # sources edited since the import: whose code this is cannot be known
            return
        try:
            folder = cache_folder()
            if not folder.is_dir():
                make_folder(folder)
                _drop_old_folders(folder.parent)
            payload = dumps(data._reduce())
            write_atomically(self._file(sig, data.library.codegen), hashlib.sha256(payload).digest() + payload)
        except Exception as error:
            _warn_once(str(error))

    def _file(self, sig: Any, codegen: Any) -> Path:
        arguments = sig if isinstance(sig, tuple) else sig.args
        described = repr((tuple(map(str, arguments)), codegen.magic_tuple()))
        return cache_folder() / f"{self._name}-{hashlib.sha256(described.encode()).hexdigest()[:16]}.bin"


def _drop_old_folders(parent: Path) -> None:
    folders = sorted((path for path in parent.iterdir() if path.is_dir()), key=lambda path: path.stat().st_mtime)
    for folder in folders[:-_KEPT_FOLDERS]:
        shutil.rmtree(folder, ignore_errors=True)


_reasons: list[str] = []  # of this process, so that only the first is told


def _warn_once(reason: str) -> None:
    if not _reasons:
        warnings.warn(
            f"Compiled kernels are not kept on disk: {reason.rstrip('.')}. Every process compiles them again, which "
            f"takes some seconds. Set LABKIT_CACHE to a folder that you may write to.",
            RuntimeWarning,
            stacklevel=2,
        )
    _reasons.append(reason)
