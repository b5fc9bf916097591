"""How much a protobuf message will take in memory, told from its bytes before it is parsed.

Two bytes of a file can stand for an empty message that takes a few hundred bytes once parsed, so that a small file could
fill the memory. The bytes are walked once, along the fields of ``onnx.ModelProto``, and the walk stops at the bounds.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from labkit.errors import ModelError

__all__ = ["LARGEST_FIELDS", "LARGEST_LISTED", "check_wire"]

LARGEST_FIELDS = 500_000  # fields of all messages together; a network of 5,000 nodes has some 150,000
LARGEST_LISTED = 2**23  # bytes of numbers that are listed one by one, and not as raw data
_DEEPEST = 64

# What a field holds: numbers and text take what they take in the file, the others more.
_PLAIN, _LISTED = 0, 1


def check_wire(data: bytes, message: Any) -> None:
    """Refuse ``data``, the bytes of a protobuf message of the class ``message``, where it is damaged or breaks a bound.

    Raises
    ------
    ModelError
        The bytes are no such message, or hold too many fields or listed numbers, or messages too deep in one another.
    """
    fields = listed = 0
    waiting: list[tuple[int, int, int, Any]] = [(0, len(data), 0, message.DESCRIPTOR)]
    while waiting:
        at, end, depth, descriptor = waiting.pop()
        if depth > _DEEPEST:
            raise ModelError(f"Its messages are nested more than {_DEEPEST} deep. Export the network again.")
        kinds = _kinds(descriptor)
        while at < end:
            fields += 1
            if fields > LARGEST_FIELDS:
                raise ModelError(f"It has more than {LARGEST_FIELDS:,} fields, which no network here needs.")
            tag, at = _varint(data, at, end)
            wire = tag & 7
            if wire == 0:
                _, at = _varint(data, at, end)
            elif wire == 1:
                at += 8
            elif wire == 5:
                at += 4
            elif wire == 2:
                length, at = _varint(data, at, end)
                kind = kinds.get(tag >> 3, _PLAIN)
                if kind is _LISTED:
                    listed += length
                    if listed > LARGEST_LISTED:
                        raise ModelError(
                            f"It lists more than {LARGEST_LISTED:,} bytes of numbers one by one. Store its tensors as raw "
                            f"data: onnx.numpy_helper.from_array does."
                        )
                elif kind is not _PLAIN and at + length <= end:
                    waiting.append((at, at + length, depth + 1, kind))
                at += length
            else:
                raise ModelError("It is no ONNX file, or it is damaged: it has a field of an unknown kind.")
        if at != end:
            raise ModelError("It is no ONNX file, or it is cut off: a field reaches beyond its end.")


@cache
def _kinds(descriptor: Any) -> dict[int, Any]:
    """By field number, the descriptor of a message, or `_LISTED`; text and single numbers are left out."""
    kinds: dict[int, Any] = {}
    for field in descriptor.fields:
        if field.message_type is not None:
            kinds[field.number] = field.message_type
        elif field.type not in (field.TYPE_STRING, field.TYPE_BYTES):
            kinds[field.number] = _LISTED
    return kinds


def _varint(data: bytes, at: int, end: int) -> tuple[int, int]:
    """A number of seven bits a byte, and the place after it."""
    if at < end and (value := data[at]) < 128:
        return value, at + 1
    value = shift = 0
    while at < end and shift < 70:
        byte = data[at]
        value |= (byte & 127) << shift
        at += 1
        if byte < 128:
            return value, at
        shift += 7
    raise ModelError("It is no ONNX file, or it is damaged: a number in it does not end.")
