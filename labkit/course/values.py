"""Plain values and ingredients as JSON and back, with nothing lost: how cases travel.

Numbers, strings, booleans, None, lists and dicts are themselves. What JSON has no form for is a dict with one key of these:
``{"array": dtype, "shape": [...], "values": [...]}``, ``{"tuple": [...]}``, ``{"real": "nan" | "inf" | "-inf"}``,
``{"made": maker, "with": {...}}``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from labkit.course.ingredients import Made
from labkit.errors import InputError

__all__ = ["decode", "encode"]

_DTYPES = tuple("bool int8 uint8 int16 uint16 int32 uint32 int64 uint64 float16 float32 float64".split())
_TAGS = {"array", "tuple", "real", "made", "dict"}


def encode(value: Any) -> Any:
    """A plain value (as `labkit.course.judges.base.plain` makes them) or a `Made`, ready for `json.dumps`.

    Raises
    ------
    InputError
        It is of another type.
    """
    if value is None or type(value) in (bool, int, str):
        return value
    if type(value) is float:
        return value if np.isfinite(value) else {"real": repr(value)}
    if isinstance(value, np.generic):
        return encode(value.item())
    if isinstance(value, np.ndarray) and value.dtype.name in _DTYPES:
        return {"array": value.dtype.name, "shape": list(value.shape), "values": _numbers(value)}
    if isinstance(value, tuple):
        return {"tuple": [encode(item) for item in value]}
    if isinstance(value, list):
        return [encode(item) for item in value]
    if isinstance(value, Made):
        return {"made": value.maker, "with": {name: encode(item) for name, item in value.data.items()}}
    if isinstance(value, dict) and all(isinstance(name, str) for name in value):
        inner = {name: encode(item) for name, item in value.items()}
        return {"dict": inner} if _TAGS & set(inner) else inner
    raise InputError(
        f"A {type(value).__name__} cannot be part of a case; use numbers, strings, arrays, lists or dicts."
    )


def decode(data: Any) -> Any:
    """What `encode` was given, with arrays and `Made` as they were.

    Raises
    ------
    InputError
        ``data`` is no such value.
    """
    if isinstance(data, list):
        return [decode(item) for item in data]
    if not isinstance(data, dict):
        return data
    if set(data) == {"array", "shape", "values"} and data["array"] in _DTYPES:
        return _array(data)
    if set(data) == {"tuple"}:
        return tuple(decode(item) for item in data["tuple"])
    if set(data) == {"real"} and data["real"] in ("nan", "inf", "-inf"):
        return float(data["real"])
    if set(data) == {"made", "with"}:
        return Made(str(data["made"]), {name: decode(item) for name, item in data["with"].items()})
    if set(data) == {"dict"}:
        return {name: decode(item) for name, item in data["dict"].items()}
    if _TAGS & set(data):
        raise InputError(f"A value of a case is damaged: it has the keys {', '.join(map(repr, data))}.")
    return {name: decode(item) for name, item in data.items()}


def _numbers(array: NDArray[Any]) -> list[Any]:
    flat = array.reshape(-1)
    if array.dtype.kind in "biu":
        values: list[Any] = flat.tolist()
        return values
    # The shortest decimal that gives this number back; through float64, which no float32 that NumPy prints is torn by.
    shortest = [float(str(number)) if np.isfinite(number) else str(number) for number in flat]
    back = np.array([float(number) for number in shortest], array.dtype)
    return shortest if np.array_equal(back, flat, equal_nan=True) else [float(number) for number in flat]


def _array(data: dict[str, Any]) -> NDArray[Any]:
    try:
        numbers = [float(v) if isinstance(v, str) else v for v in data["values"]]
        return np.array(numbers, dtype=data["array"]).reshape(data["shape"])
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(f"An array of a case is damaged: {error}.") from error
