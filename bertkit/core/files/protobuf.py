"""The wire format of protocol buffers, as far as single messages need it: fields in, fields out.

Source: https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bertkit.core.errors import CheckpointError

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
"""Wire types: a number of any length, eight bytes, bytes after their number (texts, messages), four bytes."""

WIDTHS = {FIXED64: 8, FIXED32: 4}
LONGEST_VARINT = 10


def parse(message: bytes, wanted: Mapping[int, int]) -> dict[int, list[Any]]:
    """The values of some fields, in the order of the message; all other fields are read past.

    Args:
        message: the bytes of the message.
        wanted: wire type by number of each field of interest.

    Returns:
        A list for each field of interest: signed integers for `VARINT`, unsigned ones for `FIXED32` and `FIXED64`.

    Raises:
        CheckpointError: when the message is damaged, or a field of interest has another wire type.

    Example:
        >>> parse(field(1, VARINT, 300) + field(7, BYTES, b"read past"), {1: VARINT, 2: BYTES})
        {1: [300], 2: []}
    """
    found: dict[int, list[Any]] = {number: [] for number in wanted}
    place = 0
    while place < len(message):
        tag, place = read_varint(message, place)
        number, wire = tag >> 3, tag & 7
        value: int | bytes
        if wire == VARINT:
            value, place = read_varint(message, place)
            value -= (value >> 63) << 64
        elif wire in (BYTES, FIXED64, FIXED32):
            length = WIDTHS.get(wire)
            if length is None:
                length, place = read_varint(message, place)
            if length > len(message) - place:
                raise CheckpointError(f"field {number} of a message has {length} bytes, where {len(message) - place} are left")
            value = message[place : place + length]
            place += length
            if wire != BYTES:
                value = int.from_bytes(value, "little")
        else:
            raise CheckpointError(f"field {number} of a message has the unknown wire type {wire}")
        if number in wanted:
            if wanted[number] != wire:
                raise CheckpointError(f"field {number} of a message has the wire type {wire}, expected {wanted[number]}")
            found[number].append(value)
    return found


def read_varint(content: bytes, place: int) -> tuple[int, int]:
    """The unsigned 64-bit number that begins at a place, and the place after it.

    Raises:
        CheckpointError: when it does not end, or is too large.

    Example:
        >>> read_varint(bytes([0xAC, 0x02]), 0)
        (300, 2)
    """
    if place < len(content) and content[place] < 0x80:  # as most are
        return content[place], place + 1
    value = 0
    for index, byte in enumerate(content[place : place + LONGEST_VARINT]):
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            if value >> 64:
                break
            return value, place + index + 1
    raise CheckpointError(f"the number at byte {place} does not end, or is too large")


def varint(value: int) -> bytes:
    """An unsigned number in as few bytes as it needs.

    Example:
        >>> varint(300).hex()
        'ac02'
    """
    coded = bytearray()
    while value > 0x7F:
        coded.append(value & 0x7F | 0x80)
        value >>= 7
    coded.append(value)
    return bytes(coded)


def field(number: int, wire: int, value: int | bytes) -> bytes:
    """A field of a message; a zero is not written, as in every message of proto3.

    Example:
        >>> field(2, BYTES, field(1, VARINT, 300) + field(3, VARINT, 0)).hex()
        '120308ac02'
    """
    tag = varint(number << 3 | wire)
    if isinstance(value, bytes):
        return tag + varint(len(value)) + value
    if not value:
        return b""
    return tag + (varint(value) if wire == VARINT else value.to_bytes(WIDTHS[wire], "little"))
