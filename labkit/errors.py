"""Every error that labkit raises on purpose.

    LabkitError
    ├── DataError           a data set is missing, damaged or cannot be fetched
    ├── ModelError          a network, checkpoint or file cannot be used as it is
    │   └── UnsupportedOperation   one of its operations has no integer form here
    ├── QuantizationError   bits, ranges, scales or calibration data make no sense
    │   └── BoundError      an integer would not fit the width that arithmetic gives it
    ├── InputError          an array or option handed in has the wrong shape, type or values
    └── OutputError         a result cannot be written where it was asked for

Each message is one paragraph: what, where, got, allowed, what to do next. The command line prints
exactly that paragraph; a traceback is always a fault of labkit.
"""

from __future__ import annotations

__all__ = [
    "BoundError",
    "DataError",
    "InputError",
    "LabkitError",
    "ModelError",
    "OutputError",
    "QuantizationError",
    "UnsupportedOperation",
]


class LabkitError(Exception):
    """Base of all errors that labkit raises on purpose."""


class DataError(LabkitError):
    """A data set is missing, damaged or cannot be fetched."""


class ModelError(LabkitError):
    """A network, checkpoint or file cannot be used as it is."""


class UnsupportedOperation(ModelError):
    """A network holds an operation that labkit cannot turn into integers."""


class QuantizationError(LabkitError):
    """Bits, ranges, scales or calibration data make no sense."""


class BoundError(QuantizationError):
    """An integer would not fit the width that the arithmetic gives it."""


class InputError(LabkitError):
    """An array or option handed in has the wrong shape, type or values."""


class OutputError(LabkitError):
    """A result cannot be written where it was asked for."""
